"""HTTP cores over ``zttp``: a native parser, ten times the speed of the pure-Python ones.

Young, so it is pinned exactly, fenced in here, held to the same suite as ``hyper_core``, and its
connections are retired long before its flood guards count to their limits (core/limits.py).
"""

from collections.abc import Iterable

import zttp

from perdure.core.limits import STREAMS_PER_CONNECTION_MAX
from perdure.node.http.ports import (
    Body,
    End,
    Event,
    GoAway,
    Headers,
    Pong,
    ProtocolBroken,
    RequestHead,
    Reset,
    ResponseHead,
    Writable,
)

_CANCEL = 8
_SETTING_MAX_CONCURRENT_STREAMS = 3
_PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00perdure!"
# zttp always says https. In cleartext that is wrong, and some servers refuse it.
_SCHEME_HTTPS = b"\x06\x05https"
_SCHEME_HTTP = b"\x06\x04http"
_FRAME_HEADER_BYTES = 9
_HTTP1_STREAM_STEP = 1


class Http2Client:
    """HTTP/2, asking side."""

    http_version = "HTTP/2.0"

    def __init__(self, is_secure: bool) -> None:
        self._core = zttp.Connection(zttp.CLIENT, zttp.HTTP2)
        self._is_secure = is_secure
        self._streams: dict[int, zttp.Stream] = {}
        self._half_closed: set[int] = set()
        self._streams_max = STREAMS_PER_CONNECTION_MAX
        self._is_going_away = False
        self._ready = b""

    def start(self) -> None:
        self._core.initiate_connection()

    def can_open(self) -> bool:
        return not self._is_going_away and len(self._streams) < self._streams_max

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        before = self._core.data_to_send()
        stream = self._core.send_request(
            method, target, b"2", [(b":authority", authority), *headers]
        )
        head = self._core.data_to_send()
        if not self._is_secure:
            head = _say_http(head)
        self._ready += before + head
        self._streams[stream.stream_id] = stream
        return stream.stream_id

    def send(self, stream: int, data: bytes) -> None:
        if (handle := self._streams.get(stream)) is not None:
            handle.send_data(data)

    def end(self, stream: int) -> None:
        if (handle := self._streams.get(stream)) is not None:
            handle.end_message()
            self._half_close(stream)

    def reset(self, stream: int) -> None:
        if (handle := self._streams.get(stream)) is not None:
            handle.reset(_CANCEL)
            self._forget(stream)

    def pending(self, stream: int) -> int:
        handle = self._streams.get(stream)
        return (handle.pending_bytes or 0) if handle is not None else 0

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        try:
            self._core.receive_data(data)
            while True:
                event = self._core.next_event()
                if event is zttp.NEED_DATA or event is zttp.CONNECTION_CLOSED:
                    return events
                self._translate(event, events)
        except zttp.ProtocolError as error:
            raise ProtocolBroken(str(error)) from error

    def is_reusable(self) -> bool:
        return not self._is_going_away

    def ping(self) -> bool:
        self._ready += self._core.data_to_send() + _PING
        return True

    def output(self) -> bytes:
        data = self._core.data_to_send()
        if self._ready:
            data, self._ready = self._ready + data, b""
        return data

    def _translate(self, event: zttp.Event, events: list[Event]) -> None:
        match event:
            case zttp.Data():
                events.append(Body(event.stream_id, event.data))
            case zttp.Response():
                if event.status_code >= 200:
                    headers = _lowered(event.headers)
                    events.append(ResponseHead(event.stream_id, event.status_code, headers))
            case zttp.EndOfMessage():
                self._half_close(event.stream_id)
                events.append(End(event.stream_id))
            case zttp.WindowUpdate():
                events.append(Writable())
            case zttp.RstStream():
                self._forget(event.stream_id)
                events.append(Reset(event.stream_id, event.error_code))
            case zttp.Settings():
                limit = dict(event.params).get(_SETTING_MAX_CONCURRENT_STREAMS)
                if limit is not None:
                    self._streams_max = min(STREAMS_PER_CONNECTION_MAX, limit)
                events.append(Writable())
            case zttp.GoAway():
                self._is_going_away = True
                events.append(GoAway(event.last_stream_id))
            case zttp.Ping():
                if event.ack:
                    events.append(Pong())
            case _:
                pass

    def _half_close(self, stream: int) -> None:
        if stream in self._half_closed:
            self._forget(stream)
        elif stream in self._streams:
            self._half_closed.add(stream)

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._half_closed.discard(stream)


class Http1Client:
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
        self._stream += _HTTP1_STREAM_STEP
        self._is_busy, self._is_sent, self._is_received = True, False, False
        fields = [(b"host", authority), *headers]
        if method != b"GET":
            fields.append((b"transfer-encoding", b"chunked"))
        self._core.send_request(method, target, b"1.1", fields)
        return self._stream

    def send(self, stream: int, data: bytes) -> None:
        self._core.send_data(data)

    def end(self, stream: int) -> None:
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
        try:
            self._core.receive_data(data)
            while True:
                event = self._core.next_event()
                match event:
                    case zttp.Data():
                        events.append(Body(self._stream, event.data))
                    case zttp.Response():
                        if event.status_code >= 200:
                            headers = _lowered(event.headers)
                            head = ResponseHead(self._stream, event.status_code, headers)
                            events.append(head)
                    case zttp.EndOfMessage():
                        self._is_received = True
                        if self._core.should_close() or not self._is_sent:
                            self._is_broken = True
                        events.append(End(self._stream))
                        self._finish_cycle()
                    case _:
                        return events
        except zttp.ProtocolError as error:
            raise ProtocolBroken(str(error)) from error

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


