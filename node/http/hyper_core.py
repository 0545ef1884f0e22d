"""HTTP cores over ``h11`` and ``h2``: pure Python, slow, and proven for a decade."""

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings
import h11

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

_STREAM_WINDOW_BYTES = 2 * 1024 * 1024
_CONNECTION_WINDOW_BYTES = 5 * 1024 * 1024


class _Outgoing:
    """Body bytes that wait for a window."""

    __slots__ = ("chunks", "is_ended", "size")

    def __init__(self) -> None:
        self.chunks: list[bytes] = []
        self.size = 0
        self.is_ended = False


class _Http2:
    """What both sides of HTTP/2 share: flow-controlled sending, event translation."""

    http_version = "HTTP/2.0"

    def __init__(self, is_client: bool) -> None:
        self._core = h2.connection.H2Connection(
            h2.config.H2Configuration(client_side=is_client, header_encoding=None)
        )
        self._core.local_settings = h2.settings.Settings(
            client=is_client,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_PER_CONNECTION_MAX,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: 64 * 1024,
            },
        )
        self._outgoing: dict[int, _Outgoing] = {}

    def start(self) -> None:
        self._core.initiate_connection()
        self._core.increment_flow_control_window(_CONNECTION_WINDOW_BYTES)

    def output(self) -> bytes:
        return self._core.data_to_send()

    def _queue(self, stream: int, data: bytes) -> None:
        waiting = self._outgoing[stream]
        if data:
            waiting.chunks.append(data)
            waiting.size += len(data)
        self._push(stream)

    def _push(self, stream: int) -> None:
        waiting = self._outgoing[stream]
        try:
            while waiting.chunks:
                room = min(
                    self._core.local_flow_control_window(stream),
                    self._core.max_outbound_frame_size,
                )
                if room <= 0:
                    return
                chunk = waiting.chunks.pop(0)
                if len(chunk) > room:
                    waiting.chunks.insert(0, chunk[room:])
                    chunk = chunk[:room]
                self._core.send_data(stream, chunk)
                waiting.size -= len(chunk)
            if waiting.is_ended:
                self._core.end_stream(stream)
                del self._outgoing[stream]
        except h2.exceptions.ProtocolError:
            self._outgoing.pop(stream, None)

    def _push_all(self) -> None:
        for stream in list(self._outgoing):
            self._push(stream)

    def _take(self, data: bytes) -> list[h2.events.Event]:
        if not data:
            return []
        try:
            return self._core.receive_data(data)
        except h2.exceptions.ProtocolError as error:
            raise ProtocolBroken(str(error) or type(error).__name__) from error

    def _body(self, event: h2.events.DataReceived) -> Body:
        self._core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        return Body(event.stream_id, event.data)

    def _forget(self, stream: int) -> None:
        self._outgoing.pop(stream, None)


class Http2Client(_Http2):
    """HTTP/2, asking side."""

    def __init__(self, is_secure: bool) -> None:
        super().__init__(is_client=True)
        self._scheme = b"https" if is_secure else b"http"
        self._open: set[int] = set()
        self._is_going_away = False

    def can_open(self) -> bool:
        limit = min(STREAMS_PER_CONNECTION_MAX, self._core.remote_settings.max_concurrent_streams)
        return not self._is_going_away and len(self._open) < limit

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        stream = self._core.get_next_available_stream_id()
        pseudo = [
            (b":method", method),
            (b":scheme", self._scheme),
            (b":authority", authority),
            (b":path", target),
        ]
        self._core.send_headers(stream, [*pseudo, *headers])
        self._outgoing[stream] = _Outgoing()
        self._open.add(stream)
        return stream

    def send(self, stream: int, data: bytes) -> None:
        if stream in self._outgoing:
            self._queue(stream, data)

    def end(self, stream: int) -> None:
        if stream in self._outgoing:
            self._outgoing[stream].is_ended = True
            self._push(stream)

    def reset(self, stream: int) -> None:
        if stream in self._open:
            self._open.discard(stream)
            self._forget(stream)
            self._core.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)

    def pending(self, stream: int) -> int:
        waiting = self._outgoing.get(stream)
        return waiting.size if waiting is not None else 0

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._take(data):
            match event:
                case h2.events.ResponseReceived():
                    status = int(dict(event.headers)[b":status"])
                    headers = [(n, v) for n, v in event.headers if not n.startswith(b":")]
                    events.append(ResponseHead(event.stream_id, status, headers))
                case h2.events.DataReceived():
                    events.append(self._body(event))
                case h2.events.StreamEnded():
                    self._open.discard(event.stream_id)
                    events.append(End(event.stream_id))
                case h2.events.StreamReset():
                    self._open.discard(event.stream_id)
                    self._forget(event.stream_id)
                    events.append(Reset(event.stream_id, int(event.error_code)))
                case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                    self._push_all()
                    events.append(Writable())
                case h2.events.ConnectionTerminated():
                    self._is_going_away = True
                    events.append(GoAway(event.last_stream_id or 0))
                case h2.events.PingAckReceived():
                    events.append(Pong())
                case _:
                    pass
        return events

    def is_reusable(self) -> bool:
        return not self._is_going_away

    def ping(self) -> bool:
        self._core.ping(b"perdure!")
        return True


