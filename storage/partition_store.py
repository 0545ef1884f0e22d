"""The partition store: tables in memory over tables in LMDB, flushed with their applied LSN.

Everything is called on the event loop but ``Flush.run``, which a storage thread calls. Reads look
into the active memtable, the frozen one, then LMDB. A flush writes the frozen memtable and its
applied LSN in one synced commit, so after any crash the store is the state at some applied LSN.

Invariants: ``durable_lsn <= applied_lsn`` · rows are written only by the engine's apply, in LSN
order · a memtable is frozen only between two records.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from heapq import merge
from typing import Any, Generic, TypeVar, cast

import msgspec

from perdure.core.errors import StoreUnreadable
from perdure.core.invariant import invariant
from perdure.storage.env import Env
from perdure.storage.keys import after_prefix, invocation_key, split_invocation_key
from perdure.storage.memtable import MISSING, ROW_OVERHEAD_BYTES, Group, Memtable
from perdure.storage.tables.invocations import CallerSink, Invocation, Result, Status
from perdure.storage.tables.journal import Entry, Event
from perdure.storage.tables.meta import Meta
from perdure.storage.tables.objects import Lock, ObjectNames, Promise, StateEntry, Waiting
from perdure.storage.tables.timers import Outgoing

STORE_FORMAT_VERSION = 2

V = TypeVar("V")


class TableId(IntEnum):
    """First byte of a key in LMDB. Numbers are never reused."""

    META = 0
    INVOCATIONS = 1
    INVOKED = 2  # no more: STATUSES tells
    RESULTS = 3
    ATTACHERS = 4
    JOURNAL = 5
    NOTIFICATIONS = 6
    EVENTS = 7
    LOCKS = 8
    INBOX = 9
    STATE = 10
    PROMISES = 11
    NAMES = 12
    TIMERS = 13
    OUTBOX = 14
    SEQUENCES = 15
    EXPIRIES = 16
    LISTENERS = 17
    STATUSES = 18
    TARGETS = 19


# Their keys or groups are invocation ids.
_OF_INVOCATIONS = frozenset(
    {
        TableId.INVOCATIONS,
        TableId.RESULTS,
        TableId.ATTACHERS,
        TableId.JOURNAL,
        TableId.NOTIFICATIONS,
        TableId.EVENTS,
    }
)
_TABLE_COUNT = len(TableId)
META_KEY = bytes([TableId.META]) + b"meta"
_ENCODE = msgspec.msgpack.Encoder().encode


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """LSNs, and the memtables' weight in bytes."""

    applied_lsn: int
    durable_lsn: int
    active_bytes: int
    frozen_bytes: int


def _as_is(key: bytes) -> bytes:
    return key


# How a key or group of each table is written in LMDB, and back. In memory it is what callers say.
_FILE: list[Callable[[bytes], bytes]] = [
    invocation_key if table in _OF_INVOCATIONS else _as_is for table in TableId
]
_UNFILE: list[Callable[[bytes], bytes]] = [
    split_invocation_key if table in _OF_INVOCATIONS else _as_is for table in TableId
]


