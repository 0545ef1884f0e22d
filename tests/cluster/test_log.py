"""A partition's log as its leader sees it: order, windows, refusals, and giving up."""

import random
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from tests.cluster.rigs import ME, Rig, turn
from tests.sim.disk import SimDisk
from tests.sim.loop import SimLoop, run

from perdure.cluster.core.types import NodeId, Proposal, SegmentParams, Writer
from perdure.cluster.log import CommittedRecord, SegmentLog
from perdure.core.errors import DiskFull, Overloaded, RecordTooLarge
from perdure.core.limits import RECORD_BYTES_MAX, WAITING_PROPOSALS_MAX, WINDOW_RECORDS_MAX
from perdure.storage.wal import WalSizes

LARGE = WalSizes(first_file=1 << 22, file=1 << 22, free_min=0, reserve=1024)


class Partition:
    """A segment log with what came back from it."""

    def __init__(self, rig: Rig, number: int = 0, epoch: int = 1) -> None:
        self.params = SegmentParams(
            partition=number,
            index=0,
            base_lsn=1,
            epoch=epoch,
            writer=Writer(NodeId(1), 1, 70 + epoch),
            nodeset=(ME,),
            replication=1,
        )
        self.batches: list[list[CommittedRecord[str]]] = []
        self.stopped: list[str] = []
        self.log: SegmentLog[str] = SegmentLog(
            self.params, ME, rig.server, rig.batcher, self.batches.append, self.stopped.append
        )

    def append(self, name: str, payload: bytes = b"x", *, waits_for_room: bool = False) -> None:
        proposal = Proposal(kind=1, payload=payload, created_at_ms=0)
        self.log.append(proposal, name, waits_for_room=waits_for_room)

    @property
    def committed(self) -> list[tuple[int, str]]:
        return [(record.lsn, record.context) for batch in self.batches for record in batch]


def _run(body: Callable[[Rig], Coroutine[Any, Any, None]], sizes: WalSizes = LARGE) -> None:
    async def main(loop: SimLoop) -> None:
        rig = Rig(SimDisk(random.Random(1)), sizes)
        await body(rig)
        rig.writer.close()
        assert rig.failures == []

    run(1, main)


def test_partitions_share_a_group_and_get_their_records_back_in_order() -> None:
    async def body(rig: Rig) -> None:
        partitions = [Partition(rig, number) for number in range(3)]
        for name in "abc":
            for each in partitions:
                each.append(name)
        assert partitions[0].committed == []
        await turn()
        for each in partitions:
            assert each.committed == [(1, "a"), (2, "b"), (3, "c")]
            assert len(each.batches) == 1
        assert rig.wal.statistics().groups == 1
        assert partitions[0].log.statistics().committed_lsn == 4

    _run(body)


def test_beyond_the_window_proposals_wait_their_turn() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        names = [str(number) for number in range(WINDOW_RECORDS_MAX * 2 + 10)]
        for name in names:
            partition.append(name)
        assert partition.log.statistics().waiting == WINDOW_RECORDS_MAX + 10
        await turn(20)
        assert partition.committed == list(enumerate(names, 1))
        assert [len(batch) for batch in partition.batches] == [
            WINDOW_RECORDS_MAX,
            WINDOW_RECORDS_MAX,
            10,
        ]

    _run(body)


def test_too_many_waiting_proposals_are_turned_away() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        for number in range(WINDOW_RECORDS_MAX + WAITING_PROPOSALS_MAX):
            partition.append(str(number), b"")
        with pytest.raises(Overloaded, match="partition 0"):
            partition.append("one too many", b"")
        await turn(100)
        rig.housekeeping.run_all()
        assert len(partition.committed) == WINDOW_RECORDS_MAX + WAITING_PROPOSALS_MAX
        partition.append("welcome again")

    _run(body)


def test_waiting_proposals_are_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.log.WAITING_BYTES_MAX", 10_000)
    monkeypatch.setattr("perdure.cluster.core.sequencer.WINDOW_RECORDS_MAX", 1)

    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        partition.append("sequenced")
        for name in "abc":
            partition.append(name, bytes(4_000))
        with pytest.raises(Overloaded):
            partition.append("d", b"")
        await turn(10)
        assert [name for _, name in partition.committed] == ["sequenced", "a", "b", "c"]
        for name in "xyz":
            partition.append(name, bytes(4_000))
        await turn(10)
        assert len(partition.committed) == 7

    _run(body)


def test_a_record_has_a_largest_size() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        with pytest.raises(RecordTooLarge):
            partition.append("large", bytes(RECORD_BYTES_MAX + 1))
        partition.append("small")
        await turn()
        assert partition.committed == [(1, "small")]

    _run(body)


def test_a_proposal_made_while_records_are_delivered_follows_them() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        seen: list[str] = []

        def deliver(records: list[CommittedRecord[str]]) -> None:
            for record in records:
                seen.append(record.context)
                if len(record.context) < 4:
                    partition.append(record.context + "'")

        partition.log = SegmentLog(
            partition.params, ME, rig.server, rig.batcher, deliver, partition.stopped.append
        )
        partition.append("a")
        partition.append("b")
        await turn(20)
        assert seen == ["a", "b", "a'", "b'", "a''", "b''", "a'''", "b'''"]

    _run(body)


def test_a_sealed_segment_stops_its_writer() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        partition.append("before")
        await turn()
        rig.server.seal(partition.params.ref, 2, lambda _: None)
        partition.append("after")
        await turn()
        assert partition.committed == [(1, "before")]
        assert partition.stopped == ["sealed"] or partition.stopped == ["stale_epoch"]
        assert partition.log.is_stopped
        assert partition.log.abandon() == ["after"]

    _run(body)


def test_giving_up_returns_what_has_an_unknown_outcome() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        for number in range(WINDOW_RECORDS_MAX + 2):
            partition.append(str(number))
        assert partition.log.abandon() == [str(n) for n in range(WINDOW_RECORDS_MAX + 2)]
        await turn(10)
        assert partition.committed == []
        assert partition.log.is_stopped

    _run(body)


def test_a_full_disk_is_told_at_once_and_what_must_wait_waits() -> None:
    async def body(rig: Rig) -> None:
        partition = Partition(rig)
        partition.append("first")
        await turn()
        rig.disk.capacity -= rig.disk.free_bytes()
        rig.writer.ensure_spare()
        rig.housekeeping.run_all()
        with pytest.raises(DiskFull):
            partition.append("refused")
        partition.append("vital", waits_for_room=True)
        await turn()
        rig.disk.capacity = 1 << 40
        rig.writer.ensure_spare()
        rig.housekeeping.run_all()
        partition.append("last")
        await turn()
        assert partition.committed == [(1, "first"), (2, "vital"), (3, "last")]

    _run(body)
