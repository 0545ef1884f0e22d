"""HTTP/1 over ``zttp``: one message at a time each way (see zttp_http2.py for its standing)."""

import zttp

from perdure.node.http.ports import (
    BODILESS,
    Body,
    Broken,
    End,
    Event,
    Headers,
    ResponseHead,
    has_length,
)
from perdure.node.http.zttp_events import STATUS_MAX, broken, lowered, request_head


class Client:
    """HTTP/1.1, asking side: one stream at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self, is_secure: bool) -> None:
        self._core = zttp.Connection(zttp.CLIENT)
        self._stream = 0
        self._is_busy = False
        self._is_sent = True
        self._is_received = True
        self._is_broken = False

    def start(self) -> None:
        pass

    def can_open(self) -> bool:
        return not self._is_busy and not self._is_broken

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        fields = [(b"host", authority), *headers]
        if method not in BODILESS and not has_length(headers):
            fields.append((b"transfer-encoding", b"chunked"))
        try:
            self._core.send_request(method, target, b"1.1", fields)
        except zttp.LocalProtocolError as error:
            raise ValueError(str(error)) from error
        self._stream += 1
        self._is_busy, self._is_sent, self._is_received = True, False, False
        return self._stream

    def send(self, stream: int, data: bytes) -> None:
        if data and stream == self._stream and not self._is_sent:
            self._core.send_data(data)

    def end(self, stream: int) -> None:
        if stream == self._stream and not self._is_sent:
            self._core.end_message()
            self._is_sent = True
            self._finish_cycle()

    def reset(self, stream: int) -> None:
        if stream == self._stream and self._is_busy:
            self._is_broken = True

    def pending(self, stream: int) -> int:
        return 0

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        if data and not self._is_busy:
            self._is_broken = True
            return [Broken("an answer that nobody asked for", 400)]
        if not data:
            self._is_broken = True
        try:
            self._core.receive_data(data)
            while self._is_busy:
                event = self._core.next_event()
                match event:
                    case zttp.Data():
                        events.append(Body(self._stream, event.data))
                    case zttp.Response():
                        if event.status_code >= 200:
                            headers = lowered(event.headers)
                            head = ResponseHead(self._stream, event.status_code, headers)
                            events.append(head)
                    case zttp.EndOfMessage():
                        self._is_received = True
                        if self._core.should_close() or not self._is_sent:
                            self._is_broken = True
                        events.append(End(self._stream))
                        self._finish_cycle()
                        if self._is_broken:
                            return events
                    case _:
                        return events
        except zttp.ProtocolError as error:
            self._is_broken = True
            events.append(broken(error))
        return events

    def is_reusable(self) -> bool:
        return not self._is_broken

    def ping(self) -> bool:
        return False

    def output(self) -> bytes:
        return self._core.data_to_send()

    def _finish_cycle(self) -> None:
        if self._is_sent and self._is_received and not self._is_broken:
            self._is_busy = False
            self._core.start_next_cycle()


class Server:
    """HTTP/1.0 and 1.1, answering side: one request at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self) -> None:
        self._core = zttp.Connection(zttp.SERVER)
        self._stream = 0
        self._is_received = True
        self._is_closing = False
        self._is_busy = False
        self._is_head = False
        self._is_http10 = False
        self._unframed: list[bytes] = []

    def start(self) -> None:
        pass

    def receive(self, data: bytes) -> list[Event]:
        try:
            self._core.receive_data(data)
        except zttp.ProtocolError as error:
            return [broken(error)]
        return self._events()

    def proceed(self, stream: int) -> None:
        self._core.send_informational(100)

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        if not self._is_busy or stream != self._stream:
            return []
        # The rest of a request that was not read makes the connection useless.
        is_last = self._is_closing or not self._is_received
        fields = [*headers, (b"connection", b"close")] if is_last else headers
        try:
            self._core.send_response(min(status, STATUS_MAX), fields)
        except zttp.LocalProtocolError as error:
            raise ValueError(str(error)) from error
        self._is_closing = is_last
        if body and not self._is_head:
            self._core.send_data(body)
        self._core.end_message()
        return self._finish()

    def begin(self, stream: int, status: int, headers: Headers) -> None:
        if not self._is_busy or stream != self._stream:
            return
        is_last = self._is_closing or self._is_http10 or not self._is_received
        fields = [*headers, (b"connection", b"close")] if is_last else list(headers)
        if not self._is_http10:
            fields.append((b"transfer-encoding", b"chunked"))
        try:
            self._core.send_response(min(status, STATUS_MAX), fields)
        except zttp.LocalProtocolError as error:
            raise ValueError(str(error)) from error
        self._is_closing = is_last

    def send(self, stream: int, data: bytes) -> None:
        if not self._is_busy or stream != self._stream or not data or self._is_head:
            return
        if self._is_http10:
            self._unframed.append(data)  # ended by the connection's end, which zttp has no way for
        else:
            self._core.send_data(data)

    def end(self, stream: int) -> list[Event]:
        if not self._is_busy or stream != self._stream:
            return []
        if not self._is_http10:
            self._core.end_message()
        return self._finish()

    def cut(self, stream: int) -> bool:
        if not self._is_busy or stream != self._stream:
            return False
        self._is_busy, self._is_closing = False, True
        return self._is_http10

    def pending(self, stream: int) -> int:
        return 0

    def unsent(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self._is_closing and not self._is_busy

    def is_request_cut(self) -> bool:
        return not self._is_received

    def shut_down(self) -> None:
        self._is_closing = True

    def output(self) -> bytes:
        data = self._core.data_to_send()
        if self._unframed:
            data = b"".join((data, *self._unframed))
            self._unframed.clear()
        return data

    def _finish(self) -> list[Event]:
        self._is_busy = False
        if self._is_closing or self._core.should_close():
            self._is_closing = True
            return []
        self._core.start_next_cycle()
        return self._events()

    def _events(self) -> list[Event]:
        events: list[Event] = []
        try:
            while True:
                event = self._core.next_event()
                match event:
                    case zttp.Request():
                        self._stream += 1
                        self._is_busy = True
                        self._is_head = event.method == b"HEAD"
                        self._is_http10 = event.http_version == b"1.0"
                        self._is_received = event.end_stream
                        events.append(request_head(event, self._stream))
                        if event.end_stream:
                            events.append(End(self._stream))
                    case zttp.Data():
                        events.append(Body(self._stream, event.data))
                    case zttp.EndOfMessage():
                        self._is_received = True
                        events.append(End(self._stream))
                    case _:
                        return events
        except zttp.ProtocolError as error:
            events.append(broken(error))
            return events
