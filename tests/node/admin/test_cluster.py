"""What operators ask of a cluster: the admin API's endpoints over real control planes, in simulated
time; and a single node, which tells how it stands and refuses the rest."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, cast

import msgspec
import pytest
from tests.node.admin.world import World as SingleNode
from tests.sim.leadership_play import play, settle
from tests.sim.leadership_world import SimNode, World
from tests.sim.ports import SimClock

from perdure.cluster.core.failure_detector import NodeState
from perdure.core.errors import BadRequest, MembershipRefused, NotFound, PerdureError
from perdure.node.admin.cluster import ROUTES
from perdure.node.admin.context import ClusterAccess, Context
from perdure.node.admin.node import cluster_health
from perdure.node.admin.requests import Request
from perdure.node.admin.routes import Router
from perdure.node.standing import standing

_ROUTER = Router(ROUTES)
_DEADLINE_S = 120.0


class Operator:
    """Asks the admin API of one node of the world."""

    def __init__(self, node: SimNode) -> None:
        assert node.life is not None
        plane = node.life.plane
        unused = cast(Any, None)  # what these endpoints don't look at
        self._context = Context(
            gateway=unused,
            registry=unused,
            discovery=unused,
            query=unused,
            clock=SimClock(cast(Any, asyncio.get_running_loop())),
            entropy=unused,
            options=unused,
            cluster=ClusterAccess(lambda: standing(plane, {}), plane),
            elsewhere=unused,
        )

    async def ask(self, method: str, target: str) -> tuple[int, Any]:
        match = _ROUTER.match(method, target)
        reply = await match.endpoint(
            self._context,
            Request(
                method=method,
                version=0,
                parameters=match.parameters,
                query=match.query,
                content_type=None,
                body=b"",
            ),
        )
        return reply.status, msgspec.json.decode(reply.body)

    async def get(self, target: str) -> Any:
        status, document = await self.ask("GET", target)
        assert status == 200
        return document

    async def patch(self, target: str) -> Any:
        status, document = await self.ask("PATCH", target)
        assert status == 200, document
        return document

    async def until(self, target: str, is_there: Callable[[Any], bool]) -> Any:
        """Look until it is there, in the world's time."""
        async with asyncio.timeout(_DEADLINE_S):
            while True:
                document = await self.get(target)
                if is_there(document):
                    return document
                await asyncio.sleep(0.25)

    async def members(self) -> Any:
        """The nodes that ``/cluster-health`` names."""
        nothing: dict[str, str] = {}
        request = Request(
            method="GET", version=0, parameters=nothing, query=nothing, content_type=None, body=b""
        )
        reply = await cluster_health(self._context, request)
        return msgspec.json.decode(reply.body)["metadata_cluster_health"]["members"]


async def _refused(asking: Awaitable[object], kind: type[PerdureError], words: str) -> None:
    with pytest.raises(kind, match=words):
        await asking


@pytest.mark.slow
def test_status_tells_of_nodes_and_partitions() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        document = await Operator(world.nodes[0]).get("/perdure/cluster")
        assert (document["name"], document["controller"], document["seen_by"]) == (
            "sim",
            "n1",
            "n1",
        )
        assert document["problems"] == []
        assert [row["name"] for row in document["nodes"]] == ["n1", "n2", "n3"]
        assert sum(row["leads"] for row in document["nodes"]) == world.partitions
        leaders = {row["partition"]: [row["leader"]] for row in document["partitions"]}
        assert leaders == world.leaders()
        for row in document["partitions"]:
            roles = sorted(replica["role"] for replica in row["replicas"])
            assert roles == ["follower", "follower", "leader"]
            assert all(replica["lag_records"] == 0 for replica in row["replicas"])
            assert (row["state"] == "leader") is (row["leader"] == "n1")
        assert await Operator(world.nodes[0]).members() == []  # these nodes hold no metadata

    play(scenario)


@pytest.mark.slow
def test_a_partition_is_led_where_it_was_asked_for() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        operator = Operator(world.nodes[0])
        before = after = await operator.get("/perdure/partitions/0")
        for name in ("n1", "n2", "n3"):
            # Whoever is asked: the leader is told, over the network unless it is this very node.
            after = await operator.patch(f"/perdure/partitions/0/lead?to={name}")
            assert after["leader"] == name
            assert world.leaders()[0] == [name]
        moves = len({"n1", "n2", "n3"} - {before["leader"]})
        assert after["epoch"] >= before["epoch"] + moves
        lead = "/perdure/partitions/0/lead"
        await _refused(operator.ask("PATCH", lead), BadRequest, "to=NODE")
        await _refused(operator.ask("PATCH", f"{lead}?to=n9"), NotFound, "the nodes are n1, n2, n3")
        await _refused(operator.ask("GET", "/perdure/partitions/77"), NotFound, "0 to 5")
        await world.nodes[1].kill()
        await operator.until("/perdure/nodes/n2", lambda row: row["state"] == NodeState.DEAD.value)
        await _refused(operator.ask("PATCH", f"{lead}?to=n2"), MembershipRefused, "is dead")

    play(scenario)


