"""An endpoint written by hand: HTTP/2 with prior knowledge, and frames put together byte by byte.

A test gives each handler a script, a coroutine that plays the SDK's side of one attempt; what the
server said is recorded. The endpoint lives in a thread of its own, so tests stay plain functions.
"""

import asyncio
import json
import struct
import threading
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, TypeVar

from google.protobuf.message import Message
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    RequestReceived,
    StreamEnded,
    StreamReset,
    WindowUpdated,
)
from h2.exceptions import ProtocolError
from tests.conformance.client import wait_until
from tests.conformance.processes import free_port

M = TypeVar("M", bound=Message)
_SCRIPT_TIMEOUT_S = 20.0
_WINDOW_BYTES = 1 << 24


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame as it came: type code, flags, payload."""

    code: int
    flags: int
    payload: bytes

    def parse(self, message: type[M]) -> M:
        parsed = message()
        parsed.ParseFromString(self.payload)
        return parsed


def frame(type_code: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">HHI", type_code, flags, len(payload)) + payload


Script = Callable[["Attempt"], Awaitable[None]]


@dataclass(slots=True)
class Attempt:
    """One exchange: what was received and the means to answer."""

    connection: "_Connection"
    stream_id: int
    path: str
    headers: dict[str, str]
    received: list[Frame] = field(default_factory=list[Frame])
    is_ended: bool = False
    is_reset: bool = False
    number: int = 0
    # Where the reader is slow: bytes that came and don't count as read until ``catch_up``.
    is_slow: bool = False
    unread_bytes: int = 0
    _buffer: bytearray = field(default_factory=bytearray)
    _taken: int = 0
    _news: asyncio.Event = field(default_factory=asyncio.Event)
    unsent: bytearray = field(default_factory=bytearray)
    ends_after_unsent: bool = False

    @property
    def invocation_id(self) -> str:
        return self.headers["x-restate-invocation-id"]

    async def receive(self) -> Frame | None:
        """The next frame; ``None`` once the server has ended its side."""
        async with asyncio.timeout(_SCRIPT_TIMEOUT_S):
            while self._taken == len(self.received):
                if self.is_ended or self.is_reset:
                    return None
                self._news.clear()
                await self._news.wait()
        self._taken += 1
        return self.received[self._taken - 1]

    async def expect(self, type_code: int, message: type[M]) -> M:
        """The next frame, which must be of this type."""
        got = await self.receive()
        assert got is not None, f"the server ended, 0x{type_code:04x} was expected"
        assert got.code == type_code, f"0x{got.code:04x} came, 0x{type_code:04x} was expected"
        assert got.flags == 0
        return got.parse(message)

    async def wait_reset(self) -> None:
        async with asyncio.timeout(_SCRIPT_TIMEOUT_S):
            while not self.is_reset:
                self._news.clear()
                await self._news.wait()

    def respond(self, status: int = 200, headers: dict[str, str] | None = None) -> None:
        """The response head; by default the one that accepts the attempt."""
        given = {"content-type": self.headers["content-type"]} if headers is None else headers
        self.connection.head(self.stream_id, status, given)

    def send(self, type_code: int, message: Message | None = None, *, ack: bool = False) -> None:
        payload = b"" if message is None else message.SerializeToString()
        self.send_bytes(frame(type_code, payload, 0x8000 if ack else 0))

    def send_bytes(self, content: bytes) -> None:
        self.unsent += content
        self.connection.push(self)

    def end(self) -> None:
        self.ends_after_unsent = True
        self.connection.push(self)

    def reset(self) -> None:
        self.connection.reset(self.stream_id)

    def catch_up(self) -> None:
        """Read what has come, and from now on whatever comes."""
        self.is_slow = False
        self.connection.acknowledge(self.stream_id, self.unread_bytes)
        self.unread_bytes = 0

    def drop_connection(self) -> None:
        self.connection.abort()

    def feed(self, content: bytes) -> None:
        self._buffer += content
        while len(self._buffer) >= 8:
            type_code, flags, length = struct.unpack_from(">HHI", self._buffer)
            if len(self._buffer) < 8 + length:
                break
            payload = bytes(self._buffer[8 : 8 + length])
            self.received.append(Frame(type_code, flags, payload))
            del self._buffer[: 8 + length]
        self.tell()

    def tell(self) -> None:
        self._news.set()


class _Connection(asyncio.Protocol):
    """One HTTP/2 connection of the server under test."""

    def __init__(self, endpoint: "RawEndpoint") -> None:
        self._endpoint = endpoint
        self._transport: asyncio.Transport | None = None
        config = H2Configuration(client_side=False, header_encoding="utf-8")
        self._core = H2Connection(config)
        self._attempts: dict[int, Attempt] = {}
        self.lost = asyncio.Event()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._endpoint.connections.append(self)
        self._core.initiate_connection()
        self._core.increment_flow_control_window(_WINDOW_BYTES)
        self._flush()

    def data_received(self, data: bytes) -> None:
        for event in self._core.receive_data(data):
            match event:
                case RequestReceived():
                    self._begin(event)
                case DataReceived(stream_id=int(stream_id), data=bytes(content)):
                    self._receive(stream_id, content, event.flow_controlled_length or 0)
                case StreamEnded(stream_id=int(stream_id)):
                    self._attempts[stream_id].is_ended = True
                    self._attempts[stream_id].tell()
                case StreamReset(stream_id=int(stream_id)):
                    self._attempts[stream_id].is_reset = True
                    self._attempts[stream_id].tell()
                case WindowUpdated():
                    for attempt in self._attempts.values():
                        self.push(attempt)
                case _:
                    pass
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        for attempt in self._attempts.values():
            attempt.is_reset = True
            attempt.tell()
        self.lost.set()

    def head(self, stream_id: int, status: int, headers: dict[str, str]) -> None:
        self._core.send_headers(stream_id, [(":status", str(status)), *headers.items()])
        self._flush()

    def push(self, attempt: Attempt) -> None:
        """Write what flow control lets through of what the attempt wants to say."""
        core, stream_id = self._core, attempt.stream_id
        try:
            while attempt.unsent:
                room = min(core.local_flow_control_window(stream_id), core.max_outbound_frame_size)
                if room <= 0:
                    break
                core.send_data(stream_id, bytes(attempt.unsent[:room]))
                del attempt.unsent[:room]
            if attempt.ends_after_unsent and not attempt.unsent:
                attempt.ends_after_unsent = False
                core.end_stream(stream_id)
        except ProtocolError:  # The server closed the stream meanwhile: its right.
            attempt.unsent.clear()
        self._flush()

    def reset(self, stream_id: int) -> None:
        self._core.reset_stream(stream_id, ErrorCodes.INTERNAL_ERROR)
        self._flush()

    def abort(self) -> None:
        assert self._transport is not None
        self._transport.abort()

    def acknowledge(self, stream_id: int, length: int) -> None:
        if length:
            self._core.acknowledge_received_data(length, stream_id)
            self._flush()

    def _receive(self, stream_id: int, content: bytes, length: int) -> None:
        attempt = self._attempts[stream_id]
        if attempt.is_slow:
            attempt.unread_bytes += length
        elif length:
            self._core.acknowledge_received_data(length, stream_id)
        attempt.feed(content)

    def _begin(self, event: RequestReceived) -> None:
        assert event.headers is not None
        headers = {str(name): str(value) for name, value in event.headers}
        attempt = Attempt(self, event.stream_id, headers[":path"], headers)
        self._attempts[event.stream_id] = attempt
        self._endpoint.begin(attempt)

    def _flush(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(self._core.data_to_send())


@dataclass(slots=True)
class Discovery:
    """How discovery is answered."""

    body: bytes
    status: int = 200
    content_type: str = "application/vnd.restate.endpointmanifest.v4+json"


class RawEndpoint:
    """Listens from ``start`` to ``stop``; scripts are chosen by ``Service/handler``."""

    def __init__(self, discovery: Discovery) -> None:
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.discovery = discovery
        self.attempts: list[Attempt] = []
        self.discoveries: list[Attempt] = []
        # Which attempts are read slowly.
        self.is_slow: Callable[[Attempt], bool] = lambda attempt: False
        self.failures: list[BaseException] = []
        self.connections: list[_Connection] = []
        self._scripts: dict[str, Script] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    def on(self, target: str, script: Script) -> None:
        """Play ``script`` for every attempt at ``Service/handler``."""
        self._scripts[target] = script

    def attempts_of(self, invocation_id: str) -> list[Attempt]:
        named = (a for a in self.attempts if "x-restate-invocation-id" in a.headers)
        return [attempt for attempt in named if attempt.invocation_id == invocation_id]

    def await_attempt(self, path: str, *, ended: bool = False) -> Attempt:
        """The first attempt at ``path``, waited for; ``ended``: whose request has ended."""

        def find() -> Attempt | None:
            for attempt in self.attempts:
                if attempt.path == path and (attempt.is_ended or not ended):
                    return attempt
            return None

        return wait_until(find, f"an attempt at {path}")

    def start(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._run(self._listen())

    def stop(self) -> None:
        """Stop listening; scripts that still run are cancelled.

        Raises:
            BaseException: the first failure of a script.
        """
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()
        if self.failures:
            raise self.failures[0]

    def begin(self, attempt: Attempt) -> None:
        if attempt.path.partition("?")[0].endswith("/discover"):
            self.discoveries.append(attempt)
            head = {"content-type": self.discovery.content_type}
            attempt.respond(self.discovery.status, head)
            attempt.send_bytes(self.discovery.body)
            attempt.end()
            return
        attempt.number = len(self.attempts_of(attempt.invocation_id)) + 1
        attempt.is_slow = self.is_slow(attempt)
        self.attempts.append(attempt)
        target = "/".join(attempt.path.partition("?")[0].split("/")[-2:])
        task = self._loop.create_task(self._play(self._scripts[target], attempt))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _play(self, script: Script, attempt: Attempt) -> None:
        try:
            await script(attempt)
        except (AssertionError, TimeoutError, ValueError) as failure:
            self.failures.append(failure)
            attempt.reset()

    async def _listen(self) -> None:
        make = self._loop.create_server(lambda: _Connection(self), "127.0.0.1", self.port)
        self._server = await make

    async def _close(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self.connections:
            connection.abort()
            await connection.lost.wait()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(_SCRIPT_TIMEOUT_S)


def manifest(
    services: list[dict[str, Any]],
    *,
    protocol: tuple[int, int] = (5, 7),
    mode: str = "BIDI_STREAM",
) -> Discovery:
    """The usual discovery answer."""
    document = {
        "protocolMode": mode,
        "minProtocolVersion": protocol[0],
        "maxProtocolVersion": protocol[1],
        "services": services,
    }
    return Discovery(json.dumps(document).encode())


def service(name: str, *handlers: str, **options: object) -> dict[str, Any]:
    """A plain service of a manifest; it retries quickly unless told otherwise."""
    return {
        "name": name,
        "ty": "SERVICE",
        "handlers": [{"name": handler} for handler in handlers],
        "retryPolicyInitialInterval": 10,
        "retryPolicyExponentiationFactor": 1.0,
        **options,
    }
