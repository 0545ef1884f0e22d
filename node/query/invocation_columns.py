"""Columns of sys_invocation, sys_invocation_status and sys_invocation_state. Pure."""

from collections.abc import Callable
from typing import Any

import msgspec

from perdure.core.ids import InvocationId, format_invocation_id
from perdure.node.query.live import Live
from perdure.node.query.reading import Reading
from perdure.node.query.statuses import RAW_WORDS, SHOWN_WORDS
from perdure.node.query.texts import command_type, completion_failure, future_json, last_failure
from perdure.storage.keys import index_suffix, invocation_key
from perdure.storage.partition_store import TableId
from perdure.storage.tables.invocations import (
    STATUS_OF,
    Completed,
    Failure,
    HandlerKind,
    Inboxed,
    Invocation,
    Paused,
    Pin,
    Progress,
    Result,
    Scheduled,
    SourceKind,
    Status,
    Suspended,
)
from perdure.storage.tables.journal import AttemptFailure, Event

SERVICE_TYPES = {
    HandlerKind.SERVICE: "service",
    HandlerKind.EXCLUSIVE: "virtual_object",
    HandlerKind.SHARED: "virtual_object",
    HandlerKind.WORKFLOW_RUN: "workflow",
    HandlerKind.WORKFLOW_SHARED: "workflow",
}
_INVOKED_BY = {
    SourceKind.INGRESS: "ingress",
    SourceKind.SERVICE: "service",
    SourceKind.RESTART: "restart_as_new",
}
_RAW_STATUS = {status: word for word, status in RAW_WORDS.items()}
_SHOWN_STATUS = {status: word for word, status in SHOWN_WORDS.items()}
_DECODE_INVOCATION = msgspec.msgpack.Decoder(Invocation).decode
_DECODE_RESULT = msgspec.msgpack.Decoder(Result).decode
_DECODE_EVENT = msgspec.msgpack.Decoder(Event).decode


class InvocationRow:
    """An invocation with its running session; more is read when a column needs it.

    ``row``: as stored; not there when nothing but what keys tell is looked at. Then ``status`` is
    not there if it was found by its target, nor are ``service`` and ``key`` if by its status.
    """

    __slots__ = (
        "_failure",
        "created_at_ms",
        "id",
        "key",
        "live",
        "partition",
        "reading",
        "row",
        "service",
        "status",
    )

    row: Invocation
    status: Status
    service: str
    key: str | None

    def __init__(
        self,
        reading: Reading,
        partition: int,
        status: Status | None,
        created_at_ms: int,
        id: InvocationId,
    ) -> None:
        self.reading = reading
        self.partition = partition
        self.id = id
        if status is not None:
            self.status = status
        self.created_at_ms = created_at_ms
        self.live = reading.live.get(id) if status is Status.INVOKED else None
        self._failure: AttemptFailure | bool | None = False

    @property
    def progress(self) -> Progress | None:
        row = self.row
        return None if isinstance(row, Scheduled | Inboxed) else row.progress

    @property
    def pin(self) -> Pin | None:
        progress = self.progress
        return progress.pin if progress is not None else None

    @property
    def failure(self) -> AttemptFailure | None:
        """Why the last attempt failed: of the running session, or what paused it."""
        if isinstance(self._failure, bool):
            self._failure = self._find_failure()
        return self._failure

    def result_failure(self) -> str | None:
        """How it failed."""
        row = self.row
        if not isinstance(row, Completed) or row.is_success:
            return None
        raw = self.reading.get(self.partition, TableId.RESULTS, invocation_key(self.id))
        result = _DECODE_RESULT(raw) if raw is not None else None
        return completion_failure(result) if isinstance(result, Failure) else None

    def _find_failure(self) -> AttemptFailure | None:
        row = self.row
        if self.live is not None:
            return self.live.failure
        if not isinstance(row, Paused) or not row.progress.event_count:
            return None
        key = invocation_key(self.id) + index_suffix(row.progress.event_count - 1)
        raw = self.reading.get(self.partition, TableId.EVENTS, key)
        return _DECODE_EVENT(raw).failure if raw is not None else None


