"""Journals: every step of an invocation in the order it was recorded.

Table ``journal`` (id, u32 index -> Entry), ``notifications`` (id, notification id -> where it
stands and whether it failed), ``events`` (id, u32 ordinal -> Event: failed attempts and the like,
for people).
"""

from enum import IntEnum

import msgspec

from perdure.core.ids import InvocationId
from perdure.storage.keys import text_suffix
from perdure.storage.tables.futures import Future


class CallInfo(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """How a Call or OneWayCall was resolved when it was recorded; never resolved again.

    ``traceparent``: continues the caller's trace, when there is one.
    """

    child: InvocationId
    kind: int
    key: str | None
    completion_retention_ms: int
    journal_retention_ms: int
    traceparent: str | None = None


class Entry(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A command or notification: its type code and the very bytes it came in."""

    type: int
    payload: bytes
    appended_at_ms: int
    call: CallInfo | None = None


class EventKind(IntEnum):
    TRANSIENT_ERROR = 0
    PAUSED = 1
    SUSPENDED = 2


class AttemptFailure(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Why an attempt failed, as people are shown it."""

    code: int
    message: str
    stacktrace: str = ""
    error_code: str = ""
    command_index: int | None = None
    command_name: str | None = None
    command_type: int | None = None


class Event(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Something that happened after journal entry ``after_index``.

    ``awaiting``: what a suspension waits for; None when that is too much to be shown.
    """

    kind: int
    after_index: int
    appended_at_ms: int
    failure: AttemptFailure | None = None
    awaiting: Future | None = None


def completion_suffix(completion_id: int) -> bytes:
    """Key of a completion below its invocation."""
    return b"c" + completion_id.to_bytes(4)


def signal_suffix(index: int) -> bytes:
    """Key of an indexed signal below its invocation."""
    return b"s" + index.to_bytes(4)


def named_signal_suffix(name: str) -> bytes:
    """Key of a named signal below its invocation."""
    return b"n" + text_suffix(name)


def pack_notification(index: int, failed: bool) -> int:
    """A row of ``notifications``: the latest entry's index and its outcome in one integer."""
    return index << 1 | failed


def unpack_notification(row: int) -> tuple[int, bool]:
    """Index and whether the result is a failure."""
    return row >> 1, bool(row & 1)
