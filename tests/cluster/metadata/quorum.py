"""Metadata members and nodes that ask them, on virtual time and a simulated network.

Nodes 1 to 3 have members; 4 has none and asks through the others' nodes. Members talk over a fabric
of their own, as their processes do.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine
from typing import Any

from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.loop import SimLoop, run
from tests.sim.network import SimNetwork, SimWires
from tests.sim.ports import SimClock, SimEntropy

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.metadata.client import DoorClosed, RaftMetadata
from perdure.cluster.metadata.fabric_door import VisitorDoor, serve_questions
from perdure.cluster.metadata.messages import (
    Answer,
    Ask,
    Look,
    Standing,
    decode_answer,
    decode_ask,
    encode,
)
from perdure.cluster.metadata.peer_link import FabricLink, PeerLives, serve_peers
from perdure.cluster.metadata.provision import count_start, draw_storages, provision
from perdure.cluster.metadata.raft import MemberPorts, RaftMember
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.service import MemberService
from perdure.cluster.transport import Place
from perdure.core.tasks import Supervisor

CLUSTER = ClusterIdentity(name="test", fingerprint=b"F" * 16, secret=None)
OUTSIDER = NodeId(4)


class _ServiceDoor:
    """A way to a member in the same process, through the codec."""

    def __init__(self, quorum: "SimQuorum", node: NodeId) -> None:
        self._quorum = quorum
        self._node = node

    async def ask(self, ask: Ask, timeout_s: float) -> Answer:
        member = self._quorum.lives.get(self._node)
        if member is None:
            raise DoorClosed("no process")
        try:
            async with asyncio.timeout(timeout_s):
                answer = await member.service.answer(decode_ask(encode(ask)))
        except TimeoutError as error:
            raise DoorClosed("no answer") from error
        except asyncio.CancelledError:
            if self._quorum.lives.get(self._node) is member:
                raise
            raise DoorClosed("the process ended") from None
        if self._quorum.lives.get(self._node) is not member:
            raise DoorClosed("the process ended")
        return decode_answer(encode(answer))

    async def aclose(self) -> None:
        """Nothing to close."""


class _Life:
    """One life of a member's process."""

    def __init__(
        self, service: MemberService, fabric: Fabric, wires: SimWires, supervisor: Supervisor
    ) -> None:
        self.service = service
        self.fabric = fabric
        self.wires = wires
        self.supervisor = supervisor


