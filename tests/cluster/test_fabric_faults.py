"""The real network misbehaves: processes killed and paused, connections that fall silent."""

import asyncio
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import pytest
import uvloop
from tests.cluster.fabric_rig import (
    Blob,
    Check,
    Count,
    Echo,
    GrpcNet,
    Member,
    Rig,
    Text,
    gather,
    is_up,
    on_asyncio,
    on_uvloop,
    peer,
    until,
)

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Answer, Place
from perdure.core import limits
from perdure.core.errors import AnswerLost, Unreachable

ONE, TWO = NodeId(1), NodeId(2)

pytestmark = pytest.mark.slow


@pytest.fixture
def quick_ticks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FABRIC_TICK_MS", 100)


# --- connections that fall silent -----------------------------------------------------------------


class Proxy:
    """Stands between two nodes; ``there`` and ``back`` let bytes through while they are set."""

    def __init__(self, host: str, port: int) -> None:
        self._target = host, port
        self.there, self.back = asyncio.Event(), asyncio.Event()
        self.there.set()
        self.back.set()
        self.tasks = set[asyncio.Task[None]]()
        self.address = ""

    @asynccontextmanager
    async def running(self) -> AsyncGenerator["Proxy", None]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            for task in self.tasks:
                task.cancel()
            await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(*self._target)
        for work in (
            self._copy(reader, far_writer, self.there),
            self._copy(far_reader, writer, self.back),
        ):
            self.tasks.add(asyncio.ensure_future(work))

    @staticmethod
    async def _copy(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter, gate: asyncio.Event
    ) -> None:
        try:
            while data := await reader.read(65_536):
                await gate.wait()
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            return
        finally:
            writer.close()


async def _through_a_proxy(rig: Rig, proxy: Proxy) -> tuple[Member, Member]:
    """Node 1 dials node 2 through the proxy, and is not dialled."""
    one, two = rig.members
    two.fabric.set_directory({ONE: Place(address="127.0.0.1:1")})
    one.fabric.set_directory({TWO: Place(address=proxy.address)})
    await until(lambda: is_up(one, two))
    return one, two


async def _with_proxy(
    rig: Rig, check: Callable[[Member, Member, Proxy], Coroutine[None, None, None]]
) -> None:
    await rig.start(peer(1))
    two = await rig.start(peer(2))
    host, _, port = two.place.address.rpartition(":")
    async with Proxy(host, int(port)).running() as proxy:
        one, two = await _through_a_proxy(rig, proxy)
        await check(one, two, proxy)
        for member in rig.members:
            await member.fabric.aclose()


@pytest.mark.parametrize("on", [on_asyncio, on_uvloop])
@pytest.mark.parametrize("way", ["there", "back", "both"])
@pytest.mark.usefixtures("quick_ticks")
def test_a_connection_that_falls_silent_is_given_up_and_made_again(
    way: str, on: Callable[[Check], None]
) -> None:
    async def silent(one: Member, two: Member, proxy: Proxy) -> None:
        never: list[Answer] = []
        two.fabric.serve(Count, lambda _, count, answer: never.append(answer))
        two.fabric.serve_stream(Count, _endless)
        asked = asyncio.ensure_future(one.fabric.ask(TWO, Count(1, 1), 60))
        await until(lambda: never)
        streaming = asyncio.ensure_future(_drain(one, TWO))
        await until(lambda: two.fabric.statistics().streams == 1)
        for gate in (proxy.there, proxy.back):
            if way != ("back" if gate is proxy.there else "there"):
                gate.clear()
        await until(lambda: one.fabric.session(TWO) is None)
        await until(lambda: two.fabric.statistics().sessions_in == 0)
        await until(lambda: two.fabric.statistics().streams == 0)
        assert isinstance((await gather(asked))[0], AnswerLost)
        assert isinstance((await gather(streaming))[0], Unreachable)
        proxy.there.set()
        proxy.back.set()
        await until(lambda: is_up(one, two))
        assert await one.fabric.ask(TWO, Echo("again"), 5) == Text("again")

    async def check(rig: Rig) -> None:
        await _with_proxy(rig, silent)

    on(check)


