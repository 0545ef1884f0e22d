"""Invocations by what they are and when they were made: ranges of the table ``statuses``. Pure.

A key there tells status, time of making and id, so what looks at nothing else needs no other table.
"""

from collections.abc import Iterable, Mapping

from perdure.node.query.bounds import (
    ALWAYS,
    KEY_COLUMN,
    Need,
    Range,
    Restriction,
    Span,
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

TOLD_BY_STATUSES = frozenset({"partition_key", "id", "status", "created_at"})
# Times that are the one of making, and times that aren't before it. Where there are none, no
# comparison holds.
_MADE_AT = ("created_at", "scheduled_at")
_NOT_BEFORE = ("modified_at", "inboxed_at", "running_at", "completed_at")


def status_ranges(words: Words, need: Need, count: int) -> list[Range]:
    """What scans can't do without."""
    found: list[Range] = []
    for scan in need.scans:
        partitions = partitions_of(scan, count, KEY_COLUMN)
        found += of_statuses(
            statuses_of(words, scan),
            made_in(scan),
            range(count) if partitions is None else partitions,
        )
    # Ranges that follow each other are one, unless each is to be read in its own order.
    return found if need.order is not None else merged(found)


def of_statuses(statuses: set[Status], span: Span, partitions: Iterable[int]) -> list[Range]:
    """What is one of statuses and was made in a span."""
    if span.lower >= span.upper:
        return []
    return [
        _range(partition, status, span)
        for partition in sorted(partitions)
        for status in sorted(statuses)
    ]


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


def _range(partition: int, status: Status, span: Span) -> Range:
    prefix = bytes((TableId.STATUSES, status))
    lower = prefix + max(span.lower, 0).to_bytes(8)
    if span.upper >= ALWAYS.upper:
        return Range(partition, lower, after_prefix(prefix))
    return Range(partition, lower, prefix + span.upper.to_bytes(8))
