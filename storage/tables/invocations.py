"""Invocations: who was called by whom, and how far it got.

Table ``invocations`` (id -> Invocation), ``statuses`` (status, when it was made, id -> session if
invoked, else 0: what a new leader starts from, and how people find what they ask for), ``results``
(id -> Result, kept as long as the completion), ``attachers`` (id, caller and completion id ->
CallerSink: who else waits for the result), ``targets`` (service and key, when it was made, id -> 0:
how people find what an object or a service was asked for; written and deleted with the invocation).
"""

from enum import IntEnum

import msgspec

from perdure.core.ids import INVOCATION_ID_BYTES, InvocationId
from perdure.storage.keys import object_group
from perdure.storage.tables.futures import Future


class HandlerKind(IntEnum):
    """What a handler may do and how its calls are ordered."""

    SERVICE = 0
    EXCLUSIVE = 1
    SHARED = 2
    WORKFLOW_RUN = 3
    WORKFLOW_SHARED = 4


class Target(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What an invocation runs. ``key`` is None for plain services only."""

    service: str
    handler: str
    key: str | None
    kind: int

    def text(self) -> str:
        """``Service/handler`` or ``Service/key/handler``."""
        if self.key is None:
            return f"{self.service}/{self.handler}"
        return f"{self.service}/{self.key}/{self.handler}"


class SourceKind(IntEnum):
    INGRESS = 0
    SERVICE = 1
    RESTART = 2


class Source(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Who asked. ``invocation`` is the caller, or the one restarted; ``target`` the caller's.

    ``request``: drawn by an ingress whose command may arrive twice, 0 where its id says enough.
    """

    kind: int
    invocation: InvocationId | None = None
    target: str | None = None
    request: int = 0


class CallerSink(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """An invocation that waits: a completion of ``type`` for ``completion_id`` goes to it.

    ``accepted_lsn`` tells the caller apart from a later invocation under the same id.
    """

    caller: InvocationId
    accepted_lsn: int
    completion_id: int
    type: int


class Pin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The deployment and protocol version that an invocation stays with."""

    deployment_id: str
    protocol_version: int


class Prefix(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a restarted invocation begins with: so many copied entries, commands among them.

    ``seed_of``: whose random seed it draws from.
    """

    journal_length: int
    command_count: int
    pin: Pin | None
    seed_of: InvocationId


class Spec(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What is fixed when an invocation is accepted. Times in ms since the epoch, 0 for none.

    ``accepted_lsn`` is unique: ids that are derived from keys come back, this never does.
    """

    accepted_lsn: int
    target: Target
    source: Source
    sink: CallerSink | None
    created_at_ms: int
    execute_at_ms: int
    idempotency_key: str | None
    completion_retention_ms: int
    journal_retention_ms: int
    prefix: Prefix | None = None


class Progress(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How far a started invocation got.

    ``journal_length`` counts all entries, ``command_count`` commands only (Input included).
    ``modified_at_ms`` moves with stored entries, pinning, suspension and resume, nothing else.
    """

    journal_length: int
    command_count: int
    pin: Pin | None
    modified_at_ms: int
    started_at_ms: int
    event_count: int
    has_attachers: bool


class Scheduled(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """Waits for its execution time."""

    spec: Spec
    has_attachers: bool


class Inboxed(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """Waits for its key's lock, at ``sequence`` of the key's inbox."""

    spec: Spec
    has_attachers: bool
    sequence: int
    inboxed_at_ms: int


class Invoked(msgspec.Struct, frozen=True, array_like=True, tag=2, gc=False):
    """Runs, or is about to. ``session``: LSN of the record that made it so; fences attempts.

    ``is_pausing``: an operator asked for a pause; it comes when the attempt under way is over.
    """

    spec: Spec
    progress: Progress
    session: int
    is_pausing: bool = False


class Suspended(msgspec.Struct, frozen=True, array_like=True, tag=3, gc=False):
    """Waits for what remains of ``awaiting``; ``delivered`` entries had reached the service."""

    spec: Spec
    progress: Progress
    awaiting: Future
    delivered: int


class Paused(msgspec.Struct, frozen=True, array_like=True, tag=4, gc=False):
    """Waits for an operator."""

    spec: Spec
    progress: Progress


class Completed(msgspec.Struct, frozen=True, array_like=True, tag=5, gc=False):
    """Ended; the result is in ``results`` while retained. ``journal_length`` 0: journal purged."""

    spec: Spec
    progress: Progress
    completed_at_ms: int
    is_success: bool


Started = Invoked | Suspended | Paused
Invocation = Scheduled | Inboxed | Invoked | Suspended | Paused | Completed


class Status(IntEnum):
    """What an invocation's row is; a key in ``statuses`` begins with it."""

    SCHEDULED = 0
    INBOXED = 1
    INVOKED = 2
    SUSPENDED = 3
    PAUSED = 4
    COMPLETED = 5


STATUS_OF: dict[type[Invocation], Status] = {
    Scheduled: Status.SCHEDULED,
    Inboxed: Status.INBOXED,
    Invoked: Status.INVOKED,
    Suspended: Status.SUSPENDED,
    Paused: Status.PAUSED,
    Completed: Status.COMPLETED,
}
_STATUSES = tuple(Status)
_STATUS_BYTES = tuple(status.to_bytes(1) for status in Status)
MADE_BYTES = 8 + INVOCATION_ID_BYTES  # what keys of ``statuses`` and ``targets`` end with


class Success(msgspec.Struct, frozen=True, array_like=True, tag=0, gc=False):
    """A value."""

    value: bytes


class Failure(msgspec.Struct, frozen=True, array_like=True, tag=1, gc=False):
    """A terminal error; ``code`` fits 16 bits."""

    code: int
    message: str
    metadata: tuple[tuple[str, str], ...] = ()
    stacktrace: str = ""


Result = Success | Failure


def weight(result: Result) -> int:
    """Bytes that a result holds beyond small fields."""
    if isinstance(result, Success):
        return len(result.value)
    return len(result.message) + len(result.stacktrace)


def status_key(status: Status, created_at_ms: int, invocation: InvocationId) -> bytes:
    """Key of an invocation in ``statuses``: those of one status sort by time."""
    return _STATUS_BYTES[status] + created_at_ms.to_bytes(8) + invocation


def split_status_key(key: bytes) -> tuple[Status, int, InvocationId]:
    """Status, time in ms and invocation of a key in ``statuses``."""
    return _STATUSES[key[0]], int.from_bytes(key[1:9]), InvocationId(key[9:])


def target_key(target: Target, created_at_ms: int, invocation: InvocationId) -> bytes:
    """Key of an invocation in ``targets``: those of one object, or of one plain service, sort by
    time. A plain service is filed like its object without a key."""
    group = object_group(target.service, target.key or "")
    return group + created_at_ms.to_bytes(8) + invocation


def split_target_key(key: bytes) -> tuple[bytes, int, InvocationId]:
    """Group, time in ms and invocation of a key in ``targets``."""
    made, id = -MADE_BYTES, -INVOCATION_ID_BYTES
    return key[:made], int.from_bytes(key[made:id]), InvocationId(key[id:])


def attacher_suffix(caller: InvocationId, completion_id: int) -> bytes:
    """Key of a waiting caller below the invocation it waits for."""
    return caller + completion_id.to_bytes(4)