def stored_row(reading: Reading, partition: int, id: InvocationId, value: bytes) -> InvocationRow:
    """The row of an invocation as it is stored."""
    row: Invocation = _DECODE_INVOCATION(value)
    spec = row.spec
    found = InvocationRow(reading, partition, STATUS_OF[type(row)], spec.created_at_ms, id)
    found.row, found.service, found.key = row, spec.target.service, spec.target.key
    return found


def _shown_status(r: InvocationRow) -> str:
    """The state as people are shown it."""
    if r.status is not Status.INVOKED:
        return _SHOWN_STATUS[r.status]
    live = r.live
    if live is None:
        return "ready"
    if live.is_in_flight:
        return "running"
    return "backing-off" if live.attempt_count else "ready"


# --- What a row says ------------------------------------------------------------------------------


def _modified_at(r: InvocationRow) -> int:
    match r.row:
        case Scheduled():
            return r.row.spec.created_at_ms
        case Inboxed():
            return r.row.inboxed_at_ms
        case Completed():
            return r.row.completed_at_ms
        case _:
            return r.row.progress.modified_at_ms


def _invoked_by_id(r: InvocationRow) -> str | None:
    source = r.row.spec.source
    if source.kind != SourceKind.SERVICE or source.invocation is None:
        return None
    return format_invocation_id(source.invocation)


def _restarted_from(r: InvocationRow) -> str | None:
    source = r.row.spec.source
    if source.kind != SourceKind.RESTART or source.invocation is None:
        return None
    return format_invocation_id(source.invocation)


def _caller_service(r: InvocationRow) -> str | None:
    caller = r.row.spec.source.target
    return caller.partition("/")[0] if caller is not None else None


def _completion_result(r: InvocationRow) -> str | None:
    row = r.row
    if not isinstance(row, Completed):
        return None
    return "success" if row.is_success else "failure"


def _execute_at(r: InvocationRow) -> int | None:
    return r.row.spec.execute_at_ms or None


def _scheduled_at(r: InvocationRow) -> int | None:
    return r.row.spec.created_at_ms if r.row.spec.execute_at_ms else None


def _failed(pick: Callable[[AttemptFailure], Any]) -> Callable[[InvocationRow], Any]:
    def column(r: InvocationRow) -> Any:
        failure = r.failure
        return pick(failure) if failure is not None else None

    return column


def _session(pick: Callable[[Live], Any]) -> Callable[[InvocationRow], Any]:
    def column(r: InvocationRow) -> Any:
        return pick(r.live) if r.live is not None else None

    return column


def _started(pick: Callable[[Progress], Any]) -> Callable[[InvocationRow], Any]:
    def column(r: InvocationRow) -> Any:
        row = r.row
        return None if isinstance(row, Scheduled | Inboxed) else pick(row.progress)

    return column


def _pinned(pick: Callable[[Pin], Any]) -> Callable[[InvocationRow], Any]:
    def column(r: InvocationRow) -> Any:
        pin = r.pin
        return pick(pin) if pin is not None else None

    return column


def _awaiting(pick: Callable[[Suspended], Any]) -> Callable[[InvocationRow], Any]:
    def column(r: InvocationRow) -> Any:
        return pick(r.row) if isinstance(r.row, Suspended) else None

    return column


def _related_type(failure: AttemptFailure) -> str | None:
    return command_type(failure.command_type) if failure.command_type is not None else None


def _awaiting_on(live: Live) -> str | None:
    return future_json(live.awaiting_on) if live.awaiting_on is not None else None


_FAILURE: dict[str, Callable[[AttemptFailure], Any]] = {
    "last_failure": last_failure,
    "last_failure_error_code": lambda f: f.error_code or None,
    "last_failure_related_entry_index": lambda f: f.command_index,
    "last_failure_related_entry_name": lambda f: f.command_name,
    "last_failure_related_entry_type": _related_type,
    "last_failure_related_command_index": lambda f: f.command_index,
    "last_failure_related_command_name": lambda f: f.command_name,
    "last_failure_related_command_type": _related_type,
}
_SESSION: dict[str, Callable[[Live], Any]] = {
    "retry_count": lambda live: live.attempt_count,
    "last_start_at": lambda live: live.last_start_at_ms or None,
    "next_retry_at": lambda live: live.next_retry_at_ms or None,
    "last_attempt_deployment_id": lambda live: live.deployment_id,
    "last_attempt_server": lambda live: live.server,
    "last_awaiting_on_future_json": _awaiting_on,
}

