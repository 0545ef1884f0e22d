"""One connection to a service: a transport, its core, and the streams on it.

Bytes are written once per loop turn. Reading pauses while listeners are behind; writing reports
back through ``is_writable``. Pings keep it honest, idleness ends it.
"""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from perdure.core import limits
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.node.http.ports import (
    Body,
    Broken,
    ClientCore,
    End,
    Event,
    GoAway,
    Pong,
    Reset,
    ResponseHead,
    Writable,
)
from perdure.node.http.stream import RequestStream, StreamFailure

_KEEP_ALIVE_JITTER = 0.2
_REFUSED_STREAM = 7


@dataclass(frozen=True, slots=True)
class ClientLimits:
    """Bounds of a client; tests lower them."""

    connections_per_origin_max: int = limits.CONNECTIONS_PER_ORIGIN_MAX
    requests_per_connection_max: int = limits.REQUESTS_PER_CONNECTION_MAX
    keep_alive_interval_ms: int = limits.KEEP_ALIVE_INTERVAL_MS
    keep_alive_timeout_ms: int = limits.KEEP_ALIVE_TIMEOUT_MS
    idle_ms: int = limits.CONNECTION_IDLE_MS
    stand_still_ms_max: int | None = None
    """What was to be written longer ago is not sent any more: the process stood still, and others
    may have taken over what it was about."""


