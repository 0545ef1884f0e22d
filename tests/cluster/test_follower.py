"""Following a log: from one's own replica, from others, over holes, trims, and stale chains."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from tests.cluster.nodes import World, simulate

from perdure.core.errors import LogDamaged, LogTrimmed
from perdure.storage.wal_format import Record

Body = Callable[[World], Awaitable[None]]


def _payloads(count: int, first: int = 1) -> list[bytes]:
    return [b"%d" % number for number in range(first, first + count)]


def test_followers_see_every_record_soon_after_its_commit() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        followers = [world.nodes[n].up.follow() for n in (0, 1, 2)]
        await one.lead()
        for number in range(1, 30):
            await one.write(b"%d" % number)
            began = world.loop.time()
            await world.until(lambda: all(len(f) == number for f in followers))  # noqa: B023
            assert world.loop.time() - began < 0.1
        for found in followers:
            assert [r.lsn for r in found] == list(range(1, 30))
            assert [r.payload for r in found] == _payloads(29)

    simulate(body)


def test_a_node_outside_the_nodeset_follows_too() -> None:
    async def body(world: World) -> None:
        found = world.nodes[3].up.follow()
        await world.nodes[0].up.lead()
        await world.nodes[0].up.write(*_payloads(50))
        await world.until(lambda: len(found) == 50)
        await world.nodes[0].kill()
        await world.nodes[1].up.lead()
        await world.nodes[1].up.write(*_payloads(5, 51))
        await world.until(lambda: len(found) == 55)
        assert [r.payload for r in found] == _payloads(55)

    simulate(body, nodes=4)


def test_holes_of_the_own_replica_come_from_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.core.sequencer.LAGGARD_BYTES_MAX", 1)
    monkeypatch.setattr("perdure.cluster.core.sequencer.LATE_BYTES_MAX", 0)

    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(*_payloads(3))
        await world.nodes[2].kill()
        for number in range(4, 20):
            await one.write(b"%d" % number)
        back = await world.nodes[2].start()
        await world.connected()
        for number in range(20, 23):
            await one.write(b"%d" % number)
        await world.until(lambda: (s := back.server.state((0, 0))) and s.durable_tail == 22)
        assert back.server.read((0, 0), 5, 20) is not None
        piece = back.server.read((0, 0), 5, 20)
        assert piece is not None and piece.records == () and piece.first_offset > 5
        assert [payload for _, payload in await back.read(until=23)] == _payloads(22)

    simulate(body)


def test_reading_goes_across_restarts_and_segments() -> None:
    async def body(world: World) -> None:
        expected: list[bytes] = []
        for round_number in range(4):
            node = world.nodes[round_number % 3]
            taken = await node.up.lead(applied=0)
            payloads = [b"%d.%d" % (round_number, n) for n in range(30)]
            await node.up.write(*payloads)
            node.up.committed.clear()
            expected.extend(payloads)
            assert taken.opened.base_lsn == 1 + 30 * round_number
            await node.kill(loses_power=True)
            await node.start()
            await world.connected()
        for node in world.nodes:
            found = await node.up.read(until=91)
            assert [payload for _, payload in found] == expected[:90]

    simulate(body)


def test_what_was_trimmed_needs_a_snapshot() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(*_payloads(10))
        assert one.log is not None
        one.log.trim(6)
        three = world.nodes[2].up
        await world.until(lambda: (s := three.server.state((0, 0))) and s.trim == 5)
        with pytest.raises(LogTrimmed) as caught:
            await three.read(until=11)
        assert caught.value.lsn == 6
        assert [lsn for lsn, _ in await three.read(until=11, after=5)] == [6, 7, 8, 9, 10]

    simulate(body)


def test_segments_below_the_trim_point_leave_the_chain_and_all_nodes() -> None:
    async def body(world: World) -> None:
        one, two = world.nodes[0].up, world.nodes[1].up
        await one.lead()
        await one.write(*_payloads(10))
        assert one.log is not None
        await one.log.drain()
        await two.lead()
        await two.write(b"11")
        assert two.log is not None
        await two.log.drain()
        await one.lead(trim_below=11)
        three = world.nodes[2].up
        with pytest.raises(LogTrimmed):
            await three.read(until=12)
        assert await three.read(until=12, after=10) == [(11, b"11")]
        assert three.server.state((0, 0)) is None

    simulate(body)


def test_a_record_that_all_replicas_lost_is_data_loss() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1", b"2")
        assert one.log is not None
        await one.log.drain()
        await world.nodes[1].up.lead()
        await world.nodes[1].up.write(b"3")

        def forget(*_: object) -> object:
            return type("Held", (), {"records": (), "first_offset": None})()

        for node in world.nodes:
            node.up.wal.read_records = forget  # type: ignore[method-assign, assignment]
        with pytest.raises(LogDamaged, match="record 1 of partition 0"):
            await world.nodes[2].up.read(until=3)

    simulate(body)


def test_reading_waits_for_a_replica_that_has_the_record() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1")
        await world.nodes[1].up.lead()
        await world.nodes[1].up.write(b"2")
        for node in (0, 1, 2):
            await world.nodes[node].kill()
        found: list[Record] = world.nodes[3].up.follow()
        await asyncio.sleep(5)
        assert found == []
        await world.nodes[2].start()
        await world.until(lambda: [r.payload for r in found][:1] == [b"1"])
        await world.nodes[1].start()
        await world.nodes[0].start()
        await world.until(lambda: world.nodes[1].up.server.state((0, 1)))
        await world.nodes[1].up.lead()
        await world.until(lambda: [r.payload for r in found] == [b"1", b"2"])

    simulate(body, nodes=4)
