"""Two of three disks are lost: the log goes on with what is left, and without who comes back."""

import asyncio

import pytest
from tests.cluster.nodes import Life, World, simulate

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, UnsafeClose
from perdure.cluster.core.types import Member
from perdure.cluster.registers import edit_register
from perdure.cluster.takeover import Takeover, partition_key
from perdure.core.loss_errors import HistoryForsaken


async def _allow(world: World, left: Member, tail_lsn: int) -> None:
    """What an operator does."""
    close = UnsafeClose(0, 1, tail_lsn, 0, (left,), "root", 1)
    edited = await edit_register(
        world.metadata,
        partition_key(0),
        PartitionMeta,
        lambda known: chain.allow_unsafe(known, close) if known else None,
    )
    assert edited is not None and edited.is_changed


async def _lose(world: World) -> tuple[Life, asyncio.Task[Takeover]]:
    """Nodes 1 and 2 have a record more than 3 and are gone; 3 waits for them to take over."""
    one, three = world.nodes[0].up, world.nodes[2].up
    await one.lead()
    await one.write(b"a", b"b")
    await world.until(lambda: (s := three.server.state((0, 0))) and s.durable_tail == 2)
    await world.nodes[2].kill()
    await one.write(b"c")
    await world.nodes[0].kill()
    await world.nodes[1].kill()
    three = await world.nodes[2].start()
    waiting: list[object] = []
    members = tuple(Member(node.id, node.uuid) for node in world.nodes[2:])
    taking = three.start(three.take_over(on_waiting=waiting.append, nodeset=members))
    await world.until(lambda: waiting)
    return three, taking


def test_a_log_goes_on_with_the_replica_that_is_left() -> None:
    async def body(world: World) -> None:
        three, taking = await _lose(world)
        await _allow(world, three.me.member, 3)
        taken = await taking
        (done,) = taken.meta.unsafe
        assert (done.tail_lsn, done.segment, taken.meta.trim_lsn) == (3, 0, 1)
        assert taken.opened.base_lsn == 3
        assert taken.meta.chain[0].is_under_replicated
        leading = await three.lead(nodeset=taken.opened.nodeset)
        await three.write(b"other")
        assert await three.read(leading.opened.base_lsn + 1) == [
            (1, b"a"),
            (2, b"b"),
            (3, b"other"),
        ]
        one = await world.nodes[0].start()
        with pytest.raises(HistoryForsaken, match="before record 3"):
            await one.follower(3, epoch=1).run(_nothing, 5)
        with pytest.raises(HistoryForsaken):
            await one.take_over(applied=3, applied_epoch=1)
        # It had known more to be committed: that is cut, durably, and the rest can be read there.
        await world.until(lambda: (s := one.server.state((0, 0))) and s.closed_tail == 2)
        await world.nodes[0].kill()
        one = await world.nodes[0].start()
        assert (state := one.server.state((0, 0))) is not None and state.kgt == 2
        assert (await one.read(4, after=1))[-1] == (3, b"other")

    simulate(body, nodes=5)


def test_what_only_tables_have_is_kept_and_the_log_begins_behind_it() -> None:
    async def body(world: World) -> None:
        three, taking = await _lose(world)
        await _allow(world, three.me.member, 6)
        taken = await taking
        assert (taken.opened.base_lsn, taken.meta.trim_lsn) == (6, 6)
        assert taken.meta.unsafe[0].begins_lsn == 6

    simulate(body, nodes=5)


def test_nothing_happens_before_it_is_allowed_nor_without_who_is_counted() -> None:
    async def body(world: World) -> None:
        three, taking = await _lose(world)
        await asyncio.sleep(30)
        assert not taking.done()
        await _allow(world, Member(world.nodes[3].id, b"x" * 16), 3)
        await asyncio.sleep(30)
        assert not taking.done()
        await _allow(world, three.me.member, 3)
        assert (await taking).opened.base_lsn == 3

    simulate(body, nodes=5)


async def _nothing(records: object) -> None:
    """They are not looked at."""
