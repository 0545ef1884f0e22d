"""Results that arrive later: completions, signals, timers, and who attaches to whom."""

from perdure.core.ids import InvocationId
from perdure.engine import notifications
from perdure.engine.commands import Attach, Complete, Signal
from perdure.engine.invoke import add_attacher, start_scheduled
from perdure.engine.lifecycle import cancel, encode_completion, expire
from perdure.engine.tape import notify
from perdure.engine.turn import Turn, timers_of
from perdure.proto.frames import MessageType
from perdure.storage.keys import split_timer_key
from perdure.storage.tables.invocations import (
    Completed,
    Failure,
    Invoked,
    Paused,
    Started,
    Suspended,
)
from perdure.storage.tables.journal import (
    completion_suffix,
    named_signal_suffix,
    signal_suffix,
)
from perdure.storage.tables.timers import TimerKind

NOT_FOUND = Failure(404, "not found")


def complete(turn: Turn, command: Complete) -> None:
    """Append the completion to the caller's journal, if it is still the one that waits."""
    sink = command.sink
    row = started(turn, sink.caller)
    if row is None or row.spec.accepted_lsn != sink.accepted_lsn:
        return
    entry = (sink.type, command.payload)
    key = (completion_suffix(sink.completion_id), command.failed)
    notify(turn, sink.caller, row, entry, key)


def signal(turn: Turn, command: Signal) -> None:
    """Append a signal to a started invocation; others drop it, but for a cancel."""
    if command.index == notifications.CANCEL_SIGNAL:
        cancel(turn, command.id)
        return
    row = started(turn, command.id)
    if row is None:
        return
    suffix = (
        signal_suffix(command.index)
        if command.index is not None
        else named_signal_suffix(command.name)
    )
    entry = (int(MessageType.SIGNAL_NOTIFICATION), command.payload)
    notify(turn, command.id, row, entry, (suffix, command.failed))


def attach(turn: Turn, command: Attach) -> None:
    """Tell a caller an invocation's result, now or when it has one."""
    row = turn.store.invocations.get(command.id)
    sink = command.sink
    match row:
        case None:
            message = encode_completion(sink, NOT_FOUND)
        case Completed():
            result = turn.store.results.get(command.id)
            message = encode_completion(sink, result if result is not None else NOT_FOUND)
        case _:
            if command.wait:
                add_attacher(turn, command.id, row, sink)
                return
            message = Complete(sink, notifications.void(sink.completion_id), False)
    turn.send(sink.caller, message)


def fire(turn: Turn, keys: list[bytes]) -> None:
    """Timers are due; one that is no longer stored was fired before, or taken back."""
    for key in keys:
        _, number_of_kind, target, number = split_timer_key(key)
        kind = TimerKind(number_of_kind)
        timers = timers_of(turn.store, kind)
        accepted_lsn = timers.get(key)
        if accepted_lsn is None:
            continue
        timers.delete(key)
        match kind:
            case TimerKind.SLEEP:
                _wake(turn, target, number, accepted_lsn)
            case TimerKind.START:
                start_scheduled(turn, target, accepted_lsn)
            case _:
                expire(turn, target, kind, accepted_lsn)


def started(turn: Turn, target: InvocationId) -> Started | None:
    """The invocation's row if it can take notifications."""
    row = turn.store.invocations.get(target)
    return row if isinstance(row, Invoked | Suspended | Paused) else None


def _wake(turn: Turn, target: InvocationId, completion_id: int, accepted_lsn: int) -> None:
    row = started(turn, target)
    if row is None or row.spec.accepted_lsn != accepted_lsn:
        return
    entry = (int(MessageType.SLEEP_COMPLETION), notifications.void(completion_id))
    notify(turn, target, row, entry, (completion_suffix(completion_id), False))
