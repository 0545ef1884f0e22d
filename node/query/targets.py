"""Invocations by what they run and when they were made: ranges of the table ``targets``. Pure.

A key there tells time of making and id, and service and key unless these are long. Those of one
object, or of one plain service, are in the order of time; a service's objects are beside each
other.
"""

from perdure.core.hashing import key_partition_key
from perdure.core.ids import partition_of
from perdure.node.query.bounds import (
    ALWAYS,
    KEY_COLUMN,
    SERVICE_COLUMN,
    Need,
    Range,
    Restriction,
    Span,
    merged,
    partitions_of,
    texts_among,
)
from perdure.node.query.statuses import made_in
from perdure.storage.keys import after_prefix, object_group, service_prefix
from perdure.storage.partition_store import TableId

TOLD_BY_TARGETS = frozenset({"partition_key", "id", "created_at", SERVICE_COLUMN, KEY_COLUMN})
_TABLE = bytes((TableId.TARGETS,))


def target_ranges(need: Need, count: int) -> list[Range]:
    """What scans that name services can't do without."""
    found: list[Range] = []
    for scan in need.scans:
        span = made_in(scan)
        if span.lower >= span.upper:
            continue
        if KEY_COLUMN in scan.equal:
            found += _of_objects(scan, span, count)
        else:
            found += _of_services(scan, count)
    # No group is a prefix of another: ranges of two never become one, which would be in no order.
    return merged(found)


def in_group(partition: int, group: bytes, span: Span) -> Range:
    """What an object was asked for in a span of time; ``group`` begins with the table's number."""
    lower = group + max(span.lower, 0).to_bytes(8)
    if span.upper >= ALWAYS.upper:
        return Range(partition, lower, after_prefix(group))
    return Range(partition, lower, group + span.upper.to_bytes(8))


def _of_objects(scan: Restriction, span: Span, count: int) -> list[Range]:
    found: list[Range] = []
    services = texts_among(scan.equal[SERVICE_COLUMN])
    for key in texts_among(scan.equal[KEY_COLUMN]):
        if "partition_key" in scan.equal:
            partitions = sorted(partitions_of(scan, count) or ())
        else:
            partitions = [partition_of(key_partition_key(key), count)]
        for service in services:
            group = _TABLE + object_group(service, key)
            found += (in_group(partition, group, span) for partition in partitions)
    return found


def _of_services(scan: Restriction, count: int) -> list[Range]:
    found: list[Range] = []
    partitions = partitions_of(scan, count)
    for service in texts_among(scan.equal[SERVICE_COLUMN]):
        prefix = _TABLE + service_prefix(service)
        upper = after_prefix(prefix)
        found += (
            Range(partition, prefix, upper)
            for partition in (range(count) if partitions is None else sorted(partitions))
        )
    return found