async def _endless(sender: Peer, request: Count) -> AsyncIterator[Blob]:
    while True:
        yield Blob(bytes(request.size))


async def _drain(one: Member, target: NodeId) -> None:
    async for _ in one.fabric.stream(target, Count(1, 1_000)):
        pass


@pytest.mark.usefixtures("quick_ticks")
def test_a_peer_that_does_not_read_costs_no_more_than_the_limit() -> None:
    async def full(one: Member, two: Member, proxy: Proxy) -> None:
        proxy.there.clear()
        blob = Blob(bytes(2_000_000))
        while one.fabric.send(TWO, blob):
            assert one.fabric.queued_bytes(TWO) <= limits.FABRIC_QUEUE_BYTES_MAX
        assert one.fabric.statistics().slow_cut == 1
        assert one.fabric.statistics().queued_bytes == 0
        proxy.there.set()
        await until(lambda: is_up(one, two))

    async def check(rig: Rig) -> None:
        await _with_proxy(rig, full)

    on_asyncio(check)


# --- processes ------------------------------------------------------------------------------------


def serve(pipe: Connection, generation: int) -> None:
    """A node in a process of its own; it answers until it is killed."""
    uvloop.run(_serve(pipe, generation))


async def _serve(pipe: Connection, generation: int) -> None:
    rig = Rig(GrpcNet())
    member = await rig.start(peer(2, generation))
    member.fabric.set_directory({ONE: Place(address=pipe.recv())})
    member.fabric.serve_stream(Count, _endless)
    pipe.send(member.place.address)
    await asyncio.get_running_loop().create_future()


@contextmanager
def other_process(one: Member, generation: int) -> Generator[tuple[SpawnProcess, str], None, None]:
    """The process, and where it listens."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve, args=(theirs, generation))
    process.start()
    try:
        ours.send(one.place.address)
        yield process, ours.recv()
    finally:
        process.kill()
        process.join()


def _is_session_with(one: Member, other: Peer) -> bool:
    return one.fabric.session(other.node) == other


def test_a_killed_process_is_noticed_at_once_and_its_successor_found() -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        for generation in (1, 2):
            with other_process(one, generation) as (process, address):
                one.fabric.set_directory({TWO: Place(address=address)})
                await until(partial(_is_session_with, one, peer(2, generation)))
                assert await one.fabric.ask(TWO, Echo("hello"), 5) == Text("hello")
                taking = asyncio.ensure_future(_drain(one, TWO))
                await until(lambda: one.fabric.statistics().bytes_received > 1_000_000)
                assert process.pid is not None
                os.kill(process.pid, signal.SIGKILL)
                started = asyncio.get_running_loop().time()
                await until(lambda: one.fabric.session(TWO) is None)
                assert asyncio.get_running_loop().time() - started < 3  # not by silence
                assert isinstance((await gather(taking))[0], Unreachable)

    on_asyncio(check)


def test_a_paused_process_is_given_up_and_taken_back() -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        with other_process(one, 1) as (process, address):
            one.fabric.set_directory({TWO: Place(address=address)})
            await until(lambda: one.fabric.session(TWO))
            assert process.pid is not None
            os.kill(process.pid, signal.SIGSTOP)
            asked = asyncio.ensure_future(one.fabric.ask(TWO, Echo("asleep"), 60))
            await until(lambda: one.fabric.session(TWO) is None)
            assert isinstance((await gather(asked))[0], AnswerLost)
            os.kill(process.pid, signal.SIGCONT)
            await until(lambda: one.fabric.session(TWO))
            assert await one.fabric.ask(TWO, Echo("awake"), 5) == Text("awake")

    on_asyncio(check)
