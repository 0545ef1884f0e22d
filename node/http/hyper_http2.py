"""HTTP/2 over ``h2``: pure Python, slow, and proven for a decade."""

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from perdure.core.limits import (
    HEADER_LIST_BYTES_MAX,
    RESETS_PER_CONNECTION_MAX,
    STREAMS_BEFORE_SETTINGS_MAX,
    STREAMS_PER_CONNECTION_MAX,
)
from perdure.node.http.outgoing import Outgoing
from perdure.node.http.ports import (
    Body,
    Broken,
    End,
    Event,
    GoAway,
    Headers,
    Pong,
    RequestHead,
    Reset,
    ResponseHead,
    Writable,
    check_fields,
)

_STREAM_WINDOW_BYTES = 2 * 1024 * 1024
_CONNECTION_WINDOW_BYTES = 5 * 1024 * 1024
_STREAM_MAX = 2**31 - 1
_PING_DATA = b"perdure!"
_GOAWAY = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00"
_PREFACE_BYTES = 24
_FRAME_HEADER_BYTES = 9
_SETTINGS = 4
_NO_ERROR = b"\x00\x00\x00\x00"


_RECV_GOAWAY = h2.connection.ConnectionInputs.RECV_GOAWAY


class _StateMachine(h2.connection.H2ConnectionStateMachine):
    """h2 shuts its machine at a GOAWAY, but streams up to the last one named go on."""

    def process_input(self, input_: h2.connection.ConnectionInputs) -> list[h2.events.Event]:
        if input_ is _RECV_GOAWAY:
            return []
        return super().process_input(input_)


class _H2Connection(h2.connection.H2Connection):
    """h2 drops what is queued at a GOAWAY, and with it acknowledgements and window updates."""

    def clear_outbound_data_buffer(self) -> None:
        pass


class _Http2:
    """What both sides of HTTP/2 share: flow-controlled sending, event translation."""

    http_version = "HTTP/2.0"

    def __init__(self, is_client: bool) -> None:
        self._core = _H2Connection(
            h2.config.H2Configuration(client_side=is_client, header_encoding=None)
        )
        self._core.state_machine = _StateMachine()
        self._core.local_settings = h2.settings.Settings(
            client=is_client,
            initial_values={
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: _STREAM_WINDOW_BYTES,
                h2.settings.SettingCodes.MAX_CONCURRENT_STREAMS: STREAMS_PER_CONNECTION_MAX,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: HEADER_LIST_BYTES_MAX,
            },
        )
        self._outgoing: dict[int, Outgoing] = {}
        self._ready: list[bytes] = []
        self._is_broken = False
        self._opening = b""
        self._has_opened = False

    def start(self) -> None:
        self._core.initiate_connection()
        self._core.increment_flow_control_window(_CONNECTION_WINDOW_BYTES)

    def pending(self, stream: int) -> int:
        waiting = self._outgoing.get(stream)
        return waiting.size if waiting is not None else 0

    def output(self) -> bytes:
        self._ready.append(self._core.data_to_send())
        data = b"".join(self._ready)
        self._ready.clear()
        return data

    def _queue(self, stream: int, data: bytes) -> None:
        self._outgoing[stream].put(data)
        self._push(stream)

    def _push(self, stream: int) -> None:
        waiting = self._outgoing[stream]
        try:
            while waiting.size:
                room = min(
                    self._core.local_flow_control_window(stream),
                    self._core.max_outbound_frame_size,
                )
                if room <= 0:
                    return
                self._core.send_data(stream, bytes(waiting.take(room)))
            if waiting.is_ended:
                self._core.end_stream(stream)
                del self._outgoing[stream]
                self._sent(stream)
        except h2.exceptions.ProtocolError:
            self._outgoing.pop(stream, None)  # the stream is closed: its event is on the way

    def _push_all(self) -> None:
        for stream in list(self._outgoing):
            self._push(stream)

    def _sent(self, stream: int) -> None:
        """All that goes out on the stream has gone out."""

    def _take(self, data: bytes, events: list[Event]) -> list[h2.events.Event]:
        if not data or self._is_broken:
            return []
        if not self._has_opened and not self._check_opening(data):
            self._is_broken = True
            events.append(Broken("the peer doesn't speak HTTP/2", 400))
            return []
        try:
            return self._core.receive_data(data)
        except h2.exceptions.DenialOfServiceError as error:
            events.append(Broken(str(error), 431))
        except (h2.exceptions.ProtocolError, ValueError) as error:
            events.append(Broken(str(error) or type(error).__name__, 400))
        self._is_broken = True
        return []

    def _check_opening(self, data: bytes) -> bool:
        """The peer opens with SETTINGS; h2 would wait for as long a frame as garbage announces."""
        self._opening += data
        start = 0 if self._core.config.client_side else _PREFACE_BYTES
        if len(self._opening) < start + _FRAME_HEADER_BYTES:
            return True
        self._has_opened = True
        return self._opening[start] == 0 and self._opening[start + 3] == _SETTINGS

    def _body(self, event: h2.events.DataReceived) -> Body:
        self._acknowledge(event)
        return Body(event.stream_id, event.data)

    def _acknowledge(self, event: h2.events.DataReceived) -> None:
        try:
            self._core.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        except h2.exceptions.StreamClosedError:
            pass  # the stream closed in this very batch of frames
        except h2.exceptions.ProtocolError:
            self._is_broken = True

    def _forget(self, stream: int) -> None:
        self._outgoing.pop(stream, None)


