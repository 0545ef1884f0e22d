"""Taking over: one path from a claim to an open segment, and back from the log to the records."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.cluster.rigs import ME, Rig, turn
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.types import NodeId, Proposal, Writer
from perdure.cluster.log import SegmentLog
from perdure.cluster.log_reader import liveness
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import CasOutcome, Versioned
from perdure.cluster.takeover import Takeover, decode_meta, partition_key, take_over
from perdure.core.errors import (
    LogDamaged,
    MetadataConflict,
    MetadataRegressed,
    StoreAheadOfLog,
)


class Machine:
    """A disk, and one process life after the other on it."""

    def __init__(self) -> None:
        self.disk = SimDisk(random.Random(1))
        self.lives = 0

    def live(self, body: Callable[[Rig], Coroutine[Any, Any, None]]) -> None:
        self.lives += 1

        async def main(loop: SimLoop) -> None:
            rig = Rig(self.disk)
            try:
                await body(rig)
            finally:
                rig.writer.close()

        run(self.lives, main)
        self.disk.kill()

    async def take(
        self, rig: Rig, durable_lsn: int = 0, metadata: LocalMetadata | None = None
    ) -> Takeover:
        """Take over partition 0 in this life."""
        return await take_over(
            0,
            metadata or LocalMetadata(self.disk),
            rig.server,
            rig.replicas,
            (Writer(NodeId(1), self.lives, 1000 + self.lives), ME),
            durable_lsn,
        )

    def write(self, *payloads: bytes, durable_lsn: int = 0) -> None:
        """A life that appends these records."""

        async def body(rig: Rig) -> None:
            taken = await self.take(rig, durable_lsn)
            log: SegmentLog[None] = SegmentLog(
                taken.opened, ME, rig.server, rig.batcher, lambda _: None, rig_stopped
            )
            for payload in payloads:
                log.append(Proposal(kind=1, payload=payload, created_at_ms=0), None)
            await turn()

        self.live(body)


def rig_stopped(reason: str) -> None:
    raise AssertionError(reason)


def _chain(meta: PartitionMeta) -> list[tuple[int, int, int | None, int]]:
    return [(s.index, s.base_lsn, s.tail_lsn, s.epoch) for s in meta.chain]


def _records(rig: Rig, meta: PartitionMeta, after: int = 0) -> list[tuple[int, bytes]]:
    return [(r.lsn, r.payload) for r in rig.index.records(rig.wal, 0, meta, after)]


def test_every_life_opens_a_segment_and_reads_what_came_before() -> None:
    machine = Machine()
    machine.write(b"a", b"b")
    machine.write()
    machine.write(b"c")

    async def body(rig: Rig) -> None:
        taken = await machine.take(rig)
        assert _chain(taken.meta) == [(0, 1, 3, 1), (1, 3, 3, 2), (2, 3, 4, 3), (3, 4, None, 4)]
        assert taken.opened.base_lsn == 4
        assert _records(rig, taken.meta) == [(1, b"a"), (2, b"b"), (3, b"c")]
        assert _records(rig, taken.meta, after=2) == [(3, b"c")]
        assert _records(rig, taken.meta, after=3) == []

    machine.live(body)


def test_segments_that_the_tables_hold_leave_the_chain() -> None:
    machine = Machine()
    machine.write(b"a", b"b")
    machine.write(b"c", b"d")

    async def body(rig: Rig) -> None:
        taken = await machine.take(rig, durable_lsn=3)
        assert _chain(taken.meta) == [(1, 3, 5, 2), (2, 5, None, 3)]
        assert taken.meta.trim_lsn == 3
        assert rig.replicas.segment((0, 0)) is None
        assert _records(rig, taken.meta, after=3) == [(4, b"d")]

    machine.live(body)


def test_the_old_segment_is_fenced() -> None:
    machine = Machine()
    machine.write(b"a")

    async def body(rig: Rig) -> None:
        first = await machine.take(rig)
        stopped: list[str] = []
        old: SegmentLog[None] = SegmentLog(
            first.opened, ME, rig.server, rig.batcher, lambda _: None, stopped.append
        )
        await machine.take(rig)
        old.append(Proposal(kind=1, payload=b"zombie", created_at_ms=0), None)
        await turn()
        assert len(stopped) == 1

    machine.live(body)


def test_tables_that_are_ahead_of_the_log_are_refused_and_the_chain_stays() -> None:
    machine = Machine()
    machine.write(b"a", b"b")

    async def body(rig: Rig) -> None:
        with pytest.raises(StoreAheadOfLog, match="has applied record 3, its log ends before 3"):
            await machine.take(rig, durable_lsn=3)
        meta = decode_meta(await LocalMetadata(machine.disk).get(partition_key(0)))
        assert _chain(meta) == [(0, 1, None, 1)]
        taken = await machine.take(rig, durable_lsn=2)
        assert taken.opened.base_lsn == 3

    machine.live(body)


def test_metadata_that_was_rolled_back_is_noticed() -> None:
    machine = Machine()
    machine.write(b"a")
    old = machine.disk.read_file("metadata/p.0")
    machine.write(b"b")
    machine.write(b"c")
    machine.disk.overwrite("metadata/p.0", old)

    async def body(rig: Rig) -> None:
        with pytest.raises(MetadataRegressed, match="epoch 2 of partition 0, the log has seen 3"):
            await machine.take(rig)

    machine.live(body)


class _Rival(LocalMetadata):
    """Another node claims between our read and our write."""

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        if expected is None:
            await super().cas(key, expected, value)
        return await super().cas(key, expected, value)


def test_a_lost_claim_is_a_conflict() -> None:
    machine = Machine()

    async def body(rig: Rig) -> None:
        with pytest.raises(MetadataConflict, match="p/0"):
            await machine.take(rig, metadata=_Rival(machine.disk))

    machine.live(body)


class _DiesAt(LocalMetadata):
    """The process dies at its n-th write, before or after it took effect."""

    def __init__(self, disk: SimDisk, number: int, *, is_done: bool) -> None:
        super().__init__(disk)
        self._number = number
        self._is_done = is_done

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        self._number -= 1
        if self._number == 0:
            if self._is_done:
                await super().cas(key, expected, value)
            raise _DiedError
        outcome = await super().cas(key, expected, value)
        assert isinstance(outcome, Versioned)
        return outcome


class _DiedError(Exception):
    pass


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_claimant_may_die_at_either_write(number: int, is_done: bool) -> None:
    machine = Machine()
    machine.write(b"a", b"b")

    async def die(rig: Rig) -> None:
        with pytest.raises(_DiedError):
            metadata = _DiesAt(machine.disk, number, is_done=is_done)
            await machine.take(rig, metadata=metadata)

    machine.live(die)
    machine.write(b"c")

    async def body(rig: Rig) -> None:
        taken = await machine.take(rig)
        assert _records(rig, taken.meta) == [(1, b"a"), (2, b"b"), (3, b"c")]
        epochs = [segment.epoch for segment in taken.meta.chain]
        assert epochs == sorted(set(epochs))

    machine.live(body)


# --- Reading back ---------------------------------------------------------------------------------


def test_a_gap_between_tables_and_log_is_data_loss() -> None:
    """The tables were wiped, the log was trimmed: records 1 and 2 are nowhere."""
    machine = Machine()
    machine.write(b"a", b"b")
    machine.write(b"c", durable_lsn=2)

    async def body(rig: Rig) -> None:
        taken = await machine.take(rig, durable_lsn=2)
        with pytest.raises(LogDamaged, match="needs record 1 and the log goes on at 3"):
            _records(rig, taken.meta, after=0)

    machine.live(body)


def test_a_gap_is_noticed_also_when_nothing_is_left_to_read() -> None:
    machine = Machine()
    machine.write(b"a", b"b")

    async def body(rig: Rig) -> None:
        taken = await machine.take(rig, durable_lsn=2)
        assert _chain(taken.meta) == [(0, 1, 3, 1), (1, 3, None, 2)] or len(taken.meta.chain) == 1
        again = await machine.take(rig, durable_lsn=2)
        assert _chain(again.meta)[0][1] == 3
        with pytest.raises(LogDamaged, match="needs record 1"):
            _records(rig, again.meta, after=0)

    machine.live(body)


def test_which_files_the_tables_make_superfluous() -> None:
    machine = Machine()
    machine.write(b"a", b"b")
    machine.write(b"c", b"d")
    metas: list[PartitionMeta] = []

    async def body(rig: Rig) -> None:
        metas.append((await machine.take(rig)).meta)

    machine.live(body)
    is_dead = liveness({0: metas[0]}, {0: 3})
    assert is_dead((0, 0), 2)
    assert is_dead((0, 1), 1)
    assert not is_dead((0, 1), 2)
    assert not is_dead((0, 2), 1)
    assert is_dead((0, 99), 5)  # of a claim that never made it
    assert is_dead((7, 0), 5)  # of a partition that there isn't
