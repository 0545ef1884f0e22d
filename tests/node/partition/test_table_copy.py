"""Taking over another node's tables: whole, at one moment, or not at all."""

import asyncio
import random
from pathlib import Path

import pytest
from tests.cluster.fabric_rig import Member, Rig, on_sim
from tests.engine.memory_env import DictSnapshot
from tests.sim.disk import SimDisk
from tests.sim.ports import SimEnv, SimOffload, SimTables

from perdure.cluster.core.types import NodeId
from perdure.core.errors import PartitionUnavailable
from perdure.core.ids import PartitionId
from perdure.core.loss_errors import HistoryForsaken
from perdure.engine.commands import RECORD_KIND_COMMAND, Announce, encode_command
from perdure.node.partition.processor import Processor
from perdure.node.partition.table_copy import (
    TableDesk,
    WantedTables,
    copy_tables,
    drop_partial,
)
from perdure.storage.env import Env, LmdbEnv, Snapshot
from perdure.storage.partition_store import META_KEY, PartitionStore
from perdure.storage.wal_format import Record

FINGERPRINT = b"f" * 16
ROWS = 10_000  # more than a piece


def test_tables_are_replaced_by_those_of_another_node(tmp_path: Path) -> None:
    async def check(rig: Rig) -> None:
        one, other = await rig.pair()
        theirs, ours = LmdbEnv(_folder(tmp_path / "theirs")), LmdbEnv(_folder(tmp_path / "ours"))
        source = _processor(theirs, ROWS)
        TableDesk([source], other.fabric)
        store = _processor(ours, 3, first=ROWS).store
        await copy_tables(store, _thread(), (one.fabric, _id(other)), 2)
        assert (store.applied_lsn, store.durable_lsn, store.applied_epoch) == (2, 2, 1)
        assert store.sequences.scan(b"", 2 * ROWS) == source.store.sequences.scan(b"", 2 * ROWS)
        ours.close()
        again = LmdbEnv(tmp_path / "ours")
        assert PartitionStore(again, FINGERPRINT, 0).applied_lsn == 2
        again.close()
        theirs.close()

    on_sim(check)


@pytest.mark.parametrize(("lsn_min", "partition"), [(3, 0), (2, 1)])
def test_tables_that_are_too_old_or_not_there_replace_nothing(lsn_min: int, partition: int) -> None:
    async def check(rig: Rig) -> None:
        one, other = await rig.pair()
        TableDesk([_processor(SimEnv(_tables()), 1)], other.fabric)
        env = SimEnv(_tables())
        store = PartitionStore(env, FINGERPRINT, partition)
        store.sequences.put(b"kept", 1)
        with pytest.raises(PartitionUnavailable):
            await copy_tables(store, _thread(), (one.fabric, _id(other)), lsn_min)
        assert store.durable_lsn == 0
        assert store.sequences.get(b"kept") == 1

    on_sim(check)


def test_tables_of_a_history_that_is_gone_are_had_from_somebody_else() -> None:
    async def check(rig: Rig) -> None:
        one, other = await rig.pair()
        theirs = _tables()
        TableDesk([_processor(SimEnv(theirs), 5)], other.fabric)
        asked: list[tuple[int, int]] = []

        def refuse_first(applied_lsn: int, applied_epoch: int) -> None:
            asked.append((applied_lsn, applied_epoch))
            if len(asked) == 1:
                raise HistoryForsaken("cut off")

        tables, thread = _tables(), _thread()
        wanted = WantedTables(
            _dirty_processor(SimEnv(tables), thread),
            thread,
            one.fabric,
            None,
            lambda _partition: [_id(other), _id(other)],
            refuse_first,
        )
        wanted.want(3)
        await wanted.get()
        assert asked == [(2, 1), (2, 1)]
        assert tables.committed == theirs.committed

    on_sim(check)


def test_a_copy_whose_source_moves_on_meanwhile_has_applied_nothing() -> None:
    async def check(rig: Rig) -> None:
        one, other = await rig.pair()
        TableDesk([_processor(_GrownEnv(_tables()), ROWS)], other.fabric)
        tables = _tables()
        store = _processor(SimEnv(tables), 5).store
        with pytest.raises(PartitionUnavailable, match="moved on"):
            await copy_tables(store, _thread(), (one.fabric, _id(other)), 2)
        assert (store.applied_lsn, store.durable_lsn) == (0, 0)
        assert PartitionStore(SimEnv(tables), FINGERPRINT, 0).applied_lsn == 0

    on_sim(check)


