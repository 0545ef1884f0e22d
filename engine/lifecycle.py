"""How invocations end, and what operators may do to them: cancel, kill, purge, pause, resume.

Each request's answer by state is a table in spec 5.9 and 5.10; the tests walk it whole.
"""

from collections.abc import Iterator

import msgspec

from perdure.core.ids import InvocationId
from perdure.core.invariant import invariant
from perdure.engine import notifications
from perdure.engine.actions import (
    AbortAttempt,
    InvocationEnded,
    StartAttempt,
    Verdict,
    WindDown,
)
from perdure.engine.commands import Complete, Kill
from perdure.engine.invoke import start
from perdure.engine.objects import apply_mutation, drop_promises
from perdure.engine.tape import Tape, move, notify, run
from perdure.engine.turn import Turn
from perdure.proto.frames import MessageType
from perdure.storage.keys import index_suffix, sequence_suffix, timer_key
from perdure.storage.tables.invocations import (
    STATUS_OF,
    CallerSink,
    Completed,
    Failure,
    HandlerKind,
    Inboxed,
    Invoked,
    Paused,
    Pin,
    Progress,
    Result,
    Scheduled,
    Spec,
    Started,
    Status,
    Success,
    Suspended,
    weight,
)
from perdure.storage.tables.journal import AttemptFailure, EventKind, signal_suffix
from perdure.storage.tables.objects import Lock, WaitingMutation
from perdure.storage.tables.timers import TimerKind

CANCELED = Failure(409, "canceled")
KILLED = Failure(409, "killed")


def finish(
    turn: Turn,
    target: InvocationId,
    spec: Spec,
    progress: Progress,
    result: Result,
    before: Status = Status.INVOKED,
) -> None:
    """End a started invocation: answer its callers, keep or drop what retention says."""
    store = turn.store
    _answer(turn, target, spec, progress.has_attachers, result)
    store.notifications.clear(target)
    keeps_journal = spec.journal_retention_ms > 0 and spec.completion_retention_ms > 0
    if not keeps_journal:
        store.journal.clear(target)
        store.events.clear(target)
        progress = msgspec.structs.replace(progress, journal_length=0, command_count=0)
    if spec.completion_retention_ms > 0:
        store.results.put(target, result, weight(result))
        store.invocations.put(
            target, Completed(spec, progress, turn.now_ms, isinstance(result, Success))
        )
        move(store, target, spec, before, Status.COMPLETED)
        lsn = spec.accepted_lsn
        expiry = turn.now_ms + spec.completion_retention_ms
        turn.set_timer(expiry, TimerKind.EXPIRE_COMPLETION, target, lsn)
        if keeps_journal and spec.journal_retention_ms < spec.completion_retention_ms:
            expiry = turn.now_ms + spec.journal_retention_ms
            turn.set_timer(expiry, TimerKind.EXPIRE_JOURNAL, target, lsn)
    else:
        store.invocations.delete(target)
        move(store, target, spec, before, None)
    if spec.target.kind == HandlerKind.EXCLUSIVE:
        release_lock(turn, spec, target)


def release_lock(turn: Turn, spec: Spec, holder: InvocationId) -> None:
    """Hand the key's lock to the next in its inbox, applying state mutations on the way."""
    assert spec.target.key is not None
    store = turn.store
    group = turn.object(spec.target.service, spec.target.key)
    lock = store.locks.get(group)
    invariant(lock is not None and lock.holder == holder, "the holder releases its lock", lock=lock)
    assert lock is not None
    head = lock.head
    while head < lock.tail:
        waiting = store.inbox.get(group, sequence_suffix(head))
        head += 1
        if waiting is None:
            continue  # canceled or killed while it waited
        store.inbox.delete(group, sequence_suffix(head - 1))
        if isinstance(waiting, WaitingMutation):
            apply_mutation(turn, group, waiting)
            continue
        row = store.invocations.get(waiting.id)
        invariant(isinstance(row, Inboxed), "inboxes hold inboxed invocations", id=waiting.id)
        assert isinstance(row, Inboxed)
        store.locks.put(group, Lock(waiting.id, turn.now_ms, head, lock.tail))
        start(turn, waiting.id, row.spec, row.has_attachers, Status.INBOXED)
        return
    store.locks.delete(group)


