"""Invocations and journals as people are shown them: table rows to documents. Pure.

Times are RFC 3339 in UTC. What doesn't apply is left out.
"""

from typing import Any

from google.protobuf.message import DecodeError, Message

from perdure.core.ids import InvocationId, format_invocation_id
from perdure.node.admin.requests import moment
from perdure.node.invoker.run import RunStatistics
from perdure.proto import service_pb2 as pb
from perdure.proto.commands import COMMAND_MESSAGES
from perdure.proto.frames import MessageType as T
from perdure.proto.frames import is_command
from perdure.storage.tables.futures import Future
from perdure.storage.tables.invocations import (
    Completed,
    Failure,
    Inboxed,
    Invocation,
    Invoked,
    Paused,
    Progress,
    Result,
    Scheduled,
    SourceKind,
    Suspended,
)
from perdure.storage.tables.journal import AttemptFailure, Entry, Event, EventKind

Document = dict[str, Any]

# States as shown; "invoked" is told apart by what the invoker is doing.
STATUSES = (
    "scheduled",
    "pending",
    "ready",
    "running",
    "backing-off",
    "suspended",
    "paused",
    "completed",
)
ALIASES = {"inboxed": ("pending",), "invoked": ("ready", "running", "backing-off")}

_SOURCES = {
    SourceKind.INGRESS: "ingress",
    SourceKind.SERVICE: "service",
    SourceKind.RESTART: "restart_as_new",
}
_EVENTS = {
    EventKind.TRANSIENT_ERROR: "transient_error",
    EventKind.PAUSED: "paused",
    EventKind.SUSPENDED: "suspended",
}


def status_of(row: Invocation, session: RunStatistics | None) -> str:
    """One of ``STATUSES``."""
    match row:
        case Scheduled():
            return "scheduled"
        case Inboxed():
            return "pending"
        case Invoked():
            if session is None:
                return "ready"
            if session.is_backing_off:
                return "backing-off"
            return "running" if session.is_running else "ready"
        case Suspended():
            return "suspended"
        case Paused():
            return "paused"
        case Completed():
            return "completed"


def summary(
    invocation: InvocationId,
    row: Invocation,
    session: RunStatistics | None,
    result: Result | None,
    last_event: Event | None,
) -> Document:
    """An invocation in a list."""
    spec = row.spec
    document: Document = {
        "id": format_invocation_id(invocation),
        "target": spec.target.text(),
        "service": spec.target.service,
        "handler": spec.target.handler,
        "status": status_of(row, session),
        "created_at": moment(spec.created_at_ms),
        "modified_at": moment(_modified_at_ms(row)),
        "invoked_by": _SOURCES[SourceKind(spec.source.kind)],
    }
    if spec.target.key is not None:
        document["key"] = spec.target.key
    if spec.source.invocation is not None:
        document["invoked_by_id"] = format_invocation_id(spec.source.invocation)
    if spec.source.target is not None:
        document["invoked_by_target"] = spec.source.target
    if spec.idempotency_key is not None:
        document["idempotency_key"] = spec.idempotency_key
    if spec.execute_at_ms:
        document["scheduled_at"] = moment(spec.execute_at_ms)
    if not isinstance(row, Scheduled | Inboxed):
        document.update(_progress(row.progress))
    if isinstance(row, Invoked) and session is not None:
        document["retry_count"] = session.retries
        if session.failure is not None:
            document["last_failure"] = failure_shape(session.failure)
        if session.is_backing_off:
            document["next_retry_at"] = moment(session.next_retry_at_ms)
    elif last_event is not None and last_event.failure is not None:
        document["last_failure"] = failure_shape(last_event.failure)
    if isinstance(row, Completed):
        document["completed_at"] = moment(row.completed_at_ms)
        document["result"] = _result(row, result)
        document["expires_at"] = moment(row.completed_at_ms + spec.completion_retention_ms)
    return document


def detail(row: Invocation, session: RunStatistics | None) -> Document:
    """What an invocation's own page adds to its summary."""
    spec = row.spec
    document: Document = {
        "completion_retention_ms": spec.completion_retention_ms,
        "journal_retention_ms": spec.journal_retention_ms,
    }
    if isinstance(row, Suspended):
        document["awaiting"] = _future(row.awaiting)
    if isinstance(row, Invoked) and row.is_pausing:
        document["is_pausing"] = True
    if session is not None:
        document.update(_attempts(session))
    return document


def _attempts(session: RunStatistics) -> Document:
    document: Document = {
        "attempt_count": session.attempts,
        "failures_since_last_command": session.failures_since_command,
    }
    if session.last_start_at_ms:
        document["last_attempt_at"] = moment(session.last_start_at_ms)
    if session.deployment_id is not None:
        document["last_attempt_deployment"] = session.deployment_id
    if session.server is not None:
        document["last_attempt_server"] = session.server
    if session.awaiting_on is not None:
        document["awaiting"] = _future(session.awaiting_on)
    return document


