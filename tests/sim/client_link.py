"""The way of a simulated node to its services, with the product's own connection in it.

What a node has to say to a service leaves it in a later turn of its loop, and between the two its
process may stand still. So here each stream has a ``Connection`` of its own, over a made-up HTTP
that puts one letter before whatever is said, and a transport that takes it to the service's twin.

``Trap`` stops a process at such a point: right after it has decided to say something, or has been
told something, and before it does anything else.
"""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextvars import Context
from functools import partial
from typing import Any, cast

from tests.sim.loop import SimLoop
from tests.sim.ports import SimEntropy
from tests.sim.service import CONTENT_TYPE, Ledger, SimService, SimStream

from perdure.core.clock import Clock
from perdure.core.limits import FENCE_FRESH_MS
from perdure.node.http.connection import ClientLimits, Connection
from perdure.node.http.ports import Body, End, Event, Headers, ResponseHead
from perdure.node.http.stream import RequestStream, StreamFailure, StreamListener
from perdure.node.invoker.ports import Stream
from perdure.node.registry.effective import Route

OPENS, SAYS, HEARS, LOSES = POINTS = ("opens", "says", "hears", "loses")
_LIMITS = ClientLimits(stand_still_ms_max=FENCE_FRESH_MS)
_STREAM = 1


class Trap:
    """Stops whoever comes by: one process, once it is armed."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop
        self.lock = asyncio.Lock()  # who has it armed
        self._point: str | None = None
        self._passes = 0
        self._caught: asyncio.Future[object] | None = None

    def arm(self, point: str, passes: int) -> "asyncio.Future[object]":
        """Catch who passes ``point`` for the ``passes``-th time; the future tells who it was."""
        self._point, self._passes = point, passes
        self._caught = self._loop.create_future()
        return self._caught

    def disarm(self) -> None:
        """Catch nobody."""
        self._point = None

    def pass_by(self, owner: object, point: str) -> None:
        """Called within the process."""
        if self._point != point or self._caught is None or self._caught.done():
            return
        self._passes -= 1
        if self._passes <= 0:
            self._point = None
            self._loop.stop_owner(owner)
            self._caught.set_result(owner)


class LinkedService(SimService):
    """As ``SimService``, behind connections. ``pass_by`` is told of what may be caught."""

    def __init__(
        self,
        ledger: Ledger,
        dice: random.Random,
        clock: Clock,
        *,
        is_flaky: bool,
        context: Context,
        pass_by: Callable[[str], None],
    ) -> None:
        super().__init__(ledger, dice, clock, is_flaky=is_flaky, context=context)
        self.entropy = SimEntropy(dice)
        self.pass_by = pass_by

    def open(self, route: Route, path: str, headers: Headers, listener: StreamListener) -> Stream:
        return _Link(self, path, headers, listener).stream


class _Link:
    """One stream's connection, its transport, and the listener to what the service says."""

    def __init__(
        self, service: LinkedService, path: str, headers: Headers, listener: StreamListener
    ) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._is_closing = False
        self.stream = RequestStream((b"POST", path.encode(), headers), listener)
        self._far = SimStream(service, path, dict(headers), self)
        self._connection = Connection(
            _Core(partial(service.pass_by, SAYS)),
            service.entropy,
            _LIMITS,
            service.clock,
            _close_idle,
            _forget,
        )
        self._connection.connection_made(cast(asyncio.Transport, self))
        self._connection.open(self.stream, b"service")
        service.pass_by(OPENS)

    # --- A transport ----------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """Bytes of the node that have left it."""
        for kind, piece in _split(data):
            if kind == b"d":
                self._far.write(piece)
            elif kind == b"e":
                self._far.end()
            elif kind == b"r":
                self._far.reset()

    def abort(self) -> None:
        self.close()

    def close(self) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._far.reset()
            self._loop.call_soon(self._connection.connection_lost, None)

    def is_closing(self) -> bool:
        return self._is_closing

    def get_extra_info(self, name: str) -> Any:
        return None

    def pause_reading(self) -> None:
        """What the service says is little."""

    def resume_reading(self) -> None:
        """As before."""

    # --- What the service says ------------------------------------------------------------------

    def on_response(self, status: int, headers: Headers) -> None:
        self._receive(b"h", b"%d" % status)

    def on_body(self, data: bytes) -> None:
        self._receive(b"d", data)
        self._service.pass_by(HEARS)

    def on_end(self) -> None:
        self._receive(b"e", b"")

    def on_failed(self, failure: StreamFailure) -> None:
        if not self._is_closing:
            self._is_closing = True
            self._connection.connection_lost(ConnectionResetError(failure.message))
            self._service.pass_by(LOSES)

    def on_writable(self) -> None:
        """It always is."""

    def _receive(self, kind: bytes, data: bytes) -> None:
        if not self._is_closing:
            self._connection.data_received(_framed(kind, data))


class _Core:
    """One stream; implements ``ClientCore``."""

    http_version = "HTTP/2.0"

    def __init__(self, on_send: Callable[[], None]) -> None:
        self._on_send = on_send
        self._queued: list[bytes] = []

    def start(self) -> None:
        """Nothing opens the connection."""

    def can_open(self) -> bool:
        return True

    def open(self, method: bytes, target: bytes, authority: bytes, headers: Headers) -> int:
        self._queue(b"h", b"")
        return _STREAM

    def send(self, stream: int, data: bytes) -> None:
        self._queue(b"d", data)
        self._on_send()

    def end(self, stream: int) -> None:
        self._queue(b"e", b"")

    def reset(self, stream: int) -> None:
        self._queue(b"r", b"")

    def pending(self, stream: int) -> int:
        return 0

    def receive(self, data: bytes) -> list[Event]:
        events: list[Event] = []
        for kind, piece in _split(data):
            if kind == b"h":
                events.append(ResponseHead(_STREAM, int(piece), [(b"content-type", CONTENT_TYPE)]))
            elif kind == b"d":
                events.append(Body(_STREAM, piece))
            else:
                events.append(End(_STREAM))
        return events

    def is_reusable(self) -> bool:
        return True

    def ping(self) -> bool:
        return False

    def output(self) -> bytes:
        queued, self._queued = self._queued, []
        return b"".join(queued)

    def _queue(self, kind: bytes, data: bytes) -> None:
        self._queued.append(_framed(kind, data))


def _framed(kind: bytes, data: bytes) -> bytes:
    return kind + len(data).to_bytes(4, "big") + data


def _split(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Frames are never cut: transports take them whole."""
    at = 0
    while at < len(data):
        end = at + 5 + int.from_bytes(data[at + 1 : at + 5], "big")
        yield data[at : at + 1], data[at + 5 : end]
        at = end


def _close_idle(connection: Connection) -> None:
    if connection.stream_count == 0 and not connection.is_gone:
        connection.close()


def _forget(connection: Connection) -> None:
    """It had one stream."""
