"""Segments on several nodes: commits, failures, take-overs, hand-over, and what readers see."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from tests.cluster.nodes import Life, World, simulate

from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.sequencer import Contested, Lost
from perdure.cluster.core.types import REFUSED_WRONG_WRITER, NodeId, Refused, Store
from perdure.cluster.metadata.store import CasOutcome, MetadataStore, Unknown, Versioned
from perdure.cluster.takeover import decode_meta, partition_key
from perdure.core.errors import MetadataConflict, OutcomeUnknown
from perdure.core.limits import LINK_TICK_MS
from perdure.core.limits_log import PEER_SLOW_MS
from perdure.core.limits_telling import RECOVERY_TELL_MS

Body = Callable[[World], Awaitable[None]]


def _payloads(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def _is_told(life: Life, key: tuple[int, int], kgt: int) -> bool:
    tail = life.server.tail(key)
    return tail is not None and tail.kgt == kgt


def test_records_commit_on_r_nodes_and_reach_all() -> None:
    async def body(world: World) -> None:
        one, two, three = (node.up for node in world.nodes)
        taken = await one.lead()
        await one.write(b"a", b"b")
        assert one.committed == [(1, b"a"), (2, b"b")]
        key = taken.opened.key
        for life in (one, two, three):
            await world.until(partial(_is_told, life, key, 2))
            state = life.server.state(key)
            assert state is not None
            assert state.durable_tail == 2
        assert one.log is not None
        assert await one.log.confirm()

    simulate(body)


def test_one_of_three_may_be_away_and_catches_up() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(*_payloads(1, 2))
        await world.nodes[2].kill(loses_power=True)
        await one.write(*_payloads(3, 4, 5))
        back = await world.nodes[2].start()
        await world.until(lambda: (s := back.server.state((0, 0))) and s.durable_tail == 5)
        await one.write(b"6")
        found = await back.read(until=7)
        assert found == [(n, b"%d" % n) for n in range(1, 7)]

    simulate(body)


@pytest.mark.parametrize("how", ["silent", "gone"])
def test_another_takes_the_place_of_who_is_waited_for(how: str) -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1")
        assert one.log is not None
        (quick,) = [node for node in world.nodes[1:] if not one.log.is_late(node.id)]
        if how == "gone":
            one.append(b"2")
            await quick.kill()
        else:
            world.network.isolate(quick.host)
            one.append(b"2")
        began = world.loop.time()
        await world.until(lambda: len(one.committed) == 2)
        assert world.loop.time() - began < (PEER_SLOW_MS + 3 * LINK_TICK_MS) / 1000

    simulate(body)


def test_without_r_nodes_nothing_commits_until_one_is_back() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1")
        await world.nodes[1].kill()
        await world.nodes[2].kill()
        one.append(b"2")
        await asyncio.sleep(8)
        assert one.committed == [(1, b"1")]
        assert one.log is not None
        assert one.log.stalled_ms() > 5_000
        assert one.troubles
        await world.nodes[1].start()
        await world.until(lambda: one.committed == [(1, b"1"), (2, b"2")])
        assert one.log.stalled_ms() == 0

    simulate(body)


@pytest.mark.parametrize("loses_power", [False, True])
def test_another_node_takes_over_and_nothing_committed_is_lost(loses_power: bool) -> None:
    async def body(world: World) -> None:
        first, second = world.nodes[0], world.nodes[1]
        await first.up.lead()
        await first.up.write(*_payloads(1, 2, 3))
        first.up.append(b"4")  # nobody was told
        await asyncio.sleep(0.0005)
        committed = list(first.up.committed)
        await first.kill(loses_power=loses_power)
        taken = await second.up.lead()
        assert taken.meta.chain[0].tail_lsn in (4, 5)
        await second.up.write(b"next")
        base = taken.opened.base_lsn
        third = world.nodes[2].up
        found = await third.read(until=base + 1)
        assert found[: len(committed)] == committed
        assert found[-1] == (base, b"next")
        back = await first.start()
        assert await back.read(until=base + 1) == found

    simulate(body)


def test_a_living_leader_is_fenced_by_its_successor() -> None:
    async def body(world: World) -> None:
        one, two = world.nodes[0].up, world.nodes[1].up
        await one.lead()
        await one.write(b"1")
        await two.lead()
        one.append(b"zombie")
        await world.until(lambda: one.stopped)
        assert one.log is not None
        assert not await one.log.confirm()
        assert one.log.abandon() == [b"zombie"]
        await two.write(b"2")
        assert await one.read(until=3) == [(1, b"1"), (2, b"2")]

    simulate(body)


def test_a_cut_off_leader_can_neither_commit_nor_confirm() -> None:
    async def body(world: World) -> None:
        one, two = world.nodes[0].up, world.nodes[1].up
        await one.lead()
        await one.write(b"1")
        world.network.isolate(world.nodes[0].host)
        await two.lead()
        await two.write(b"2")
        one.append(b"zombie")
        await asyncio.sleep(3)
        assert one.committed == [(1, b"1")]
        assert one.log is not None
        assert not await one.log.confirm()
        world.network.heal()
        await world.until(lambda: one.stopped)

    simulate(body)


def test_a_hand_over_leaves_nothing_to_repair() -> None:
    async def body(world: World) -> None:
        one, two = world.nodes[0].up, world.nodes[1].up
        await one.lead()
        one.append(*_payloads(1, 2, 3))
        assert one.log is not None
        await one.log.drain()
        assert len(one.committed) == 3
        with pytest.raises(OutcomeUnknown, match="handed over"):
            one.append(b"late")
        taken = await two.lead(seen_epoch=1, reason="hand-over")
        assert taken.opened.base_lsn == 4
        await two.write(b"4")

    simulate(body)


def test_a_leader_changes_its_nodeset_by_taking_over_from_itself() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1")
        assert one.log is not None
        await one.log.drain()
        members = tuple(node.up.me.member for node in (world.nodes[0], *world.nodes[2:]))
        taken = await one.lead(nodeset=members, reason="nodeset")
        await one.write(b"2")
        assert taken.opened.nodeset == members
        await world.nodes[1].kill()
        assert await world.nodes[3].up.read(until=3) == [(1, b"1"), (2, b"2")]

    simulate(body, nodes=4)


def test_a_node_with_another_disk_doesn_t_count() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1")
        await world.nodes[2].kill()
        world.nodes[2].wipe()
        await world.nodes[2].start()
        await world.until(lambda: Lost(NodeId(3), "another disk") in one.troubles)
        await one.write(b"2")
        await world.nodes[1].kill()
        one.append(b"3")
        await asyncio.sleep(3)
        assert len(one.committed) == 2

    simulate(body)


def test_recovery_waits_for_an_f_majority(caplog: pytest.LogCaptureFixture) -> None:
    waits: list[Wait | None] = []

    async def body(world: World) -> None:
        one, two, three = world.nodes
        await one.up.lead()
        await one.up.write(b"1")
        await one.kill()
        await three.kill()
        taking = two.up.start(two.up.lead(on_waiting=waits.append))
        with caplog.at_level("WARNING", logger="perdure"):
            await asyncio.sleep(2.5 * RECOVERY_TELL_MS / 1000)
        assert not taking.done()
        told = [r for r in caplog.records if r.getMessage() == "log.recovery.waiting"]
        assert len(told) == 3  # at once, and after each interval, however often it is tried
        last = waits[-1]
        assert last is not None and last.reason == "seal_quorum"
        assert [member.node for member in last.members] == [one.id, three.id]
        await three.start()
        await world.until(taking.done)
        assert taking.result().opened.base_lsn == 2
        assert waits[-1] is None

    simulate(body)


def test_a_second_writer_of_a_segment_is_refused_and_counted() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        taken = await one.lead()
        await one.write(b"1")
        opened = taken.opened
        answers: list[object] = []
        one.server.store(
            Store(0, opened.index, opened.epoch, opened.writer.incarnation + 1, 1, 1, (b"x" * 20,)),
            answers.append,
        )
        assert answers == [
            Refused(0, opened.index, REFUSED_WRONG_WRITER, opened.writer.incarnation)
        ]
        assert (one.server.pin_conflicts, world.nodes[1].up.server.pin_conflicts) == (1, 0)

    simulate(body)


def test_commits_are_timed() -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        for number in range(5):
            await one.write(b"%d" % number)
        figures = one.batcher.commits.figures()
        assert figures.count == 5
        assert 0 < figures.quantiles[0] <= figures.quantiles[-1] < 1

    simulate(body)


def test_a_claim_that_was_overtaken_is_given_up() -> None:
    async def body(world: World) -> None:
        one, two, three = world.nodes
        await one.up.lead()
        await one.kill()
        world.network.cut(two.host, three.host)
        world.network.cut(three.host, two.host)
        world.network.reset(two.host, three.host)
        taking = two.up.start(two.up.lead())
        await asyncio.sleep(1)
        await one.start()
        world.network.cut(two.host, one.host)
        await three.up.lead()
        await world.until(taking.done)
        with pytest.raises(MetadataConflict):
            taking.result()

    simulate(body)


def test_a_single_sealed_replica_makes_a_leader_look_at_the_chain() -> None:
    async def body(world: World) -> None:
        one, three = world.nodes[0].up, world.nodes[2].up
        taken = await one.lead()
        await one.write(b"1")
        three.server.seal(taken.opened.ref, 9, lambda _: None)
        one.append(b"2")
        await world.until(lambda: one.troubles)
        assert isinstance(one.troubles[0], Contested)
        await world.until(lambda: len(one.committed) == 2)
        assert one.stopped == []

    simulate(body)


class _Unsure(MetadataStore):
    """Outcomes of writes are unknown, whether they took effect or not."""

    def __init__(self, inner: MetadataStore, *, is_done: tuple[bool, ...]) -> None:
        self._inner = inner
        self._is_done = list(is_done)

    async def get(self, key: str) -> Versioned | None:
        return await self._inner.get(key)

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        if not self._is_done:
            return await self._inner.cas(key, expected, value)
        if self._is_done.pop(0):
            await self._inner.cas(key, expected, value)
        return Unknown()

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        return self._inner.watch(prefix, hint)


@pytest.mark.parametrize("claims", [(True,), (False,), (False, True)])
@pytest.mark.parametrize("extends", [(True,), (False,), (False, False, True)])
def test_writes_with_unknown_outcomes_are_settled_by_looking(
    claims: tuple[bool, ...], extends: tuple[bool, ...]
) -> None:
    async def body(world: World) -> None:
        one = world.nodes[0].up
        await one.lead()
        await one.write(b"1")
        taken = await world.nodes[1].up.lead(
            metadata=_Unsure(world.metadata, is_done=claims + extends)
        )
        found = await world.metadata.get(partition_key(0))
        assert decode_meta(found) == taken.meta
        assert found is not None
        assert found.version == taken.version
        assert [segment.index for segment in taken.meta.chain] == [0, 1]
        await world.nodes[1].up.write(b"2")

    simulate(body)


class _Counted:
    """Registers, and how often they are asked."""

    def __init__(self, inner: MetadataStore) -> None:
        self._inner = inner
        self.reads = self.writes = 0

    async def get(self, key: str) -> Versioned | None:
        self.reads += 1
        return await self._inner.get(key)

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        self.writes += 1
        return await self._inner.cas(key, expected, value)

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        return self._inner.watch(prefix, hint)


@pytest.mark.parametrize("is_stale", [False, True])
def test_who_knows_the_register_takes_over_in_two_writes(is_stale: bool) -> None:
    async def body(world: World) -> None:
        one, two = world.nodes[0].up, world.nodes[1].up
        await one.lead()
        stale = await world.metadata.get(partition_key(0))
        assert stale is not None
        await one.write(b"1")
        known = await world.metadata.get(partition_key(0))
        if is_stale:
            written = await world.metadata.cas(partition_key(0), stale.version, stale.value)
            assert isinstance(written, Versioned)
        counted = _Counted(world.metadata)
        taken = await two.lead(metadata=counted, seen_epoch=1, known=known)
        assert (counted.reads, counted.writes) == ((1, 3) if is_stale else (0, 2))
        assert taken.opened.base_lsn == 2
        await two.write(b"2")

    simulate(body)