class Rows(Generic[V]):
    """A plain table."""

    __slots__ = ("_decode", "_file", "_prefix", "_store", "_table", "_unfile")

    def __init__(self, store: "PartitionStore", table: TableId, row_type: object) -> None:
        self._store = store
        self._table = int(table)
        self._file = _FILE[table]
        self._unfile = _UNFILE[table]
        self._prefix = bytes([table])
        self._decode: Callable[[bytes], V] = msgspec.msgpack.Decoder(cast(Any, row_type)).decode

    def get(self, key: bytes) -> V | None:
        row = self._store.active.rows[self._table].get(key, MISSING)
        if row is MISSING:
            frozen = self._store.frozen
            if frozen is not None:
                row = frozen.rows[self._table].get(key, MISSING)
            if row is MISSING:
                raw = self._store.env.get(self._prefix + self._file(key))
                return None if raw is None else self._decode(raw)
        return cast("V | None", row)

    def put(self, key: bytes, row: V, payload_bytes: int = 0) -> None:
        """Write a row; ``payload_bytes`` is what it holds beyond small fields."""
        active = self._store.active
        active.rows[self._table][key] = row
        active.bytes += ROW_OVERHEAD_BYTES + payload_bytes

    def delete(self, key: bytes) -> None:
        active = self._store.active
        active.rows[self._table][key] = None
        active.bytes += ROW_OVERHEAD_BYTES

    def after(self, key: bytes) -> bytes:
        """From where a scan goes on behind the row of ``key``."""
        return self._file(key) + b"\0"

    def scan(self, lower: bytes, limit: int) -> list[tuple[bytes, V]]:
        """Up to ``limit`` rows in the order of the table, over all layers.

        ``lower``: empty, what ``after`` gave, or a key as it is filed.
        """
        unfile = self._unfile
        upper = bytes([self._table + 1])
        found: list[tuple[bytes, V]] = []
        fresh = self._scan_memtables(lower)
        key, row = next(fresh, (None, None))
        for raw_key, raw in self._store.env.scan(self._prefix + lower, upper):
            stored = raw_key[1:]
            while key is not None and key < stored and len(found) < limit:
                if row is not None:
                    found.append((unfile(key), cast(V, row)))
                key, row = next(fresh, (None, None))
            if len(found) >= limit:
                return found
            if key != stored:
                found.append((unfile(stored), self._decode(raw)))
        while key is not None and len(found) < limit:
            if row is not None:
                found.append((unfile(key), cast(V, row)))
            key, row = next(fresh, (None, None))
        return found

    def _scan_memtables(self, lower: bytes) -> Iterator[tuple[bytes, object]]:
        """Rows and tombstones by filed keys, ascending; the younger memtable wins."""
        table, frozen, file = self._table, self._store.frozen, self._file
        active = self._store.active.rows[table]
        layers = [self._store.active.filed_from(table, lower, file)]
        if frozen is not None:
            layers.append(frozen.filed_from(table, lower, file))
        last = None
        for filed in merge(*layers):
            if filed != last:
                last = filed
                key = self._unfile(filed)
                row = active.get(key, MISSING)
                if row is MISSING and frozen is not None:
                    row = frozen.rows[table][key]
                yield filed, row


class Groups(Generic[V]):
    """A grouped table: rows by suffix below a group."""

    __slots__ = ("_decode", "_file", "_prefix", "_store", "_table")

    def __init__(self, store: "PartitionStore", table: TableId, row_type: object) -> None:
        self._store = store
        self._table = int(table)
        self._file = _FILE[table]
        self._prefix = bytes([table])
        self._decode: Callable[[bytes], V] = msgspec.msgpack.Decoder(cast(Any, row_type)).decode

    def get(self, group: bytes, suffix: bytes) -> V | None:
        memtable: Memtable | None = self._store.active
        while memtable is not None:
            if rows := memtable.groups[self._table].get(group):
                row = rows.rows.get(suffix, MISSING)
                if row is not MISSING:
                    return cast("V | None", row)
                if rows.cleared:
                    return None
            memtable = self._store.frozen if memtable is self._store.active else None
        raw = self._store.env.get(self._prefix + self._file(group) + suffix)
        return None if raw is None else self._decode(raw)

    def put(self, group: bytes, suffix: bytes, row: V, payload_bytes: int = 0) -> None:
        """Write a row; ``payload_bytes`` is what it holds beyond small fields."""
        active = self._store.active
        found = active.groups[self._table].get(group) or active.group(self._table, group)
        found.rows[suffix] = row
        active.bytes += ROW_OVERHEAD_BYTES + payload_bytes

    def delete(self, group: bytes, suffix: bytes) -> None:
        active = self._store.active
        active.group(self._table, group).rows[suffix] = None
        active.bytes += ROW_OVERHEAD_BYTES

    def clear(self, group: bytes) -> None:
        """Delete the whole group."""
        active = self._store.active
        rows = active.group(self._table, group)
        rows.cleared = True
        rows.rows.clear()
        active.bytes += ROW_OVERHEAD_BYTES

    def scan(self, group: bytes) -> list[tuple[bytes, V]]:
        """All rows of the group by ascending suffix, over all layers."""
        overlay: dict[bytes, object] = {}
        for memtable in (self._store.active, self._store.frozen):
            if memtable is not None and (rows := memtable.groups[self._table].get(group)):
                overlay = {**rows.rows, **overlay}
                if rows.cleared:
                    return _live(overlay)
        prefix = self._prefix + self._file(group)
        size = len(prefix)
        for raw_key, raw in self._store.env.scan(prefix, after_prefix(prefix)):
            overlay.setdefault(raw_key[size:], raw)
        decode = self._decode
        # Rows fresh from the environment are still bytes: no table's rows are.
        return [
            (suffix, decode(row) if isinstance(row, bytes) else cast(V, row))
            for suffix, row in sorted(overlay.items(), key=_by_suffix)
            if row is not None
        ]