class Client(_Http2):
    """HTTP/2, asking side."""

    def __init__(self, is_secure: bool) -> None:
        super().__init__(is_client=True)
        self._scheme = b"https" if is_secure else b"http"
        self._open: set[int] = set()
        self._half_closed: set[int] = set()
        self._streams_max = STREAMS_BEFORE_SETTINGS_MAX
        self._is_going_away = False

    def can_open(self) -> bool:
        is_alive = not self._is_going_away and not self._is_broken
        return is_alive and len(self._open) < self._streams_max

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        check_fields(headers)
        stream = self._core.get_next_available_stream_id()
        pseudo = [
            (b":method", method),
            (b":scheme", self._scheme),
            (b":authority", authority),
            (b":path", target),
        ]
        self._core.send_headers(stream, [*pseudo, *headers])
        self._outgoing[stream] = Outgoing()
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
            self._forget(stream)
            self._core.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._take(data, events):
            match event:
                case h2.events.ResponseReceived():
                    status = int(dict(event.headers)[b":status"])
                    headers = [(n, v) for n, v in event.headers if not n.startswith(b":")]
                    events.append(ResponseHead(event.stream_id, status, headers))
                case h2.events.DataReceived():
                    events.append(self._body(event))
                case h2.events.StreamEnded():
                    events.append(End(event.stream_id))
                    self._half_close(event.stream_id)
                case h2.events.StreamReset():
                    self._forget(event.stream_id)
                    events.append(Reset(event.stream_id, int(event.error_code)))
                case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                    if isinstance(event, h2.events.RemoteSettingsChanged):
                        wanted = self._core.remote_settings.max_concurrent_streams
                        self._streams_max = min(STREAMS_PER_CONNECTION_MAX, wanted)
                    self._push_all()
                    events.append(Writable())
                case h2.events.ConnectionTerminated():
                    self._go_away(event.last_stream_id or 0)
                    events.append(GoAway(event.last_stream_id or 0))
                case h2.events.PingAckReceived():
                    events.append(Pong())
                case _:
                    pass
        return events

    def is_reusable(self) -> bool:
        return not self._is_going_away and not self._is_broken

    def ping(self) -> bool:
        self._core.ping(_PING_DATA)
        return True

    def _go_away(self, last_stream: int) -> None:
        self._is_going_away = True
        for stream in [one for one in self._open if one > last_stream]:
            self._forget(stream)

    def _sent(self, stream: int) -> None:
        self._half_close(stream)

    def _half_close(self, stream: int) -> None:
        if stream in self._half_closed:
            self._forget(stream)
        elif stream in self._open:
            self._half_closed.add(stream)

    def _forget(self, stream: int) -> None:
        super()._forget(stream)
        self._open.discard(stream)
        self._half_closed.discard(stream)


