"""What nodes can say to each other: ``python -m bench.fabric [--quick] [--secret] [--grpc]``.

Two processes on this machine, over loopback. Serial questions give the round trip; questions
under way at once, and messages one way, show what gathering the messages of a turn into one frame
is worth; a stream shows the bytes.
"""

import argparse
import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from time import perf_counter, process_time
from typing import NamedTuple

import uvloop

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.messages import Message, Peer, Request
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.grpc_transport import GrpcWires
from perdure.cluster.tcp_transport import TcpWires
from perdure.cluster.transport import Answer, Place
from perdure.core.entropy import SystemEntropy
from perdure.core.tasks import Supervisor

ONE, TWO = NodeId(1), NodeId(2)
SECRET = b"a secret for the benchmark only"
WINDOW = 256


class Ack(Message, frozen=True, tag=0x7F21):
    """Got so many."""

    count: int


class Ask(Request[Ack], frozen=True, tag=0x7F22):
    """A question with a body."""

    body: bytes


class Store(Message, frozen=True, tag=0x7F23):
    """One way; the last one of a turn is acknowledged for all before it."""

    body: bytes


class Read(Request[Store], frozen=True, tag=0x7F24):
    """A stream of bodies."""

    count: int
    size: int


class How(NamedTuple):
    """What the two talk over."""

    secret: bytes | None
    is_grpc: bool


def make(node: NodeId, how: How) -> Fabric:
    """One end."""
    return Fabric(
        me=Peer(node, 1, node, b"%016d" % node),
        cluster=ClusterIdentity(name="bench", fingerprint=b"F" * 16, secret=how.secret),
        wires=GrpcWires("127.0.0.1:0") if how.is_grpc else TcpWires("127.0.0.1:0"),
        entropy=SystemEntropy(),
        supervisor=Supervisor(),
    )


def serve(pipe: Connection, how: How) -> None:
    """The other process: answers until told to stop."""
    uvloop.run(_serve(pipe, how))


async def _serve(pipe: Connection, how: How) -> None:
    fabric = make(TWO, how)
    loop, stored, owed = asyncio.get_running_loop(), 0, list[Answer]()

    def acknowledge() -> None:
        answer = owed[-1]
        owed.clear()
        answer(Ack(stored))

    def store(sender: Peer, message: Store, answer: Answer) -> None:
        nonlocal stored
        stored += 1
        if not owed:
            loop.call_soon(acknowledge)
        owed.append(answer)

    async def read(sender: Peer, request: Read) -> AsyncIterator[Store]:
        body = bytes(request.size)
        for _ in range(request.count):
            yield Store(body)

    fabric.serve(Ask, lambda sender, message, answer: answer(Ack(1)))
    fabric.serve(Store, store)
    fabric.serve_stream(Read, read)
    address = await fabric.listen()
    fabric.set_directory({ONE: Place(address=pipe.recv())})
    pipe.send(address)
    await loop.run_in_executor(None, pipe.recv)
    pipe.send(process_time())
    await fabric.aclose()


class Client:
    """This process."""

    def __init__(self, fabric: Fabric) -> None:
        self.fabric = fabric
        self.acknowledged = 0
        self.changed, self.up = asyncio.Event(), asyncio.Event()
        fabric.on_session(lambda peer, is_up: self.up.set())
        fabric.serve(Ack, self._on_ack)

    def _on_ack(self, sender: Peer, message: Ack, answer: Answer) -> None:
        self.acknowledged = message.count
        self.changed.set()

    async def serial(self, size: int, count: int) -> str:
        """One question at a time."""
        body, taken = bytes(size), list[float]()
        for _ in range(count):
            started = perf_counter()
            await self.fabric.ask(TWO, Ask(body), 10)
            taken.append(perf_counter() - started)
        taken.sort()
        p50, p99 = taken[count // 2] * 1e3, taken[count * 99 // 100] * 1e3
        return f"round trip p50 {p50:.2f} ms, p99 {p99:.2f} ms"

    async def at_once(self, size: int, count: int) -> str:
        """Many questions under way."""
        body, left = bytes(size), count

        async def work() -> None:
            nonlocal left
            while left > 0:
                left -= 1
                await self.fabric.ask(TWO, Ask(body), 30)

        started = perf_counter()
        await asyncio.gather(*(work() for _ in range(WINDOW)))
        return _rate("questions", count, size, perf_counter() - started)

    async def one_way(self, size: int, count: int) -> str:
        """Messages one way, at most a window of them not acknowledged."""
        body, first = bytes(size), self.acknowledged
        started, sent = perf_counter(), 0
        while self.acknowledged - first < count:
            while sent < count and sent - (self.acknowledged - first) < 4 * WINDOW:
                if not self.fabric.send(TWO, Store(body)):
                    raise RuntimeError("the session ended")
                sent += 1
            self.changed.clear()
            await self.changed.wait()
        return _rate("messages", count, size, perf_counter() - started)

    async def stream(self, size: int, count: int) -> str:
        """A stream on a wire of its own."""
        started, taken = perf_counter(), 0
        async for _ in self.fabric.stream(TWO, Read(count, size)):
            taken += 1
        return _rate("items", taken, size, perf_counter() - started)


def _rate(what: str, count: int, size: int, seconds: float) -> str:
    megabytes = count * size / seconds / 1e6
    return f"{count / seconds:,.0f} {what}/s, {megabytes:,.0f} MB/s"


async def _measure(pipe: Connection, share: int, how: How) -> None:
    fabric = make(ONE, how)
    client = Client(fabric)
    pipe.send(await fabric.listen())
    fabric.set_directory({TWO: Place(address=pipe.recv())})
    await client.up.wait()
    await client.serial(64, 200)
    rounds: list[tuple[str, Callable[[int, int], Awaitable[str]], int, int]] = [
        ("one question at a time, 64 B", client.serial, 64, 4_000),
        ("one question at a time, 64 KiB", client.serial, 65_536, 2_000),
        (f"{WINDOW} questions at once, 64 B", client.at_once, 64, 60_000),
        (f"{WINDOW} questions at once, 1 KiB", client.at_once, 1_024, 60_000),
        ("one way, 1 KiB", client.one_way, 1_024, 100_000),
        ("one way, 64 KiB", client.one_way, 65_536, 8_000),
        ("stream, 1 KiB", client.stream, 1_024, 100_000),
        ("stream, 64 KiB", client.stream, 65_536, 8_000),
    ]
    for name, measure, size, count in rounds:
        before, busy, started = fabric.statistics(), process_time(), perf_counter()
        told = await measure(size, count // share)
        after, seconds = fabric.statistics(), perf_counter() - started
        frames = max(after.frames_sent - before.frames_sent, 1)
        said = (after.messages_sent - before.messages_sent) / frames
        load = (process_time() - busy) / seconds
        print(f"{name:34} {told:44} {said:6.1f} messages/frame, {load:4.0%} of a core")
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak resident memory of the asking process: {resident:.0f} MiB")
    pipe.send("stop")
    pipe.recv()
    await fabric.aclose()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.fabric")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--secret", action="store_true", help="seal each frame under a secret")
    parser.add_argument("--grpc", action="store_true", help="as where certificates are used")
    options = parser.parse_args()
    how = How(SECRET if options.secret else None, options.grpc)
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, how))
    process.start()
    try:
        uvloop.run(_measure(ours, 10 if options.quick else 1, how))
    finally:
        process.join(10)
        process.kill()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