def entry_shape(index: int, entry: Entry) -> Document:
    """A journal entry without its payload."""
    document: Document = {
        "index": index,
        "type": type_name(entry.type),
        "is_command": is_command(entry.type),
        "size": len(entry.payload),
        "appended_at": moment(entry.appended_at_ms),
    }
    document.update(_content(entry))
    if entry.call is not None:
        document["invocation_id"] = format_invocation_id(entry.call.child)
    return document


def event_shape(event: Event) -> Document:
    """A failed attempt, a pause, and the like."""
    document: Document = {
        "event": _EVENTS[EventKind(event.kind)],
        "after_index": event.after_index,
        "at": moment(event.appended_at_ms),
    }
    if event.failure is not None:
        document["failure"] = failure_shape(event.failure)
    if event.awaiting is not None:
        document["awaiting"] = _future(event.awaiting)
    return document


def failure_shape(failure: AttemptFailure) -> Document:
    """Why an attempt failed."""
    document: Document = {"code": failure.code, "message": failure.message}
    if failure.error_code:
        document["error_code"] = failure.error_code
    if failure.stacktrace:
        document["stacktrace"] = failure.stacktrace
    if failure.command_index is not None:
        document["command_index"] = failure.command_index
    if failure.command_name:
        document["command_name"] = failure.command_name
    if failure.command_type is not None:
        document["command_type"] = type_name(failure.command_type)
    return document


def type_name(type_code: int) -> str:
    """``Run``, ``SleepCompletion``, ``Signal``, … for people."""
    try:
        words = T(type_code).name.split("_")
    except ValueError:
        return f"0x{type_code:04x}"
    if words[-1] in ("COMMAND", "NOTIFICATION"):
        words = words[:-1]
    return "".join(word.capitalize() for word in words)


def _progress(progress: Progress) -> Document:
    document: Document = {
        "started_at": moment(progress.started_at_ms),
        "journal_length": progress.journal_length,
        "command_count": progress.command_count,
    }
    if progress.pin is not None:
        document["deployment"] = progress.pin.deployment_id
        document["protocol_version"] = progress.pin.protocol_version
    return document


def _modified_at_ms(row: Invocation) -> int:
    match row:
        case Scheduled():
            return row.spec.created_at_ms
        case Inboxed():
            return row.inboxed_at_ms
        case Completed():
            return row.completed_at_ms
        case _:
            return row.progress.modified_at_ms


def _result(row: Completed, result: Result | None) -> Document:
    if row.is_success:
        return {"kind": "success"}
    document: Document = {"kind": "failure"}
    if isinstance(result, Failure):
        document["code"] = result.code
        document["message"] = result.message
    return document


def _future(future: Future) -> Document:
    document: Document = {"combinator": future.combinator}
    if future.completions:
        document["completions"] = list(future.completions)
    if future.signals:
        document["signals"] = list(future.signals)
    if future.names:
        document["signal_names"] = list(future.names)
    if future.nested:
        document["nested"] = [_future(nested) for nested in future.nested]
    return document


def _content(entry: Entry) -> Document:
    kind = COMMAND_MESSAGES.get(entry.type)
    if kind is None and is_command(entry.type):
        return {}
    try:
        message = (kind or pb.NotificationMessage).FromString(entry.payload)
    except DecodeError:
        return {}  # stored as it came: shown without what can't be read
    if isinstance(message, pb.NotificationMessage):
        return _notification(message)
    document: Document = {}
    fields = message.DESCRIPTOR.fields_by_name
    name = getattr(message, "entry_name" if "entry_name" in fields else "name", "")
    if name:
        document["name"] = name
    completions = [
        number
        for field in ("invocation_id_notification_idx", "result_completion_id")
        if (number := getattr(message, field, 0))
    ]
    if completions:
        document["completion_ids"] = completions
    document.update(_particulars(message))
    return document


def _notification(message: pb.NotificationMessage) -> Document:
    document: Document = {}
    match message.WhichOneof("id"):
        case "completion_id":
            document["completion_ids"] = [message.completion_id]
        case "signal_idx":
            document["signal_index"] = message.signal_idx
        case "signal_name":
            document["signal_name"] = message.signal_name
        case _:
            pass
    if message.WhichOneof("result") == "failure":
        failure = message.failure
        document["failure"] = {"code": failure.code, "message": failure.message}
    return document


def _particulars(message: Message) -> Document:
    match message:
        case pb.CallCommandMessage() | pb.OneWayCallCommandMessage():
            key = f"/{message.key}" if message.key else ""
            return {"target": f"{message.service_name}{key}/{message.handler_name}"}
        case pb.SleepCommandMessage():
            return {"wake_up_at": moment(message.wake_up_time)}
        case (
            pb.GetLazyStateCommandMessage()
            | pb.SetStateCommandMessage()
            | pb.ClearStateCommandMessage()
            | pb.GetEagerStateCommandMessage()
        ):
            return {"key": message.key.decode(errors="replace")}
        case (
            pb.GetPromiseCommandMessage()
            | pb.PeekPromiseCommandMessage()
            | pb.CompletePromiseCommandMessage()
        ):
            return {"key": message.key}
        case pb.OutputCommandMessage() if message.WhichOneof("result") == "failure":
            return {"failure": {"code": message.failure.code, "message": message.failure.message}}
        case _:
            return {}
