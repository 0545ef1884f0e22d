"""The interface that HTTP cores are held to, and the events they speak in.

A core parses and serializes for one connection and does no I/O: bytes in, events out, bytes out.
Two families pass one suite (tests/node/http): over ``zttp`` (native, the default) and over ``h11``
and ``h2`` (the careful alternative).
"""

from typing import NamedTuple, Protocol

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, values as received, in received order."""


BODILESS = frozenset((b"GET", b"HEAD"))
"""Methods whose requests have no body over HTTP/1.1."""


def has_length(headers: Headers) -> bool:
    """Whether a request says itself how long its body is."""
    return any(name == b"content-length" for name, _ in headers)


def check_fields(headers: Headers) -> None:
    """Refuse what could be read as more than one field.

    Raises:
        ValueError: a header holds control bytes.
    """
    for name, value in headers:
        if any(byte < 0x20 and byte != 0x09 for byte in name + value):
            raise ValueError("a header holds control bytes")


class RequestHead(NamedTuple):
    """A request begins. ``target`` is the raw path and query."""

    stream: int
    method: bytes
    target: bytes
    headers: Headers
    expects_continue: bool


class ResponseHead(NamedTuple):
    """A response begins; interim 1xx heads are not reported."""

    stream: int
    status: int
    headers: Headers


class Body(NamedTuple):
    """A piece of a body."""

    stream: int
    data: bytes


class End(NamedTuple):
    """The message is complete."""

    stream: int


class Reset(NamedTuple):
    """The peer gave up the stream, or the core had to."""

    stream: int
    code: int


class GoAway(NamedTuple):
    """The peer takes no streams beyond ``last_stream`` on this connection."""

    last_stream: int


class Pong(NamedTuple):
    """The answer to ``ping``."""


class Writable(NamedTuple):
    """The peer may have opened a window: look at ``pending`` again."""


class Broken(NamedTuple):
    """The peer sent what HTTP doesn't allow: write what is queued, then close. The last event.

    ``status``: what a server may still answer over HTTP/1.1.
    """

    reason: str
    status: int


Event = RequestHead | ResponseHead | Body | End | Reset | GoAway | Pong | Writable | Broken


class ClientCore(Protocol):
    """One connection, seen from the side that asks. Streams are numbered by the core."""

    http_version: str

    def start(self) -> None:
        """Queue what opens the connection."""
        ...

    def can_open(self) -> bool:
        """Whether another stream may be opened now."""
        ...

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        """Begin a request with a body to follow; returns its stream.

        Raises:
            ValueError: the method, target or a header can't be sent; nothing is queued.
        """
        ...

    def send(self, stream: int, data: bytes) -> None:
        """Queue a piece of the request body."""
        ...

    def end(self, stream: int) -> None:
        """End the request body."""
        ...

    def reset(self, stream: int) -> None:
        """Give up the stream (RST_STREAM CANCEL); over HTTP/1.1 the connection goes with it."""
        ...

    def pending(self, stream: int) -> int:
        """Request bytes queued that the peer's window doesn't let out yet."""
        ...

    def receive(self, data: bytes) -> list[Event]:
        """Events in ``data``; empty data is the end of the byte stream."""
        ...

    def is_reusable(self) -> bool:
        """Whether further streams may ever be opened here."""
        ...

    def ping(self) -> bool:
        """Queue a ping; False where the protocol has none."""
        ...

    def output(self) -> bytes:
        """Take the bytes to be written to the transport."""
        ...


class ServerCore(Protocol):
    """One connection, seen from the side that answers."""

    http_version: str

    def start(self) -> None:
        """Queue what opens the connection."""
        ...

    def receive(self, data: bytes) -> list[Event]:
        """Events in ``data``; empty data is the end of the byte stream."""
        ...

    def proceed(self, stream: int) -> None:
        """Tell a client that expects it to send its body (100 Continue)."""
        ...

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        """Queue a whole response; returns events of a request that was waiting behind it.

        Answering before the request has ended gives the rest of it up: HTTP/2 resets the stream
        after the response, HTTP/1.1 closes the connection.

        Raises:
            ValueError: a header can't be sent; nothing is queued.
        """
        ...

    def begin(self, stream: int, status: int, headers: Headers) -> None:
        """Queue the head of a response whose body follows in pieces, its length unknown.

        Raises:
            ValueError: a header can't be sent; nothing is queued.
        """
        ...

    def send(self, stream: int, data: bytes) -> None:
        """Queue a piece of the body of a response that has begun."""
        ...

    def end(self, stream: int) -> list[Event]:
        """End the body; returns events of a request that was waiting behind it."""
        ...

    def cut(self, stream: int) -> bool:
        """Give up a response that has begun: HTTP/2 resets the stream, HTTP/1.1 closes the
        connection before the last chunk. True where only a reset of the connection can tell what
        was sent from a whole response (HTTP/1.0).
        """
        ...

    def pending(self, stream: int) -> int:
        """Response bytes queued on the stream that the peer's windows don't let out yet."""
        ...

    def unsent(self) -> int:
        """Response bytes queued that the peer's windows don't let out yet."""
        ...

    def is_closing(self) -> bool:
        """Whether the connection ends once its output is written and its streams are answered."""
        ...

    def is_request_cut(self) -> bool:
        """Whether the connection ends with part of a request unread: linger, or the peer's reset
        may overtake the response."""
        ...

    def shut_down(self) -> None:
        """Ask for no further requests; those that cross the notice are still served.

        HTTP/2 names the last stream only when a ping has come back, so no request is ever lost
        without the client being told that it was not processed.
        """
        ...

    def output(self) -> bytes:
        """Take the bytes to be written to the transport."""
        ...