class Connection(asyncio.Protocol):
    """A transport, its core, and the streams on it."""

    def __init__(
        self,
        core: ClientCore,
        entropy: Entropy,
        bounds: ClientLimits,
        clock: Clock,
        on_capacity: Callable[["Connection"], None],
        on_gone: Callable[["Connection"], None],
    ) -> None:
        self.core = core
        self._entropy = entropy
        self._limits = bounds
        self._clock = clock
        self._on_capacity = on_capacity
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, RequestStream] = {}
        self._blocked: dict[int, RequestStream] = {}
        self._is_handling = False
        self._is_flush_scheduled = False
        self._flush_since: float | None = None  # when the first of what is to be written came about
        self._is_write_paused = False
        self._is_read_paused = False
        self._unconsumed = 0
        self.opened_count = self.sent_bytes = self.received_bytes = self._resets = 0
        self._idle_since = self._loop.time()
        self._reads = 0  # signs of life are counted: the loop's clock is too coarse to order them
        self._timer: asyncio.TimerHandle | None = None
        self._ping_timer: asyncio.TimerHandle | None = None
        self.is_gone = False
        self.end_reason = "the peer closed the connection"

    @property
    def is_unused(self) -> bool:
        """Whether no stream was ever opened here."""
        return self.opened_count == 0

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    def can_open(self) -> bool:
        return not self.is_retired() and self.core.can_open()

    def is_retired(self) -> bool:
        """Whether no stream will ever be opened here again."""
        return (
            self.is_gone
            or self.opened_count >= self._limits.requests_per_connection_max
            or self._resets >= limits.RESETS_PER_CONNECTION_MAX
            or not self.core.is_reusable()
        )

    def open(self, stream: RequestStream, authority: bytes) -> None:
        method, target, headers = stream.head
        try:
            number = self.core.open(method, target, authority, headers)
        except ValueError as error:
            failure = StreamFailure("broken", f"the request can't be sent: {error}")
            self._loop.call_soon(stream.fail, failure)  # not before its opener holds it
            return
        self._streams[number] = stream
        self.opened_count += 1
        stream.attach(self, number, self.core.http_version)
        self._schedule_flush()

    # --- What streams ask for -------------------------------------------------------------------

    def send(self, number: int, data: bytes) -> None:
        self.core.send(number, data)
        self._schedule_flush()

    def end(self, number: int) -> None:
        self.core.end(number)
        self._schedule_flush()

    def reset(self, stream: RequestStream) -> None:
        if self._streams.pop(stream.number, None) is None:
            return
        self._blocked.pop(stream.number, None)
        self._resets += 1
        self._idle_since = self._loop.time()
        self.core.reset(stream.number)
        self._release(stream)
        if self.core.http_version == "HTTP/1.1":
            self._abort()
        else:
            self._schedule_flush()
            self._on_capacity(self)

    def is_writable(self, stream: RequestStream) -> bool:
        if (
            not self._is_write_paused
            and self.core.pending(stream.number) < limits.STREAM_PENDING_BYTES_HIGH
        ):
            return True
        self._blocked[stream.number] = stream
        return False

    def consumed(self, size: int) -> None:
        self._unconsumed -= size
        if self._is_read_paused and self._unconsumed < limits.RECEIVE_PENDING_BYTES_HIGH // 2:
            self._is_read_paused = False
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    # --- What the transport tells ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport = transport
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self.core.start()
        self._schedule_flush()
        self._arm_timer()

    def data_received(self, data: bytes) -> None:
        self._reads += 1
        self.received_bytes += len(data)
        self._handle(self.core.receive(data))

    def eof_received(self) -> bool:
        # A message that is cut short is a loss, not a breach: ``connection_lost`` says so.
        events = self.core.receive(b"")
        self._handle([event for event in events if not isinstance(event, Broken)])
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True
        for timer in (self._timer, self._ping_timer):
            if timer is not None:
                timer.cancel()
        if exc is not None:
            self.end_reason = str(exc)
        self._fail_all(StreamFailure("lost", self.end_reason))
        self._transport = None
        self._on_gone(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._unblock()

    def close(self) -> None:
        """Close; streams that are open fail."""
        self.is_gone = True
        self._fail_all(StreamFailure("lost", "the connection was closed"))
        if self._transport is not None:
            self._flush()
            self._transport.close()

    # --- Inside ---------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        """Tell listeners, then write what they had to say at once."""
        self._is_handling = True
        self._note_time()
        is_only_bodies = True
        for event in events:
            if isinstance(event, Body):
                self._on_body(event)
                continue
            is_only_bodies = False
            match event:
                case ResponseHead():
                    if (stream := self._streams.get(event.stream)) is not None:
                        stream.listener.on_response(event.status, event.headers)
                case End():
                    self._on_end(event.stream)
                case Writable():
                    self._unblock()
                case Reset():
                    self._on_reset(event)
                case GoAway():
                    self._on_goaway(event.last_stream)
                case Broken():
                    self._on_broken(event)
                case Pong():
                    pass  # any byte from the peer is a sign of life
                case _:
                    pass
        self._is_handling = False
        self._flush()
        if not is_only_bodies and not self.is_gone:
            self._on_capacity(self)

    def _on_body(self, event: Body) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        self._unconsumed += len(event.data)
        stream.received(event.data)
        if (
            self._unconsumed > limits.RECEIVE_PENDING_BYTES_HIGH
            and not self._is_read_paused
            and self._transport is not None
            and not self._transport.is_closing()
        ):
            self._is_read_paused = True
            self._transport.pause_reading()

    def _on_end(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        self._blocked.pop(number, None)
        if self.core.pending(number):
            self.core.reset(number)  # the peer has said all it will: nobody reads the rest
        elif not stream.is_ended:
            self.core.end(number)
        self._release(stream)
        self._idle_since = self._loop.time()
        stream.listener.on_end()

    def _on_reset(self, event: Reset) -> None:
        stream = self._streams.pop(event.stream, None)
        if stream is None:
            return
        self._resets += 1
        self._blocked.pop(event.stream, None)
        self._idle_since = self._loop.time()
        self._release(stream)
        kind = "refused" if event.code == _REFUSED_STREAM else "lost"
        message = f"the peer reset the stream (code {event.code})"
        stream.listener.on_failed(StreamFailure(kind, message))

    def _on_goaway(self, last_stream: int) -> None:
        for number in [number for number in self._streams if number > last_stream]:
            stream = self._streams.pop(number)
            self._blocked.pop(number, None)
            self._release(stream)
            failure = StreamFailure("refused", "the peer is closing the connection")
            stream.listener.on_failed(failure)
        # A peer may forget the streams that it said it would finish (hypercorn does, after so many
        # requests): one that still works answers this, one that doesn't closes the connection.
        if self._streams and self.core.ping():
            self._await_sign()

    def _on_broken(self, event: Broken) -> None:
        self.is_gone = True
        self.end_reason = f"the peer broke HTTP: {event.reason}"
        self._fail_all(StreamFailure("broken", self.end_reason))
        if self._transport is not None:
            self._flush()
            self._transport.close()

    def _release(self, stream: RequestStream) -> None:
        if left := stream.finish():
            self.consumed(left)

    def _unblock(self) -> None:
        if self._blocked and not self._is_write_paused:
            blocked, self._blocked = self._blocked, {}
            for stream in blocked.values():
                if not stream.is_closed and self.is_writable(stream):
                    stream.listener.on_writable()

    def _fail_all(self, failure: StreamFailure) -> None:
        streams, self._streams = self._streams, {}
        self._blocked.clear()
        for stream in streams.values():
            self._release(stream)
            stream.listener.on_failed(failure)

    def _schedule_flush(self) -> None:
        if not self._is_flush_scheduled and not self._is_handling:
            self._is_flush_scheduled = True
            self._note_time()
            self._loop.call_soon(self._flush)

    def _note_time(self) -> None:
        if self._limits.stand_still_ms_max is not None and self._flush_since is None:
            self._flush_since = self._clock.monotonic()

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        data = self.core.output()
        since, self._flush_since = self._flush_since, None
        if data and since is not None and self._stood_still(since):
            self.end_reason = "this process stood still while it had something to send"
            self._abort()
        elif data and self._transport is not None and not self._transport.is_closing():
            self.sent_bytes += len(data)
            self._transport.write(data)

    def _stood_still(self, since: float) -> bool:
        longest_ms = self._limits.stand_still_ms_max
        return longest_ms is not None and (self._clock.monotonic() - since) * 1000 > longest_ms

    def _abort(self) -> None:
        self.is_gone = True
        if self._transport is not None:
            self._transport.abort()

    def _arm_timer(self) -> None:
        interval = self._limits.keep_alive_interval_ms / 1000
        interval += self._entropy.jitter(interval * _KEEP_ALIVE_JITTER)
        self._timer = self._loop.call_later(interval, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        if not self._streams and now - self._idle_since > self._limits.idle_ms / 1000:
            self.close()
            return
        if self._streams and self._ping_timer is None and self.core.ping():
            self._schedule_flush()
            self._await_sign()
        self._arm_timer()

    def _await_sign(self) -> None:
        if self._ping_timer is not None:
            self._ping_timer.cancel()
        timeout = self._limits.keep_alive_timeout_ms / 1000
        self._ping_timer = self._loop.call_later(timeout, self._check_sign, self._reads)

    def _check_sign(self, reads_before: int) -> None:
        self._ping_timer = None
        if self._reads > reads_before:
            return
        if self._is_read_paused:
            self._await_sign()  # its answer may lie unread
            return
        self._fail_all(StreamFailure("lost", "the peer doesn't answer pings"))
        self._abort()
