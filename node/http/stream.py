"""A request and its response as a handle: what the asking side of HTTP gives out.

What arrives goes to a listener as callbacks, on the event loop, so a stream costs neither task nor
future. A stream exists before its connection does; what is written meanwhile waits in it.
"""

from dataclasses import dataclass
from typing import Protocol

from perdure.core.limits import STREAM_PENDING_BYTES_HIGH
from perdure.node.http.ports import Headers


@dataclass(frozen=True, slots=True)
class Origin:
    """Where connections go. ``http_version`` None: what TLS negotiates."""

    scheme: str
    host: str
    port: int
    http_version: str | None

    @property
    def authority(self) -> bytes:
        """Host and port as the request names them."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == (443 if self.scheme == "https" else 80):
            return host.encode()
        return f"{host}:{self.port}".encode()


@dataclass(frozen=True, slots=True)
class StreamFailure:
    """Why a stream ended without its end.

    ``kind``: "connect" (no connection came about), "refused" (the peer did not process it: ask
    again elsewhere), "lost" (reset, or the connection went away), "broken" (not HTTP).
    """

    kind: str
    message: str


class StreamListener(Protocol):
    """Who is told what happens on a stream. After ``on_end`` or ``on_failed`` nothing follows."""

    def on_response(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes) -> None:
        """A piece of the body; call ``stream.consumed`` when it is dealt with."""
        ...

    def on_end(self) -> None: ...

    def on_failed(self, failure: StreamFailure) -> None: ...

    def on_writable(self) -> None:
        """``is_writable`` was False and may be True again."""
        ...


class Carrier(Protocol):
    """The connection under a stream."""

    def send(self, number: int, data: bytes) -> None: ...

    def end(self, number: int) -> None: ...

    def reset(self, stream: "RequestStream") -> None: ...

    def is_writable(self, stream: "RequestStream") -> bool: ...

    def consumed(self, size: int) -> None: ...


class RequestStream:
    """One request and its response."""

    __slots__ = (
        "_buffer",
        "_connection",
        "_is_blocked",
        "_is_closed",
        "_is_ended",
        "_unconsumed",
        "head",
        "http_version",
        "listener",
        "number",
    )

    def __init__(self, head: tuple[bytes, bytes, Headers], listener: StreamListener) -> None:
        self.head = head
        self.listener = listener
        self.number = 0
        self.http_version = ""
        self._connection: Carrier | None = None
        self._buffer: list[bytes] = []
        self._is_blocked = False
        self._is_ended = False
        self._is_closed = False
        self._unconsumed = 0

    def write(self, data: bytes) -> None:
        """Queue a piece of the request body."""
        if self._is_closed or self._is_ended:
            return
        if self._connection is None:
            self._buffer.append(data)
        else:
            self._connection.send(self.number, data)

    def end(self) -> None:
        """End the request body."""
        if self._is_closed or self._is_ended:
            return
        self._is_ended = True
        if self._connection is not None:
            self._connection.end(self.number)

    def reset(self) -> None:
        """Give the stream up; the listener hears no more of it."""
        if not self._is_closed:
            self._is_closed = True
            if self._connection is not None:
                self._connection.reset(self)

    def is_writable(self) -> bool:
        """Whether more may be written without piling up; if not, ``on_writable`` will come."""
        if self._connection is None:
            self._is_blocked = sum(map(len, self._buffer)) >= STREAM_PENDING_BYTES_HIGH
            return not self._is_blocked
        return self._connection.is_writable(self)

    def consumed(self, size: int) -> None:
        """The listener has dealt with ``size`` bytes of the body."""
        if self._connection is not None and not self._is_closed:
            self._unconsumed -= size
            self._connection.consumed(size)

    def attach(self, connection: Carrier, number: int, http_version: str) -> None:
        """A connection took the stream: send what was written so far."""
        self._connection = connection
        self.number = number
        self.http_version = http_version
        for data in self._buffer:
            connection.send(number, data)
        self._buffer.clear()
        if self._is_ended:
            connection.end(number)
        elif self._is_blocked and connection.is_writable(self):
            self.listener.on_writable()

    def received(self, data: bytes) -> None:
        """A piece of the body arrived."""
        self._unconsumed += len(data)
        self.listener.on_body(data)

    def fail(self, failure: StreamFailure) -> None:
        """The stream never reached a connection."""
        if not self._is_closed:
            self._is_closed = True
            self.listener.on_failed(failure)

    def finish(self) -> int:
        """No more events; returns the bytes that will never be reported consumed."""
        self._is_closed = True
        left, self._unconsumed = self._unconsumed, 0
        return left

    @property
    def is_closed(self) -> bool:
        return self._is_closed

    @property
    def is_ended(self) -> bool:
        return self._is_ended