def end_with_output(turn: Turn, target: InvocationId, spec: Spec, progress: Progress) -> bool:
    """End with the last Output in the journal; False when there is none."""
    for index in range(progress.journal_length - 1, -1, -1):
        entry = turn.store.journal.get(target, index_suffix(index))
        invariant(entry is not None, "journals are dense", id=target, index=index)
        assert entry is not None
        if entry.type == MessageType.OUTPUT_COMMAND:
            result = notifications.output_result(entry.payload)
            if result is None:
                return False
            finish(turn, target, spec, progress, result)
            return True
    return False


def cancel(turn: Turn, target: InvocationId) -> Verdict:
    """Signal a started invocation; remove one that has not started."""
    row = turn.store.invocations.get(target)
    match row:
        case None:
            return Verdict.NOT_FOUND
        case Completed():
            return Verdict.COMPLETED
        case Scheduled() | Inboxed():
            _remove_unstarted(turn, target, row, CANCELED)
            return Verdict.DONE
        case _:
            deliver_cancel(turn, target, row)
            return Verdict.ACCEPTED


def deliver_cancel(turn: Turn, target: InvocationId, row: Started) -> None:
    """Append signal 1; a paused invocation goes on because of it, one that pauses won't."""
    if isinstance(row, Invoked) and row.is_pausing:
        row = Invoked(row.spec, row.progress, row.session)
    entry = (int(MessageType.SIGNAL_NOTIFICATION), notifications.cancel_signal())
    notify(turn, target, row, entry, (signal_suffix(notifications.CANCEL_SIGNAL), False))
    if isinstance(row, Paused):
        paused = turn.store.invocations.get(target)
        assert isinstance(paused, Paused)
        running = Invoked(paused.spec, paused.progress, turn.lsn)
        run(turn, target, running, Status.PAUSED)


def kill(turn: Turn, target: InvocationId) -> Verdict:
    """End an invocation at once, and, if it had got anywhere, all it called."""
    row = turn.store.invocations.get(target)
    match row:
        case None:
            return Verdict.NOT_FOUND
        case Completed():
            return Verdict.COMPLETED
        case Scheduled() | Inboxed():
            _remove_unstarted(turn, target, row, KILLED)
        case _:
            if row.progress.pin is not None:
                for child in children(turn, target, row.progress):
                    turn.send(child, Kill(child))
            # First the old stream goes; only then may the key's next holder start.
            turn.actions.append(AbortAttempt(target))
            finish(turn, target, row.spec, row.progress, KILLED, STATUS_OF[type(row)])
    return Verdict.DONE


def purge(turn: Turn, target: InvocationId) -> Verdict:
    """Forget a completed invocation; a workflow's run takes state and promises with it."""
    row = turn.store.invocations.get(target)
    if row is None:
        return Verdict.NOT_FOUND
    if not isinstance(row, Completed):
        return Verdict.NOT_COMPLETED
    store = turn.store
    store.invocations.delete(target)
    move(store, target, row.spec, Status.COMPLETED, None)
    store.results.delete(target)
    _drop_journal(turn, target)
    if row.spec.target.kind == HandlerKind.WORKFLOW_RUN:
        assert row.spec.target.key is not None
        group = turn.object(row.spec.target.service, row.spec.target.key)
        store.state.clear(group)
        drop_promises(store, group)
    return Verdict.DONE


def purge_journal(turn: Turn, target: InvocationId) -> Verdict:
    """Forget the journal of a completed invocation and keep its result."""
    row = turn.store.invocations.get(target)
    if row is None:
        return Verdict.NOT_FOUND
    if not isinstance(row, Completed):
        return Verdict.NOT_COMPLETED
    _drop_journal(turn, target)
    progress = msgspec.structs.replace(row.progress, journal_length=0, command_count=0)
    turn.store.invocations.put(target, msgspec.structs.replace(row, progress=progress))
    return Verdict.DONE


def expire(turn: Turn, target: InvocationId, kind: TimerKind, accepted_lsn: int) -> None:
    """A retention ended."""
    row = turn.store.invocations.get(target)
    if not isinstance(row, Completed) or row.spec.accepted_lsn != accepted_lsn:
        return  # purged, and perhaps invoked again, meanwhile
    if kind is TimerKind.EXPIRE_COMPLETION:
        purge(turn, target)
    else:
        purge_journal(turn, target)


