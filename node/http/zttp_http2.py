"""HTTP/2 over ``zttp``: a native parser, ten times the speed of the pure-Python ones.

Young, so it is pinned exactly, fenced in here, held to the same suite as the hyper cores, and its
connections are retired long before its flood guards count to their limits (DESIGN.md).
"""

import zttp

from perdure.core.limits import (
    FEED_BYTES_MAX,
    RESETS_PER_CONNECTION_MAX,
    STREAMS_BEFORE_SETTINGS_MAX,
    STREAMS_PER_CONNECTION_MAX,
)
from perdure.node.http.outgoing import Outgoing
from perdure.node.http.ports import (
    Body,
    End,
    Event,
    GoAway,
    Headers,
    Pong,
    Reset,
    ResponseHead,
    Writable,
)
from perdure.node.http.zttp_events import STATUS_MAX, broken, lowered, request_head

_NO_ERROR = 0
_INTERNAL_ERROR = 2
_REFUSED_STREAM = 7
_CANCEL = 8
_STREAM_MAX = 2**31 - 1
_SETTING_MAX_CONCURRENT_STREAMS = 3
# zttp answers pings but has no call to send one.
_PING_DATA = b"perdure!"
_PING = b"\x00\x00\x08\x06\x00\x00\x00\x00\x00" + _PING_DATA
# zttp always says https. In cleartext that is wrong, and some servers refuse it.
_SCHEME_HTTPS = b"\x06\x05https"
_SCHEME_HTTP = b"\x06\x04http"
_FRAME_HEADER_BYTES = 9


class _Http2:
    """What both sides of HTTP/2 share: bodies that wait for windows, and pings."""

    http_version = "HTTP/2.0"

    def __init__(self, role: int) -> None:
        self._core = zttp.Connection(role, zttp.HTTP2)
        self._streams: dict[int, zttp.Stream] = {}
        self._waiting: dict[int, Outgoing] = {}
        self._ready: list[bytes] = []

    def start(self) -> None:
        self._core.initiate_connection()

    def output(self) -> bytes:
        data = self._core.data_to_send()
        if self._ready:
            self._ready.append(data)
            data = b"".join(self._ready)
            self._ready.clear()
        return data

    def _queue(self, stream: int, handle: zttp.Stream, data: bytes, is_ended: bool) -> None:
        waiting = self._waiting.get(stream)
        if waiting is None:
            if len(data) <= FEED_BYTES_MAX and not handle.pending_bytes:
                if data:
                    handle.send_data(data)
                if is_ended:
                    handle.end_message()
                    self._sent(stream)
                return
            waiting = self._waiting[stream] = Outgoing()
        waiting.put(data)
        waiting.is_ended = is_ended
        self._push(stream, handle, waiting)

    def _push(self, stream: int, handle: zttp.Stream, waiting: Outgoing) -> None:
        while waiting.size and not handle.pending_bytes:
            handle.send_data(waiting.take(FEED_BYTES_MAX))
        if not waiting.size:
            del self._waiting[stream]
            if waiting.is_ended:
                handle.end_message()
                self._sent(stream)

    def _push_all(self) -> None:
        for stream, waiting in list(self._waiting.items()):
            self._push(stream, self._streams[stream], waiting)

    def _sent(self, stream: int) -> None:
        """The last of what goes out on the stream was handed to the core."""
        raise NotImplementedError

    def _pending(self, stream: int, handle: zttp.Stream) -> int:
        waiting = self._waiting.get(stream)
        return (handle.pending_bytes or 0) + (waiting.size if waiting is not None else 0)

    def _send_ping(self) -> None:
        self._ready.append(self._core.data_to_send() + _PING)