# --- sys_invocation_status ------------------------------------------------------------------------

STATUS: dict[str, Callable[[InvocationRow], Any]] = {
    "partition_key": lambda r: int.from_bytes(r.id[:8]),
    "id": lambda r: format_invocation_id(r.id),
    "status": lambda r: _RAW_STATUS[r.status],
    "completion_result": _completion_result,
    "completion_failure": InvocationRow.result_failure,
    "target": lambda r: r.row.spec.target.text(),
    "target_service_name": lambda r: r.service,
    "target_service_key": lambda r: r.key,
    "target_handler_name": lambda r: r.row.spec.target.handler,
    "target_service_ty": lambda r: SERVICE_TYPES[HandlerKind(r.row.spec.target.kind)],
    "idempotency_key": lambda r: r.row.spec.idempotency_key,
    "invoked_by": lambda r: _INVOKED_BY[SourceKind(r.row.spec.source.kind)],
    "invoked_by_id": _invoked_by_id,
    "invoked_by_service_name": _caller_service,
    "invoked_by_target": lambda r: r.row.spec.source.target,
    "restarted_from": _restarted_from,
    "pinned_deployment_id": _pinned(lambda pin: pin.deployment_id),
    "pinned_service_protocol_version": _pinned(lambda pin: pin.protocol_version),
    "journal_size": _started(lambda progress: progress.journal_length),
    "journal_commands_size": _started(lambda progress: progress.command_count),
    "created_at": lambda r: r.created_at_ms,
    "modified_at": _modified_at,
    "inboxed_at": lambda r: r.row.inboxed_at_ms if isinstance(r.row, Inboxed) else None,
    "scheduled_at": _scheduled_at,
    "scheduled_start_at": _execute_at,
    "running_at": _started(lambda progress: progress.started_at_ms or None),
    "completed_at": lambda r: r.row.completed_at_ms if isinstance(r.row, Completed) else None,
    "completion_retention": lambda r: r.row.spec.completion_retention_ms,
    "journal_retention": lambda r: r.row.spec.journal_retention_ms,
    "suspended_waiting_for_completions": _awaiting(lambda row: list(row.awaiting.completions)),
    "suspended_waiting_for_signals": _awaiting(lambda row: list(row.awaiting.signals)),
    "suspended_waiting_future_json": _awaiting(lambda row: future_json(row.awaiting)),
}

# --- sys_invocation: both in one ------------------------------------------------------------------

INVOCATION: dict[str, Callable[[InvocationRow], Any]] = {
    **STATUS,
    **{name: _session(pick) for name, pick in _SESSION.items()},
    **{name: _failed(pick) for name, pick in _FAILURE.items()},
    "status": _shown_status,
}

# --- sys_invocation_state -------------------------------------------------------------------------

StateRow = tuple[InvocationId, Live]


def _state_failure(pick: Callable[[AttemptFailure], Any]) -> Callable[[StateRow], Any]:
    def column(r: StateRow) -> Any:
        return pick(r[1].failure) if r[1].failure is not None else None

    return column


def _state_session(pick: Callable[[Live], Any]) -> Callable[[StateRow], Any]:
    return lambda r: pick(r[1])


STATE: dict[str, Callable[[StateRow], Any]] = {
    "partition_key": lambda r: int.from_bytes(r[0][:8]),
    "id": lambda r: format_invocation_id(r[0]),
    "in_flight": lambda r: r[1].is_in_flight,
    **{name: _state_session(pick) for name, pick in _SESSION.items()},
    **{name: _state_failure(pick) for name, pick in _FAILURE.items()},
}
