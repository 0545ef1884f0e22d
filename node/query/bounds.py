"""Which rows a statement can't need: what its filters say becomes ranges of ordered keys. Pure.

Ranges may hold rows that the filters drop, never the other way round.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from perdure.core.hashing import key_partition_key
from perdure.core.ids import (
    IdError,
    InvocationId,
    parse_invocation_id,
    partition_key_of,
    partition_of,
)
from perdure.storage.keys import (
    after_prefix,
    index_suffix,
    invocation_key,
    object_group,
    service_prefix,
)
from perdure.storage.partition_store import TableId

Values = Mapping[str, frozenset[object]]
"""Values by column."""


class Span(NamedTuple):
    """Times ``[lower, upper)``, in ms."""

    lower: int
    upper: int


ALWAYS = Span(0, 1 << 64)


@dataclass(frozen=True, slots=True)
class Restriction:
    """What every row of one scan meets. By column: it has one of some values, none of some, a time
    in a span."""

    equal: Values = field(default_factory=dict[str, frozenset[object]])
    unequal: Values = field(default_factory=dict[str, frozenset[object]])
    spans: Mapping[str, Span] = field(default_factory=dict[str, Span])


Wanted = tuple[Restriction, ...]
"""A row is needed if it passes any."""

EVERYTHING: Wanted = (Restriction(),)


class Order(NamedTuple):
    """By when they were made, the first ``limit`` rows are enough, with all that were made in the
    same ms as the last of these."""

    limit: int
    is_descending: bool


@dataclass(frozen=True, slots=True)
class Need:
    """What a statement needs of a table. ``columns``: all that it looks at; None: any."""

    scans: Wanted = EVERYTHING
    columns: frozenset[str] | None = None
    order: Order | None = None


_PARTITION_KEY_END = 1 << 64
SERVICE_COLUMN, KEY_COLUMN = "target_service_name", "target_service_key"


class Range(NamedTuple):
    """Keys ``[lower, upper)`` of one partition, table number included."""

    partition: int
    lower: bytes
    upper: bytes


def invocation_ranges(
    table: TableId, need: Need, count: int, key_column: str | None = None
) -> list[Range]:
    """Of a table that is filed by invocation.

    ``key_column`` holds the object's key, whose hash names the partition of its invocations.
    """
    found: list[Range] = []
    for scan in need.scans:
        if "id" in scan.equal:
            for invocation in ids_among(scan.equal["id"]):
                found += _below(table, invocation, scan.equal, count)
            continue
        partitions = partitions_of(scan, count, key_column)
        if partitions is None:
            return _whole(table, range(count))
        found += _whole(table, partitions)
    return merged(found)


def partitions_of(scan: Restriction, count: int, key_column: str | None = None) -> set[int] | None:
    """The partitions that hold the rows of a scan; None: all."""
    if "partition_key" in scan.equal:
        numbers = _numbers(scan.equal["partition_key"], _PARTITION_KEY_END)
        return {partition_of(number, count) for number in numbers}
    if key_column is not None and key_column in scan.equal:
        keys = texts_among(scan.equal[key_column])
        return {partition_of(key_partition_key(key), count) for key in keys}
    return None


def object_ranges(table: TableId, need: Need, count: int) -> list[Range]:
    """Of a table whose keys begin with an object's group."""
    found: list[Range] = []
    for scan in need.scans:
        services = _some(scan.equal, "service_name")
        keys = _some(scan.equal, "service_key")
        if services is not None and keys is not None:
            for key in keys:
                for service in services:
                    number = key_partition_key(key)
                    found.append(_range(table, number, object_group(service, key), count))
        elif services is not None:
            for service in services:
                prefix = bytes([table]) + service_prefix(service)
                upper = after_prefix(prefix)
                found += (Range(partition, prefix, upper) for partition in range(count))
        elif keys is not None:
            found += _whole(table, {partition_of(key_partition_key(key), count) for key in keys})
        else:
            return _whole(table, range(count))
    return merged(found)


def wanted_ids(need: Need, column: str = "id") -> list[InvocationId] | None:
    """The ids that rows must have; None: any."""
    found: list[InvocationId] = []
    for scan in need.scans:
        if column not in scan.equal:
            return None
        found += ids_among(scan.equal[column])
    return sorted(set(found))


def _below(table: TableId, invocation: InvocationId, equalities: Values, count: int) -> list[Range]:
    number, filed = partition_key_of(invocation), invocation_key(invocation)
    if "index" in equalities and table is TableId.JOURNAL:
        indices = _numbers(equalities["index"], 1 << 32)
        return [_range(table, number, filed + index_suffix(i), count) for i in indices]
    return [_range(table, number, filed, count)]


def _range(table: TableId, partition_key: int, prefix: bytes, count: int) -> Range:
    lower = bytes([table]) + prefix
    return Range(partition_of(partition_key, count), lower, after_prefix(lower))


def _whole(table: TableId, partitions: Iterable[int]) -> list[Range]:
    lower, upper = bytes([table]), bytes([table + 1])
    return [Range(partition, lower, upper) for partition in sorted(partitions)]


def merged(ranges: list[Range]) -> list[Range]:
    """The same keys in order, each once."""
    merged: list[Range] = []
    for found in sorted(ranges):
        last = merged[-1] if merged else None
        if last is None or last.partition != found.partition or last.upper < found.lower:
            merged.append(found)
        elif found.upper > last.upper:
            merged[-1] = last._replace(upper=found.upper)
    return merged


def _some(equalities: Values, column: str) -> list[str] | None:
    return texts_among(equalities[column]) if column in equalities else None


def texts_among(values: Iterable[object]) -> list[str]:
    """Values that are no texts equal none."""
    return sorted(value for value in values if isinstance(value, str))


def _numbers(values: Iterable[object], end: int) -> list[int]:
    return sorted(value for value in values if isinstance(value, int) and 0 <= value < end)


def ids_among(values: Iterable[object]) -> list[InvocationId]:
    """What is no id names no row."""
    found: list[InvocationId] = []
    for text in texts_among(values):
        try:
            found.append(parse_invocation_id(text))
        except IdError:
            continue
    return found
