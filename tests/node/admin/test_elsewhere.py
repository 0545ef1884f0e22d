"""Which partition a request is about, and what becomes of it while nobody leads that."""

import asyncio
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from tests.cluster.fabric_rig import Rig, on_uvloop

from perdure.cluster.core.types import NodeId
from perdure.core.errors import BadRequest, NotFound, PartitionUnavailable, Unprocessable
from perdure.core.hashing import key_partition_key
from perdure.core.ids import (
    PartitionId,
    format_invocation_id,
    make_invocation_id,
    partition_of,
)
from perdure.node.admin import elsewhere as module
from perdure.node.admin.elsewhere import Elsewhere, Forward, home_of
from perdure.node.admin.invocations import ROUTES
from perdure.node.admin.requests import Reply, Request
from perdure.node.admin.routes import Router
from perdure.node.partition.members import Members

COUNT = 4
ID = format_invocation_id(make_invocation_id(3 << 62, 7))
GET = Forward(3, "GET", "/perdure/invocations/x", None, None, b"")


@pytest.mark.parametrize(
    ("path", "parameters", "query", "home"),
    [
        ("/perdure/invocations/" + ID, {"id": ID}, {}, 3),
        ("/v3/invocations/" + ID + "/cancel", {"id": ID}, {}, 3),
        ("/perdure/state/S/k", {"service": "S", "key": "k"}, {}, None),
        ("/perdure/invocations", {}, {"partition": "2"}, 2),
        ("/perdure/invocations/" + ID, {"id": ID}, {"partition": "2"}, 3),
        ("/perdure/deployments/dp_1", {"id": "dp_1"}, {"partition": "1"}, 1),
        ("/perdure/invocations", {}, {}, None),
        ("/deployments/dp_1", {"id": "dp_1"}, {}, None),
        ("/services/S", {"name": "S"}, {"partition": "x"}, None),
    ],
)
def test_a_path_tells_whose_it_is(
    path: str, parameters: dict[str, str], query: dict[str, str], home: int | None
) -> None:
    if "key" in parameters:
        home = partition_of(key_partition_key(parameters["key"]), COUNT)
    assert home_of(path, parameters, query, COUNT) == home


@pytest.mark.parametrize("partition", ["", "-1", "4", "x", "99999999"])
def test_no_such_partition(partition: str) -> None:
    with pytest.raises(BadRequest):
        home_of("/perdure/invocations", {}, {"partition": partition}, COUNT)


class Node:
    """One that leads some partitions, and says so in each answer."""

    def __init__(self, rig_member: Any, led: set[int], leaders: dict[int, int]) -> None:
        self.led = led
        self.leaders = leaders
        self.me = rig_member.fabric.me.node
        self.failures: list[Exception] = []
        self.asked: list[Forward] = []
        self.reply: Reply | None = None
        members = Members(self.me, self, rig_member.fabric)
        self.elsewhere = Elsewhere(cast(Any, self), members, self.serve)

    def leads(self, partition: PartitionId) -> bool:
        return partition in self.led

    def leader_of(self, partition: PartitionId) -> NodeId | None:
        node = self.leaders.get(partition)
        return NodeId(node) if node is not None else None

    async def serve(self, request: Forward) -> Reply:
        self.asked.append(request)
        if self.failures:
            raise self.failures.pop()
        if self.reply is not None:
            return self.reply
        return Reply(200, [(b"content-type", b"text/plain")], b"node %d" % self.me)


def test_the_leader_answers_and_a_change_of_leaders_is_waited_for() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        asking, other = Node(one, {0, 1}, {3: 2}), Node(two, {3}, {})
        reply = await asking.elsewhere.ask(GET)
        assert (reply.status, reply.body) == (200, b"node 2")
        assert reply.headers == [(b"content-type", b"text/plain")]
        other.led.clear()
        waiting = asyncio.ensure_future(asking.elsewhere.ask(GET))
        done, _ = await asyncio.wait((waiting,), timeout=0.05)
        assert not done
        asking.led.add(3)
        assert (await waiting).body == b"node 1"

    on_uvloop(check)


def test_an_answer_that_no_message_takes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ADMIN_FORWARD_BYTES_MAX", 5)

    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        asking, _ = Node(one, set(), {3: 2}), Node(two, {3}, {})
        with pytest.raises(Unprocessable, match="ask node 2 itself"):
            await asking.elsewhere.ask(GET)

    on_uvloop(check)


def test_a_batch_that_needs_tables_is_done_where_they_are_led(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "ROUTE_PATIENCE_MS", 50)

    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        asking, other = Node(one, {0}, {3: 2}), Node(two, {3}, {})
        ids = [format_invocation_id(make_invocation_id(3 << 62, number)) for number in range(3)]
        nobodys = format_invocation_id(make_invocation_id(2 << 62, 7))
        told = {"succeeded": [ids[0], ids[2]], "failed": [{"invocation_id": ids[1], "error": "x"}]}
        other.reply = Reply(200, [], msgspec.json.encode(told))
        context = SimpleNamespace(
            gateway=SimpleNamespace(partition_count=COUNT), elsewhere=asking.elsewhere
        )
        router = Router(ROUTES)
        target = "/internal/invocations_batch_operations/restart-as-new"
        match = router.match("POST", target)
        body = {"invocation_ids": [*ids, nobodys], "deployment": "keep"}
        reply = await match.endpoint(cast(Any, context), _post(msgspec.json.encode(body)))
        document = msgspec.json.decode(reply.body)
        assert document["succeeded"] == [ids[0], ids[2]]
        failed = {each["invocation_id"]: each["error"] for each in document["failed"]}
        assert failed[ids[1]] == "x"
        assert "partition 2 has no leader" in failed[nobodys]
        (asked,) = other.asked
        assert (asked.partition, asked.method, asked.target) == (3, "POST", target)
        assert msgspec.json.decode(asked.body) == {"invocation_ids": ids, "deployment": "keep"}

    on_uvloop(check)


def _post(body: bytes) -> Request:
    return Request(
        method="POST",
        version=0,
        parameters={},
        query={},
        content_type="application/json",
        body=body,
    )


def test_without_a_leader_it_fails_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROUTE_PATIENCE_MS", 50)

    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        asking, other = Node(one, set(), {3: 2}), Node(two, {3}, {})
        other.failures.append(NotFound("there is none"))
        with pytest.raises(NotFound):
            await asking.elsewhere.ask(GET)
        asking.leaders.clear()
        with pytest.raises(PartitionUnavailable, match="partition 3 has no leader"):
            await asking.elsewhere.ask(GET)

    on_uvloop(check)