class SimQuorum:
    """The members, their disks and the network between them."""

    nodes = (NodeId(1), NodeId(2), NodeId(3))

    def __init__(self, loop: SimLoop, dice: random.Random) -> None:
        self.clock = SimClock(loop)
        self.dice = dice
        self.entropy = SimEntropy(dice)
        self.network = SimNetwork(dice)
        self.disks = {node: SimDisk(dice) for node in self.nodes}
        self.lives: dict[NodeId, _Life] = {}
        self.supervisor = Supervisor()
        self._fabrics: dict[NodeId, Fabric] = {}
        self._clients: list[RaftMetadata] = []
        storages = draw_storages(self.nodes, self.entropy)
        self.identities = {node: MemberIdentity("ab" * 8, node, storages) for node in self.nodes}

    async def start(self) -> None:
        for node in self.nodes:
            provision(self.disks[node], self.identities[node], self.entropy, 64 * 512)
            await self.boot(node)
        for node in (*self.nodes, OUTSIDER):
            wires = self.network.wires(f"node-{node}:5122")
            fabric = self._fabrics[node] = self._fabric(node, 1, b"n%015d" % node, wires)
            if node != OUTSIDER:
                serve_questions(fabric, _ServiceDoor(self, node))
            await fabric.listen()
        for fabric in self._fabrics.values():
            fabric.set_directory(
                {node: Place(address=f"node-{node}:5122") for node in self._fabrics}
            )

    async def boot(self, node: NodeId) -> None:
        """A new process over the node's disk."""
        disk, identity = self.disks[node], self.identities[node]
        wires = self.network.wires(f"member-{node}:5123")
        storage = bytes.fromhex(identity.storages[node])
        fabric = self._fabric(node, count_start(disk), storage, wires)
        member = RaftMember(
            identity,
            MemberPorts(disk=disk, link=FabricLink(fabric), clock=self.clock, entropy=self.entropy),
        )
        service = MemberService(member, self.clock, self.entropy)
        serve_peers(fabric, service, PeerLives(disk))
        self.lives[node] = _Life(service, fabric, wires, self.supervisor)
        await fabric.listen()
        fabric.set_directory({peer: Place(address=f"member-{peer}:5123") for peer in self.nodes})
        service.start()

    async def follow(self, base: bytes) -> None:
        """Members of another quorum take the places of these, and begin with what they were."""
        number = self.identities[self.nodes[0]].quorum + 1
        storages = draw_storages(self.nodes, self.entropy)
        for node in self.nodes:
            await self.lose_power(node)
            self.identities[node] = MemberIdentity("ab" * 8, node, storages, number)
            self.disks[node] = SimDisk(self.dice)
            disk, identity = self.disks[node], self.identities[node]
            provision(disk, identity, self.entropy, 64 * 512, base)
        for node in self.nodes:
            await self.boot(node)

    async def lose_power(self, node: NodeId) -> None:
        """The process is gone at once, and what its disk had not synced."""
        life = self.lives.pop(node)
        life.wires.lose_power()
        self.disks[node].lose_power()
        with contextlib.suppress(PowerLoss):
            await life.service.aclose()
        await life.fabric.aclose()

    async def meet(self, node: NodeId, peer: NodeId) -> None:
        """Wait until a member is connected to another one's present life."""
        deadline = self.clock.monotonic() + 20
        while not await self._have_met(node, peer):
            assert self.clock.monotonic() < deadline, "they don't meet"
            await asyncio.sleep(0.01)

    async def _have_met(self, node: NodeId, peer: NodeId) -> bool:
        here, there = self.lives[node], self.lives[peer]
        standing = await here.service.answer(Look())
        assert isinstance(standing, Standing)
        is_there = here.fabric.session(peer) == there.fabric.me
        return is_there and peer in standing.connected

    def isolate(self, node: NodeId) -> None:
        """Cut a member from the others."""
        self.network.isolate(f"member-{node}:5123")

    def client(self, node: NodeId) -> RaftMetadata:
        """What a node's process uses: the member beside it first, then those of the others."""
        fabric = self._fabrics[node]
        others = [f"node-{peer}:5122" for peer in self.nodes if peer != node]
        doors = [VisitorDoor(lambda: fabric, address) for address in others]
        own = [] if node == OUTSIDER else [_ServiceDoor(self, node)]
        client = RaftMetadata([*own, *doors], self.clock, self.entropy)
        self._clients.append(client)
        return client

    async def aclose(self) -> None:
        for client in self._clients:
            await client.aclose()
        for node in list(self.lives):
            life = self.lives.pop(node)
            await life.service.aclose()
            await life.fabric.aclose()
        for fabric in self._fabrics.values():
            await fabric.aclose()
        await self.supervisor.aclose()

    def _fabric(self, node: NodeId, start: int, storage: bytes, wires: SimWires) -> Fabric:
        return Fabric(
            me=Peer(node, start, self.entropy.bits(62), storage),
            cluster=CLUSTER,
            wires=wires,
            entropy=self.entropy,
            supervisor=self.supervisor,
        )


Story = Callable[[SimQuorum], Coroutine[Any, Any, None]]


def tell(seed: int, story: Story) -> None:
    """Run a story with three members that are up."""

    async def main(loop: SimLoop) -> None:
        quorum = SimQuorum(loop, random.Random(seed))
        await quorum.start()
        try:
            await story(quorum)
        finally:
            await quorum.aclose()

    run(seed, main)