def pause(turn: Turn, target: InvocationId) -> Verdict:
    """Stop running a started invocation until it is resumed.

    An attempt under way is wound down first: what its service has done is still recorded.
    """
    row = turn.store.invocations.get(target)
    match row:
        case None:
            return Verdict.NOT_FOUND
        case Completed():
            return Verdict.COMPLETED
        case Scheduled() | Inboxed():
            return Verdict.NOT_STARTED
        case Paused():
            return Verdict.DONE
        case Invoked():
            pausing = Invoked(row.spec, row.progress, row.session, True)
            turn.store.invocations.put(target, pausing)
            turn.actions.append(WindDown(target, row.session))
            return Verdict.ACCEPTED
        case Suspended():
            tape = Tape(turn, target, row.progress)
            stop(turn, target, row.spec, tape, None, Status.SUSPENDED)
            return Verdict.ACCEPTED


def stop(
    turn: Turn,
    target: InvocationId,
    spec: Spec,
    tape: Tape,
    failure: AttemptFailure | None,
    before: Status = Status.INVOKED,
) -> None:
    """Wait for an operator from here on."""
    tape.event(EventKind.PAUSED, failure)
    turn.store.invocations.put(target, Paused(spec, tape.progress()))
    move(turn.store, target, spec, before, Status.PAUSED)


def resume(turn: Turn, target: InvocationId, pin: Pin | None = None) -> Verdict:
    """Run a paused or suspended invocation again, with another pin if one is given."""
    row = turn.store.invocations.get(target)
    match row:
        case None:
            return Verdict.NOT_FOUND
        case Completed():
            return Verdict.COMPLETED
        case Scheduled() | Inboxed():
            return Verdict.NOT_STARTED
        case Paused() | Suspended():
            progress = msgspec.structs.replace(row.progress, modified_at_ms=turn.now_ms)
            if pin is not None and progress.pin is not None:
                progress = msgspec.structs.replace(progress, pin=pin)
            running = Invoked(row.spec, progress, turn.lsn)
            run(turn, target, running, STATUS_OF[type(row)])
            return Verdict.DONE
        case Invoked():
            if row.is_pausing:
                turn.store.invocations.put(target, Invoked(row.spec, row.progress, row.session))
            # If it is backing off, the leader cuts the wait short.
            turn.actions.append(StartAttempt(target, row.session))
            return Verdict.DONE


def children(turn: Turn, target: InvocationId, progress: Progress) -> Iterator[InvocationId]:
    """Everything the invocation called, one-way calls included."""
    for index in range(1, progress.journal_length):
        entry = turn.store.journal.get(target, index_suffix(index))
        if entry is not None and entry.call is not None:
            yield entry.call.child


def encode_completion(sink: CallerSink, result: Result) -> Complete:
    """What a waiting caller is told."""
    payload = notifications.result(sink.completion_id, result)
    return Complete(sink, payload, isinstance(result, Failure))


def _answer(
    turn: Turn, target: InvocationId, spec: Spec, has_attachers: bool, result: Result
) -> None:
    if spec.sink is not None:
        turn.send(spec.sink.caller, encode_completion(spec.sink, result))
    if has_attachers:
        for _, sink in turn.store.attachers.scan(target):
            turn.send(sink.caller, encode_completion(sink, result))
        turn.store.attachers.clear(target)
    turn.actions.append(InvocationEnded(target, result, spec))


def _remove_unstarted(
    turn: Turn, target: InvocationId, row: Scheduled | Inboxed, result: Failure
) -> None:
    _answer(turn, target, row.spec, row.has_attachers, result)
    if isinstance(row, Scheduled):
        turn.store.timers.delete(timer_key(row.spec.execute_at_ms, TimerKind.START, target, 0))
    else:
        assert row.spec.target.key is not None
        group = turn.object(row.spec.target.service, row.spec.target.key)
        turn.store.inbox.delete(group, sequence_suffix(row.sequence))
    turn.store.journal.clear(target)
    turn.store.invocations.delete(target)
    move(turn.store, target, row.spec, STATUS_OF[type(row)], None)


def _drop_journal(turn: Turn, target: InvocationId) -> None:
    turn.store.journal.clear(target)
    turn.store.events.clear(target)
