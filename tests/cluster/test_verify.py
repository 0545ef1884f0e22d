"""Comparing replicas: sound logs, missing copies, and records that differ."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cluster.nodes import Life, World, simulate

from perdure.cluster import log_server, verify
from perdure.cluster.core.log_messages import Extent
from perdure.cluster.core.types import Member, NodeId
from perdure.cluster.takeover import decode_meta, partition_key
from perdure.cluster.verify import (
    LsnRange,
    SegmentReport,
    Verifier,
    coverage,
    differing,
    suspicious,
)

Body = Callable[[World], Awaitable[None]]


async def _written(world: World, *payloads: bytes) -> Life:
    """Node 1, which leads and has these records on all nodes."""
    one = world.nodes[0].up
    await one.lead()
    await one.write(*payloads)
    assert one.log is not None
    await one.log.drain()
    return one


async def _verify(world: World, node: int) -> list[SegmentReport]:
    life = world.nodes[node].up
    meta = decode_meta(await world.metadata.get(partition_key(0)))
    return await Verifier(life.server, life.fabric).verify(0, meta)


def test_a_sound_log_is_found_sound_from_every_node() -> None:
    async def body(world: World) -> None:
        await _written(world, *(b"%d" % n for n in range(3000)))
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


def test_a_block_is_looked_into_where_replicas_hold_it_differently() -> None:
    whole = [Extent(0, 4, 7), Extent(4, 4, 8)]
    assert suspicious({ONE: whole, TWO: whole}, 4) == []
    assert suspicious({ONE: whole, TWO: [Extent(4, 4, 8)]}, 4) == [], "one has nothing of it"
    assert suspicious({ONE: whole, TWO: [Extent(0, 4, 7), Extent(4, 4, 9)]}, 4) == [4]
    beside_a_hole = [Extent(0, 1, 5), Extent(2, 2, 6), Extent(4, 4, 8)]
    assert suspicious({ONE: whole, TWO: beside_a_hole}, 4) == [0]


Spans = list[tuple[int, int]]
_SPANS = st.lists(st.tuples(st.integers(0, 20), st.integers(1, 6)), max_size=4)


def disjoint(spans: Spans) -> Spans:
    """As one replica tells them: ascending, none over another."""
    found: Spans = []
    for first, count in sorted(spans):
        if not found or first >= found[-1][0] + found[-1][1]:
            found.append((first, count))
    return found


@given(st.lists(_SPANS.map(disjoint), max_size=4))
def test_copies_are_counted_per_offset(held: list[Spans]) -> None:
    digests = [[Extent(first, count, 0) for first, count in each] for each in held]
    pieces = coverage(digests, 2, 18)
    counted = {o: copies for first, end, copies in pieces for o in range(first, end)}
    assert counted == {
        o: sum(any(first <= o < first + count for first, count in each) for each in held)
        for o in range(2, 18)
    }
    assert sum(end - first for first, end, _ in pieces) == 16


def test_a_window_is_followed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "VERIFY_WINDOW_RECORDS", 100)

    async def body(world: World) -> None:
        await _written(world, *(b"%d" % n for n in range(250)))
        (report,) = await _verify(world, 1)
        assert report.is_sound and (report.lower, report.upper) == (1, 251)
        await world.nodes[1].kill()
        await world.nodes[2].kill()
        (report,) = await _verify(world, 0)
        assert report.under_replicated == (LsnRange(1, 251),)  # not one for each window
        assert report.missing == report.diverging == ()

    simulate(body)


def test_what_was_trimmed_meanwhile_is_not_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify, "VERIFY_WINDOW_RECORDS", 100)

    async def body(world: World) -> None:
        one = await _written(world, *(b"%d" % n for n in range(250)))
        life = world.nodes[1].up
        checking = life.start(_verify(world, 1))
        await asyncio.sleep(0.01)
        assert one.log is not None
        one.log.trim(241)
        (report,) = await checking
        assert report.is_sound

    simulate(body)


def test_a_digest_lets_others_have_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(log_server, "READ_CHUNK_BYTES_MAX", 4_096)

    async def body(world: World) -> None:
        one = await _written(world, *(b"x" * 1_000 for _ in range(40)))
        steps = list(one.server.digest((0, 0), 0, 40, 1024))
        assert next(step for step in steps if step is not None).count == 40
        assert steps.count(None) >= 10  # 40 KB in pieces of 4

    simulate(body)