def test_what_a_copy_left_behind_is_dropped_and_nothing_else() -> None:
    async def check(_: Rig) -> None:
        tables = _tables()
        env = SimEnv(tables)
        _processor(env, 5)
        drop_partial(env)
        assert PartitionStore(env, FINGERPRINT, 0).applied_lsn == 2
        env.commit([], [META_KEY], [])
        env.refresh()
        drop_partial(env)
        assert not tables.committed
        assert next(env.scan(b"", b"\xff"), None) is None

    on_sim(check)


def test_a_copy_that_was_given_up_leaves_nothing_to_go_on_from() -> None:
    """Whenever that is, and although what was applied before has not been flushed yet."""

    async def check(rig: Rig) -> None:
        one, other = await rig.pair()
        theirs = _tables()
        source = _processor(SimEnv(theirs), ROWS)
        TableDesk([source], other.fabric)
        seen = set[str]()
        for step in range(1_000):
            tables, thread = _tables(), _thread()
            processor = _dirty_processor(SimEnv(tables), thread)
            before = {*tables.committed}
            wanted = WantedTables(
                processor, thread, one.fabric, None, lambda _partition: [_id(other)]
            )
            wanted.want(3)
            getting = asyncio.ensure_future(wanted.get())
            await asyncio.wait((getting,), timeout=step * 0.0001)
            is_whole = getting.done()
            getting.cancel()
            flushed = asyncio.Event()
            processor.flush(flushed.set)  # as at a stop
            again = asyncio.ensure_future(wanted.get())  # as where it is named once more
            await asyncio.wait((getting,))
            await flushed.wait()
            seen.add(_what_is_there(tables, theirs, before))
            assert wanted.are_wanted is not is_whole
            wanted.want(1)
            assert wanted.are_wanted is not is_whole
            await again
            assert not wanted.are_wanted
            assert tables.committed == theirs.committed
            assert (processor.next_lsn, processor.store.durable_lsn) == (3, 2)
            if is_whole:
                break
        assert seen == {"ours", "nothing", "theirs"}

    on_sim(check)


def _what_is_there(tables: SimTables, theirs: SimTables, before: set[bytes]) -> str:
    """What a process that starts now finds."""
    store = PartitionStore(SimEnv(tables), FINGERPRINT, 0)
    if store.applied_lsn == 0:
        return "nothing"
    if tables.committed == theirs.committed:
        return "theirs"
    assert store.applied_lsn == 1
    assert {*tables.committed} >= before, "what was applied is there"
    return "ours"


class _GrownEnv(SimEnv):
    """Its snapshots move on to a later commit once they were begun."""

    def snapshot(self) -> Snapshot:
        return _Moving(dict(self._tables.committed))


class _Moving(DictSnapshot):
    def __init__(self, content: dict[bytes, bytes]) -> None:
        super().__init__(content)
        self._gets = 0

    def get(self, key: bytes) -> bytes | None:
        self._gets += 1
        return super().get(key) if self._gets == 1 else b"later"


def _folder(folder: Path) -> Path:
    folder.mkdir()
    return folder


def _tables() -> SimTables:
    return SimTables(SimDisk(random.Random(1)))


def _thread() -> SimOffload:
    return SimOffload(random.Random(1), 1.0)


def _id(member: Member) -> NodeId:
    return member.fabric.me.node


def _processor(env: Env, rows: int, *, first: int = 0) -> Processor:
    """A partition that has applied two records, with so many rows, all flushed."""
    store = PartitionStore(env, FINGERPRINT, 0)
    processor = Processor(PartitionId(0), 1, store, _thread(), _ignore, _ignore)
    processor.replay([_announcement(lsn) for lsn in (1, 2)])
    for number in range(first, first + rows):
        store.sequences.put(b"%06d" % number, number)
    flush = store.freeze()
    flush.run()
    store.finish(flush)
    return processor


def _dirty_processor(env: Env, thread: SimOffload) -> Processor:
    """A partition that has applied one record: rows before that are flushed, one after is not."""
    store = PartitionStore(env, FINGERPRINT, 0)
    processor = Processor(PartitionId(0), 1, store, thread, _ignore, _ignore)
    for number in range(5):
        store.sequences.put(b"ours %d" % number, number)
    flush = store.freeze()
    flush.run()
    store.finish(flush)
    processor.replay([_announcement(1)])
    return processor


def _announcement(lsn: int) -> Record:
    payload = encode_command(Announce(1, 1, 1, 1, "test"))
    return Record(lsn, 1, RECORD_KIND_COMMAND, 1_700_000_000_000, 0, 0, 0, 0, payload)


def _ignore(*_: object) -> None:
    """Nobody asks."""
