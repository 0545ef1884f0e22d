"""A statement on any node sees what all of them lead, and nothing is left where it read."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from tests.cluster.fabric_rig import Rig, on_uvloop, until
from tests.engine.entries import OTHER, SERVICE, exclusive, output, run, set_state, sleep
from tests.engine.world import World, invoked
from tests.node.query.members import PARTITIONS, Node, two_nodes
from tests.node.query.rig import ask as ask_alone

from perdure.core.errors import (
    PartitionUnavailable,
    PerdureError,
    QueryRefused,
    QueryTooLarge,
    TooManyRequests,
)
from perdure.core.hashing import key_partition_key
from perdure.core.ids import format_invocation_id, make_invocation_id, partition_of
from perdure.core.limits import QUERY_VISITS_PER_PEER_MAX
from perdure.node.query import query as query_module
from perdure.node.query.messages import CloseReading, NextPiece, OpenReading, OpenScan
from perdure.node.query.query import QueryLimits

pytestmark = pytest.mark.slow

STEPS = 150


@pytest.fixture(scope="module")
def world() -> World:
    """Invocations of three services in all partitions, made one after the other."""
    world = World(PARTITIONS)
    for number in range(STEPS):
        key = str(number % 7)
        target = (SERVICE, OTHER, exclusive(key))[number % 3]
        at = key_partition_key(key) if target.key else (number * 0x9E3779B97F4A7C15) % (1 << 64)
        world.now_ms += number % 3
        id = world.invoke(target, id=make_invocation_id(at, number), body=b"%d" % number)
        if world.status(id) != "invoked":
            continue
        if target.key:
            world.end(id, set_state(b"n", b"%d" % number), output())
        elif number % 4 == 0:
            world.effects(id, sleep(1, world.now_ms + 60_000))
            world.suspend(id, 1)
        elif number % 4 == 1:
            world.fail(id, 500, "no")
        else:
            world.effects(id, run(1, "step"))
    for partition in world.partitions:
        partition.flush()
    return world


def drive(
    world: World, check: Callable[[Node, Node], Awaitable[None]], limits: QueryLimits | None = None
) -> None:
    """Run a check on two nodes; in the end neither holds anything."""

    async def main(rig: Rig) -> None:
        nodes = await two_nodes(rig, world, limits or QueryLimits())
        try:
            await check(*nodes)
            await until(lambda: all(node.held == 0 for node in nodes))
        finally:
            for node in nodes:
                node.query.close()

    on_uvloop(main)


STATEMENTS = (
    "select * from sys_invocation",
    "select id, status from sys_invocation_status where status = 'suspended'",
    "select id, target from sys_invocation where status != 'completed' order by created_at desc, id"
    " limit 20",
    "select id, created_at from sys_invocation where target_service_name = 'Counter' "
    "order by created_at limit 15",
    "select id from sys_invocation where target_service_key in ('1', '2')",
    "select target_service_name, count(1) as n from sys_invocation group by 1 order by 1",
    "select count(*) as n from sys_invocation_status",
    "select id, index, name, entry_type, raw from sys_journal where entry_type like 'Command%'",
    "select * from state where value_utf8 > '100'",
    "select a.id from sys_invocation a join sys_invocation_status b on a.id = b.id "
    "where b.completion_failure is not null and a.created_at > '2023-01-01T00:00:00Z'",
    "select * from sys_inbox union all select * from sys_inbox",
    "select event_type, count(*) as n from sys_journal_events group by 1 order by 1",
    "select id from sys_invocation where id = 'inv_none'",
    "select name from sys_service",
    "select 1 as one",
)


def test_any_node_answers_as_one_that_has_it_all(world: World) -> None:
    expected = {
        statement: sorted(ask_alone(world, statement).rows, key=str) for statement in STATEMENTS
    }

    async def check(one: Node, two: Node) -> None:
        for statement, rows in expected.items():
            for node in (one, two):
                assert sorted(await node.ask(statement), key=str) == rows, statement

    drive(world, check)


def test_an_order_is_kept(world: World) -> None:
    statement = "select id from sys_invocation order by created_at desc, id limit 30"

    expected = ask_alone(world, statement).rows
    assert len(expected) == 30

    async def check(one: Node, two: Node) -> None:
        assert await one.ask(statement) == expected

    drive(world, check)


def test_sessions_are_those_of_the_leaders(world: World) -> None:
    mine, other = invoked(world, 2)[0][0], invoked(world, 1)[0][0]

    async def check(one: Node, two: Node) -> None:
        one.run(mine, 3)
        two.run(other, 5)
        # What a node that doesn't lead remembers is of no account.
        one.run(other, 99)
        expected = sorted([(format_invocation_id(mine), 3), (format_invocation_id(other), 5)])
        for node in (one, two):
            rows = await node.ask("select id, retry_count from sys_invocation_state")
            assert sorted((row["id"], row["retry_count"]) for row in rows) == expected
            rows = await node.ask(
                "select id, retry_count, last_failure from sys_invocation "
                "where status = 'backing-off'"
            )
            assert sorted((row["id"], row["retry_count"]) for row in rows) == expected
            assert all("it hurts" in row["last_failure"] for row in rows)
            text = format_invocation_id(other)
            rows = await node.ask(f"select in_flight from sys_invocation_state where id = '{text}'")
            assert rows == [{"in_flight": False}]

    drive(world, check)


def test_tables_are_flushed_where_they_are_led(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        await one.ask("select id from sys_invocation")
        assert [each.flushes for each in one.led] == [1, 0, 1, 0]
        assert [each.flushes for each in two.led] == [0, 1, 0, 1]
        id = format_invocation_id(invoked(world, 1)[0][0])
        await one.ask(f"select id from sys_invocation where id = '{id}'")
        assert [each.flushes for each in one.led] == [1, 0, 1, 0]
        assert [each.flushes for each in two.led] == [0, 2, 0, 1]

    drive(world, check)


def test_it_waits_for_a_leader(world: World) -> None:
    """Nothing was answered yet: whoever asked sees a pause."""

    async def check(one: Node, two: Node) -> None:
        del one.leaders[1]
        two.led[3].is_right = False
        answering = asyncio.ensure_future(one.ask("select count(*) as n from sys_invocation"))
        await until(lambda: one.asked_for > 2)
        one.leaders[1] = 2
        await until(lambda: two.led[3].refusals > 2)
        two.led[3].is_right = True
        assert await answering == [{"n": STEPS}]

    drive(world, check)


@pytest.mark.parametrize("trouble", ["nobody leads", "it leads no more", "it may be deposed"])
def test_without_a_leader_it_fails(
    world: World, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    monkeypatch.setattr(query_module, "QUERY_PATIENCE_MS", 100)

    async def check(one: Node, two: Node) -> None:
        if trouble == "nobody leads":
            del one.leaders[1]
        elif trouble == "it leads no more":
            two.led[1].is_leading = False
        else:
            two.led[1].is_right = False
        with pytest.raises(PartitionUnavailable):
            await one.ask("select id from sys_invocation")
        # What needs none of it is answered.
        id = format_invocation_id(invoked(world, 3)[0][0])
        assert await one.ask(f"select id from sys_invocation where id = '{id}'") == [{"id": id}]
        assert await one.ask("select name from sys_service") == []

    drive(world, check)


def test_a_leader_that_is_deposed_here_is_not_read(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query_module, "QUERY_PATIENCE_MS", 100)

    async def check(one: Node, two: Node) -> None:
        one.led[0].is_right = False
        with pytest.raises(PartitionUnavailable):
            await one.ask("select id from sys_invocation")

    drive(world, check)


# Much more than what is made ahead.
_LONG = "select a.raw, b.id from sys_journal a, sys_journal b, sys_journal c"


def test_what_is_left_of_an_answer_is_let_go_of(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        answer = await one.query.answer(_LONG, as_json=True)
        assert answer.rest is not None
        assert two.held == 2
        await answer.rest.aclose()
        assert one.held == 0

    drive(world, check)


def test_a_leader_that_dies_cuts_the_answer(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        answer = await one.query.answer("select * from sys_invocation", as_json=True)
        assert answer.rest is not None
        await two.member.fabric.aclose()
        with pytest.raises(PartitionUnavailable, match="node 2, which led partitions 1, 3"):
            async for _ in answer.rest:
                pass
        assert one.held == 0
        assert one.query.statistics().failed == 1

    drive(_large(), check)


def test_who_asked_is_gone(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        answer = await one.query.answer(_LONG, as_json=True)
        assert answer.rest is not None
        assert two.held == 2
        await one.member.fabric.aclose()
        await until(lambda: two.held == 0)
        with suppress(PerdureError):
            await answer.rest.aclose()

    drive(world, check)


def test_time_is_bounded(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        with pytest.raises(QueryTooLarge, match="took longer"):
            # It takes time, and next to no memory.
            await one.ask(_LONG.replace("a.raw, b.id", "max(sha512(a.id || b.id || c.id))"))

    drive(world, check, QueryLimits(timeout_ms=500))


def test_a_leader_that_says_nothing_holds_nobody_up(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        two.led[1].is_silent = True
        with pytest.raises(PartitionUnavailable):
            await one.ask("select id from sys_invocation")

    drive(world, check, QueryLimits(timeout_ms=300))


def test_another_node_may_hold_only_so_much_here_and_not_for_ever(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        me, transport = two.member.fabric.me.node, one.member.fabric
        for ticket in range(QUERY_VISITS_PER_PEER_MAX):
            await transport.ask(me, OpenReading(ticket, (1,), (), 1_000), 20.0)
        assert two.held == QUERY_VISITS_PER_PEER_MAX
        with pytest.raises(TooManyRequests):
            await transport.ask(me, OpenReading(99, (1,), (), 1_000), 20.0)
        await until(lambda: two.held == 0)
        with pytest.raises(PartitionUnavailable):
            await transport.ask(me, NextPiece(0, 1), 20.0)
        with pytest.raises(PartitionUnavailable):
            await transport.ask(me, OpenReading(100, (PARTITIONS,), (), 1_000), 20.0)

    drive(world, check)


def test_another_release_is_told_so(world: World) -> None:
    async def check(one: Node, two: Node) -> None:
        me, transport = two.member.fabric.me.node, one.member.fabric
        await transport.ask(me, OpenReading(1, (1,), (), 5_000), 20.0)
        for number, (table, column) in enumerate((("sys_other", "id"), ("state", "other"))):
            scan = OpenScan(1, number, table, (column,), (), (), None, None)
            with pytest.raises(QueryRefused, match="another node's release"):
                await transport.ask(me, scan, 20.0)
        scan = OpenScan(1, 3, "state", ("key",), (), (), None, b"no expression")
        with pytest.raises(QueryRefused):
            await transport.ask(me, scan, 20.0)
        transport.send(me, CloseReading(1))

    drive(world, check)


def test_rows_may_be_larger_than_a_message_between_nodes() -> None:
    world, value = World(PARTITIONS), b"x" * (20 << 20)
    key = next(key for key in map(str, range(100)) if _is_led_by_two(key))
    id = world.invoke(exclusive(key), id=make_invocation_id(key_partition_key(key), 1))
    world.effects(id, set_state(b"large", value))

    async def check(one: Node, two: Node) -> None:
        for columns in ("value, value_utf8", "value_length"):
            rows = await one.ask(f"select {columns} from state where service_key = '{key}'")
            large = {"value": value.hex(), "value_utf8": value.decode()}
            assert rows == [large if "utf8" in columns else {"value_length": len(value)}]
        assert await one.ask("select count(raw) as n from sys_journal") == [{"n": 2}]

    drive(world, check)


def _is_led_by_two(key: str) -> bool:
    return partition_of(key_partition_key(key), PARTITIONS) in (1, 3)


def _large() -> World:
    """More than a few pieces in each partition."""
    world = World(PARTITIONS)
    for number in range(4_000):
        world.invoke(id=make_invocation_id((number << 52) % (1 << 64), number), body=bytes(100))
    for partition in world.partitions:
        partition.flush()
    return world