class Http2Server(_Http2):
    """HTTP/2, answering side."""

    def __init__(self) -> None:
        super().__init__(is_client=False)
        self._open: set[int] = set()
        self._is_closing = False

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._take(data):
            match event:
                case h2.events.RequestReceived():
                    self._open.add(event.stream_id)
                    events.append(_request(event))
                case h2.events.DataReceived():
                    events.append(self._body(event))
                case h2.events.StreamEnded():
                    events.append(End(event.stream_id))
                case h2.events.StreamReset():
                    self._open.discard(event.stream_id)
                    self._forget(event.stream_id)
                    events.append(Reset(event.stream_id, int(event.error_code)))
                case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                    self._push_all()
                case h2.events.ConnectionTerminated():
                    self._is_closing = True
                case _:
                    pass
        return events

    def proceed(self, stream: int) -> None:
        self._core.send_headers(stream, [(b":status", b"100")])

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        if stream in self._open:
            self._open.discard(stream)
            fields = [(b":status", str(status).encode()), *headers]
            self._core.send_headers(stream, fields, end_stream=not body)
            if body:
                waiting = self._outgoing[stream] = _Outgoing()
                waiting.is_ended = True
                self._queue(stream, body)
        return []

    def is_closing(self) -> bool:
        return self._is_closing and not self._open and not self._outgoing

    def shut_down(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._core.close_connection()

    def output(self) -> bytes:
        return self._core.data_to_send()


class Http1Client:
    """HTTP/1.1, asking side: one stream at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self, is_secure: bool) -> None:
        self._core = h11.Connection(h11.CLIENT)
        self._stream = 0
        self._ready: list[bytes] = []
        self._is_broken = False

    def start(self) -> None:
        pass

    def can_open(self) -> bool:
        return self._core.our_state is h11.IDLE and not self._is_broken

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        self._stream += 1
        fields = [(b"host", authority), *headers]
        if method != b"GET":
            fields.append((b"transfer-encoding", b"chunked"))
        self._send(h11.Request(method=method, target=target, headers=fields))
        return self._stream

    def send(self, stream: int, data: bytes) -> None:
        self._send(h11.Data(data=data))

    def end(self, stream: int) -> None:
        self._send(h11.EndOfMessage())
        self._finish_cycle()

    def reset(self, stream: int) -> None:
        if stream == self._stream and self._core.our_state is not h11.IDLE:
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
                    case h11.InformationalResponse():
                        pass
                    case _:
                        return events
        except h11.RemoteProtocolError as error:
            raise ProtocolBroken(str(error)) from error

    def is_reusable(self) -> bool:
        return not self._is_broken and self._core.our_state not in (
            h11.MUST_CLOSE,
            h11.CLOSED,
            h11.ERROR,
        )

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


class Http1Server:
    """HTTP/1.0 and 1.1, answering side: one request at a time, numbered upwards."""

    http_version = "HTTP/1.1"

    def __init__(self) -> None:
        self._core = h11.Connection(h11.SERVER)
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
        if self._core.their_state is h11.SEND_BODY or self._is_closing:
            headers = [*headers, (b"connection", b"close")]
        self._send(h11.Response(status_code=status, headers=headers))
        if body and not self._is_head:
            self._send(h11.Data(data=body))
        self._send(h11.EndOfMessage())
        self._is_busy = False
        if self._core.our_state is not h11.DONE or self._core.their_state is not h11.DONE:
            self._is_closing = True
            return []
        self._core.start_next_cycle()
        return self._events()

    def is_closing(self) -> bool:
        return self._is_closing and not self._is_busy

    def shut_down(self) -> None:
        self._is_closing = True

    def output(self) -> bytes:
        data = b"".join(self._ready)
        self._ready.clear()
        return data

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
            raise ProtocolBroken(str(error)) from error


def _request(event: h2.events.RequestReceived) -> RequestHead:
    method = target = b""
    headers: Headers = []
    expects_continue = False
    authority = b""
    for name, value in event.headers:
        match name:
            case b":method":
                method = value
            case b":path":
                target = value
            case b":authority":
                authority = value
            case b":scheme" | b":protocol":
                pass
            case _:
                expects_continue = expects_continue or (name, value.lower()) == (
                    b"expect",
                    b"100-continue",
                )
                headers.append((name, value))
    if authority and not any(name == b"host" for name, _ in headers):
        headers.append((b"host", authority))
    return RequestHead(event.stream_id, method, target, headers, expects_continue)
