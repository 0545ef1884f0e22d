"""The answering side of HTTP: one port for HTTP/1.0, 1.1 and cleartext HTTP/2, over asyncio.

The first bytes of a connection tell the version. An exchange is handed to the application when its
body is complete; the answer goes out whole. Closing drains: listeners first, then connections as
their exchanges end, the rest is dropped after a limit.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate
from typing import Protocol, cast

from perdure.core.clock import Clock
from perdure.core.limits import (
    CONNECTION_IDLE_MS,
    INGRESS_BUFFERED_BYTES_MAX,
    REQUESTS_PER_CONNECTION_MAX,
)
from perdure.core.telemetry import logger
from perdure.node.http.ports import (
    Body,
    End,
    Event,
    Headers,
    ProtocolBroken,
    RequestHead,
    Reset,
    ServerCore,
)

log = logger("http")

CoreFactory = Callable[[str], ServerCore]
"""Makes a core for ``HTTP/1.1`` or ``HTTP/2.0``."""

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_SWEEP_SECONDS = 30.0


class Exchange:
    """A request, complete, and the way to answer it. Answer once; later answers are dropped.

    ``on_gone``, if set, is called when the client gives up before it is answered.
    """

    __slots__ = (
        "_connection",
        "_stream",
        "body",
        "headers",
        "is_answered",
        "method",
        "on_gone",
        "target",
    )

    def __init__(self, connection: "_Connection", head: RequestHead) -> None:
        self._connection = connection
        self._stream = head.stream
        self.method = head.method.decode("latin-1")
        self.target = head.target.decode("latin-1")
        self.headers = head.headers
        self.body = b""
        self.is_answered = False
        self.on_gone: Callable[[], None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (lower-case name)."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer; length and date are added."""
        if not self.is_answered:
            self.is_answered = True
            self._connection.respond(self._stream, status, headers, body)

    def give_up(self) -> None:
        """The client is gone: nobody is left to answer."""
        if not self.is_answered:
            self.is_answered = True
            if self.on_gone is not None:
                self.on_gone()


class Application(Protocol):
    """Answers exchanges, now or later, on the event loop."""

    body_bytes_max: int

    def on_exchange(self, exchange: Exchange) -> None:
        """A whole request has arrived."""
        ...

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        """The body exceeds the limit: by its declared length, or while it came in."""
        ...


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """Connections, exchanges not yet answered, bytes of bodies coming in."""

    connections: int
    exchanges: int
    buffered_bytes: int


class _Incoming:
    """An exchange whose body is still coming in."""

    __slots__ = ("chunks", "exchange", "size")

    def __init__(self, exchange: Exchange) -> None:
        self.exchange = exchange
        self.chunks: list[bytes] = []
        self.size = 0


