"""One connection to a service: a transport, its core, and the streams on it.

Bytes are written once per loop turn. Reading pauses while listeners are behind; writing reports
back through ``is_writable``. Pings keep it honest, idleness ends it.
"""

import asyncio
from collections.abc import Callable
from typing import cast

from perdure.core.entropy import Entropy
from perdure.core.limits import (
    CONNECTION_IDLE_MS,
    KEEP_ALIVE_INTERVAL_MS,
    KEEP_ALIVE_TIMEOUT_MS,
    RECEIVE_PENDING_BYTES_HIGH,
    REQUESTS_PER_CONNECTION_MAX,
    RESETS_PER_CONNECTION_MAX,
    STREAM_PENDING_BYTES_HIGH,
)
from perdure.node.http.ports import (
    Body,
    ClientCore,
    End,
    GoAway,
    Pong,
    ProtocolBroken,
    Reset,
    ResponseHead,
    Writable,
)
from perdure.node.http.stream import RequestStream, StreamFailure

_KEEP_ALIVE_JITTER = 0.2
_REFUSED_STREAM = 7


class Connection(asyncio.Protocol):
    """A transport, its core, and the streams on it."""

    def __init__(
        self,
        core: ClientCore,
        entropy: Entropy,
        on_capacity: Callable[[], None],
        on_gone: Callable[["Connection"], None],
    ) -> None:
        self.core = core
        self._entropy = entropy
        self._on_capacity = on_capacity
        self._on_gone = on_gone
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._streams: dict[int, RequestStream] = {}
        self._blocked: dict[int, RequestStream] = {}
        self._is_flush_scheduled = False
        self._is_write_paused = False
        self._is_read_paused = False
        self._unconsumed = 0
        self._opened = self._resets = 0
        self._idle_since = self._loop.time()
        self._pong_due: float | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.is_gone = False

    @property
    def stream_count(self) -> int:
        return len(self._streams)

    def can_open(self) -> bool:
        return (
            not self.is_gone
            and self._opened < REQUESTS_PER_CONNECTION_MAX
            and self._resets < RESETS_PER_CONNECTION_MAX
            and self.core.can_open()
        )

    def is_retired(self) -> bool:
        """Whether no stream will ever be opened here again."""
        return (
            self.is_gone
            or self._opened >= REQUESTS_PER_CONNECTION_MAX
            or self._resets >= RESETS_PER_CONNECTION_MAX
            or not self.core.is_reusable()
        )

    def open(self, stream: RequestStream, authority: bytes) -> None:
        method, target, headers = stream.head
        number = self.core.open(method, target, authority, headers)
        self._streams[number] = stream
        self._opened += 1
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
        self.core.reset(stream.number)
        self._release(stream)
        self._schedule_flush()
        if not self.core.is_reusable() and self.core.http_version == "HTTP/1.1":
            self.close()

    def is_writable(self, stream: RequestStream) -> bool:
        if (
            not self._is_write_paused
            and self.core.pending(stream.number) < STREAM_PENDING_BYTES_HIGH
        ):
            return True
        self._blocked[stream.number] = stream
        return False

    def consumed(self, size: int) -> None:
        self._unconsumed -= size
        if self._is_read_paused and self._unconsumed < RECEIVE_PENDING_BYTES_HIGH // 2:
            self._is_read_paused = False
            if self._transport is not None:
                self._transport.resume_reading()

    # --- What the transport tells -----------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport = transport
        self.core.start()
        self._schedule_flush()
        self._arm_timer()

    def data_received(self, data: bytes) -> None:
        try:
            events = self.core.receive(data)
        except ProtocolBroken as error:
            self._fail_all(StreamFailure("broken", f"the peer broke HTTP: {error}"))
            self.close()
            return
        for event in events:
            match event:
                case Body():
                    self._on_body(event)
                case ResponseHead():
                    if (stream := self._streams.get(event.stream)) is not None:
                        stream.listener.on_response(event.status, event.headers)
                case End():
                    self._on_end(event.stream)
                case Reset():
                    self._on_reset(event)
                case GoAway():
                    self._on_goaway(event.last_stream)
                case Pong():
                    self._pong_due = None
                case Writable():
                    self._unblock()
                case _:
                    pass
        self._schedule_flush()
        self._on_capacity()

    def eof_received(self) -> bool:
        try:
            for event in self.core.receive(b""):
                if isinstance(event, End):
                    self._on_end(event.stream)
        except ProtocolBroken:
            pass  # the loss of the connection says it all
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_gone = True
        if self._timer is not None:
            self._timer.cancel()
        reason = str(exc) if exc is not None else "the peer closed the connection"
        self._fail_all(StreamFailure("lost", reason))
        self._on_gone(self)

    def pause_writing(self) -> None:
        self._is_write_paused = True

    def resume_writing(self) -> None:
        self._is_write_paused = False
        self._unblock()

    def close(self) -> None:
        """Close after what is written has left."""
        self.is_gone = True
        if self._transport is not None:
            self._transport.close()

    # --- Inside -----------------------------------------------------------------------------------

    def _on_body(self, event: Body) -> None:
        stream = self._streams.get(event.stream)
        if stream is None:
            return
        self._unconsumed += len(event.data)
        stream.received(event.data)
        if (
            self._unconsumed > RECEIVE_PENDING_BYTES_HIGH
            and not self._is_read_paused
            and self._transport is not None
            and not self.is_gone
        ):
            self._is_read_paused = True
            self._transport.pause_reading()

    def _on_end(self, number: int) -> None:
        stream = self._streams.pop(number, None)
        if stream is None:
            return
        if not stream.is_ended:
            stream.end()  # the peer has said all it will: nobody reads the rest of the request
        self._blocked.pop(number, None)
        self._release(stream)
        stream.listener.on_end()
        self._idle_since = self._loop.time()

    def _on_reset(self, event: Reset) -> None:
        self._resets += 1
        stream = self._streams.pop(event.stream, None)
        if stream is None:
            return
        self._blocked.pop(event.stream, None)
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

    def _release(self, stream: RequestStream) -> None:
        if left := stream.finish():
            self.consumed(left)

    def _unblock(self) -> None:
        if self._blocked and not self._is_write_paused:
            blocked, self._blocked = self._blocked, {}
            for stream in blocked.values():
                if self.is_writable(stream):
                    stream.listener.on_writable()

    def _fail_all(self, failure: StreamFailure) -> None:
        streams, self._streams = self._streams, {}
        self._blocked.clear()
        for stream in streams.values():
            self._release(stream)
            stream.listener.on_failed(failure)

    def _schedule_flush(self) -> None:
        if not self._is_flush_scheduled:
            self._is_flush_scheduled = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_flush_scheduled = False
        data = self.core.output()
        if data and self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def _arm_timer(self) -> None:
        interval = KEEP_ALIVE_INTERVAL_MS / 1000
        interval += self._entropy.jitter(interval * _KEEP_ALIVE_JITTER)
        self._timer = self._loop.call_later(interval, self._on_timer)

    def _on_timer(self) -> None:
        now = self._loop.time()
        if not self._streams and now - self._idle_since > CONNECTION_IDLE_MS / 1000:
            self.close()
            return
        if self._streams and self.core.ping():
            self._pong_due = now + KEEP_ALIVE_TIMEOUT_MS / 1000
            self._loop.call_later(KEEP_ALIVE_TIMEOUT_MS / 1000, self._check_pong)
            self._schedule_flush()
        self._arm_timer()

    def _check_pong(self) -> None:
        if self._pong_due is not None and self._loop.time() >= self._pong_due:
            self._fail_all(StreamFailure("lost", "the peer doesn't answer pings"))
            if self._transport is not None:
                self._transport.abort()
