"""Who leads a log has its replicas compared: once in so long, quietly, when all are there."""

import asyncio

import pytest
from tests.cluster.nodes import Life, World, simulate
from tests.sim.ports import SimClock

from perdure.cluster import verify
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.types import Member, NodeId
from perdure.cluster.takeover import decode_meta, partition_key
from perdure.cluster.verify import LsnRange, SegmentReport, Verifier, still_in
from perdure.node.log_desk import LogDesk

INTERVAL_MS = 5_000


async def _meta(world: World) -> PartitionMeta:
    return decode_meta(await world.metadata.get(partition_key(0)))


async def _written(world: World) -> Life:
    one = world.nodes[0].up
    await one.lead()
    await one.write(*(b"%d" % number for number in range(250)))
    assert one.log is not None
    await one.log.drain()
    return one


def test_a_log_is_compared_once_in_so_long_when_all_its_replicas_are_there() -> None:
    async def body(world: World) -> None:
        one = await _written(world)
        meta = await _meta(world)
        desk = LogDesk(one.server, one.fabric, SimClock(world.loop))
        await world.nodes[2].kill()
        one.start(desk.run(INTERVAL_MS, lambda: {0: meta}))
        await asyncio.sleep(4 * INTERVAL_MS / 1000)
        assert desk.verifications() == ()  # a replica is away: later
        await world.nodes[2].start()
        await world.until(desk.verifications)
        (first,) = desk.verifications()
        assert first.is_sound and first.ended_at_ms is not None
        assert [report.upper for report in first.reports] == [251]
        await world.until(lambda: desk.verifications() != (first,))
        (second,) = desk.verifications()
        assert second.began_at_ms - first.ended_at_ms >= INTERVAL_MS - 1

    simulate(body)


def test_what_is_not_led_is_left_to_others() -> None:
    async def body(world: World) -> None:
        one = await _written(world)
        meta = await _meta(world)
        led: dict[int, PartitionMeta] = {}
        desk = LogDesk(one.server, one.fabric, SimClock(world.loop))
        one.start(desk.run(INTERVAL_MS, lambda: led))
        await asyncio.sleep(4 * INTERVAL_MS / 1000)
        assert desk.verifications() == ()
        led[0] = meta
        await world.until(desk.verifications)

    simulate(body)


def test_a_quiet_comparison_rests_most_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "VERIFY_QUIET_WINDOW_RECORDS", 50)
    monkeypatch.setattr(verify, "VERIFY_WINDOW_RECORDS", 50)

    async def body(world: World) -> None:
        one = await _written(world)
        meta = await _meta(world)
        took: list[float] = []
        for is_quiet in (False, True):
            began = world.loop.time()
            found = await Verifier(one.server, one.fabric, is_quiet=is_quiet).verify(0, meta)
            took.append(world.loop.time() - began)
            assert [report.is_sound for report in found] == [True]
        assert took[1] > 4 * took[0]

    simulate(body)


def test_what_was_let_go_of_meanwhile_is_no_finding() -> None:
    async def body(world: World) -> None:
        await _written(world)
        meta = await _meta(world)
        member = Member(NodeId(1), b"1")
        ranges = (LsnRange(1, 4), LsnRange(6, 20))
        report = SegmentReport(
            segment=0,
            lower=1,
            upper=30,
            answered=(member,),
            absent=(),
            missing=ranges,
            under_replicated=ranges[:1],
            diverging=(),
        )
        trimmed = PartitionMeta(meta.epoch, meta.claim, 9, meta.chain)
        kept = still_in(report, trimmed)
        assert kept is not None
        assert (kept.missing, kept.under_replicated) == ((LsnRange(9, 20),), ())
        assert still_in(report, PartitionMeta(meta.epoch, meta.claim, 30, ())) is None

    simulate(body)
