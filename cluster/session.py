"""One session: what waits to be sent over a wire, what was asked, and what comes in.

Nothing here dials or decides who may talk; ``cluster/fabric.py`` does.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from perdure.cluster.core.framing import BadFrame, Op, Payload, Sealer, Unsealer, pieces_of
from perdure.cluster.core.handshake import Failed
from perdure.cluster.core.messages import (
    BadMessage,
    Message,
    Peer,
    Request,
    decode,
    encode,
    kind_of,
    replies_of,
)
from perdure.cluster.transport import Answer
from perdure.cluster.wires import Wire, WireBroken
from perdure.core import limits
from perdure.core.errors import AnswerLost, PerdureError, Unreachable
from perdure.core.invariant import invariant
from perdure.core.telemetry import logger

log = logger("fabric")

_NUMBER_MAX = 0xFFFF_FFFF


@dataclass(slots=True)
class Counters:
    """Shared by all sessions of a node; see ``TransportStatistics``."""

    messages_sent: int = 0
    messages_received: int = 0
    frames_sent: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    sessions_opened: int = 0
    sessions_lost: int = 0
    refused_in: int = 0
    refused_out: int = 0
    slow_cut: int = 0


class Ask:
    """A request under way. It is *sent* once its first byte may have left."""

    __slots__ = ("future", "is_sent", "kind")

    def __init__(self, future: asyncio.Future[Any], kind: type[Request[Any]]) -> None:
        self.future = future
        self.kind = kind
        self.is_sent = False

    def fail(self, why: str) -> None:
        """End it without an answer."""
        if not self.future.done():
            lost = AnswerLost if self.is_sent else Unreachable
            self.future.set_exception(lost(why))


class Outbox:
    """What waits for a wire. One frame takes all that was put in since the one before.

    What the network takes at once leaves without a task; ``run`` waits for it where it doesn't.
    """

    def __init__(self, wire: Wire, key: bytes | None, counters: Counters) -> None:
        self._wire = wire
        self._sealer = Sealer(key)
        self._counters = counters
        self._waiting: deque[tuple[bytes, Payload, Ask | None]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._is_idle = False  # ``run`` waits for something to do
        self._is_scheduled = False
        self._held: bytes | None = None  # a frame that the network didn't take at once
        self._room: asyncio.Future[None] | None = None
        self._loop = asyncio.get_running_loop()
        self.queued_bytes = 0
        self.frames_taken = 0
        self.is_closed = False

    def put(self, op: Op, kind: int, number: int, payload: bytes, ask: Ask | None = None) -> None:
        """Queue a message; it leaves with this turn of the loop if the network takes it."""
        if self.is_closed:
            return
        size = len(payload)
        invariant(
            size <= limits.FABRIC_MESSAGE_BYTES_MAX, "too large a message", kind=kind, size=size
        )
        for head, body in pieces_of(op, kind, number, payload):
            self._waiting.append((head, body, ask))
            self.queued_bytes += len(head) + len(body)
        self._counters.messages_sent += 1
        if not self._is_scheduled:
            self._is_scheduled = True
            self._loop.call_soon(self._send_scheduled)

    def flush(self) -> None:
        """Have what waits leave now, as far as the network takes it at once."""
        while self._waiting and self._is_idle and not self.is_closed:
            parts = self._take()
            if not parts:
                continue
            frame = self._sealer.frame(parts)
            if not self._wire.write_soon(frame):
                self._held = frame
                self._is_idle = False
                assert self._wake is not None
                self._wake.set_result(None)
                return
            self._note_sent(frame)

    async def wait_room(self) -> None:
        """Wait until the queue is short, or closed."""
        while self.queued_bytes > limits.FABRIC_QUEUE_BYTES_HIGH and not self.is_closed:
            if self._room is None:
                self._room = self._loop.create_future()
            await asyncio.shield(self._room)

    async def run(self) -> None:
        """Write until closed or broken."""
        try:
            while not self.is_closed:
                if (frame := self._next_frame()) is not None:
                    await self._wire.write(frame)
                    self._note_sent(frame)
                    continue
                self._wake = self._loop.create_future()
                self._is_idle = True
                await self._wake
                self._is_idle = False
        except WireBroken:
            self._wire.close()

    def close(self) -> None:
        """Drop what waits."""
        self.is_closed = True
        self._waiting.clear()
        self.queued_bytes = 0
        self._held = None
        for future in (self._wake, self._room):
            if future is not None and not future.done():
                future.set_result(None)

    def _send_scheduled(self) -> None:
        self._is_scheduled = False
        self.flush()

    def _next_frame(self) -> bytes | None:
        if (held := self._held) is not None:
            self._held = None
            return held
        while self._waiting:
            if parts := self._take():
                return self._sealer.frame(parts)
        return None

    def _note_sent(self, frame: bytes) -> None:
        self.frames_taken += 1
        self._counters.frames_sent += 1
        self._counters.bytes_sent += len(frame)

    def _take(self) -> list[Payload]:
        parts, size = list[Payload](), 0
        while self._waiting and size < limits.FABRIC_FRAME_BYTES_TARGET:
            head, body, ask = self._waiting.popleft()
            taken = len(head) + len(body)
            self.queued_bytes -= taken
            if ask is not None and not ask.is_sent:
                if ask.future.done():
                    continue  # given up before it was sent: it never will be
                ask.is_sent = True
            parts += (head, body)
            size += taken
        if self._room is not None and self.queued_bytes <= limits.FABRIC_QUEUE_BYTES_HIGH:
            if not self._room.done():
                self._room.set_result(None)
            self._room = None
        return parts


async def end_task(task: asyncio.Future[None]) -> None:
    """Cancel and wait; a failure is raised, as it is everybody's."""
    await end_tasks([task])