@pytest.mark.slow
def test_pins_and_freezes_are_kept_in_the_register() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        operator = Operator(world.nodes[0])
        row = await operator.get("/perdure/partitions/3")
        other = next(r["node"] for r in row["replicas"] if r["node"] != row["leader"])
        assert (await operator.patch(f"/perdure/partitions/3/pin?to={other}"))["pinned"] == other
        await operator.until("/perdure/partitions/3", lambda found: found["leader"] == other)
        assert "pinned" not in await operator.patch("/perdure/partitions/3/unpin")
        assert (await operator.patch("/perdure/partitions/3/freeze"))["is_frozen"] is True
        meta = world.membership().partitions[3]
        assert (meta.policy.pinned, meta.policy.is_frozen) == (None, True)
        assert (await operator.patch("/perdure/partitions/3/unfreeze"))["is_frozen"] is False

    play(scenario)


@pytest.mark.slow
def test_a_node_is_drained_and_taken_back_and_not_removed_before_its_time() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        operator = Operator(world.nodes[0])
        drained = await operator.patch("/perdure/nodes/n3/drain")
        assert drained["worker"] == "draining"
        await operator.until(
            "/perdure/nodes/n3",
            lambda row: (row["worker"], row["leads"], row["holds"]) == ("disabled", 0, 0),
        )
        await _refused(
            operator.ask("PATCH", "/perdure/nodes/n2/drain"), MembershipRefused, "add a node first"
        )
        await _refused(
            operator.ask("DELETE", "/perdure/nodes/n3"), MembershipRefused, "names its log"
        )
        seen = await operator.get("/perdure/cluster")
        assert any("n3 is being drained" in problem["what"] for problem in seen["problems"])
        back = await operator.patch("/perdure/nodes/n3/undrain")
        assert (back["worker"], back["storage"]) == ("active", "read_write")
        await operator.until("/perdure/nodes/n3", lambda row: row["holds"] == world.partitions)

    play(scenario)


@pytest.mark.slow
def test_a_dead_node_is_told_of_and_its_disk_given_up() -> None:
    async def scenario(world: World) -> None:
        await settle(world)
        operator = Operator(world.nodes[0])
        lost = "/perdure/nodes/n2/mark-lost"
        await _refused(operator.ask("PATCH", lost), MembershipRefused, "stop it first")
        await world.nodes[1].kill()
        await operator.until("/perdure/nodes/n2", lambda row: row["state"] == "dead")
        seen = await operator.until(
            "/perdure/cluster", lambda found: all(row["leader"] for row in found["partitions"])
        )
        said = {problem["what"]: problem for problem in seen["problems"]}
        assert any(what.startswith("n2 is dead") for what in said)
        assert any("with one less nobody can take over" in what for what in said)
        gone = [r for row in seen["partitions"] for r in row["replicas"] if r["node"] == "n2"]
        assert {replica["role"] for replica in gone} == {"gone"}
        assert (await operator.patch(lost))["storage"] == "data_loss"
        assert (await operator.patch("/perdure/nodes/n2/resume"))["storage"] == "provisioning"

    play(scenario)


def test_a_single_node_tells_how_it_stands_and_refuses_to_move_anything(world: SingleNode) -> None:
    document = world.admin("GET", "/perdure/cluster").json()
    assert document["is_single_node"] is True
    assert document["problems"] == []
    (node,) = document["nodes"]
    assert (node["state"], node["leads"], node["is_controller"]) == ("alive", 3, True)
    for row in document["partitions"]:
        assert row["leader"] == node["name"]
        assert row["committed_lsn"] >= 1
    members = world.admin("GET", "/cluster-health").json()["metadata_cluster_health"]["members"]
    assert members == [node["id"]]
    for method, path in (
        ("PATCH", f"/perdure/nodes/{node['name']}/drain"),
        ("PATCH", f"/perdure/nodes/{node['name']}/mark-lost"),
        ("DELETE", f"/perdure/nodes/{node['name']}"),
        ("PATCH", f"/perdure/metadata/voters?names={node['name']}"),
        ("PATCH", f"/perdure/partitions/0/lead?to={node['name']}"),
        ("PATCH", "/perdure/partitions/0/freeze"),
    ):
        refused = world.admin(method, path)
        assert (refused.status, refused.json()["restate_code"]) == (409, "MEMB0001"), path
        assert "single node" in refused.json()["message"]


@pytest.mark.slow
def test_a_halted_partition_of_a_single_node_is_critical(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    single = SingleNode(tmp_path_factory.mktemp("halted"))
    single.start()
    try:
        single.halt(1)
        document = single.admin("GET", "/perdure/cluster").json()
        assert {problem["severity"] for problem in document["problems"]} == {"critical"}
        assert document["partitions"][1]["leader"] is None
        assert any("partition 1 is broken" in each["what"] for each in document["problems"])
    finally:
        single.stop()
