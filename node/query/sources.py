"""Where the rows of each table come from, and how each of its columns is read off a row.

A source gives rows in bounded lists; a column that isn't listed is NULL in every row.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import msgspec

from perdure.core.hashing import key_partition_key
from perdure.core.ids import (
    INVOCATION_ID_BYTES,
    InvocationId,
    format_invocation_id,
    partition_key_of,
    partition_of,
)
from perdure.core.limits import QUERY_ENTRY_JSON_BYTES_MAX, QUERY_SCAN_ROWS
from perdure.node.query import entries, texts
from perdure.node.query.bounds import (
    Need,
    Range,
    Restriction,
    invocation_ranges,
    object_ranges,
    wanted_ids,
)
from perdure.node.query.invocation_columns import INVOCATION, STATE, STATUS
from perdure.node.query.invocations import can_order, invocation_rows, ranges_by
from perdure.node.query.reading import RawRow, Reading
from perdure.node.query.statuses import RAW_WORDS, SHOWN_WORDS
from perdure.node.registry.model import Deployment, Service, ServiceType
from perdure.storage.keys import (
    group_bytes,
    is_hashed_group,
    split_invocation_key,
    split_object_group,
)
from perdure.storage.partition_store import TableId
from perdure.storage.tables.invocations import Failure, Success
from perdure.storage.tables.journal import Entry, Event
from perdure.storage.tables.objects import (
    Lock,
    ObjectNames,
    Promise,
    StateEntry,
    Waiting,
    WaitingInvocation,
)

Column = Callable[[Any], Any]


def _no_ranges(need: Need, partition_count: int) -> list[Range]:
    return []


def _never(scan: Restriction) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``ranges``: what of the tables must be read; ``rows`` reads it. ``can_order``: whether it
    heeds an order that is needed. ``needs_live``: running sessions are looked at; ``homes``: of
    which partitions, where no tables are read."""

    columns: Mapping[str, Column]
    rows: Callable[[Reading, Need, list[Range]], Iterator[list[Any]]]
    ranges: Callable[[Need, int], list[Range]] = field(default=_no_ranges)
    can_order: Callable[[Restriction], bool] = field(default=_never)
    needs_live: bool = False
    homes: Callable[[Need, int], set[int]] | None = None

    def partitions(self, need: Need, partition_count: int) -> set[int]:
        """Those that hold what is needed; none for what every node has."""
        if self.homes is not None:
            return self.homes(need, partition_count)
        return {each.partition for each in self.ranges(need, partition_count)}


# --- Sessions -------------------------------------------------------------------------------------


def _sessions(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[Any]]:
    ids = wanted_ids(need)
    chosen = sorted(reading.live) if ids is None else [each for each in ids if each in reading.live]
    for start in range(0, len(chosen), QUERY_SCAN_ROWS):
        yield [(each, reading.live[each]) for each in chosen[start : start + QUERY_SCAN_ROWS]]


def _homes(need: Need, partition_count: int) -> set[int]:
    ids = wanted_ids(need)
    if ids is None:
        return set(range(partition_count))
    return {partition_of(partition_key_of(each), partition_count) for each in ids}


# --- Journals -------------------------------------------------------------------------------------


class _Step(NamedTuple):
    id: InvocationId
    position: int
    entry: Entry


class _Happening(NamedTuple):
    id: InvocationId
    event: Event


_ENTRY = msgspec.msgpack.Decoder(Entry).decode
_EVENT = msgspec.msgpack.Decoder(Event).decode


def _journal(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[_Step]]:
    for found in reading.scan(ranges):
        yield [
            _Step(
                split_invocation_key(raw.key),
                int.from_bytes(raw.key[INVOCATION_ID_BYTES:]),
                _ENTRY(raw.value),
            )
            for raw in found
        ]


def _events(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[_Happening]]:
    for found in reading.scan(ranges):
        yield [_Happening(split_invocation_key(raw.key), _EVENT(raw.value)) for raw in found]


def _json(render: Callable[[Entry], str | None]) -> Column:
    def column(step: _Step) -> str | None:
        is_small = len(step.entry.payload) <= QUERY_ENTRY_JSON_BYTES_MAX
        return render(step.entry) if is_small else None

    return column


