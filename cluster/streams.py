"""Both ends of a stream: a wire of its own, on which answers come as fast as they are taken.

The one who takes them grants credit in bytes; the one who makes them waits when it is used up. So
a slow reader holds up its own stream and nothing else.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, cast

from perdure.cluster.core.framing import BadFrame, Op, Unsealer
from perdure.cluster.core.handshake import Established, Failed
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
from perdure.cluster.session import Counters, Outbox, end_task, end_tasks
from perdure.cluster.transport import StreamHandler
from perdure.cluster.wires import Wire
from perdure.core import limits
from perdure.core.errors import PerdureError, Unreachable
from perdure.core.telemetry import logger

log = logger("fabric")

_GRANT_BYTES = limits.FABRIC_STREAM_CREDIT_BYTES // 2


async def take_stream(
    wire: Wire, established: Established, request: Request[Any], counters: Counters
) -> AsyncGenerator[Any, None]:
    """Ask over a new wire, and yield what comes until its proper end.

    Raises:
        Unreachable: the wire ended before the stream did.
        PerdureError: what the other side says went wrong.
    """
    outbox = Outbox(wire, established.key_out, counters)
    writer = asyncio.ensure_future(outbox.run())
    unsealer = Unsealer(established.key_in)
    outbox.put(Op.ASK, kind_of(type(request)), 0, encode(request))
    expected, owed = replies_of(type(request)), 0
    try:
        while (frame := await wire.read()) is not None:
            counters.bytes_received += len(frame)
            for op, kind, _, payload in unsealer.messages(frame):
                if op is Op.END:
                    return
                counters.messages_received += 1
                message = decode(kind, payload)
                if op is Op.FAILED and isinstance(message, Failed):
                    raise message.error()
                if op is not Op.ANSWER or not isinstance(message, expected):
                    raise BadFrame(f"a {op.name} {type(message).__name__} in a stream")
                yield message
                owed += len(payload)
                if owed >= _GRANT_BYTES:
                    outbox.put(Op.CREDIT, 0, owed, b"")
                    owed = 0
        raise Unreachable(f"the stream from node {established.peer.node} broke off")
    except (BadFrame, BadMessage) as failure:
        raise Unreachable(
            f"the stream from node {established.peer.node} can't be read: {failure}"
        ) from failure
    finally:
        outbox.close()
        wire.close()
        await end_task(writer)


class StreamServer:
    """Answers one stream."""

    def __init__(self, wire: Wire, established: Established, counters: Counters) -> None:
        self._wire = wire
        self._peer = established.peer
        self._counters = counters
        self._outbox = Outbox(wire, established.key_out, counters)
        self._unsealer = Unsealer(established.key_in)
        self._credit = limits.FABRIC_STREAM_CREDIT_BYTES
        self._changed = asyncio.Event()

    async def run(self, handler_for: Callable[[int], StreamHandler[Any] | None]) -> None:
        """Serve until all was taken, or nobody takes it any more."""
        writer = asyncio.ensure_future(self._outbox.run())
        producer: asyncio.Task[None] | None = None
        try:
            while (frame := await self._wire.read()) is not None:
                self._counters.bytes_received += len(frame)
                for op, kind, number, payload in self._unsealer.messages(frame):
                    if op is Op.CREDIT:
                        self._credit += number
                        self._changed.set()
                    elif op is Op.ASK and producer is None:
                        request = decode(kind, payload)
                        work = self._produce(handler_for(kind), request)
                        producer = asyncio.ensure_future(work)
                        producer.add_done_callback(self._on_produced)
                    else:
                        raise BadFrame(f"a {op.name} to a stream")
        except (BadFrame, BadMessage) as failure:
            log.debug("fabric.stream.refused", node=self._peer.node, reason=str(failure))
        finally:
            self._outbox.close()
            self._wire.close()
            await end_tasks([writer] if producer is None else [writer, producer])

    def _on_produced(self, producer: "asyncio.Task[None]") -> None:
        if producer.cancelled() or producer.exception() is not None:
            self._wire.close()  # ``run`` ends, and a broken invariant with it

    async def _produce(self, handler: StreamHandler[Any] | None, request: Message) -> None:
        try:
            if handler is None:
                raise Unreachable(f"{type(request).__name__} is not served there")
            async with aclosing(_closable(handler, self._peer, request)) as items:
                async for item in items:
                    await self._put(item)
            self._outbox.put(Op.END, 0, 0, b"")
        except PerdureError as failure:
            self._fail(failure)
        except Exception as failure:  # bulkhead: a bug in a handler costs its stream
            log.error(
                "fabric.stream.failed",
                cause=failure,
                kind=type(request).__name__,
                node=self._peer.node,
            )
            self._fail(Unreachable(f"a bug met {type(request).__name__}: see the log of the node"))

    def _fail(self, failure: PerdureError) -> None:
        message = Failed.of(failure)
        self._outbox.put(Op.FAILED, kind_of(Failed), 0, encode(message))

    async def _put(self, item: Message) -> None:
        while self._credit <= 0:
            self._changed.clear()
            await self._changed.wait()
        payload = encode(item)
        self._credit -= len(payload)
        self._outbox.put(Op.ANSWER, kind_of(type(item)), 0, payload)


async def _closable(
    handler: StreamHandler[Any], peer: Peer, request: Message
) -> AsyncGenerator[Message, None]:
    """The handler's items; closes the handler when it is closed, if it can be."""
    items = handler(peer, cast("Request[Any]", request))
    try:
        async for item in items:
            yield item
    finally:
        close = getattr(items, "aclose", None)
        if close is not None:
            await close()