async def end_tasks(tasks: list[asyncio.Future[None]]) -> None:
    """The same for several; all are cancelled even if waiting for them is cut short."""
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for task in tasks:
        _raise_failure(task)


def _raise_failure(task: asyncio.Future[None]) -> None:
    if not task.cancelled() and (failure := task.exception()) is not None:
        raise failure


class Dispatch(Protocol):
    """Who takes messages."""

    def handler_for(self, kind: int, peer: Peer) -> Callable[[Peer, Any, Answer], None] | None:
        """The handler of a kind that this peer may use."""
        ...


class Session:
    """A wire on which both sides know each other. ``run`` it until it ends."""

    def __init__(
        self,
        wire: Wire,
        peer: Peer,
        keys: tuple[bytes | None, bytes | None],
        dispatch: Dispatch,
        counters: Counters,
    ) -> None:
        self.peer = peer
        self._wire = wire
        self._dispatch = dispatch
        self._counters = counters
        self.outbox = Outbox(wire, keys[0], counters)
        self._unsealer = Unsealer(keys[1])
        self._asks: dict[int, Ask] = {}
        self._number = 0
        self._ticks_silent = 0
        self._ticks_stalled = 0
        self._frames_seen = 0  # by the last tick
        self.ended_because = ""

    @property
    def is_open(self) -> bool:
        return not self.outbox.is_closed

    @property
    def asks_waiting(self) -> int:
        return len(self._asks)

    async def run(self) -> None:
        """Take what comes in until the session ends. Then asks still wait: ``fail_asks``."""
        writer = asyncio.ensure_future(self.outbox.run())
        writer.add_done_callback(lambda _: self._wire.close())
        try:
            while self.is_open and (frame := await self._wire.read()) is not None:
                self._ticks_silent = 0
                self._counters.bytes_received += len(frame)
                self._take(frame)
            self.close("the other side ended it, or the network did")
        except BadFrame as failure:
            self.close(f"it sent {failure}")
        finally:
            self.close("this node ended it")
            await end_task(writer)

    def say(self, message: Message) -> None:
        """Queue a message."""
        self.outbox.put(Op.SAY, kind_of(type(message)), 0, encode(message))
        self._limit_queue()

    async def ask(self, request: Request[Any], timeout_s: float) -> Any:
        """Send a request and wait for its answer; see ``Transport.ask``."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + timeout_s
        if self.outbox.queued_bytes > limits.FABRIC_QUEUE_BYTES_HIGH:
            try:
                async with asyncio.timeout_at(deadline):
                    await self.outbox.wait_room()
            except TimeoutError as failure:
                raise Unreachable(f"node {self.peer.node} reads too slowly") from failure
        if not self.is_open:
            raise Unreachable(f"the session to node {self.peer.node} ended")
        number, future = self._put_ask(request)
        why = f"node {self.peer.node} gave no answer within {timeout_s:g} s"
        timer = loop.call_at(deadline, self._forget, number, why)
        try:
            return await future
        finally:
            timer.cancel()
            self._forget(number, why)

    def _put_ask(self, request: Request[Any]) -> tuple[int, asyncio.Future[Any]]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        ask = Ask(future, type(request))
        self._number += 1
        self._asks[self._number] = ask
        self.outbox.put(Op.ASK, kind_of(type(request)), self._number, encode(request), ask)
        self._limit_queue()
        if self._number == _NUMBER_MAX:
            self.close("it has used up its numbers")
        return self._number, future

    def _forget(self, number: int, why: str) -> None:
        """Fail a request that is no longer waited for."""
        ask = self._asks.pop(number, None)
        if ask is not None:
            ask.fail(why)

    def fail_asks(self) -> None:
        """Fail everything that waits; the session has ended."""
        asks, self._asks = self._asks, {}
        for ask in asks.values():
            ask.fail(f"the session to node {self.peer.node} ended: {self.ended_because}")

    def tick(self) -> None:
        """Once per tick: say something if nothing was said, end it if nothing comes or goes."""
        self._ticks_silent += 1
        if self._ticks_silent > limits.FABRIC_SILENT_TICKS_MAX:
            self.close("nothing was heard of it for too long")
            return
        outbox = self.outbox
        if outbox.frames_taken != self._frames_seen:
            self._frames_seen, self._ticks_stalled = outbox.frames_taken, 0
        elif outbox.queued_bytes:
            self._ticks_stalled += 1
            if self._ticks_stalled > limits.FABRIC_STALL_TICKS_MAX:
                self._counters.slow_cut += 1
                self.close("it took nothing for too long")
        else:
            outbox.put(Op.PING, 0, 0, b"")

    def close(self, why: str) -> None:
        """End it. ``run`` returns soon. Idempotent; the first reason counts."""
        if self.is_open:
            self.ended_because = why
            self.outbox.close()
            self._wire.close()

    def _limit_queue(self) -> None:
        if self.outbox.queued_bytes > limits.FABRIC_QUEUE_BYTES_MAX:
            self._counters.slow_cut += 1
            self.close("it reads more slowly than there is to say")

    def _take(self, frame: bytes) -> None:
        for op, kind, number, payload in self._unsealer.messages(frame):
            if op is Op.PING:
                continue
            self._counters.messages_received += 1
            try:
                message = decode(kind, payload)
            except BadMessage as failure:
                self._take_unreadable(op, kind, number, failure)
                continue
            if op is Op.SAY or op is Op.ASK:
                self._handle(op, kind, number, message)
            elif op is Op.ANSWER or op is Op.FAILED:
                self._resolve(number, message)
            else:
                raise BadFrame(f"a {op.name} on a session")
            if not self.is_open:
                return

    def _handle(self, op: Op, kind: int, number: int, message: Message) -> None:
        answer = partial(self._answer, number) if op is Op.ASK else self._say_back
        handler = self._dispatch.handler_for(kind, self.peer)
        if handler is None:
            answer(Unreachable(f"{type(message).__name__} is not served there"))
            return
        try:
            handler(self.peer, message, answer)
        except PerdureError as failure:
            answer(failure)
        except Exception as failure:  # bulkhead: a bug in a handler costs its message
            log.error(
                "fabric.handler.failed",
                cause=failure,
                kind=type(message).__name__,
                node=self.peer.node,
            )
            answer(AnswerLost(f"a bug met {type(message).__name__}: see the log of the node asked"))

    def _answer(self, number: int, message: Message | PerdureError) -> None:
        if not self.is_open:
            return
        op = Op.ANSWER
        if isinstance(message, PerdureError):
            op, message = Op.FAILED, Failed.of(message)
        payload = encode(message)
        if len(payload) > limits.FABRIC_MESSAGE_BYTES_MAX:
            # How long an answer is may hang on what users store: no reason to stop.
            kind = type(message).__name__
            lost = AnswerLost(f"a {kind} of {len(payload)} bytes is too long for a message")
            log.error("fabric.handler.failed", cause=lost, kind=kind, node=self.peer.node)
            op, message = Op.FAILED, Failed.of(lost)
            payload = encode(message)
        self.outbox.put(op, kind_of(type(message)), number, payload)
        self._limit_queue()

    def _say_back(self, message: Message | PerdureError) -> None:
        if isinstance(message, Message) and self.is_open:
            self.say(message)

    def _resolve(self, number: int, message: Message) -> None:
        ask = self._asks.pop(number, None)
        if ask is None or ask.future.done():
            return  # given up meanwhile
        if isinstance(message, Failed):
            ask.future.set_exception(message.error())
        elif isinstance(message, replies_of(ask.kind)):
            ask.future.set_result(message)
        else:
            ask.fail(f"{ask.kind.__name__} was answered by a {type(message).__name__}")

    def _take_unreadable(self, op: Op, kind: int, number: int, failure: BadMessage) -> None:
        """The frame is whole, so this comes from a node of another version, or one with a bug."""
        log.warning(
            "fabric.message.unreadable", kind=kind, node=self.peer.node, reason=str(failure)
        )
        if op is Op.ASK:
            self._answer(number, Unreachable(f"message {kind:#06x} can't be read there"))
        elif op is not Op.SAY:
            self._forget(number, f"the answer can't be read: {failure}")
