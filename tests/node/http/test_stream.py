"""A stream before and after it has a connection."""

from perdure.core.limits import STREAM_PENDING_BYTES_HIGH
from perdure.node.http.ports import Headers
from perdure.node.http.stream import RequestStream, StreamFailure


class Carrier:
    """A connection that takes everything, or reports later that it does."""

    def __init__(self, *, is_open: bool) -> None:
        self.is_open = is_open
        self.sent: list[bytes] = []

    def send(self, number: int, data: bytes) -> None:
        self.sent.append(data)

    def end(self, number: int) -> None:
        self.sent.append(b"end")

    def reset(self, stream: RequestStream) -> None: ...

    def is_writable(self, stream: RequestStream) -> bool:
        return self.is_open

    def consumed(self, size: int) -> None: ...


class Listener:
    """Writes one more piece when it may."""

    def __init__(self) -> None:
        self.stream = RequestStream((b"POST", b"/", []), self)

    def on_response(self, status: int, headers: Headers) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...

    def on_failed(self, failure: StreamFailure) -> None: ...

    def on_writable(self) -> None:
        self.stream.write(b"more")


LARGE = bytes(STREAM_PENDING_BYTES_HIGH)


def test_who_was_held_up_before_the_connection_goes_on_with_it() -> None:
    listener, carrier = Listener(), Carrier(is_open=True)
    listener.stream.write(LARGE)
    assert not listener.stream.is_writable()
    listener.stream.attach(carrier, 1, "HTTP/2.0")
    assert carrier.sent == [LARGE, b"more"]


def test_a_connection_that_takes_no_more_calls_back_itself() -> None:
    listener, carrier = Listener(), Carrier(is_open=False)
    listener.stream.write(LARGE)
    assert not listener.stream.is_writable()
    listener.stream.attach(carrier, 1, "HTTP/2.0")
    assert carrier.sent == [LARGE]


def test_who_was_not_held_up_is_not_called() -> None:
    listener, carrier = Listener(), Carrier(is_open=True)
    listener.stream.write(b"little")
    assert listener.stream.is_writable()
    listener.stream.attach(carrier, 1, "HTTP/2.0")
    assert carrier.sent == [b"little"]


def test_a_request_that_ended_early_is_not_called() -> None:
    listener, carrier = Listener(), Carrier(is_open=True)
    listener.stream.write(LARGE)
    assert not listener.stream.is_writable()
    listener.stream.end()
    listener.stream.attach(carrier, 1, "HTTP/2.0")
    assert carrier.sent == [LARGE, b"end"]