class Http2Server:
    """HTTP/2, answering side."""

    http_version = "HTTP/2.0"

    def __init__(self) -> None:
        self._core = zttp.Connection(zttp.SERVER, zttp.HTTP2)
        self._open: set[int] = set()
        self._is_closing = False

    def start(self) -> None:
        self._core.initiate_connection()

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        try:
            self._core.receive_data(data)
            while True:
                event = self._core.next_event()
                match event:
                    case zttp.Request():
                        self._open.add(event.stream_id)
                        events.append(_request(event))
                        if event.end_stream:
                            events.append(End(event.stream_id))
                    case zttp.Data():
                        events.append(Body(event.stream_id, event.data))
                    case zttp.EndOfMessage():
                        events.append(End(event.stream_id))
                    case zttp.RstStream():
                        self._open.discard(event.stream_id)
                        events.append(Reset(event.stream_id, event.error_code))
                    case zttp.GoAway():
                        self._is_closing = True
                    case zttp.NeedData() | zttp.ConnectionClosed():
                        return events
                    case _:
                        pass
        except zttp.ProtocolError as error:
            raise ProtocolBroken(str(error)) from error

    def proceed(self, stream: int) -> None:
        self._core.stream(stream).send_informational(100)

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        if stream in self._open:
            self._open.discard(stream)
            handle = self._core.stream(stream)
            handle.send_response(status, headers, not body)
            if body:
                handle.send_data(body)
                handle.end_message()
        return []

    def is_closing(self) -> bool:
        return self._is_closing and not self._open and not self._core.has_pending_send()

    def shut_down(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._core.close()

    def output(self) -> bytes:
        return self._core.data_to_send()


class Http1Server:
    """HTTP/1.0 and 1.1, answering side: one request at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self) -> None:
        self._core = zttp.Connection(zttp.SERVER)
        self._stream = 0
        self._is_received = False
        self._is_closing = False
        self._is_busy = False
        self._is_head = False

    def start(self) -> None:
        pass

    def receive(self, data: bytes) -> list[Event]:
        try:
            self._core.receive_data(data)
            return self._events()
        except zttp.ProtocolError as error:
            raise ProtocolBroken(str(error)) from error

    def proceed(self, stream: int) -> None:
        self._core.send_informational(100)

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        if not self._is_busy or stream != self._stream:
            return []
        if not self._is_received or self._is_closing:
            # The rest of the request was never read: the connection can't be used again.
            self._is_closing = True
            headers = [*headers, (b"connection", b"close")]
        self._core.send_response(status, headers)
        if body and not self._is_head:
            self._core.send_data(body)
        self._core.end_message()
        self._is_busy = False
        if self._is_closing or self._core.should_close():
            self._is_closing = True
            return []
        self._core.start_next_cycle()
        try:
            return self._events()
        except zttp.ProtocolError as error:
            raise ProtocolBroken(str(error)) from error

    def is_closing(self) -> bool:
        return self._is_closing and not self._is_busy

    def shut_down(self) -> None:
        self._is_closing = True

    def output(self) -> bytes:
        return self._core.data_to_send()

    def _events(self) -> list[Event]:
        events: list[Event] = []
        while True:
            event = self._core.next_event()
            match event:
                case zttp.Request():
                    self._stream += _HTTP1_STREAM_STEP
                    self._is_busy = True
                    self._is_head = event.method == b"HEAD"
                    self._is_received = event.end_stream
                    events.append(_request(event, self._stream))
                    if event.end_stream:
                        events.append(End(self._stream))
                case zttp.Data():
                    events.append(Body(self._stream, event.data))
                case zttp.EndOfMessage():
                    self._is_received = True
                    events.append(End(self._stream))
                case _:
                    return events


def _request(event: zttp.Request, stream: int | None = None) -> RequestHead:
    return RequestHead(
        event.stream_id if stream is None else stream,
        event.method,
        event.target,
        _lowered(event.headers),
        event.expect_continue,
    )


def _lowered(headers: "Iterable[tuple[bytes, bytes]] | zttp.HeaderBlock") -> Headers:
    if isinstance(headers, zttp.HeaderBlock):
        return headers.to_list(lowercase_names=True)
    return list(headers)


def _say_http(head: bytes) -> bytes:
    position = head.find(_SCHEME_HTTPS, _FRAME_HEADER_BYTES)
    if position < 0:
        raise AssertionError("the pinned zttp writes :scheme as a literal")
    size = int.from_bytes(head[:3]) - 1
    return b"".join(
        (
            size.to_bytes(3),
            head[3:position],
            _SCHEME_HTTP,
            head[position + len(_SCHEME_HTTPS) :],
        )
    )
