"""Two sans-IO cores with a wire between them that may cut bytes anywhere."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from perdure.node.http.cores import make_client_core, make_server_core
from perdure.node.http.ports import (
    Body,
    Broken,
    ClientCore,
    End,
    Event,
    Headers,
    RequestHead,
    Reset,
    ResponseHead,
    ServerCore,
)

NAMES = ("zttp", "hyper")
VERSIONS = ("HTTP/1.1", "HTTP/2.0")
Cut = Callable[[bytes], list[bytes]]


def whole(data: bytes) -> list[bytes]:
    return [data] if data else []


def cut_by(sizes: Iterator[int]) -> Cut:
    """Cut by a sequence of sizes, each at least one."""

    def cut(data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        while data:
            size = next(sizes)
            pieces.append(data[:size])
            data = data[size:]
        return pieces

    return cut


@dataclass
class Message:
    """A request or response, as far as it has come."""

    head: RequestHead | ResponseHead | None = None
    body: bytearray = field(default_factory=bytearray)
    is_ended: bool = False
    reset_code: int | None = None


class Wire:
    """A client core and a server core, and all that they reported."""

    def __init__(self, client: ClientCore, server: ServerCore, cut: Cut = whole) -> None:
        self.client = client
        self.server = server
        self.cut = cut
        self.requests: dict[int, Message] = {}
        self.responses: dict[int, Message] = {}
        self.others: list[Event] = []
        client.start()
        server.start()
        self.settle()

    def ask(
        self, body: bytes = b"", headers: Headers | None = None, method: bytes = b"POST"
    ) -> int:
        """A whole request."""
        stream = self.client.open(method, b"/path?q=1", b"origin.test:80", headers or [])
        if body:
            self.client.send(stream, body)
        self.client.end(stream)
        return stream

    def answer(self, stream: int, body: bytes = b"", status: int = 200) -> None:
        length = (b"content-length", str(len(body)).encode())
        self.take_requests(self.server.respond(stream, status, [length], body))

    def settle(self) -> None:
        """Carry bytes both ways until neither side has more to say."""
        while self.to_server() | self.to_client():
            pass

    def to_server(self) -> bool:
        data = self.client.output()
        for piece in self.cut(data):
            self.take_requests(self.server.receive(piece))
        return bool(data)

    def to_client(self) -> bool:
        data = self.server.output()
        for piece in self.cut(data):
            self.take_responses(self.client.receive(piece))
        return bool(data)

    def take_requests(self, events: list[Event]) -> None:
        self._take(self.requests, events)

    def take_responses(self, events: list[Event]) -> None:
        self._take(self.responses, events)

    def _take(self, messages: dict[int, Message], events: list[Event]) -> None:
        for event in events:
            match event:
                case RequestHead() | ResponseHead():
                    message = messages.setdefault(event.stream, Message())
                    assert message.head is None, "one head a message"
                    message.head = event
                case Body():
                    assert not messages[event.stream].is_ended
                    messages[event.stream].body += event.data
                case End():
                    assert not messages[event.stream].is_ended
                    messages[event.stream].is_ended = True
                case Reset():
                    messages.setdefault(event.stream, Message()).reset_code = event.code
                case Broken():
                    raise AssertionError(event.reason)
                case _:
                    self.others.append(event)


def wire(client: str, server: str, version: str, cut: Cut = whole) -> Wire:
    return Wire(make_client_core(client, version, False), make_server_core(server, version), cut)