class Client(_Http2):
    """HTTP/2, asking side."""

    def __init__(self, is_secure: bool) -> None:
        super().__init__(zttp.CLIENT)
        self._is_secure = is_secure
        self._half_closed: set[int] = set()
        self._streams_max = STREAMS_BEFORE_SETTINGS_MAX
        self._has_limit = False
        self._is_going_away = False

    def can_open(self) -> bool:
        return not self._is_going_away and len(self._streams) < self._streams_max

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        before = self._core.data_to_send()
        fields = [(b":authority", authority), *headers]
        try:
            stream = self._core.send_request(method, target, b"2", fields)
        except zttp.LocalProtocolError as error:
            self._ready.append(before)
            raise ValueError(str(error)) from error
        head = self._core.data_to_send()
        self._ready.append(before)
        self._ready.append(head if self._is_secure else _say_http(head))
        self._streams[stream.stream_id] = stream
        return stream.stream_id

    def send(self, stream: int, data: bytes) -> None:
        if (handle := self._streams.get(stream)) is not None:
            self._queue(stream, handle, data, is_ended=False)

    def end(self, stream: int) -> None:
        if (handle := self._streams.get(stream)) is not None:
            self._queue(stream, handle, b"", is_ended=True)

    def reset(self, stream: int) -> None:
        if (handle := self._streams.get(stream)) is not None:
            handle.reset(_CANCEL)
            self._forget(stream)

    def pending(self, stream: int) -> int:
        handle = self._streams.get(stream)
        return self._pending(stream, handle) if handle is not None else 0

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        pieces: dict[int, list[bytes]] = {}
        core, is_writable = self._core, False
        try:
            core.receive_data(data)
            while True:
                event = core.next_event()
                match event:
                    case zttp.Data():
                        if (known := pieces.get(event.stream_id)) is None:
                            pieces[event.stream_id] = [event.data]
                        else:
                            known.append(event.data)
                    case zttp.NeedData() | zttp.ConnectionClosed():
                        break
                    case zttp.WindowUpdate():
                        is_writable = True
                    case zttp.Settings():
                        is_writable = True
                        self._set_limit(event)
                    case zttp.EndOfMessage() | zttp.RstStream():
                        if (known := pieces.pop(event.stream_id, None)) is not None:
                            events.append(_whole(event.stream_id, known))
                        self._translate(event, events)
                    case zttp.GoAway():
                        _put_together(pieces, events)
                        self._translate(event, events)
                    case _:
                        self._translate(event, events)
        except zttp.ProtocolError as error:
            _put_together(pieces, events)
            events.append(broken(error))
            return events
        if pieces:
            _put_together(pieces, events)
        if is_writable:
            self._push_all()
            events.append(Writable())
        return events

    def is_reusable(self) -> bool:
        return not self._is_going_away

    def ping(self) -> bool:
        self._send_ping()
        return True

    def _translate(self, event: zttp.Event, events: list[Event]) -> None:
        match event:
            case zttp.Response():
                if event.status_code >= 200:
                    headers = lowered(event.headers)
                    events.append(ResponseHead(event.stream_id, event.status_code, headers))
            case zttp.EndOfMessage():
                events.append(End(event.stream_id))
                self._half_close(event.stream_id)
            case zttp.RstStream():
                self._forget(event.stream_id)
                events.append(Reset(event.stream_id, event.error_code))
            case zttp.GoAway():
                self._is_going_away = True
                for stream in [one for one in self._streams if one > event.last_stream_id]:
                    self._forget(stream)
                events.append(GoAway(event.last_stream_id))
            case zttp.Ping():
                if event.ack:
                    events.append(Pong())
            case _:
                pass

    def _set_limit(self, event: zttp.Settings) -> None:
        limit = dict(event.params).get(_SETTING_MAX_CONCURRENT_STREAMS)
        if limit is not None:
            self._has_limit = True
            self._streams_max = min(STREAMS_PER_CONNECTION_MAX, limit)
        elif not self._has_limit:
            self._streams_max = STREAMS_PER_CONNECTION_MAX  # the peer sets none

    def _sent(self, stream: int) -> None:
        self._half_close(stream)

    def _half_close(self, stream: int) -> None:
        if stream in self._half_closed:
            self._forget(stream)
        elif stream in self._streams:
            self._half_closed.add(stream)

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._waiting.pop(stream, None)
        self._half_closed.discard(stream)