class Flush:
    """A frozen memtable on its way to LMDB. ``run`` may be called again after ``MapFull``."""

    def __init__(self, env: Env, memtable: Memtable, meta: Meta) -> None:
        self._env = env
        self._memtable = memtable
        self.meta = meta

    def run(self) -> None:
        """Encode and commit; on the storage thread.

        Raises:
            MapFull: grow the environment on the loop, then run again.
            OSError: the disk refused; run again later.
        """
        cleared: list[tuple[bytes, bytes]] = []
        deleted: list[bytes] = []
        written: list[tuple[bytes, bytes]] = [(META_KEY, _ENCODE(self.meta))]
        for table in range(_TABLE_COUNT):
            prefix, file = bytes([table]), _FILE[table]
            for key, row in self._memtable.rows[table].items():
                if row is None:
                    deleted.append(prefix + file(key))
                else:
                    written.append((prefix + file(key), _ENCODE(row)))
            for group, rows in self._memtable.groups[table].items():
                start = prefix + file(group)
                if rows.cleared:
                    cleared.append((start, after_prefix(start)))
                for suffix, row in rows.rows.items():
                    if row is not None:
                        written.append((start + suffix, _ENCODE(row)))
                    elif not rows.cleared:
                        deleted.append(start + suffix)
        written.sort()
        self._env.commit(cleared, deleted, written)