class Server(_Http2):
    """HTTP/2, answering side. ``_open`` holds the streams whose response has not left."""

    def __init__(self) -> None:
        super().__init__(is_client=False)
        self._open: set[int] = set()
        self._receiving: set[int] = set()
        self._highest = 0
        self._resets = 0
        self._is_shutting_down = False
        self._is_last_named = False

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for event in self._take(data, events):
            match event:
                case h2.events.RequestReceived():
                    self._begin(event, events)
                case h2.events.DataReceived():
                    if event.stream_id in self._receiving:
                        events.append(self._body(event))
                    else:
                        self._acknowledge(event)
                case h2.events.StreamEnded():
                    if event.stream_id in self._receiving:
                        self._receiving.discard(event.stream_id)
                        events.append(End(event.stream_id))
                case h2.events.StreamReset():
                    if event.stream_id in self._open:
                        self._forget(event.stream_id)
                        events.append(Reset(event.stream_id, int(event.error_code)))
                    self._resets += 1
                    if self._resets >= RESETS_PER_CONNECTION_MAX:
                        self.shut_down()
                case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                    self._push_all()
                case h2.events.PingAckReceived():
                    if event.ping_data == _PING_DATA and self._is_shutting_down:
                        self._name_last()
                case h2.events.ConnectionTerminated():
                    self._is_shutting_down = True
                    self._name_last()
                case _:
                    pass
        return events

    def proceed(self, stream: int) -> None:
        if stream in self._open:
            self._core.send_headers(stream, [(b":status", b"100")])

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        if stream not in self._open or stream in self._outgoing:
            return []
        check_fields(headers)
        fields = [(b":status", str(status).encode()), *headers]
        self._core.send_headers(stream, fields, end_stream=not body)
        if body:
            waiting = self._outgoing[stream] = Outgoing()
            waiting.is_ended = True
            self._queue(stream, body)
        else:
            self._sent(stream)
        return []

    def begin(self, stream: int, status: int, headers: Headers) -> None:
        if stream not in self._open or stream in self._outgoing:
            return
        check_fields(headers)
        self._core.send_headers(stream, [(b":status", str(status).encode()), *headers])
        self._outgoing[stream] = Outgoing()

    def send(self, stream: int, data: bytes) -> None:
        if stream in self._outgoing:
            self._queue(stream, data)

    def end(self, stream: int) -> list[Event]:
        if stream in self._outgoing:
            self._outgoing[stream].is_ended = True
            self._push(stream)
        return []

    def cut(self, stream: int) -> bool:
        if stream in self._open:
            self._forget(stream)
            self._core.reset_stream(stream, h2.errors.ErrorCodes.INTERNAL_ERROR)
        return False

    def unsent(self) -> int:
        return sum(waiting.size for waiting in self._outgoing.values())

    def is_closing(self) -> bool:
        return self._is_last_named and not self._open

    def is_request_cut(self) -> bool:
        return False

    def shut_down(self) -> None:
        if not self._is_shutting_down:
            self._is_shutting_down = True
            self._go_away(_STREAM_MAX)
            self._core.ping(_PING_DATA)

    def _begin(self, event: h2.events.RequestReceived, events: list[Event]) -> None:
        if self._is_last_named:
            self._core.reset_stream(event.stream_id, h2.errors.ErrorCodes.REFUSED_STREAM)
            return
        self._highest = event.stream_id
        self._open.add(event.stream_id)
        self._receiving.add(event.stream_id)
        events.append(_request(event))

    def _name_last(self) -> None:
        if not self._is_last_named:
            self._is_last_named = True
            self._go_away(self._highest)

    def _go_away(self, last_stream: int) -> None:
        # h2's own close_connection would forbid to answer what is open.
        self._ready.append(self._core.data_to_send())
        self._ready.append(_GOAWAY + last_stream.to_bytes(4) + _NO_ERROR)

    def _sent(self, stream: int) -> None:
        if stream in self._receiving:
            # Answered early: the client may stop sending.
            self._core.reset_stream(stream, h2.errors.ErrorCodes.NO_ERROR)
        self._forget(stream)

    def _forget(self, stream: int) -> None:
        super()._forget(stream)
        self._open.discard(stream)
        self._receiving.discard(stream)


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