_JOURNAL: dict[str, Column] = {
    "partition_key": lambda step: int.from_bytes(step.id[:8]),
    "id": lambda step: format_invocation_id(step.id),
    "index": lambda step: step.position,
    "entry_type": lambda step: entries.entry_type(step.entry),
    "name": lambda step: entries.entry_name(step.entry),
    "raw": lambda step: step.entry.payload,
    "raw_length": lambda step: len(step.entry.payload),
    "version": lambda step: 2,
    "entry_json": _json(entries.entry_json),
    "entry_lite_json": lambda step: entries.entry_lite_json(step.entry),
    "appended_at": lambda step: step.entry.appended_at_ms,
}
_EVENTS: dict[str, Column] = {
    "partition_key": lambda found: int.from_bytes(found.id[:8]),
    "id": lambda found: format_invocation_id(found.id),
    "after_journal_entry_index": lambda found: found.event.after_index,
    "appended_at": lambda found: found.event.appended_at_ms,
    "event_type": lambda found: texts.event_type(found.event),
    "event_json": lambda found: texts.event_json(found.event),
}

# --- Objects --------------------------------------------------------------------------------------


class _Held(NamedTuple):
    """A row of an object: whose it is, and what the table holds."""

    service: str
    key: str
    suffix: bytes
    row: Any


_NAMES = msgspec.msgpack.Decoder(ObjectNames).decode


def _objects(decoder: Any) -> Callable[[Reading, Need, list[Range]], Iterator[list[_Held]]]:
    decode = decoder.decode

    def rows(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[_Held]]:
        for found in reading.scan(ranges):
            held = (_held(reading, raw, decode) for raw in found)
            yield [each for each in held if each is not None]

    return rows


def _held(reading: Reading, raw: RawRow, decode: Callable[[bytes], Any]) -> _Held | None:
    size = group_bytes(raw.key)
    group = raw.key[:size]
    if is_hashed_group(group):
        names = reading.get(raw.partition, TableId.NAMES, group)
        if names is None:
            return None
        found = _NAMES(names)
        service, key = found.service, found.key
    else:
        split = split_object_group(group)
        if split is None:
            return None
        service, key = split
    return _Held(service, key, raw.key[size:], decode(raw.value))


def _text_or_none(content: bytes) -> str | None:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def _promise_failure(held: _Held) -> str | None:
    result = held.row.result
    return texts.completion_failure(result) if isinstance(result, Failure) else None


def _promise_value(held: _Held) -> bytes | None:
    result = held.row.result
    return result.value if isinstance(result, Success) else None


def _promise_text(held: _Held) -> str | None:
    value = _promise_value(held)
    return _text_or_none(value) if value is not None else None


def _inbox(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[_Held]]:
    for held in _objects(msgspec.msgpack.Decoder(Waiting))(reading, need, ranges):
        # Edits of state wait in the same queue; they are no invocations.
        yield [each for each in held if isinstance(each.row, WaitingInvocation)]


_OBJECT: dict[str, Column] = {
    "partition_key": lambda held: key_partition_key(held.key),
    "service_name": lambda held: held.service,
    "service_key": lambda held: held.key,
}
_INBOX: dict[str, Column] = {
    **_OBJECT,
    "id": lambda held: format_invocation_id(held.row.id),
    "sequence_number": lambda held: int.from_bytes(held.suffix),
}
_LOCKED: dict[str, Column] = {
    **_OBJECT,
    "invocation_id": lambda held: format_invocation_id(held.row.holder),
}
_LOCKS: dict[str, Column] = {
    "partition_key": _OBJECT["partition_key"],
    "lock_name": lambda held: f"{held.service}/{held.key}",
    "acquired_at": lambda held: held.row.acquired_at_ms,
    "acquired_by": lambda held: format_invocation_id(held.row.holder),
}
_STATE: dict[str, Column] = {
    **_OBJECT,
    "key": lambda held: held.row.key.decode(errors="replace"),
    "key_length": lambda held: len(held.row.key),
    "value_utf8": lambda held: _text_or_none(held.row.value),
    "value": lambda held: held.row.value,
    "value_length": lambda held: len(held.row.value),
}
_PROMISES: dict[str, Column] = {
    **_OBJECT,
    "key": lambda held: held.row.name,
    "completed": lambda held: held.row.result is not None,
    "completion_success_value": _promise_value,
    "completion_success_value_utf8": _promise_text,
    "completion_failure": _promise_failure,
}