class PartitionStore:
    """All tables of one partition."""

    def __init__(self, env: Env, fingerprint: bytes, partition: int) -> None:
        self.env = env
        self.active = Memtable(_TABLE_COUNT)
        self.frozen: Memtable | None = None
        self._take(_read_meta(env, fingerprint, partition))

        self.invocations: Rows[Invocation] = Rows(self, TableId.INVOCATIONS, Invocation)
        self.statuses: Rows[int] = Rows(self, TableId.STATUSES, int)
        self.targets: Rows[int] = Rows(self, TableId.TARGETS, int)
        self.results: Rows[Result] = Rows(self, TableId.RESULTS, Result)
        self.attachers: Groups[CallerSink] = Groups(self, TableId.ATTACHERS, CallerSink)
        self.journal: Groups[Entry] = Groups(self, TableId.JOURNAL, Entry)
        self.notifications: Groups[int] = Groups(self, TableId.NOTIFICATIONS, int)
        self.events: Groups[Event] = Groups(self, TableId.EVENTS, Event)
        self.locks: Rows[Lock] = Rows(self, TableId.LOCKS, Lock)
        self.inbox: Groups[Waiting] = Groups(self, TableId.INBOX, Waiting)
        self.state: Groups[StateEntry] = Groups(self, TableId.STATE, StateEntry)
        self.promises: Groups[Promise] = Groups(self, TableId.PROMISES, Promise)
        self.listeners: Groups[CallerSink] = Groups(self, TableId.LISTENERS, CallerSink)
        self.names: Rows[ObjectNames] = Rows(self, TableId.NAMES, ObjectNames)
        self.timers: Rows[int] = Rows(self, TableId.TIMERS, int)
        self.expiries: Rows[int] = Rows(self, TableId.EXPIRIES, int)
        self.outbox: Rows[Outgoing] = Rows(self, TableId.OUTBOX, Outgoing)
        self.sequences: Rows[int] = Rows(self, TableId.SEQUENCES, int)

    def forget(self) -> None:
        """What is in the environment is about to be replaced: it counts as nothing applied."""
        invariant(self.frozen is None, "nothing is flushed", partition=self.opened.partition)
        opened = self.opened
        self.active = Memtable(_TABLE_COUNT)
        self._take(Meta(STORE_FORMAT_VERSION, opened.fingerprint, opened.partition, 0, 0, 0))

    def reload(self) -> None:
        """Take up what was put into the environment instead of ours; memory is forgotten."""
        invariant(self.frozen is None, "nothing is flushed", partition=self.opened.partition)
        self.env.refresh()
        self.active = Memtable(_TABLE_COUNT)
        self._take(_read_meta(self.env, self.opened.fingerprint, self.opened.partition))

    def _take(self, meta: Meta) -> None:
        self.opened = meta
        self.applied_lsn = self.durable_lsn = meta.applied_lsn
        self.applied_epoch = meta.applied_epoch
        self.time_ms = meta.time_ms

    def is_dirty(self) -> bool:
        """Whether a flush would advance the durable LSN."""
        return self.applied_lsn > self.durable_lsn and self.frozen is None

    def freeze(self) -> Flush:
        """Start a flush: from here on writes go to a new memtable."""
        invariant(self.frozen is None, "one flush at a time", partition=self.opened.partition)
        self.frozen = self.active
        self.active = Memtable(_TABLE_COUNT)
        meta = Meta(
            STORE_FORMAT_VERSION,
            self.opened.fingerprint,
            self.opened.partition,
            self.applied_lsn,
            self.applied_epoch,
            self.time_ms,
        )
        return Flush(self.env, self.frozen, meta)

    def finish(self, flush: Flush) -> None:
        """The flush was committed: read through it and forget the frozen memtable."""
        invariant(
            flush.meta.applied_lsn >= self.durable_lsn,
            "the durable LSN only grows",
            flushed=flush.meta.applied_lsn,
            durable=self.durable_lsn,
        )
        self.env.refresh()
        self.frozen = None
        self.durable_lsn = flush.meta.applied_lsn

    def of_statuses(
        self, first: Status, last: Status, lower: bytes, limit: int
    ) -> list[tuple[bytes, int]]:
        """Up to ``limit`` rows of ``statuses`` from ``lower`` on, of ``first`` up to ``last``."""
        found = self.statuses.scan(max(lower, bytes([first])), limit)
        while found and found[-1][0][0] > last:
            found.pop()
        return found

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(
            self.applied_lsn,
            self.durable_lsn,
            self.active.bytes,
            self.frozen.bytes if self.frozen else 0,
        )

    def close(self) -> None:
        self.env.close()


def _read_meta(env: Env, fingerprint: bytes, partition: int) -> Meta:
    raw = env.get(META_KEY)
    if raw is None:
        return Meta(STORE_FORMAT_VERSION, fingerprint, partition, 0, 0, 0)
    try:
        return msgspec.msgpack.decode(raw, type=Meta)
    except msgspec.MsgspecError as error:
        raise StoreUnreadable(
            f"the tables of partition {partition} don't say how far they are: {error}"
        ) from error


def _by_suffix(item: tuple[bytes, object]) -> bytes:
    return item[0]


def _live(rows: dict[bytes, object]) -> list[tuple[bytes, Any]]:
    return [
        (suffix, row) for suffix, row in sorted(rows.items(), key=_by_suffix) if row is not None
    ]


__all__ = ["Flush", "Group", "Groups", "Meta", "PartitionStore", "Rows", "TableId"]
