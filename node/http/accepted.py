"""A client's connection: detects the version, gathers bodies, writes answers, watches the clock.

Memory is bounded: bodies coming in and answers that clients are slow to read are counted over the
whole server, requests sent ahead are not read, and who stalls is disconnected.
"""

import asyncio
from typing import cast

from perdure.core import limits
from perdure.core.telemetry import logger
from perdure.node.http.exchange import Exchange, Incoming
from perdure.node.http.owner import Owner
from perdure.node.http.ports import (
    Body,
    Broken,
    End,
    Event,
    Headers,
    RequestHead,
    Reset,
    ServerCore,
)
from perdure.node.http.sockets import reset_at_close, set_up

log = logger("http")

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_JSON = (b"content-type", b"application/json")
_BODILESS = frozenset((204, 304))
# Lower ones are interim heads, higher ones no status at all.
_STATUS_MIN, _STATUS_MAX = 200, 999


class Accepted(asyncio.Protocol):
    """A client's connection."""

    def __init__(self, server: Owner) -> None:
        self._server = server
        self._app = server.application
        self._limits = server.limits
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._core: ServerCore | None = None
        self._is_http1 = False
        self._head = b""
        self._incoming: dict[int, Incoming] = {}
        self._open: dict[int, Exchange] = {}
        self._streaming: dict[int, Exchange] = {}
        self._blocked: set[int] = set()
        self._held: list[Event] = []
        self._is_handling = self._is_flush_scheduled = False
        self._is_write_paused = self._is_read_paused = self._is_lingering = False
        self._taken = self._bytes_ahead = self._unsent = self._written = self._answered_bytes = 0
        self._idle_since = self._sent_at = self._loop.time()
        self._head_since: float | None = self._idle_since
        self._send_mark = (0, 0, 0)

    @property
    def is_connected(self) -> bool:
        return self._transport is not None

    @property
    def exchange_count(self) -> int:
        return len(self._open)

    @property
    def streaming_count(self) -> int:
        return len(self._streaming)

    # --- What the transport tells ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        if len(self._server.connections) >= self._limits.connections_max:
            log.warning("http.connection.refused", connections=len(self._server.connections))
            transport.abort()
            return
        self._transport = transport
        set_up(transport)
        self._server.connections.add(self)

    def data_received(self, data: bytes) -> None:
        if self._is_lingering:
            return
        core = self._core
        if core is None:
            data = self._head + data
            core = self._detect(data)
            if core is None:
                self._head = data
                return
            self._core, self._head = core, b""
            core.start()
        if self._is_http1:
            self._note_http1(len(data))
        self._handle(core.receive(data))
        self._tell_writable()

    def eof_received(self) -> bool:
        # A client that went away can't be told from one that only closed its sending side, which
        # hardly any does. Waiting for either would keep connections of clients long gone.
        if self._core is not None and not self._is_lingering:
            self._handle(self._core.receive(b""))
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._release()
        self._server.left(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True
        self._choose_reading()

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._choose_reading()
        self._measure()
        if self._held:
            held, self._held = self._held, []
            self._handle(held)
        self._tell_writable()

    # --- What the application and the server ask for --------------------------------------------

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None:
        """Answer a stream; what was waiting behind it on this connection comes next."""
        core, server = self._core, self._server
        exchange = self._open.pop(stream, None)
        if core is None or self._transport is None or exchange is None:
            return
        self._discard(stream)
        if server.unsent_bytes + len(body) > self._limits.buffered_bytes_max:
            server.make_room(len(body))
            if not self.is_connected:
                return
        self._idle_since = self._loop.time()
        self._answered_bytes += len(body)
        added = [server.date()]
        if status in _BODILESS:
            body = b""
        else:
            added.append((b"content-length", str(len(body)).encode()))
        if exchange.method == "HEAD":
            body = b""
        if not _STATUS_MIN <= status <= _STATUS_MAX:
            status = 500
        try:
            events = core.respond(stream, status, [*headers, *added], body)
        except ValueError as error:
            log.error("http.response.unsendable", cause=error)
            events = core.respond(stream, 500, [(b"content-length", b"0"), server.date()], b"")
        self._unsent += len(body)
        server.unsent_bytes += len(body)
        self._go_on(events)

    def begin(self, stream: int, status: int, headers: Headers) -> None:
        """Answer a stream in pieces."""
        core, exchange = self._core, self._open.get(stream)
        assert status not in _BODILESS, "an answer in pieces has a body"
        if core is None or self._transport is None or exchange is None:
            return
        self._discard(stream)
        try:
            core.begin(stream, status, [*headers, self._server.date()])
        except ValueError as error:
            log.error("http.response.unsendable", cause=error)
            self.respond(stream, 500, [], b"")
            exchange.give_up()
            return
        self._streaming[stream] = exchange
        self._schedule_flush()

    def write(self, stream: int, data: bytes) -> None:
        """The next piece of an answer."""
        if self._server.unsent_bytes + len(data) > self._limits.buffered_bytes_max:
            self._server.make_room(len(data))
        if stream in self._streaming and self._core is not None:
            self._core.send(stream, data)
            self._flush()

    def end(self, stream: int) -> None:
        """The last piece was written; what was waiting behind it comes next."""
        if self._forget_streamed(stream) and self._core is not None:
            self._go_on(self._core.end(stream))

    def cut(self, stream: int) -> None:
        """Give up an answer midway, for the client to see."""
        if not self._forget_streamed(stream) or self._core is None or self._transport is None:
            return
        self._server.cut += 1
        if self._core.cut(stream):
            reset_at_close(self._transport)
            self.abort()
        else:
            self._schedule_flush()

    def is_writable(self, stream: int) -> bool:
        """Whether the client keeps up with an answer."""
        if stream not in self._streaming or self._core is None:
            return False
        pending = self._core.pending(stream)
        if not self._is_write_paused and pending < limits.RESPONSE_PENDING_BYTES_HIGH:
            return True
        self._blocked.add(stream)
        return False

    def drain(self) -> None:
        """Take no further requests; close when those at hand are answered."""
        if self._core is not None:
            self._core.shut_down()
            self._schedule_flush()  # closes, if nothing is open
        elif self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Drop the connection and, at once, what it holds."""
        transport, self._transport = self._transport, None
        if transport is not None:
            transport.abort()
            self._release()

    def measure(self) -> int:
        """Write what can be written; how many bytes the client has yet to take."""
        self._flush()
        return self._unsent

    def check(self, now: float) -> None:
        """End what takes too long."""
        if self._head_since is not None and now - self._head_since > self._limits.head_ms / 1000:
            self.abort()
            return
        if self._is_stalled(now):
            log.info("http.reader.stalled", unsent_bytes=self._unsent)
            self.abort()
            return
        oldest = now - self._limits.request_stall_ms / 1000
        for incoming in list(self._incoming.values()):
            if incoming.progress_at < oldest:
                self._refuse(incoming.exchange, 408, "the request's body stopped coming")
        idle = now - self._idle_since
        if not self._open and not self._unsent and idle > self._limits.idle_ms / 1000:
            if idle > 2 * self._limits.idle_ms / 1000:
                self.abort()
            else:
                self.drain()

    # --- Inside ---------------------------------------------------------------------------------

    def _go_on(self, events: list[Event]) -> None:
        """An answer is out: on with what was waiting behind it."""
        self._bytes_ahead = 0
        self._choose_reading()
        if not events:
            self._schedule_flush()
        elif self._is_write_paused:
            self._held += events
            self._schedule_flush()
        else:
            self._handle(events)

    def _forget_streamed(self, stream: int) -> bool:
        self._blocked.discard(stream)
        if self._streaming.pop(stream, None) is None:
            return False
        self._open.pop(stream, None)
        self._idle_since = self._loop.time()
        return True

    def _tell_writable(self) -> None:
        for stream in list(self._blocked):
            exchange = self._streaming.get(stream)
            if exchange is not None and self.is_writable(stream):
                self._blocked.discard(stream)
                if exchange.on_writable is not None:
                    exchange.on_writable()

    def _detect(self, data: bytes) -> ServerCore | None:
        if data.startswith(_PREFACE):
            self._head_since = None
            return self._server.make_core("HTTP/2.0")
        if _PREFACE.startswith(data):
            return None  # could become either
        self._is_http1 = True
        return self._server.make_core("HTTP/1.1")

    def _note_http1(self, size: int) -> None:
        if not self._open:
            if self._head_since is None:
                self._head_since = self._loop.time()
        elif not self._incoming:
            self._bytes_ahead += size
            self._choose_reading()

    def _handle(self, events: list[Event]) -> None:
        """Dispatch, then write what came of it at once: answers often come synchronously."""
        if self._is_handling:
            self._held += events
            return
        self._is_handling = True
        while True:
            for event in events:
                self._dispatch(event)
            if self._answered_bytes > limits.PIPELINED_BYTES_MAX:
                self._flush()
            if not self._held or self._is_write_paused:
                break
            events, self._held = self._held, []
        self._is_handling = False
        self._flush()

    def _dispatch(self, event: Event) -> None:
        match event:
            case Body():
                self._collect(event)
            case RequestHead():
                self._begin(event)
            case End():
                self._complete(event.stream)
            case Reset():
                self._discard(event.stream)
                abandoned = self._open.pop(event.stream, None)
                self._forget_streamed(event.stream)
                if abandoned is not None:
                    self._idle_since = self._loop.time()
                    abandoned.give_up()
            case Broken():
                self._break_off(event)
            case _:
                pass

    def _begin(self, head: RequestHead) -> None:
        exchange = Exchange(self, head)
        core = self._core
        assert core is not None
        self._head_since = None
        self._open[head.stream] = exchange
        self._taken += 1
        if self._taken >= self._limits.requests_per_connection_max:
            core.shut_down()
        declared = exchange.header(b"content-length")
        if declared is not None and declared.isdigit() and self._is_oversize(int(declared)):
            self._app.on_oversize(exchange, is_declared=True)
            return
        if self._server.receiving_bytes > self._limits.buffered_bytes_max:
            self._refuse(exchange, 503, "too many requests are being received: try again")
            return
        self._incoming[head.stream] = Incoming(exchange, self._loop.time())
        if head.expects_continue:
            core.proceed(head.stream)

    def _collect(self, event: Body) -> None:
        incoming = self._incoming.get(event.stream)
        if incoming is None:
            return
        size = len(event.data)
        incoming.chunks.append(event.data)
        incoming.size += size
        incoming.progress_at = self._loop.time()
        self._server.receiving_bytes += size
        if self._is_oversize(incoming.size):
            self._discard(event.stream)
            self._app.on_oversize(incoming.exchange, is_declared=False)
        elif self._server.receiving_bytes > self._limits.buffered_bytes_max:
            message = "too many requests are being received: try again"
            self._refuse(incoming.exchange, 503, message)

    def _is_oversize(self, size: int) -> bool:
        return size > self._app.body_bytes_max

    def _complete(self, stream: int) -> None:
        incoming = self._discard(stream)
        if incoming is None:
            return
        exchange, chunks = incoming.exchange, incoming.chunks
        exchange.body = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._app.on_exchange(exchange)

    def _discard(self, stream: int) -> Incoming | None:
        incoming = self._incoming.pop(stream, None)
        if incoming is not None:
            self._server.receiving_bytes -= incoming.size
        return incoming

    def _refuse(self, exchange: Exchange, status: int, message: str) -> None:
        body = f'{{"code":{status},"message":"{message}"}}'.encode()
        exchange.respond(status, [_JSON], body)

    def _break_off(self, event: Broken) -> None:
        log.debug("http.request.malformed", reason=event.reason)
        for stream in list(self._incoming):
            self._discard(stream)
        self._abandon()
        self._flush()
        if self._transport is None:
            return
        if self._is_http1 and not self._is_lingering:
            reason = b"Bad Request" if event.status == 400 else b"Request Header Fields Too Large"
            self._transport.write(
                b"HTTP/1.1 %d %s\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
                % (event.status, reason)
            )
        self._linger()

    def _release(self) -> None:
        """The client is out of reach: nothing is kept for it, nobody works for it."""
        for stream in list(self._incoming):
            self._discard(stream)
        self._held.clear()
        self._server.unsent_bytes -= self._unsent
        self._unsent = 0
        self._abandon()

    def _abandon(self) -> None:
        abandoned, self._open = self._open, {}
        self._streaming.clear()
        self._blocked.clear()
        for exchange in abandoned.values():
            exchange.give_up()

    def _choose_reading(self) -> None:
        """Read on unless an HTTP/1 client sends ahead or doesn't take what it asked for.

        HTTP/2 is always read: windows open by what the client sends, and it bounds its requests.
        """
        if self._transport is None or not self._is_http1 or self._transport.is_closing():
            return
        is_paused = self._is_write_paused or self._bytes_ahead > limits.PIPELINED_BYTES_MAX
        if is_paused != self._is_read_paused:
            self._is_read_paused = is_paused
            if is_paused:
                self._transport.pause_reading()
            else:
                self._transport.resume_reading()

    def _schedule_flush(self) -> None:
        if not self._is_flush_scheduled and not self._is_handling:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        self._answered_bytes = 0
        core, transport = self._core, self._transport
        if core is None or transport is None or self._is_lingering:
            return
        data = core.output()
        if data and not transport.is_closing():
            self._written += len(data)
            transport.write(data)
        self._measure()
        if core.is_closing():
            self._linger()

    def _linger(self) -> None:
        """End our side, then drop what the client still sends: closing at once might cost it the
        answer, because a reset overtakes what is in its receive buffer."""
        transport = self._transport
        if transport is None or self._is_lingering or transport.is_closing():
            return
        self._is_lingering = True
        if self._is_read_paused:
            self._is_read_paused = False
            transport.resume_reading()
        if not transport.can_write_eof():
            transport.close()  # TLS says goodbye by itself
            return
        transport.write_eof()
        self._loop.call_later(self._limits.linger_ms / 1000, self._end_linger)

    def _end_linger(self) -> None:
        if self._transport is None:
            return
        if self._transport.get_write_buffer_size():
            self._loop.call_later(self._limits.linger_ms / 1000, self._end_linger)
        else:
            self._transport.abort()

    def _measure(self) -> None:
        """Count what this client has yet to take."""
        core, transport = self._core, self._transport
        if core is None or transport is None:
            return
        unsent = transport.get_write_buffer_size() + core.unsent()
        if unsent != self._unsent:
            self._server.unsent_bytes += unsent - self._unsent
            self._unsent = unsent

    def _is_stalled(self, now: float) -> bool:
        """Whether bytes wait for the client and none has left for too long."""
        if self._core is None or self._transport is None:
            return False
        self._measure()
        buffered = self._transport.get_write_buffer_size()
        mark = (buffered, self._unsent, self._written)
        if not self._unsent or mark != self._send_mark:
            self._send_mark, self._sent_at = mark, now
            return False
        return now - self._sent_at > self._limits.response_stall_ms / 1000
