"""A request with the way to answer it, and the application that does."""

from collections.abc import Callable
from typing import Protocol

from perdure.node.http.ports import Headers, RequestHead


class Responder(Protocol):
    """The connection that a request came on."""

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None: ...

    def begin(self, stream: int, status: int, headers: Headers) -> None: ...

    def write(self, stream: int, data: bytes) -> None: ...

    def end(self, stream: int) -> None: ...

    def cut(self, stream: int) -> None: ...

    def is_writable(self, stream: int) -> bool: ...


class Exchange:
    """A request, complete, and the way to answer it. Answer once; later answers are dropped.

    An answer goes out whole (``respond``) or in pieces: ``begin``, ``write`` while ``is_writable``,
    then ``end``, or ``cut`` where it can't be completed. ``on_gone``, if set, is called when the
    client gives up before the answer is complete; ``on_writable``, if set, when ``is_writable``
    was False and may be True again.
    """

    __slots__ = (
        "_connection",
        "_stream",
        "body",
        "headers",
        "is_answered",
        "is_begun",
        "method",
        "on_gone",
        "on_writable",
        "target",
    )

    def __init__(self, connection: Responder, head: RequestHead) -> None:
        self._connection = connection
        self._stream = head.stream
        self.method = head.method.decode("latin-1")
        self.target = head.target.decode("latin-1")
        self.headers = head.headers
        self.body = b""
        self.is_answered = self.is_begun = False
        self.on_gone: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header (lower-case name)."""
        for known, value in self.headers:
            if known == name:
                return value
        return None

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer; length and date are added."""
        if not self.is_answered and not self.is_begun:
            self.is_answered = True
            self._connection.respond(self._stream, status, headers, body)

    @property
    def is_writable(self) -> bool:
        """Whether the client takes more; what is written beyond is kept, and counted."""
        return self._connection.is_writable(self._stream)

    def begin(self, status: int, headers: Headers) -> None:
        """Answer in pieces; the date is added. The status must be one that has a body."""
        if not self.is_answered and not self.is_begun:
            self.is_begun = True
            self._connection.begin(self._stream, status, headers)

    def write(self, data: bytes) -> None:
        """The next piece of an answer that has begun."""
        if self.is_begun and not self.is_answered and data:
            self._connection.write(self._stream, data)

    def end(self) -> None:
        """The answer is complete."""
        if self.is_begun and not self.is_answered:
            self.is_answered = True
            self._connection.end(self._stream)

    def cut(self) -> None:
        """Give the answer up midway, so that the client can't take it for a whole one."""
        if self.is_begun and not self.is_answered:
            self.is_answered = True
            self._connection.cut(self._stream)

    def give_up(self) -> None:
        """The client is gone: nobody is left to answer."""
        if not self.is_answered:
            self.is_answered = True
            if self.on_gone is not None:
                self.on_gone()


class Incoming:
    """An exchange whose body is still coming in."""

    __slots__ = ("chunks", "exchange", "progress_at", "size")

    def __init__(self, exchange: Exchange, now: float) -> None:
        self.exchange = exchange
        self.chunks: list[bytes] = []
        self.size = 0
        self.progress_at = now


class Application(Protocol):
    """Answers exchanges, now or later, on the event loop."""

    body_bytes_max: int

    def on_exchange(self, exchange: Exchange) -> None:
        """A whole request has arrived."""
        ...

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        """The body exceeds the limit: by its declared length, or while it came in."""
        ...