# --- The registry ---------------------------------------------------------------------------------

_TYPES = {
    ServiceType.SERVICE: "service",
    ServiceType.VIRTUAL_OBJECT: "virtual_object",
    ServiceType.WORKFLOW: "workflow",
}


def _services(
    reading: Reading, need: Need, ranges: list[Range]
) -> Iterator[list[tuple[Service, str]]]:
    registry = reading.registry
    yield [
        (registry.deployments[deployment].services[name], deployment)
        for name, deployment in sorted(registry.latest.items())
    ]


def _deployments(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[Deployment]]:
    yield sorted(reading.registry.deployments.values(), key=lambda each: each.id)


_SERVICES: dict[str, Column] = {
    "name": lambda found: found[0].name,
    "revision": lambda found: found[0].revision,
    "public": lambda found: found[0].public,
    "ty": lambda found: _TYPES[found[0].type],
    "deployment_id": lambda found: found[1],
}
_DEPLOYMENTS: dict[str, Column] = {
    "id": lambda found: found.id,
    "ty": lambda found: "http" if found.function is None else "lambda",
    "endpoint": lambda found: found.address,
    "created_at": lambda found: found.created_at_ms,
    "min_service_protocol_version": lambda found: found.protocol_version_min,
    "max_service_protocol_version": lambda found: found.protocol_version_max,
    "services": lambda found: list(found.services),
}

# --- All of them ----------------------------------------------------------------------------------


def _nothing(reading: Reading, need: Need, ranges: list[Range]) -> Iterator[list[Any]]:
    return iter(())


_EMPTY = Source(columns={}, rows=_nothing)


def _of_objects(table: TableId, row_type: Any, columns: Mapping[str, Column]) -> Source:
    return Source(
        columns=columns,
        rows=_objects(msgspec.msgpack.Decoder(row_type)),
        ranges=partial(object_ranges, table),
    )


SOURCES: dict[str, Source] = {
    "sys_invocation": Source(
        columns=INVOCATION,
        rows=partial(invocation_rows, SHOWN_WORDS),
        ranges=partial(ranges_by, SHOWN_WORDS),
        can_order=can_order,
        needs_live=True,
    ),
    "sys_invocation_status": Source(
        columns=STATUS,
        rows=partial(invocation_rows, RAW_WORDS),
        ranges=partial(ranges_by, RAW_WORDS),
        can_order=can_order,
    ),
    "sys_invocation_state": Source(columns=STATE, rows=_sessions, needs_live=True, homes=_homes),
    "sys_journal": Source(
        columns=_JOURNAL, rows=_journal, ranges=partial(invocation_ranges, TableId.JOURNAL)
    ),
    "sys_journal_events": Source(
        columns=_EVENTS, rows=_events, ranges=partial(invocation_ranges, TableId.EVENTS)
    ),
    "sys_inbox": Source(columns=_INBOX, rows=_inbox, ranges=partial(object_ranges, TableId.INBOX)),
    "sys_keyed_service_status": _of_objects(TableId.LOCKS, Lock, _LOCKED),
    "sys_locks": _of_objects(TableId.LOCKS, Lock, _LOCKS),
    "state": _of_objects(TableId.STATE, StateEntry, _STATE),
    "sys_promise": _of_objects(TableId.PROMISES, Promise, _PROMISES),
    "sys_service": Source(columns=_SERVICES, rows=_services),
    "sys_deployment": Source(columns=_DEPLOYMENTS, rows=_deployments),
    # Features that don't exist here: tables that tools may ask for, always empty.
    "sys_rules": _EMPTY,
    "sys_vqueue_meta": _EMPTY,
    "sys_vqueues": _EMPTY,
    "sys_vqueue_entry_status": _EMPTY,
    "sys_scheduler": _EMPTY,
    "sys_user_limits": _EMPTY,
}
