"""A request with the way to answer it, and the application that does."""

from collections.abc import Callable
from typing import Protocol

from perdure.node.http.ports import Headers, RequestHead


class Responder(Protocol):
    """The connection that a request came on."""

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> None: ...


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

    def __init__(self, connection: Responder, head: RequestHead) -> None:
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
