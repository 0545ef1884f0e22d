"""The transport: dials every member, takes their calls, keeps one session each way.

``Fabric`` is the same over TCP, over gRPC and over the simulated network; only the wires differ.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import asdict
from typing import Any, TypeVar

from perdure.cluster.core.admission import Admission
from perdure.cluster.core.handshake import ClusterIdentity, Established, Purpose, RefusedByPeer
from perdure.cluster.core.messages import GUEST, Message, Peer, Request, kind_of
from perdure.cluster.core.types import NodeId
from perdure.cluster.greeting import Greeter
from perdure.cluster.session import Counters, Session
from perdure.cluster.streams import StreamServer, take_stream
from perdure.cluster.transport import (
    Answer,
    Directory,
    Handler,
    Place,
    StreamHandler,
    TransportStatistics,
)
from perdure.cluster.wires import Connection, Wire, WireBroken, Wires
from perdure.core import limits
from perdure.core.entropy import Entropy
from perdure.core.errors import PerdureError, Unreachable
from perdure.core.invariant import invariant
from perdure.core.retry import RetryPolicy, with_jitter
from perdure.core.tasks import Supervisor
from perdure.core.telemetry import logger

log = logger("fabric")

M = TypeVar("M", bound=Message)
R = TypeVar("R")
Q = TypeVar("Q", bound=Request[Any])

_RETRY = RetryPolicy(
    initial_ms=limits.FABRIC_RETRY_MS_INITIAL,
    factor=2,
    interval_ms_max=limits.FABRIC_RETRY_MS_MAX,
    attempts_max=None,
)


class _Handlers:
    """Who takes which messages; implements ``session.Dispatch``."""

    def __init__(self) -> None:
        self.messages: dict[int, Callable[[Peer, Any, Answer], None]] = {}
        self.streams: dict[int, StreamHandler[Any]] = {}
        self.open_to_guests: set[int] = set()

    def handler_for(self, kind: int, peer: Peer) -> Callable[[Peer, Any, Answer], None] | None:
        if peer.node == GUEST and kind not in self.open_to_guests:
            return None
        return self.messages.get(kind)


class _Member:
    """Another node of the directory, and the task that keeps a session to it."""

    def __init__(self, place: Place, after: asyncio.Event | None) -> None:
        self.place = place
        self.after = after  # an earlier entry of the node has told that its session is down
        self.task: asyncio.Task[None] | None = None
        self.session: Session | None = None
        self.connection: Connection | None = None
        self.hurry = asyncio.Event()  # it is alive: don't wait to dial
        self.gone = asyncio.Event()

    def on_gone(self, _: asyncio.Task[None]) -> None:
        """The task has ended."""
        self.gone.set()


class Fabric:
    """Implements ``transport.Transport`` over wires."""

    def __init__(
        self,
        *,
        me: Peer,
        cluster: ClusterIdentity,
        wires: Wires,
        entropy: Entropy,
        supervisor: Supervisor,
        allowed_names: Sequence[str] = (),
    ) -> None:
        self._me = me
        self._wires = wires
        self._entropy = entropy
        self._supervisor = supervisor
        self._admission = Admission(me)
        self._counters = Counters()
        self._greeter = Greeter(cluster, self._admission, entropy, allowed_names, self._counters)
        self._handlers = _Handlers()
        self._members: dict[NodeId, _Member] = {}
        self._inbound: dict[NodeId, Session] = {}
        self._visits: set[Session] = set()  # for one question, made or taken; guests' too
        self._leaving: dict[NodeId, asyncio.Event] = {}
        self._streams: dict[Wire, Peer] = {}  # being served
        self._streams_taken = 0
        self._strangers: dict[Wire, None] = {}  # in the order in which they came
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_session: list[Callable[[Peer, bool], None]] = []
        self._on_vacant: list[Callable[[NodeId], None]] = []
        self._on_refused: list[Callable[[NodeId, PerdureError], None]] = []
        self._is_closed = False
        self._ticker = asyncio.get_running_loop().call_later(
            limits.FABRIC_TICK_MS / 1000, self._tick
        )

    # --- the port ---------------------------------------------------------------------------------

    @property
    def me(self) -> Peer:
        return self._me

    async def listen(self) -> str:
        """Let others in; returns the address. Handlers are registered before."""
        return await self._wires.listen(self._accept)

    def set_directory(self, members: Directory) -> None:
        others = {node: place for node, place in members.items() if node != self._me.node}
        self._admission.set_members({node: place.identity for node, place in members.items()})
        for node in [*self._members]:
            known = others.get(node)
            if known is None or known.address != self._members[node].place.address:
                self._forget(node)
        for node, place in others.items():
            if node not in self._members and not self._is_closed:
                member = self._members[node] = _Member(place, self._leaving.pop(node, None))
                member.task = self._start(f"fabric.out.{node}", self._keep(node, member))
                # Not the task itself is kept: its traceback would hold on to the connection.
                member.task.add_done_callback(member.on_gone)
            elif node in self._members:
                self._members[node].place = place
        self._drop_outdated()

    def session(self, to: NodeId) -> Peer | None:
        session = self._session(to)
        return session.peer if session is not None else None

    def queued_bytes(self, to: NodeId) -> int:
        session = self._session(to)
        return session.outbox.queued_bytes if session is not None else 0

    def send(self, to: NodeId, message: Message) -> bool:
        session = self._session(to)
        if session is None:
            return False
        session.say(message)
        return session.is_open

    def flush(self, to: NodeId) -> None:
        if (session := self._session(to)) is not None:
            session.outbox.flush()

    async def ask(self, to: NodeId, request: Request[R], timeout_s: float) -> R:
        session = self._session(to)
        if session is None:
            raise Unreachable(f"there is no session to node {to}")
        answer: R = await session.ask(request, timeout_s)
        return answer

    async def stream(self, to: NodeId, request: Request[R]) -> AsyncGenerator[R, None]:
        member, session = self._members.get(to), self._session(to)
        if member is None or session is None or member.connection is None:
            raise Unreachable(f"there is no session to node {to}")
        try:
            wire, established = await self._greeter.dial(member.connection, to, Purpose.STREAM)
        except (WireBroken, RefusedByPeer, PerdureError) as failure:
            raise Unreachable(f"no stream from node {to}: {failure}") from failure
        if established.peer != session.peer:
            wire.close()
            raise Unreachable(f"node {to} was replaced meanwhile")
        self._streams_taken += 1
        try:
            items = take_stream(wire, established, request, self._counters)
            async with aclosing(items):
                async for item in items:
                    yield item
        finally:
            self._streams_taken -= 1

    async def ask_at(self, address: str, request: Request[R], timeout_s: float) -> R:
        connection = self._wires.connect(address)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        try:
            session = await self._visit(connection, address, deadline)
            running = asyncio.ensure_future(self._run_visit(session))
            try:
                answer: R = await session.ask(request, max(deadline - loop.time(), 0.0))
                return answer
            finally:
                session.close("the answer was all that was wanted")
                await running
        finally:
            await connection.aclose()

    def serve(self, kind: type[M], handler: Handler[M], *, guests: bool = False) -> None:
        number = kind_of(kind)
        invariant(number not in self._handlers.messages, "two handlers", kind=kind.__name__)
        self._handlers.messages[number] = handler
        if guests:
            self._handlers.open_to_guests.add(number)

    def serve_stream(self, kind: type[Q], handler: StreamHandler[Q]) -> None:
        number = kind_of(kind)
        invariant(number not in self._handlers.streams, "two handlers", kind=kind.__name__)
        self._handlers.streams[number] = handler

    def on_session(self, callback: Callable[[Peer, bool], None]) -> None:
        self._on_session.append(callback)

    def on_vacant(self, callback: Callable[[NodeId], None]) -> None:
        self._on_vacant.append(callback)

    def on_refused(self, callback: Callable[[NodeId, PerdureError], None]) -> None:
        self._on_refused.append(callback)

    def statistics(self) -> TransportStatistics:
        sessions = self._sessions()
        return TransportStatistics(
            sessions_out=sum(self._session(node) is not None for node in self._members),
            sessions_in=len(self._inbound) + len(self._visits),
            members=len(self._members),
            streams=len(self._streams) + self._streams_taken,
            asks_waiting=sum(session.asks_waiting for session in sessions),
            queued_bytes=sum(session.outbox.queued_bytes for session in sessions),
            refusals=self._greeter.refusals(),
            **asdict(self._counters),
        )

    async def aclose(self) -> None:
        self._is_closed = True
        self._ticker.cancel()
        for session in self._sessions():
            session.close("this node stops")
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self._wires.aclose()

    # --- dialling ---------------------------------------------------------------------------------

    async def _keep(self, node: NodeId, member: _Member) -> None:
        """Keep a session to a member for as long as it is one."""
        if member.after is not None:
            await member.after.wait()
            member.after = None
        tries = 0
        while True:
            member.hurry.clear()
            connection = self._wires.connect(member.place.address)
            try:
                wire, established = await self._greeter.dial(connection, node, Purpose.SESSION)
            except (WireBroken, RefusedByPeer, PerdureError) as failure:
                self._on_not_reached(node, member.place.address, failure)
                tries += 1
            else:
                tries = 1
                self._learn(established.peer)
                await self._hold(member, connection, self._make_session(wire, established))
            finally:
                await connection.aclose()
            delay_ms = _RETRY.delay_ms(tries)
            assert delay_ms is not None  # it never gives up
            try:
                async with asyncio.timeout(with_jitter(delay_ms, self._entropy) / 1000):
                    await member.hurry.wait()
            except TimeoutError:
                continue

    async def _visit(self, connection: Connection, address: str, deadline: float) -> Session:
        try:
            async with asyncio.timeout_at(deadline):
                wire, established = await self._greeter.dial(connection, None, Purpose.VISIT)
        except RefusedByPeer as refused:
            raise refused.error from refused
        except (WireBroken, TimeoutError) as failure:
            raise Unreachable(f"nobody answers at {address}: {failure}") from failure
        return self._make_session(wire, established)

    def _on_not_reached(self, node: NodeId, address: str, failure: Exception) -> None:
        self._greeter.note(failure, address, node)
        if isinstance(failure, RefusedByPeer) and failure.is_proven:
            for callback in self._on_refused:
                callback(node, failure.error)
        if isinstance(failure, WireBroken) and failure.is_vacant:
            for vacated in self._on_vacant:
                vacated(node)

    async def _hold(self, member: _Member, connection: Connection, session: Session) -> None:
        """From up to down."""
        peer = session.peer
        member.session, member.connection = session, connection
        self._counters.sessions_opened += 1
        log.info("fabric.session.up", node=peer.node, generation=peer.generation)
        try:
            for callback in self._on_session:
                callback(peer, True)
            await session.run()
        finally:
            session.close("this node ended it")
            member.session = member.connection = None
            self._counters.sessions_lost += 1
            log.info("fabric.session.down", node=peer.node, reason=session.ended_because)
            for callback in self._on_session:
                callback(peer, False)
            session.fail_asks()

    # --- being dialled ----------------------------------------------------------------------------

    def _accept(self, wire: Wire) -> None:
        if self._is_closed:
            wire.close()
            return
        if len(self._strangers) >= limits.FABRIC_HANDSHAKES_MAX:
            # Whoever has been silent longest goes, so that a crowd keeps no member out.
            next(iter(self._strangers)).close()
        self._strangers[wire] = None
        self._start("fabric.in", self._take_wire(wire))

    async def _take_wire(self, wire: Wire) -> None:
        established: Established | None = None
        try:
            async with asyncio.timeout(limits.FABRIC_HANDSHAKE_MS / 1000):
                established = await self._greeter.greet(wire)
        except (TimeoutError, WireBroken, RefusedByPeer) as failure:
            self._greeter.note(failure, wire.remote, None)
        finally:
            del self._strangers[wire]
            if established is None:
                wire.close()
        if established is None:
            return
        self._learn(established.peer)
        if established.purpose == Purpose.STREAM:
            await self._serve_stream(wire, established)
            return
        session = self._make_session(wire, established)
        if established.purpose == Purpose.SESSION and session.peer.node != GUEST:
            await self._take_session(session)
        elif len(self._visits) < limits.FABRIC_HANDSHAKES_MAX:
            await self._run_visit(session)
        else:
            wire.close()

    async def _take_session(self, session: Session) -> None:
        node = session.peer.node
        earlier = self._inbound.get(node)
        if earlier is not None:
            earlier.close("the other side opened another")
        self._inbound[node] = session
        if (member := self._members.get(node)) is not None:
            member.hurry.set()
        try:
            await session.run()
        finally:
            if self._inbound.get(node) is session:
                del self._inbound[node]
                self._close_streams(lambda peer: peer == session.peer)

    async def _run_visit(self, session: Session) -> None:
        self._visits.add(session)
        try:
            await session.run()
        finally:
            self._visits.discard(session)
            session.fail_asks()

    async def _serve_stream(self, wire: Wire, established: Established) -> None:
        peer = established.peer
        count = sum(other == peer for other in self._streams.values())
        if peer.node == GUEST or count >= limits.FABRIC_STREAMS_PER_PEER_MAX:
            wire.close()
            return
        self._streams[wire] = peer
        try:
            server = StreamServer(wire, established, self._counters)
            await server.run(self._handlers.streams.get)
        finally:
            del self._streams[wire]

    # --- both -------------------------------------------------------------------------------------

    def _make_session(self, wire: Wire, established: Established) -> Session:
        keys = (established.key_out, established.key_in)
        return Session(wire, established.peer, keys, self._handlers, self._counters)

    def _session(self, node: NodeId) -> Session | None:
        member = self._members.get(node)
        session = member.session if member is not None else None
        return session if session is not None and session.is_open else None

    def _sessions(self) -> list[Session]:
        dialled = (member.session for member in self._members.values())
        found = [session for session in dialled if session is not None]
        return [*found, *self._inbound.values(), *self._visits]

    def _learn(self, peer: Peer) -> None:
        """A peer has proved who it is; an earlier life of its node is not heard any more."""
        if self._admission.learn(peer):
            self._drop_outdated()

    def _drop_outdated(self) -> None:
        for session in self._sessions():
            if session not in self._visits and not self._admission.is_current(session.peer):
                session.close("a later process runs as this node, or it is no member any more")
        self._close_streams(lambda peer: not self._admission.is_current(peer))

    def _close_streams(self, is_over: Callable[[Peer], bool]) -> None:
        for wire in [wire for wire, peer in self._streams.items() if is_over(peer)]:
            wire.close()

    def _forget(self, node: NodeId) -> None:
        member = self._members.pop(node)
        if member.session is not None:
            member.session.close("it is no member any more, or listens elsewhere")
        if member.task is not None:
            member.task.cancel()
            self._leaving[node] = member.after or member.gone

    def _tick(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(
            limits.FABRIC_TICK_MS / 1000, self._tick
        )
        for session in self._sessions():
            session.tick()

    def _start(self, name: str, work: Any) -> asyncio.Task[None]:
        task = self._supervisor.start(name, work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task
