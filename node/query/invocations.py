"""Invocations: which table a statement finds them by, and how it reads them there.

All scans of a statement go one way, so that no row comes twice. Reading a row through an index
costs more than reading it in passing: that is done for what is restricted, or told by keys alone.
"""

from collections.abc import Callable, Iterator

from perdure.node.query.bounds import (
    ALWAYS,
    KEY_COLUMN,
    SERVICE_COLUMN,
    Need,
    Range,
    Restriction,
    invocation_ranges,
)
from perdure.node.query.invocation_columns import InvocationRow, stored_row
from perdure.node.query.reading import RawRow, Reading
from perdure.node.query.statuses import (
    TOLD_BY_STATUSES,
    Words,
    made_in,
    of_statuses,
    status_ranges,
    statuses_of,
)
from perdure.node.query.targets import TOLD_BY_TARGETS, in_group, target_ranges
from perdure.storage.keys import invocation_key, split_invocation_key, split_object_group
from perdure.storage.partition_store import TableId
from perdure.storage.tables.invocations import (
    MADE_BYTES,
    Status,
    split_status_key,
    split_target_key,
)

# A service with more objects is read in the order of time among all others.
_GROUPS_MAX = 256

_Read = Callable[[Reading, RawRow], InvocationRow | None]


def ranges_by(words: Words, need: Need, count: int) -> list[Range]:
    """What must be read, all of it in one table."""
    ways = {_way(words, need, scan) for scan in need.scans}
    if TableId.INVOCATIONS in ways:
        return invocation_ranges(TableId.INVOCATIONS, need, count, KEY_COLUMN)
    if TableId.STATUSES in ways:
        return status_ranges(words, need, count)
    return target_ranges(need, count)


def can_order(scan: Restriction) -> bool:
    """Whether the rows of a scan can be read in the order in which they were made."""
    return "id" not in scan.equal


def way_of(ranges: list[Range]) -> TableId:
    """The table that they are of."""
    return TableId(ranges[0].lower[0]) if ranges else TableId.INVOCATIONS


def invocation_rows(
    words: Words, reading: Reading, need: Need, ranges: list[Range]
) -> Iterator[list[InvocationRow]]:
    """The rows of ranges; in the order of time if one is needed."""
    if way_of(ranges) is TableId.TARGETS:
        ranges = _narrowed(words, reading, need, ranges)
    match way_of(ranges):
        case TableId.STATUSES:
            read = _told_by_status if _tells(TOLD_BY_STATUSES, need) else _by_status
        case TableId.TARGETS:
            read = _by_target
            if _tells(TOLD_BY_TARGETS, need):
                read = _keyed if KEY_COLUMN in (need.columns or ()) else _told_by_target
        case _:
            read = _in_passing
    order = need.order
    raw = reading.scan(ranges) if order is None else reading.merge(ranges, MADE_BYTES, order)
    for found in raw:
        rows = (read(reading, each) for each in found)
        yield [row for row in rows if row is not None]


def _way(words: Words, need: Need, scan: Restriction) -> TableId:
    """An object was asked for little, what has not ended is little, a service is one of some."""
    if "id" in scan.equal:
        return TableId.INVOCATIONS
    names_service = SERVICE_COLUMN in scan.equal
    if names_service and KEY_COLUMN in scan.equal:
        return TableId.TARGETS
    if Status.COMPLETED not in statuses_of(words, scan):
        return TableId.STATUSES
    if names_service:
        return TableId.TARGETS
    if need.order is not None or _tells(TOLD_BY_STATUSES, need) or made_in(scan) != ALWAYS:
        return TableId.STATUSES
    return TableId.INVOCATIONS


def _narrowed(words: Words, reading: Reading, need: Need, ranges: list[Range]) -> list[Range]:
    """A service's invocations are in the order of time object by object only: where time matters,
    each of its objects becomes a range, or if they are many, time alone counts."""
    scan = need.scans[0]
    span = made_in(scan)
    if len(need.scans) > 1 or KEY_COLUMN in scan.equal or (need.order is None and span == ALWAYS):
        return ranges
    groups = reading.heads(ranges, MADE_BYTES, _GROUPS_MAX)
    if groups is None:
        return of_statuses(statuses_of(words, scan), span, {each.partition for each in ranges})
    return [in_group(partition, group, span) for partition, group in groups]


def _tells(told: frozenset[str], need: Need) -> bool:
    """Whether keys say all that is looked at."""
    return need.columns is not None and need.columns <= told


# --- One row by each way --------------------------------------------------------------------------


def _in_passing(reading: Reading, raw: RawRow) -> InvocationRow | None:
    return stored_row(reading, raw.partition, split_invocation_key(raw.key), raw.value)


def _told_by_status(reading: Reading, raw: RawRow) -> InvocationRow | None:
    return InvocationRow(reading, raw.partition, *split_status_key(raw.key))


def _by_status(reading: Reading, raw: RawRow) -> InvocationRow | None:
    status, _, id = split_status_key(raw.key)
    value = reading.get(raw.partition, TableId.INVOCATIONS, invocation_key(id))
    if value is None:
        return None
    row = stored_row(reading, raw.partition, id, value)
    # Unless the tables moved on while they were read, that is so.
    return row if row.status is status else None


def _told_by_target(reading: Reading, raw: RawRow) -> InvocationRow | None:
    group, created_at_ms, id = split_target_key(raw.key)
    names = split_object_group(group)
    if names is None:
        return _by_target(reading, raw)
    row = InvocationRow(reading, raw.partition, None, created_at_ms, id)
    row.service, row.key = names
    return row


def _keyed(reading: Reading, raw: RawRow) -> InvocationRow | None:
    """As told, unless it may be of a plain service, which has no key."""
    row = _told_by_target(reading, raw)
    return row if row is None or row.key else _by_target(reading, raw)


def _by_target(reading: Reading, raw: RawRow) -> InvocationRow | None:
    _, created_at_ms, id = split_target_key(raw.key)
    value = reading.get(raw.partition, TableId.INVOCATIONS, invocation_key(id))
    if value is None:
        return None
    row = stored_row(reading, raw.partition, id, value)
    # The tables may have moved on to a namesake while they were read.
    return row if row.created_at_ms == created_at_ms else None
