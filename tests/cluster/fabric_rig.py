"""Runs one test of the transport over simulated wires and over gRPC, on both event loops."""

import asyncio
import random
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Protocol

import uvloop
from tests.sim.loop import SimLoop, run
from tests.sim.network import SimNetwork
from tests.sim.ports import SimEntropy

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.messages import GUEST, Message, Peer, Request
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.tcp_transport import TcpWires
from perdure.cluster.transport import Answer, Place
from perdure.cluster.wires import Wires
from perdure.core.entropy import Entropy, SystemEntropy
from perdure.core.tasks import Supervisor

FINGERPRINT = b"F" * 16
DEADLINE_S = 20.0


class Text(Message, frozen=True, tag=0x7F11):
    """Something said."""

    text: str


class Blob(Message, frozen=True, tag=0x7F12):
    """Something large."""

    data: bytes


class Echo(Request[Text], frozen=True, tag=0x7F13):
    """Say the same."""

    text: str


class Count(Request[Blob], frozen=True, tag=0x7F14):
    """So many blobs of such a size."""

    blobs: int
    size: int


def peer(node: int, generation: int = 1, incarnation: int = 0, disk: bytes = b"") -> Peer:
    """Somebody. Unless told otherwise, every generation is another process on the same disk."""
    return Peer(
        NodeId(node), generation, incarnation or node * 1000 + generation, disk or b"%016d" % node
    )


class Network(Protocol):
    """Where a test runs."""

    def wires(self, node: int) -> Wires: ...

    def entropy(self) -> Entropy: ...


class SimNet:
    """The simulated network, hosts named after nodes."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.network = SimNetwork(self.dice)

    def wires(self, node: int) -> Wires:
        return self.network.wires(f"node-{node}:5122")

    def entropy(self) -> Entropy:
        return SimEntropy(self.dice)


class GrpcNet:
    """Loopback; everybody takes a free port."""

    def wires(self, node: int) -> Wires:
        from perdure.cluster.grpc_transport import GrpcWires

        return GrpcWires("127.0.0.1:0")

    def entropy(self) -> Entropy:
        return SystemEntropy()


class TcpNet(GrpcNet):
    """The same without gRPC."""

    def wires(self, node: int) -> Wires:
        return TcpWires("127.0.0.1:0")


class Member:
    """A node of the test's cluster, and what it was told."""

    def __init__(self, fabric: Fabric, wires: Wires, supervisor: Supervisor) -> None:
        self.fabric = fabric
        self.wires = wires
        self.supervisor = supervisor
        self.place = Place(address="")
        self.heard: list[tuple[Peer, Message]] = []
        self.sessions: list[tuple[Peer, bool]] = []
        self.refusals: list[tuple[int, str]] = []
        self.vacant: list[int] = []
        fabric.on_session(lambda other, is_up: self.sessions.append((other, is_up)))
        fabric.on_vacant(self.vacant.append)
        fabric.on_refused(lambda node, error: self.refusals.append((node, error.code)))

    @property
    def texts(self) -> list[str]:
        return [said.text for _, said in self.heard if isinstance(said, Text)]

    def hear(self, sender: Peer, message: Message, answer: Answer) -> None:
        self.heard.append((sender, message))

    def echo(self, sender: Peer, message: Echo, answer: Answer) -> None:
        self.heard.append((sender, message))
        answer(Text(message.text))


class Rig:
    """A cluster of fabrics."""

    def __init__(self, net: Network) -> None:
        self.net = net
        self.members: list[Member] = []

    def make(
        self,
        me: Peer,
        *,
        cluster: str = "test",
        fingerprint: bytes = FINGERPRINT,
        secret: bytes | None = None,
        wires: Wires | None = None,
        allowed_names: tuple[str, ...] = (),
    ) -> Member:
        """A node that echoes and listens to what is said."""
        supervisor = Supervisor()
        wires = wires or self.net.wires(me.node)
        fabric = Fabric(
            me=me,
            cluster=ClusterIdentity(name=cluster, fingerprint=fingerprint, secret=secret),
            wires=wires,
            entropy=self.net.entropy(),
            supervisor=supervisor,
            allowed_names=allowed_names,
        )
        member = Member(fabric, wires, supervisor)
        fabric.serve(Text, member.hear)
        fabric.serve(Blob, member.hear)
        fabric.serve(Echo, member.echo)
        self.members.append(member)
        return member

    async def start(self, me: Peer, **options: Any) -> Member:
        """A node that listens."""
        member = self.make(me, **options)
        if me.node != GUEST:
            member.place = Place(address=await member.fabric.listen())
        return member

    def introduce(self, *members: Member) -> None:
        """Give each of them the others' addresses."""
        directory = {member.fabric.me.node: member.place for member in members}
        for member in members:
            member.fabric.set_directory(directory)

    async def pair(self, **options: Any) -> tuple[Member, Member]:
        """Two nodes with sessions both ways."""
        one, two = await self.start(peer(1), **options), await self.start(peer(2), **options)
        self.introduce(one, two)
        await until(lambda: is_up(one, two) and is_up(two, one))
        return one, two

    async def aclose(self) -> None:
        failures = list[BaseException]()
        for member in self.members:
            await member.fabric.aclose()
            if member.supervisor.failure is not None:
                failures.append(member.supervisor.failure)
            await member.supervisor.aclose()
        if failures:
            raise failures[0]


def is_up(one: Member, other: Member) -> bool:
    """Whether ``one`` has a session to this very process."""
    return one.fabric.session(other.fabric.me.node) == other.fabric.me


async def until(condition: Callable[[], object]) -> None:
    """Wait for a condition, up to a deadline."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + DEADLINE_S
    while not condition():
        assert loop.time() < deadline, "the condition never held"
        await asyncio.sleep(0.005)


Check = Callable[[Rig], Coroutine[Any, Any, None]]


async def _drive(net: Network, check: Check) -> None:
    rig = Rig(net)
    try:
        await check(rig)
    finally:
        await rig.aclose()


def on_sim(check: Check, seed: int = 1) -> None:
    """Virtual time, simulated wires."""

    def main(_: SimLoop) -> Coroutine[Any, Any, None]:
        return _drive(SimNet(seed), check)

    run(seed, main)


def on_tcp(check: Check) -> None:
    """Plain TCP on asyncio's loop."""
    asyncio.run(_drive(TcpNet(), check))


def on_tcp_uvloop(check: Check) -> None:
    """Plain TCP on the loop that servers run on."""
    uvloop.run(_drive(TcpNet(), check))


def on_asyncio(check: Check) -> None:
    """gRPC on asyncio's loop."""
    asyncio.run(_drive(GrpcNet(), check))


def on_uvloop(check: Check) -> None:
    """gRPC on the loop that servers run on."""
    uvloop.run(_drive(GrpcNet(), check))


RUNNERS: dict[str, Callable[[Check], None]] = {
    "sim": on_sim,
    "tcp": on_tcp,
    "tcp-uvloop": on_tcp_uvloop,
    "grpc": on_asyncio,
    "grpc-uvloop": on_uvloop,
}


async def gather(*work: Awaitable[Any]) -> list[Any]:
    """All outcomes, errors as values."""
    return list(await asyncio.gather(*work, return_exceptions=True))
