"""HTTP/1 over ``h11``: pure Python, slow, and proven for a decade."""

import h11

from perdure.core.limits import HEADER_LIST_BYTES_MAX
from perdure.node.http.ports import (
    BODILESS,
    Body,
    Broken,
    End,
    Event,
    Headers,
    RequestHead,
    ResponseHead,
    check_fields,
    has_length,
)


class Client:
    """HTTP/1.1, asking side: one stream at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self, is_secure: bool) -> None:
        self._core = h11.Connection(h11.CLIENT, max_incomplete_event_size=HEADER_LIST_BYTES_MAX)
        self._stream = 0
        self._ready: list[bytes] = []
        self._is_broken = False

    def start(self) -> None:
        pass

    def can_open(self) -> bool:
        return self._core.our_state is h11.IDLE and not self._is_broken

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        check_fields(headers)
        self._stream += 1
        fields = [(b"host", authority), *headers]
        if method not in BODILESS and not has_length(headers):
            fields.append((b"transfer-encoding", b"chunked"))
        self._send(h11.Request(method=method, target=target, headers=fields))
        return self._stream

    def send(self, stream: int, data: bytes) -> None:
        if data and stream == self._stream and self._core.our_state is h11.SEND_BODY:
            self._send(h11.Data(data=data))

    def end(self, stream: int) -> None:
        if stream == self._stream and self._core.our_state is h11.SEND_BODY:
            self._send(h11.EndOfMessage())
            self._finish_cycle()

    def reset(self, stream: int) -> None:
        if stream == self._stream and self._core.our_state is not h11.IDLE:
            self._is_broken = True

    def pending(self, stream: int) -> int:
        return 0

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if data and self._core.our_state is h11.IDLE:
            self._is_broken = True
            return [Broken("an answer that nobody asked for", 400)]
        if not data:
            self._is_broken = True
        try:
            self._core.receive_data(data)
            while True:
                event = self._core.next_event()
                match event:
                    case h11.Response():
                        head = ResponseHead(self._stream, event.status_code, list(event.headers))
                        events.append(head)
                    case h11.Data():
                        events.append(Body(self._stream, bytes(event.data)))
                    case h11.EndOfMessage():
                        if self._core.our_state is not h11.DONE:
                            self._is_broken = True
                        events.append(End(self._stream))
                        self._finish_cycle()
                        return events
                    case h11.InformationalResponse():
                        pass
                    case _:
                        return events
        except (h11.RemoteProtocolError, RuntimeError) as error:
            self._is_broken = True
            events.append(_broken(error))
        return events

    def is_reusable(self) -> bool:
        final = (h11.MUST_CLOSE, h11.CLOSED, h11.ERROR)
        core = self._core
        return not (self._is_broken or core.our_state in final or core.their_state in final)

    def ping(self) -> bool:
        return False

    def output(self) -> bytes:
        data = b"".join(self._ready)
        self._ready.clear()
        return data

    def _send(self, event: h11.Event) -> None:
        data = self._core.send(event)
        if data:
            self._ready.append(data)

    def _finish_cycle(self) -> None:
        if self._core.our_state is h11.DONE and self._core.their_state is h11.DONE:
            self._core.start_next_cycle()


class Server:
    """HTTP/1.0 and 1.1, answering side: one request at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self) -> None:
        self._core = h11.Connection(h11.SERVER, max_incomplete_event_size=HEADER_LIST_BYTES_MAX)
        self._stream = 0
        self._ready: list[bytes] = []
        self._is_busy = False
        self._is_closing = False
        self._is_head = False

    def start(self) -> None:
        pass

    def receive(self, data: bytes) -> list[Event]:
        try:
            self._core.receive_data(data)
        except RuntimeError:
            return []  # bytes after the end of the byte stream
        return self._events()

    def proceed(self, stream: int) -> None:
        self._send(h11.InformationalResponse(status_code=100, headers=[]))

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        if not self._is_busy or stream != self._stream:
            return []
        check_fields(headers)
        if self._core.their_state is h11.SEND_BODY or self._is_closing:
            headers = [*headers, (b"connection", b"close")]
        self._send(h11.Response(status_code=status, headers=headers))
        if body and not self._is_head:
            self._send(h11.Data(data=body))
        return self._finish()

    def begin(self, stream: int, status: int, headers: Headers) -> None:
        if not self._is_busy or stream != self._stream:
            return
        check_fields(headers)
        if self._core.their_state is h11.SEND_BODY or self._is_closing:
            headers = [*headers, (b"connection", b"close")]
        self._send(h11.Response(status_code=status, headers=headers))

    def send(self, stream: int, data: bytes) -> None:
        if self._is_busy and stream == self._stream and data and not self._is_head:
            self._send(h11.Data(data=data))

    def end(self, stream: int) -> list[Event]:
        if not self._is_busy or stream != self._stream:
            return []
        return self._finish()

    def cut(self, stream: int) -> bool:
        if not self._is_busy or stream != self._stream:
            return False
        self._is_busy, self._is_closing = False, True
        return self._core.their_http_version == b"1.0"

    def pending(self, stream: int) -> int:
        return 0

    def unsent(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._is_closing and not self._is_busy

    def is_request_cut(self) -> bool:
        return self._core.their_state is h11.SEND_BODY

    def shut_down(self) -> None:
        self._is_closing = True

    def output(self) -> bytes:
        data = b"".join(self._ready)
        self._ready.clear()
        return data

    def _finish(self) -> list[Event]:
        self._send(h11.EndOfMessage())
        self._is_busy = False
        if self._core.our_state is not h11.DONE or self._core.their_state is not h11.DONE:
            self._is_closing = True
            return []
        self._core.start_next_cycle()
        return self._events()

    def _send(self, event: h11.Event) -> None:
        data = self._core.send(event)
        if data:
            self._ready.append(data)

    def _events(self) -> list[Event]:
        events: list[Event] = []
        try:
            while True:
                event = self._core.next_event()
                match event:
                    case h11.Request() if _size(event) > HEADER_LIST_BYTES_MAX:
                        events.append(Broken("the head is too large", 431))
                        return events
                    case h11.Request():
                        self._stream += 1
                        self._is_busy = True
                        self._is_head = event.method == b"HEAD"
                        waits = self._core.they_are_waiting_for_100_continue
                        head = RequestHead(
                            self._stream, event.method, event.target, list(event.headers), waits
                        )
                        events.append(head)
                    case h11.Data():
                        events.append(Body(self._stream, bytes(event.data)))
                    case h11.EndOfMessage():
                        events.append(End(self._stream))
                    case _:
                        return events
        except h11.RemoteProtocolError as error:
            events.append(_broken(error))
            return events


def _size(request: h11.Request) -> int:
    return len(request.target) + sum(len(name) + len(value) for name, value in request.headers)


def _broken(error: Exception) -> Broken:
    status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
    return Broken(str(error), 431 if status == 431 else 400)