class Server(_Http2):
    """HTTP/2, answering side. ``_streams`` holds those whose response has not left."""

    def __init__(self) -> None:
        super().__init__(zttp.SERVER)
        self._unanswered: set[int] = set()
        self._receiving: set[int] = set()
        self._parked: set[int] = set()
        self._resets = 0
        self._is_shutting_down = False
        self._is_last_named = False

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        core, is_writable = self._core, False
        try:
            core.receive_data(data)
            while True:
                event = core.next_event()
                match event:
                    case zttp.Data():
                        if event.stream_id in self._receiving:
                            events.append(Body(event.stream_id, event.data))
                    case zttp.NeedData() | zttp.ConnectionClosed():
                        break
                    case zttp.WindowUpdate() | zttp.Settings():
                        is_writable = True
                    case _:
                        self._translate(event, events)
        except zttp.ProtocolError as error:
            events.append(broken(error))
            return events
        if is_writable and (self._waiting or self._parked):
            self._push_all()
            self._settle_parked()
        return events

    def proceed(self, stream: int) -> None:
        if (handle := self._streams.get(stream)) is not None:
            handle.send_informational(100)

    def respond(self, stream: int, status: int, headers: Headers, body: bytes) -> list[Event]:
        handle = self._streams.get(stream)
        if handle is None or stream not in self._unanswered:
            return []
        try:
            handle.send_response(min(status, STATUS_MAX), headers, not body)
        except zttp.LocalProtocolError as error:
            raise ValueError(str(error)) from error
        self._unanswered.discard(stream)
        if body:
            self._queue(stream, handle, body, is_ended=True)
        else:
            self._sent(stream)
        return []

    def begin(self, stream: int, status: int, headers: Headers) -> None:
        handle = self._streams.get(stream)
        if handle is None or stream not in self._unanswered:
            return
        try:
            handle.send_response(min(status, STATUS_MAX), headers, False)
        except zttp.LocalProtocolError as error:
            raise ValueError(str(error)) from error
        self._unanswered.discard(stream)

    def send(self, stream: int, data: bytes) -> None:
        if (handle := self._streams.get(stream)) is not None:
            self._queue(stream, handle, data, is_ended=False)

    def end(self, stream: int) -> list[Event]:
        if (handle := self._streams.get(stream)) is not None:
            self._queue(stream, handle, b"", is_ended=True)
        return []

    def cut(self, stream: int) -> bool:
        if (handle := self._streams.get(stream)) is not None:
            handle.reset(_INTERNAL_ERROR)
            self._forget(stream)
        return False

    def pending(self, stream: int) -> int:
        handle = self._streams.get(stream)
        return self._pending(stream, handle) if handle is not None else 0

    def unsent(self) -> int:
        return sum(
            self._pending(stream, handle)
            for stream, handle in self._streams.items()
            if stream not in self._unanswered
        )

    def is_closing(self) -> bool:
        return self._is_last_named and not self._streams

    def is_request_cut(self) -> bool:
        return False

    def shut_down(self) -> None:
        if not self._is_shutting_down:
            self._is_shutting_down = True
            self._core.close(_NO_ERROR, _STREAM_MAX)
            self._send_ping()

    def _translate(self, event: zttp.Event, events: list[Event]) -> None:
        match event:
            case zttp.Request():
                self._begin(event, events)
            case zttp.EndOfMessage():
                self._end(event.stream_id, events)
            case zttp.RstStream():
                if event.stream_id in self._streams:
                    self._forget(event.stream_id)
                    events.append(Reset(event.stream_id, event.error_code))
                self._resets += 1
                if self._resets >= RESETS_PER_CONNECTION_MAX:
                    self.shut_down()
            case zttp.Ping():
                if event.ack and event.data == _PING_DATA and self._is_shutting_down:
                    self._name_last()
            case zttp.GoAway():
                self._is_shutting_down = True
                self._name_last()
            case _:
                pass

    def _begin(self, request: zttp.Request, events: list[Event]) -> None:
        stream = request.stream_id
        if self._is_last_named:
            self._core.stream(stream).reset(_REFUSED_STREAM)
            return
        self._streams[stream] = self._core.stream(stream)
        self._unanswered.add(stream)
        self._receiving.add(stream)
        events.append(request_head(request, stream))
        if request.end_stream:
            self._end(stream, events)

    def _end(self, stream: int, events: list[Event]) -> None:
        if stream in self._receiving:
            self._receiving.discard(stream)
            events.append(End(stream))

    def _name_last(self) -> None:
        if not self._is_last_named:
            self._is_last_named = True
            self._core.close(_NO_ERROR)

    def _sent(self, stream: int) -> None:
        handle = self._streams[stream]
        if handle.pending_bytes:
            self._parked.add(stream)
            return
        if stream in self._receiving:
            handle.reset(_NO_ERROR)  # answered early: the client may stop sending
        self._forget(stream)

    def _settle_parked(self) -> None:
        for stream in [one for one in self._parked if not self._streams[one].pending_bytes]:
            self._parked.discard(stream)
            self._sent(stream)

    def _forget(self, stream: int) -> None:
        self._streams.pop(stream, None)
        self._waiting.pop(stream, None)
        self._unanswered.discard(stream)
        self._receiving.discard(stream)
        self._parked.discard(stream)


def _put_together(pieces: dict[int, list[bytes]], events: list[Event]) -> None:
    """One event per stream for what came in many frames: most of a frame's cost is its event's."""
    for stream, data in pieces.items():
        events.append(Body(stream, data[0] if len(data) == 1 else b"".join(data)))
    pieces.clear()


def _whole(stream: int, data: list[bytes]) -> Body:
    return Body(stream, data[0] if len(data) == 1 else b"".join(data))


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
