"""Invocations by what they are and when they were made: ranges of the table ``statuses``. Pure.

A key there tells status, time of making and id, so what looks at nothing else needs no other table.
Reading a row through it costs more than reading it in passing: that is done for what is restricted.
"""

from collections.abc import Mapping

from perdure.node.query.bounds import (
    ALWAYS,
    Need,
    Range,
    Restriction,
    Span,
    invocation_ranges,
    merged,
    partitions_of,
)
from perdure.storage.keys import after_prefix
from perdure.storage.partition_store import TableId
from perdure.storage.tables.invocations import Status

Words = Mapping[str, Status]
"""What people call the statuses; one may have several words."""

RAW_WORDS: Words = {status.name.lower(): status for status in Status}
SHOWN_WORDS: Words = {
    "scheduled": Status.SCHEDULED,
    "pending": Status.INBOXED,
    "ready": Status.INVOKED,
    "running": Status.INVOKED,
    "backing-off": Status.INVOKED,
    "suspended": Status.SUSPENDED,
    "paused": Status.PAUSED,
    "completed": Status.COMPLETED,
}

_KEY_COLUMN = "target_service_key"
_TOLD_BY_KEYS = frozenset({"partition_key", "id", "status", "created_at"})
# Times that are the one of making, and times that aren't before it. Where there are none, no
# comparison holds.
_MADE_AT = ("created_at", "scheduled_at")
_NOT_BEFORE = ("modified_at", "inboxed_at", "running_at", "completed_at")


def ranges_by(words: Words, need: Need, count: int) -> list[Range]:
    """What must be read, all of it in ``statuses`` or all of it in ``invocations``."""
    if not all(_is_by_status(words, need, scan) for scan in need.scans):
        return invocation_ranges(TableId.INVOCATIONS, need, count, _KEY_COLUMN)
    found: list[Range] = []
    for scan in need.scans:
        span = made_in(scan)
        if span.lower >= span.upper:
            continue
        partitions = partitions_of(scan, count, _KEY_COLUMN)
        for partition in range(count) if partitions is None else partitions:
            found += (
                _range(partition, status, span) for status in sorted(statuses_of(words, scan))
            )
    # Ranges that follow each other are one, unless each is to be read in its own order.
    return found if need.order is not None else merged(found)


def is_by_status(ranges: list[Range]) -> bool:
    """Whether it is ``statuses`` that they are of."""
    return bool(ranges) and ranges[0].lower[0] == TableId.STATUSES


def can_order(scan: Restriction) -> bool:
    """Whether the rows of a scan can be read in the order in which they were made."""
    return "id" not in scan.equal


def is_told_by_keys(columns: frozenset[str] | None) -> bool:
    """Whether keys say all that is looked at."""
    return columns is not None and columns <= _TOLD_BY_KEYS


def statuses_of(words: Words, scan: Restriction) -> set[Status]:
    """What an invocation may be that a scan lets pass."""
    passing, barred = scan.equal.get("status"), scan.unequal.get("status", frozenset())
    found = {
        status
        for word, status in words.items()
        if word not in barred and (passing is None or word in passing)
    }
    if "completed_at" in scan.spans or "completion_result" in scan.equal:
        found &= {Status.COMPLETED}
    if "inboxed_at" in scan.spans:
        found &= {Status.INBOXED}
    return found


def made_in(scan: Restriction) -> Span:
    """When an invocation may have been made that a scan lets pass."""
    spans = scan.spans
    lower = [spans[column].lower for column in _MADE_AT if column in spans]
    upper = [spans[column].upper for column in (*_MADE_AT, *_NOT_BEFORE) if column in spans]
    return Span(max(lower, default=ALWAYS.lower), min(upper, default=ALWAYS.upper))


def _is_by_status(words: Words, need: Need, scan: Restriction) -> bool:
    if "id" in scan.equal:
        return False
    if need.order is not None or is_told_by_keys(need.columns):
        return True
    return made_in(scan) != ALWAYS or Status.COMPLETED not in statuses_of(words, scan)


def _range(partition: int, status: Status, span: Span) -> Range:
    prefix = bytes((TableId.STATUSES, status))
    lower = prefix + max(span.lower, 0).to_bytes(8)
    if span.upper >= ALWAYS.upper:
        return Range(partition, lower, after_prefix(prefix))
    return Range(partition, lower, prefix + span.upper.to_bytes(8))
