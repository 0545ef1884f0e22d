"""Running a completed invocation once more: from its input, or from a prefix of its journal.

The new invocation starts with copies of the entries ``0..from_index``. A command among them whose
completion came later takes it along, behind the prefix, so that replay never waits for what has
happened already. Seed and pin are the old one's: the code must draw and do the same again.
"""

from perdure.core.ids import InvocationId
from perdure.engine.actions import Accepted, Verdict
from perdure.engine.commands import Restart
from perdure.engine.invoke import enter
from perdure.engine.turn import Turn
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T
from perdure.proto.frames import is_command
from perdure.storage.keys import index_suffix
from perdure.storage.tables.invocations import (
    Completed,
    HandlerKind,
    Inboxed,
    Prefix,
    Scheduled,
    Source,
    SourceKind,
    Spec,
)
from perdure.storage.tables.journal import (
    Entry,
    completion_suffix,
    named_signal_suffix,
    pack_notification,
    signal_suffix,
)

_PREFIX_VERSION_MIN = 6
_WORKFLOWS = (HandlerKind.WORKFLOW_RUN, HandlerKind.WORKFLOW_SHARED)
_CALLS = (T.CALL_COMMAND, T.ONE_WAY_CALL_COMMAND)
# Their field 11 is a completion's id, in all of them.
_COMPLETABLE = frozenset(
    {
        T.GET_LAZY_STATE_COMMAND,
        T.GET_LAZY_STATE_KEYS_COMMAND,
        T.GET_PROMISE_COMMAND,
        T.PEEK_PROMISE_COMMAND,
        T.COMPLETE_PROMISE_COMMAND,
        T.SLEEP_COMMAND,
        T.RUN_COMMAND,
        T.ATTACH_INVOCATION_COMMAND,
        T.GET_INVOCATION_OUTPUT_COMMAND,
    }
)


def restart(turn: Turn, command: Restart) -> Accepted | Verdict:
    """Accept the new invocation, or tell why the old one can't be run again like this."""
    row = turn.store.invocations.get(command.id)
    match row:
        case None:
            return Verdict.NOT_FOUND
        case Scheduled() | Inboxed():
            return Verdict.NOT_STARTED
        case Completed():
            pass
        case _:
            return Verdict.NOT_COMPLETED
    old, pin = row.spec, row.progress.pin
    if row.progress.journal_length <= command.from_index:
        return Verdict.JOURNAL_TOO_SHORT
    if old.target.kind in _WORKFLOWS:
        return Verdict.NOT_RESTARTABLE
    is_resumed = command.from_index > 0
    if is_resumed and (pin is None or pin.protocol_version < _PREFIX_VERSION_MIN):
        return Verdict.NOT_RESTARTABLE
    journal = [entry for _, entry in turn.store.journal.scan(command.id)]
    entries = _with_completions(journal, command.from_index + 1)
    if entries is None:
        return Verdict.NOT_RESTARTABLE
    if turn.store.invocations.get(command.new_id) is not None:
        return Accepted(0)  # asked twice under one id
    commands = sum(is_command(entry.type) for entry in entries)
    prefix = None
    if is_resumed:
        seed_of = old.prefix.seed_of if old.prefix is not None else command.id
        prefix = Prefix(len(entries), commands, command.pin or pin, seed_of)
    elif command.pin is not None:
        prefix = Prefix(len(entries), commands, command.pin, command.new_id)
    source = Source(SourceKind.RESTART, command.id, old.target.text())
    retention = (command.completion_retention_ms, command.journal_retention_ms)
    spec = Spec(turn.lsn, old.target, source, None, turn.now_ms, 0, None, *retention, prefix)
    _write(turn, command.new_id, entries)
    enter(turn, command.new_id, spec, has_attachers=False)
    return Accepted(0)


def _with_completions(journal: list[Entry], length: int) -> list[Entry] | None:
    """The prefix and, in their order, what completes it; None when something never came."""
    prefix, suffix = journal[:length], journal[length:]
    wanted: set[int] = set()
    for entry in prefix:
        if is_command(entry.type):
            wanted |= _declared(entry)
        else:
            wanted.discard(_notification(entry).completion_id)
    late: list[Entry] = []
    for entry in suffix:
        if not is_command(entry.type) and entry.type != T.SIGNAL_NOTIFICATION:
            completion_id = _notification(entry).completion_id
            if completion_id in wanted:
                wanted.discard(completion_id)
                late.append(entry)
    return None if wanted else [*prefix, *late]


def _declared(entry: Entry) -> set[int]:
    """The completion ids that a command announces."""
    if entry.type in _CALLS:
        call = pb.CallCommandMessage.FromString(entry.payload)
        ids = {call.invocation_id_notification_idx}
        return ids | {call.result_completion_id} if entry.type == T.CALL_COMMAND else ids
    if entry.type in _COMPLETABLE:
        return {pb.RunCommandMessage.FromString(entry.payload).result_completion_id}
    return set()


def _write(turn: Turn, target: InvocationId, entries: list[Entry]) -> None:
    for index, entry in enumerate(entries):
        # Without ``call``: what the old one called is not the new one's to kill.
        copy = Entry(entry.type, entry.payload, turn.now_ms)
        turn.store.journal.put(target, index_suffix(index), copy, len(copy.payload))
        if is_command(entry.type):
            continue
        message = _notification(entry)
        match message.WhichOneof("id"):
            case "signal_idx":
                suffix = signal_suffix(message.signal_idx)
            case "signal_name":
                suffix = named_signal_suffix(message.signal_name)
            case _:
                suffix = completion_suffix(message.completion_id)
        failed = message.WhichOneof("result") == "failure"
        turn.store.notifications.put(target, suffix, pack_notification(index, failed))


def _notification(entry: Entry) -> pb.NotificationMessage:
    return pb.NotificationMessage.FromString(entry.payload)
