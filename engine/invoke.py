"""Accepting invocations: dedup by id, delayed starts, the lock and inbox of virtual objects."""

import msgspec

from perdure.core.ids import InvocationId
from perdure.core.invariant import invariant
from perdure.engine import notifications
from perdure.engine.actions import Accepted, Existing
from perdure.engine.commands import Complete, Invoke
from perdure.engine.tape import move, run
from perdure.engine.turn import Turn
from perdure.proto.frames import MessageType
from perdure.storage.keys import index_suffix, sequence_suffix
from perdure.storage.tables.invocations import (
    CallerSink,
    Completed,
    Failure,
    HandlerKind,
    Inboxed,
    Invocation,
    Invoked,
    Progress,
    Scheduled,
    Spec,
    Status,
    attacher_suffix,
)
from perdure.storage.tables.journal import Entry
from perdure.storage.tables.objects import Lock, WaitingInvocation
from perdure.storage.tables.timers import TimerKind

ALREADY_INVOKED = Failure(409, "the workflow method was already invoked")


def accept(turn: Turn, command: Invoke) -> Accepted | Existing:
    """Create the invocation, or tell what is there under its id."""
    known = turn.store.invocations.get(command.id)
    if known is not None:
        return _meet(turn, command, known)
    spec = Spec(
        turn.lsn,
        command.target,
        command.source,
        command.sink,
        turn.now_ms,
        command.execute_at_ms,
        command.idempotency_key,
        command.completion_retention_ms,
        command.journal_retention_ms,
    )
    turn.store.journal.put(
        command.id,
        index_suffix(0),
        Entry(MessageType.INPUT_COMMAND, command.input, turn.now_ms),
        len(command.input),
    )
    if command.execute_at_ms:
        turn.store.invocations.put(command.id, Scheduled(spec, False))
        move(turn.store, command.id, spec, None, Status.SCHEDULED)
        turn.set_timer(command.execute_at_ms, TimerKind.START, command.id, turn.lsn)
    else:
        enter(turn, command.id, spec, has_attachers=False)
    return Accepted(command.execute_at_ms)


def enter(
    turn: Turn,
    target: InvocationId,
    spec: Spec,
    has_attachers: bool,
    before: Status | None = None,
) -> None:
    """Start the invocation, which was ``before`` or is new, or queue it behind its key's lock."""
    if spec.target.kind == HandlerKind.EXCLUSIVE:
        assert spec.target.key is not None
        group = turn.object(spec.target.service, spec.target.key)
        lock = turn.store.locks.get(group)
        if lock is not None:
            turn.store.inbox.put(group, sequence_suffix(lock.tail), WaitingInvocation(target))
            turn.store.locks.put(
                group, Lock(lock.holder, lock.acquired_at_ms, lock.head, lock.tail + 1)
            )
            turn.store.invocations.put(target, Inboxed(spec, has_attachers, lock.tail, turn.now_ms))
            move(turn.store, target, spec, before, Status.INBOXED)
            return
        turn.store.locks.put(group, Lock(target, turn.now_ms, 0, 0))
    start(turn, target, spec, has_attachers, before)


def start(
    turn: Turn, target: InvocationId, spec: Spec, has_attachers: bool, before: Status | None
) -> None:
    """Run an invocation for the first time: its journal is the Input, or a copied prefix."""
    prefix = spec.prefix
    length, commands, pin = (
        (1, 1, None)
        if prefix is None
        else (prefix.journal_length, prefix.command_count, prefix.pin)
    )
    progress = Progress(length, commands, pin, turn.now_ms, turn.now_ms, 0, has_attachers)
    run(turn, target, Invoked(spec, progress, turn.lsn), before)


def start_scheduled(turn: Turn, target: InvocationId, accepted_lsn: int) -> None:
    """A delayed start is due."""
    row = turn.store.invocations.get(target)
    if isinstance(row, Scheduled) and row.spec.accepted_lsn == accepted_lsn:
        enter(turn, target, row.spec, row.has_attachers, Status.SCHEDULED)


def add_attacher(turn: Turn, target: InvocationId, row: Invocation, sink: CallerSink) -> None:
    """Have ``sink`` told when the invocation ends."""
    turn.store.attachers.put(target, attacher_suffix(sink.caller, sink.completion_id), sink)
    match row:
        case Scheduled():
            changed: Invocation = Scheduled(row.spec, True)
        case Inboxed():
            changed = Inboxed(row.spec, True, row.sequence, row.inboxed_at_ms)
        case Completed():
            invariant(False, "nobody waits for what has ended", id=target)
            return
        case _:
            progress = msgspec.structs.replace(row.progress, has_attachers=True)
            changed = msgspec.structs.replace(row, progress=progress)
    turn.store.invocations.put(target, changed)


def expires_at_ms(row: Completed) -> int:
    """When the stored result goes."""
    return row.completed_at_ms + row.spec.completion_retention_ms


def _meet(turn: Turn, command: Invoke, known: Invocation) -> Existing:
    ended = isinstance(known, Completed)
    result = turn.store.results.get(command.id) if ended else None
    if command.sink is not None:
        sink = command.sink
        if known.spec.target.kind == HandlerKind.WORKFLOW_RUN:
            payload = notifications.result(sink.completion_id, ALREADY_INVOKED)
            turn.send(sink.caller, Complete(sink, payload, True))
        elif result is not None:
            payload = notifications.result(sink.completion_id, result)
            turn.send(sink.caller, Complete(sink, payload, isinstance(result, Failure)))
        else:
            add_attacher(turn, command.id, known, sink)
    expires = expires_at_ms(known) if isinstance(known, Completed) else 0
    return Existing(known.spec.execute_at_ms, result, expires, _is_repeat(command, known.spec))


def _is_repeat(command: Invoke, known: Spec) -> bool:
    source = command.source
    if command.idempotency_key is None and command.target.kind != HandlerKind.WORKFLOW_RUN:
        return True  # the id was drawn at random: nobody else can name it
    return source.request != 0 and source.request == known.source.request
