"""The partition store against dictionaries: any mix of writes, flushes, full maps and restarts."""

import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tests.sim.disk import SimDisk
from tests.sim.ports import SimEnv, SimTables

from perdure.core.errors import StoreUnreadable
from perdure.core.ids import InvocationId
from perdure.core.invariant import InvariantViolation
from perdure.storage.env import Env, LmdbEnv, MapFull
from perdure.storage.memtable import Memtable
from perdure.storage.partition_store import Flush, PartitionStore, Rows, TableId
from perdure.storage.tables.objects import StateEntry

FINGERPRINT = b"F" * 16
KEYS = st.sampled_from([b"a", b"ab", b"b", b"b\xff", b"c", b"\x00", b"\xff"])
GROUPS = st.sampled_from([b"g1" * 12, b"g2" * 12, b"\xff" * 24])
NUMBERS = st.integers(0, 1000)


class StoreMachine(RuleBasedStateMachine):
    """``sequences`` stands for plain tables, ``state`` for grouped ones."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = SimTables(SimDisk(random.Random(1)), map_bytes=700)
        self.store = self._open()
        self.flush: Flush | None = None
        self.rows: dict[bytes, int] = {}
        self.groups: dict[bytes, dict[bytes, StateEntry]] = {}
        self.committed: tuple[int, Any, Any] = (0, {}, {})
        self.frozen: tuple[int, Any, Any] = (0, {}, {})

    def _open(self) -> PartitionStore:
        return PartitionStore(SimEnv(self.tables), FINGERPRINT, 3)

    def _applied(self) -> None:
        self.store.applied_lsn += 1
        self.store.time_ms += 5

    def _image(self) -> tuple[int, Any, Any]:
        groups = {group: dict(rows) for group, rows in self.groups.items() if rows}
        return self.store.applied_lsn, dict(self.rows), groups

    @rule(key=KEYS, number=NUMBERS)
    def put(self, key: bytes, number: int) -> None:
        self.store.sequences.put(key, number)
        self.rows[key] = number
        self._applied()

    @rule(key=KEYS)
    def delete(self, key: bytes) -> None:
        self.store.sequences.delete(key)
        self.rows.pop(key, None)
        self._applied()

    @rule(group=GROUPS, key=KEYS, number=NUMBERS)
    def put_in_group(self, group: bytes, key: bytes, number: int) -> None:
        entry = StateEntry(key, b"%d" % number)
        self.store.state.put(group, key, entry, payload_bytes=10)
        self.groups.setdefault(group, {})[key] = entry
        self._applied()

    @rule(group=GROUPS, key=KEYS)
    def delete_in_group(self, group: bytes, key: bytes) -> None:
        self.store.state.delete(group, key)
        self.groups.get(group, {}).pop(key, None)
        self._applied()

    @rule(group=GROUPS)
    def clear_group(self, group: bytes) -> None:
        self.store.state.clear(group)
        self.groups.pop(group, None)
        self._applied()

    @precondition(lambda self: self.flush is None and self.store.is_dirty())
    @rule()
    def freeze(self) -> None:
        self.frozen = self._image()
        self.flush = self.store.freeze()

    @precondition(lambda self: self.flush is not None)
    @rule()
    def commit(self) -> None:
        assert self.flush is not None
        try:
            self.flush.run()
        except MapFull:
            self.store.env.grow()
            return
        self.committed = self.frozen

    @precondition(lambda self: self.flush is not None and self.committed == self.frozen)
    @rule()
    def finish(self) -> None:
        assert self.flush is not None
        self.store.finish(self.flush)
        self.flush = None

    @rule()
    def restart(self) -> None:
        """What was not committed is gone; the log would bring it back."""
        self.tables.disk.kill()
        self.store = self._open()
        self.flush = None
        lsn, rows, groups = self.committed
        assert self.store.applied_lsn == self.store.durable_lsn == lsn
        self.rows = dict(rows)
        self.groups = {group: dict(entries) for group, entries in groups.items()}
        self.frozen = (0, {}, {})

    @invariant()
    def reads_agree(self) -> None:
        for key in (b"a", b"ab", b"b", b"b\xff", b"c", b"\x00", b"\xff", b"none"):
            assert self.store.sequences.get(key) == self.rows.get(key)
        for group in (b"g1" * 12, b"g2" * 12, b"\xff" * 24):
            expected = self.groups.get(group, {})
            assert self.store.state.scan(group) == sorted(expected.items())
            for key in (b"a", b"b\xff", b"none"):
                assert self.store.state.get(group, key) == expected.get(key)

    @rule(lower=KEYS | st.just(b""), limit=st.integers(0, 8))
    def scan(self, lower: bytes, limit: int) -> None:
        expected = sorted(item for item in self.rows.items() if item[0] >= lower)[:limit]
        assert self.store.sequences.scan(lower, limit) == expected

    @invariant()
    def watermarks_are_in_order(self) -> None:
        assert self.store.durable_lsn <= self.store.applied_lsn


StoreMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
test_store_agrees_with_dictionaries = StoreMachine.TestCase


IDS = st.binary(min_size=24, max_size=24).map(InvocationId)
LAYER = st.dictionaries(IDS, st.none() | NUMBERS, max_size=6)


@given(LAYER, LAYER, LAYER, st.integers(1, 4))
def test_rows_of_invocations_are_filed_by_uuid(
    stored: dict[InvocationId, int | None],
    frozen: dict[InvocationId, int | None],
    active: dict[InvocationId, int | None],
    page: int,
) -> None:
    """One layer for each place a row can be in; the younger one wins."""
    tables = SimTables(SimDisk(random.Random(1)))
    store = _store(SimEnv(tables))
    plain: Rows[int] = Rows(store, TableId.RESULTS, int)

    def write(layer: dict[InvocationId, int | None]) -> None:
        for id, number in layer.items():
            if number is None:
                plain.delete(id)
                store.notifications.clear(id)
            else:
                plain.put(id, number)
                store.notifications.put(id, b"n", number)
        store.applied_lsn += 1

    write(stored)
    _flush(store)
    write(frozen | {id: None for id in active if active[id] is None})
    store.freeze()
    write(active)
    expected = {id: row for id, row in (stored | frozen | active).items() if row is not None}
    found: list[tuple[bytes, int]] = []
    lower = b""
    while rows := plain.scan(lower, page):
        found += rows
        lower = plain.after(rows[-1][0])
    assert found == sorted(expected.items(), key=lambda item: item[0][8:] + item[0][:8])
    for id in stored | frozen | active:
        assert plain.get(id) == store.notifications.get(id, b"n") == expected.get(id)
        assert store.notifications.scan(id) == ([(b"n", expected[id])] if id in expected else [])
    for id, number in stored.items():
        filed = bytes([TableId.RESULTS]) + id[8:] + id[:8]
        assert (filed in tables.committed) == (number is not None)


def _store(env: Env) -> PartitionStore:
    return PartitionStore(env, FINGERPRINT, 3)


def _flush(store: PartitionStore) -> None:
    flush = store.freeze()
    while True:
        try:
            flush.run()
            break
        except MapFull:
            store.env.grow()
    store.finish(flush)


@pytest.mark.slow
def test_a_store_over_lmdb_agrees_with_dictionaries(tmp_path: Path) -> None:
    dice = random.Random(5)
    store = _store(LmdbEnv(tmp_path, map_bytes=128 * 1024))
    rows: dict[bytes, int] = {}
    for step in range(6000):
        key = b"%d" % dice.randrange(1500)
        if dice.random() < 0.3:
            store.sequences.delete(key)
            rows.pop(key, None)
        else:
            store.sequences.put(key, step)
            rows[key] = step
        store.applied_lsn += 1
        if dice.random() < 0.004:
            _flush(store)
        if dice.random() < 0.001:
            _flush(store)
            store.close()
            store = _store(LmdbEnv(tmp_path))
            assert store.applied_lsn == step + 1
        if step % 100 == 0:
            assert store.sequences.scan(b"", 10_000) == sorted(rows.items())
            assert (
                store.sequences.scan(b"5", 7) == sorted(i for i in rows.items() if i[0] >= b"5")[:7]
            )
    store.close()


def test_what_lives_and_dies_between_two_flushes_never_reaches_the_env() -> None:
    tables = SimTables(SimDisk(random.Random(1)))
    store = _store(SimEnv(tables))
    store.state.put(b"g" * 24, b"k", StateEntry(b"k", b"v"))
    store.state.clear(b"g" * 24)
    store.sequences.put(b"x", 1)
    store.sequences.delete(b"x")
    store.applied_lsn = 4
    _flush(store)
    assert len(tables.committed) == 1  # the meta row


def test_the_meta_row_says_how_far_and_whose() -> None:
    tables = SimTables(SimDisk(random.Random(1)))
    store = _store(SimEnv(tables))
    assert (store.applied_lsn, store.applied_epoch, store.time_ms) == (0, 0, 0)
    store.applied_lsn, store.applied_epoch, store.time_ms = 7, 2, 99
    _flush(store)
    opened = _store(SimEnv(tables)).opened
    assert (opened.format, opened.fingerprint, opened.partition) == (2, FINGERPRINT, 3)
    assert (opened.applied_lsn, opened.applied_epoch, opened.time_ms) == (7, 2, 99)


def test_tables_that_don_t_say_how_far_they_are_are_refused() -> None:
    tables = SimTables(SimDisk(random.Random(1)))
    tables.committed = {b"\x00meta": b"\x93\x01"}
    with pytest.raises(StoreUnreadable, match="partition 3"):
        _store(SimEnv(tables))


def test_one_flush_at_a_time() -> None:
    store = _store(SimEnv(SimTables(SimDisk(random.Random(1)))))
    store.applied_lsn = 1
    store.freeze()
    assert not store.is_dirty()
    with pytest.raises(InvariantViolation, match="one flush at a time"):
        store.freeze()


def test_a_failed_commit_can_be_repeated() -> None:
    tables = SimTables(SimDisk(random.Random(1)))
    store = _store(SimEnv(tables))
    store.sequences.put(b"x", 1)
    store.applied_lsn = 1
    flush = store.freeze()
    tables.refusals = 2
    for _ in range(2):
        with pytest.raises(OSError, match="disk full"):
            flush.run()
        assert store.sequences.get(b"x") == 1
    flush.run()
    store.finish(flush)
    assert _store(SimEnv(tables)).sequences.get(b"x") == 1


def test_memory_is_counted() -> None:
    store = _store(SimEnv(SimTables(SimDisk(random.Random(1)))))
    store.state.put(b"g" * 24, b"k", StateEntry(b"k", b"v" * 1000), payload_bytes=1000)
    assert store.statistics().active_bytes > 1000
    store.applied_lsn = 1
    _flush(store)
    assert store.statistics().active_bytes == store.statistics().frozen_bytes == 0
    assert store.active.is_empty()


def test_tables_keep_their_numbers() -> None:
    """They are on disks: a number is never given to another table."""
    assert [table.name.lower() for table in TableId] == [
        "meta",
        "invocations",
        "invoked",
        "results",
        "attachers",
        "journal",
        "notifications",
        "events",
        "locks",
        "inbox",
        "state",
        "promises",
        "names",
        "timers",
        "outbox",
        "sequences",
        "expiries",
        "listeners",
        "statuses",
        "targets",
    ]
    assert [int(table) for table in TableId] == list(range(20))
    assert Memtable(16).is_empty()