class _Connection(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, server: "HttpServer") -> None:
        self._server = server
        self._app = server.application
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._core: ServerCore | None = None
        self._head = b""
        self._incoming: dict[int, _Incoming] = {}
        self._open: dict[int, Exchange] = {}
        self._is_flush_scheduled = False
        self._taken = 0
        self.idle_since = self._loop.time()

    @property
    def exchange_count(self) -> int:
        return len(self._open)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._server.joined(self)

    def data_received(self, data: bytes) -> None:
        if self._core is None:
            data = self._head + data
            core = self._detect(data)
            if core is None:
                self._head = data
                return
            self._core, self._head = core, b""
            core.start()
        self._handle(self._core, data)

    def eof_received(self) -> bool:
        if self._core is not None:
            self._handle(self._core, b"")
        # A client that went away can't be told from one that only closed its sending side, which
        # hardly any does. Waiting for either would keep connections of clients long gone.
        self._flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        for incoming in self._incoming.values():
            self._server.buffered_bytes -= incoming.size
        self._incoming.clear()
        self._transport = None
        self._server.left(self)
        abandoned, self._open = self._open, {}
        for exchange in abandoned.values():
            exchange.give_up()

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """Answer a stream; what was waiting behind it on this connection comes next."""
        core = self._core
        if core is None or self._transport is None or stream not in self._open:
            return
        del self._open[stream]
        self.idle_since = self._loop.time()
        fields = [*headers, (b"content-length", str(len(body)).encode()), self._server.date()]
        if self._taken >= REQUESTS_PER_CONNECTION_MAX:
            core.shut_down()
        try:
            events = core.respond(stream, status, fields, body)
        except ProtocolBroken:
            self._abort()
            return
        self._schedule_flush()
        if events:
            self._dispatch(core, events)

    def drain(self) -> None:
        """Take no further requests; close when those at hand are answered."""
        if self._core is not None:
            self._core.shut_down()
            self._schedule_flush()  # closes, if nothing is open
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection."""
        self._abort()

    def _detect(self, data: bytes) -> ServerCore | None:
        if data.startswith(_PREFACE):
            return self._server.make_core("HTTP/2.0")
        if _PREFACE.startswith(data):
            return None  # could become either
        return self._server.make_core("HTTP/1.1")

    def _handle(self, core: ServerCore, data: bytes) -> None:
        try:
            events = core.receive(data)
        except ProtocolBroken as error:
            log.debug("http.request.malformed", reason=str(error))
            if core.http_version == "HTTP/1.1" and self._transport is not None:
                self._transport.write(
                    b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                )
                self._transport.close()
            else:
                self._flush()
                self._abort()
            return
        self._dispatch(core, events)
        self._schedule_flush()

    def _dispatch(self, core: ServerCore, events: list[Event]) -> None:
        for event in events:
            match event:
                case RequestHead():
                    self._begin(core, event)
                case Body():
                    self._collect(event)
                case End():
                    self._complete(event.stream)
                case Reset():
                    self._discard(event.stream)
                    abandoned = self._open.pop(event.stream, None)
                    if abandoned is not None:
                        abandoned.give_up()
                case _:
                    pass

    def _begin(self, core: ServerCore, head: RequestHead) -> None:
        exchange = Exchange(self, head)
        self._open[head.stream] = exchange
        self._taken += 1
        declared = exchange.header(b"content-length")
        if declared is not None and declared.isdigit() and self._is_oversize(int(declared)):
            self._app.on_oversize(exchange, is_declared=True)
            return
        if self._server.buffered_bytes > INGRESS_BUFFERED_BYTES_MAX:
            self._app.on_oversize(exchange, is_declared=False)
            return
        self._incoming[head.stream] = _Incoming(exchange)
        if head.expects_continue:
            core.proceed(head.stream)

    def _collect(self, event: Body) -> None:
        incoming = self._incoming.get(event.stream)
        if incoming is None:
            return
        incoming.chunks.append(event.data)
        incoming.size += len(event.data)
        self._server.buffered_bytes += len(event.data)
        if self._is_oversize(incoming.size):
            exchange = incoming.exchange
            self._discard(event.stream)
            self._app.on_oversize(exchange, is_declared=False)

    def _is_oversize(self, size: int) -> bool:
        return size > self._app.body_bytes_max

    def _complete(self, stream: int) -> None:
        incoming = self._incoming.pop(stream, None)
        if incoming is None:
            return
        self._server.buffered_bytes -= incoming.size
        exchange = incoming.exchange
        chunks = incoming.chunks
        exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._app.on_exchange(exchange)

    def _discard(self, stream: int) -> None:
        incoming = self._incoming.pop(stream, None)
        if incoming is not None:
            self._server.buffered_bytes -= incoming.size

    def _schedule_flush(self) -> None:
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        if self._core is None or self._transport is None:
            return
        data = self._core.output()
        if data and not self._transport.is_closing():
            self._transport.write(data)
        if self._core.is_closing():
            self._transport.close()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


class HttpServer:
    """Listens for an application."""

    def __init__(self, application: Application, make_core: CoreFactory, clock: Clock) -> None:
        self.application = application
        self._clock = clock
        self.make_core = make_core
        self.connections: set[_Connection] = set()
        self.buffered_bytes = 0
        self._listener: asyncio.Server | None = None
        self._sweep: asyncio.TimerHandle | None = None
        self._date = (b"date", b"")
        self._date_at = -1
        self._is_empty = asyncio.Event()

    async def listen(self, host: str, port: int) -> int:
        """Bind and accept; returns the port (of interest when 0 was asked for).

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            lambda: _Connection(self), host, port, backlog=1024
        )
        self._sweep = loop.call_later(_SWEEP_SECONDS, self._close_idle)
        return int(self._listener.sockets[0].getsockname()[1])

    def date(self) -> tuple[bytes, bytes]:
        """The date header, made once a second."""
        now = self._clock.now_ms() // 1000
        if now != self._date_at:
            self._date_at = now
            self._date = (b"date", formatdate(now, usegmt=True).encode())
        return self._date

    def statistics(self) -> ServerStatistics:
        exchanges = sum(connection.exchange_count for connection in self.connections)
        return ServerStatistics(len(self.connections), exchanges, self.buffered_bytes)

    def joined(self, connection: _Connection) -> None:
        """A client connected."""
        self.connections.add(connection)
        self._is_empty.clear()

    def left(self, connection: _Connection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()

    def stop_accepting(self) -> None:
        """Close the listener."""
        if self._listener is not None:
            self._listener.close()
        if self._sweep is not None:
            self._sweep.cancel()

    async def aclose(self, drain_seconds: float) -> None:
        """Stop accepting, let exchanges end for a while, drop what is left."""
        self.stop_accepting()
        for connection in list(self.connections):
            connection.drain()
        try:
            async with asyncio.timeout(drain_seconds):
                if self.connections:
                    await self._is_empty.wait()
        except TimeoutError:
            log.info("http.connections.dropped", count=len(self.connections))
        for connection in list(self.connections):
            connection.abort()

    def _close_idle(self) -> None:
        loop = asyncio.get_running_loop()
        oldest = loop.time() - CONNECTION_IDLE_MS / 1000
        for connection in list(self.connections):
            if connection.exchange_count == 0 and connection.idle_since < oldest:
                connection.drain()
        self._sweep = loop.call_later(_SWEEP_SECONDS, self._close_idle)
