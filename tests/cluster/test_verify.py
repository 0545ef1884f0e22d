"""Comparing replicas: sound logs, missing copies, and records that differ."""

from collections.abc import Awaitable, Callable
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from tests.cluster.nodes import World, simulate

from perdure.cluster.core.log_messages import Extent
from perdure.cluster.core.types import Member, NodeId
from perdure.cluster.takeover import decode_meta, partition_key
from perdure.cluster.verify import (
    LsnRange,
    SegmentReport,
    Verifier,
    count_copies,
    differing,
    ranges,
)

Body = Callable[[World], Awaitable[None]]


async def _verify(world: World, node: int) -> list[SegmentReport]:
    life = world.nodes[node].up
    meta = decode_meta(await world.metadata.get(partition_key(0)))
    return await Verifier(life.server, life.fabric).verify(0, meta)


def test_a_sound_log_is_found_sound_from_every_node() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(*(b"%d" % n for n in range(3000)))
        assert one.log is not None
        await one.log.drain()
        await world.nodes[1].up.lead()
        await world.nodes[1].up.write(b"more")
        life = world.nodes[2].up
        await world.until(lambda: (s := life.server.state((0, 1))) and s.kgt == 1)
        for node in (0, 2):
            first, second = await _verify(world, node)
            assert (first.upper, second.upper) == (3001, 3002)
            assert first.is_sound and second.is_sound
            assert first.absent == second.absent == ()

    simulate(body)


def test_what_has_too_few_copies_is_listed() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1", b"2")
        await world.nodes[2].kill()
        await one.write(b"3")
        await world.nodes[1].kill()
        world.nodes[1].wipe()
        await world.nodes[1].start()
        await world.nodes[2].start()
        one.append(b"4")
        back = world.nodes[2].up
        await world.until(lambda: (s := back.server.state((0, 0))) and s.durable_tail == 4)
        (report,) = await _verify(world, 0)
        assert report.absent == (Member(NodeId(2), b"%016d" % 2),)
        assert report.missing == () and report.diverging == ()
        assert report.under_replicated == ()
        await world.nodes[2].kill()
        (report,) = await _verify(world, 0)
        assert report.under_replicated == (LsnRange(1, report.upper),)

    simulate(body)


ONE, TWO = Member(NodeId(1), b"1"), Member(NodeId(2), b"2")


def test_the_same_place_with_another_content_differs() -> None:
    same = [Extent(0, 4, 7), Extent(4, 2, 8)]
    assert differing({ONE: same, TWO: same}) == []
    assert differing({ONE: same, TWO: [Extent(0, 4, 7), Extent(4, 2, 9)]}) == [(4, 2)]
    assert differing({ONE: same, TWO: [Extent(1, 3, 9)]}) == []


@given(st.lists(st.sets(st.integers(0, 20)), max_size=4))
def test_copies_are_counted_per_offset(held: list[set[int]]) -> None:
    digests = [
        [Extent(r.lower, r.upper - r.lower, 0) for r in ranges(sorted(each), 0)] for each in held
    ]
    counted = count_copies(digests, 2, 18)
    assert counted == {o: sum(o in each for each in held) for o in range(2, 18)}


@given(st.sets(st.integers(0, 30)))
def test_ranges_cover_what_they_were_made_of(offsets: set[int]) -> None:
    found = ranges(sorted(offsets), 100)
    assert {lsn for each in found for lsn in range(each.lower, each.upper)} == {
        100 + offset for offset in offsets
    }
    assert all(a.upper < b.lower for a, b in pairwise(found))
