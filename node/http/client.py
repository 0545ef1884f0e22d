"""The asking side of HTTP: pools of connections, one pool per origin.

``HttpClient.open`` gives a stream at once; it waits by itself for a connection.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import cast

from perdure.core.clock import Clock, SystemClock
from perdure.core.entropy import Entropy
from perdure.core.limits import CONNECT_TIMEOUT_MS
from perdure.node.http.connection import ClientLimits, Connection
from perdure.node.http.ports import ClientCore, Headers
from perdure.node.http.stream import Origin, RequestStream, StreamFailure, StreamListener

__all__ = ["ClientLimits", "ClientStatistics", "CoreFactory", "HttpClient"]

CoreFactory = Callable[[str, bool], ClientCore]
"""Makes a core for an HTTP version (``HTTP/1.1`` or ``HTTP/2.0``); the flag: over TLS."""

_LOOKS = 4  # in the time for which a process may stand still


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """Connections, streams open on them, and streams waiting for one; then, since the start:
    connections made, lost and failed to make, streams opened, bytes out and in (framing
    included)."""

    connections: int = 0
    streams: int = 0
    waiting: int = 0
    connected: int = 0
    lost: int = 0
    failed: int = 0
    opened: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    def __add__(self, other: "ClientStatistics") -> "ClientStatistics":
        ours, theirs = astuple(self), astuple(other)
        return ClientStatistics(*(mine + its for mine, its in zip(ours, theirs, strict=True)))


@dataclass(frozen=True, slots=True)
class _Ways:
    """How connections are made; what all pools share."""

    make_core: CoreFactory
    entropy: Entropy
    connect_timeout_ms: int
    limits: ClientLimits
    make_tls: Callable[[], ssl.SSLContext]
    clock: Clock


class _Pool:
    """The connections to one origin, and the streams that wait for one.

    ``_ready`` holds, in the order in which they are used, the connections that may take another
    stream; each is asked again before it is given one.
    """

    def __init__(self, origin: Origin, ways: _Ways) -> None:
        self.origin = origin
        self._ways = ways
        self._authority = origin.authority
        self._version = origin.http_version
        self._connections: set[Connection] = set()
        self._ready: dict[Connection, None] = {}
        self._waiting: deque[RequestStream] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None
        self._connected = self._failed = 0
        self._past = ClientStatistics()  # what connections did that are gone
        self._ran_at = 0.0  # when this process was last known not to stand still
        self._look: asyncio.TimerHandle | None = None

    def submit(self, stream: RequestStream) -> None:
        """Give the stream to a connection, now or as soon as there is one."""
        connection = self._choose() if not self._waiting else None
        if connection is not None:
            connection.open(stream, self._authority)
        else:
            self._waiting.append(stream)
            self._watch()
            self._connect_more()

    def on_capacity(self, connection: Connection) -> None:
        """The connection may have room: serve who waits, close it if it retired."""
        if connection.is_gone:
            return
        if connection.is_retired():
            self._ready.pop(connection, None)
            if connection.stream_count == 0:
                connection.close()
        else:
            self._ready[connection] = None
        if self._waiting:
            self._serve_waiting()

    def on_gone(self, connection: Connection) -> None:
        """The connection is lost."""
        if connection in self._connections:
            self._connections.discard(connection)
            self._past += _traffic(connection, lost=1)
        self._ready.pop(connection, None)
        if connection.is_unused:
            # Trying again at once would hammer a peer that hangs up on everybody.
            self._connect_failed(connection.end_reason)
        else:
            self._serve_waiting()

    def statistics(self) -> ClientStatistics:
        now = ClientStatistics(
            connections=len(self._connections),
            streams=sum(connection.stream_count for connection in self._connections),
            waiting=sum(not stream.is_closed for stream in self._waiting),
            connected=self._connected,
            failed=self._failed,
        )
        return sum((_traffic(connection) for connection in self._connections), now) + self._past

    def close(self) -> None:
        if self._look is not None:
            self._look.cancel()
        for task in self._connecting:
            task.cancel()
        self._fail_waiting(StreamFailure("connect", "the client is closed"))
        for connection in list(self._connections):
            connection.close()

    def adopt(self, connection: Connection) -> None:
        """A connection came about."""
        self._connections.add(connection)
        self._connected += 1
        self._version = connection.core.http_version

    def _watch(self) -> None:
        """Look, while streams wait, whether the process stands still."""
        longest_ms = self._ways.limits.stand_still_ms_max
        if longest_ms is not None and self._look is None:
            self._ran_at = self._ways.clock.monotonic()
            loop = asyncio.get_running_loop()
            self._look = loop.call_later(longest_ms / 1000 / _LOOKS, self._go_on_watching)

    def _go_on_watching(self) -> None:
        self._drop_stale()
        self._look = None
        if self._waiting:
            self._watch()

    def _drop_stale(self) -> None:
        """What waited while the process stood still is not sent any more."""
        longest_ms = self._ways.limits.stand_still_ms_max
        if longest_ms is None or self._look is None:
            return
        now = self._ways.clock.monotonic()
        stood_ms = (now - self._ran_at) * 1000
        if stood_ms > longest_ms:
            self._ran_at = now
            reason = "this process stood still while the request waited for a connection"
            self._fail_waiting(StreamFailure("refused", reason))

    def _serve_waiting(self) -> None:
        self._drop_stale()
        while self._waiting:
            if self._waiting[0].is_closed:
                self._waiting.popleft()
                continue
            connection = self._choose()
            if connection is None:
                self._connect_more()
                return
            connection.open(self._waiting.popleft(), self._authority)

    def _choose(self) -> Connection | None:
        while self._ready:
            connection = next(iter(self._ready))
            if connection.can_open():
                return connection
            del self._ready[connection]
        return None

    def _connect_more(self) -> None:
        # One connection at a time carries many HTTP/2 streams; HTTP/1.1 needs one per request.
        wanted = len(self._waiting) if self._version == "HTTP/1.1" else 1
        open_count = len(self._connections) + len(self._connecting)
        room = self._ways.limits.connections_per_origin_max - open_count
        for _ in range(min(wanted - len(self._connecting), room)):
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        origin, ways = self.origin, self._ways
        is_secure = origin.scheme == "https"
        try:
            async with asyncio.timeout(ways.connect_timeout_ms / 1000):
                _, opening = await asyncio.get_running_loop().create_connection(
                    lambda: _Opening(self, ways, origin.http_version, is_secure),
                    origin.host,
                    origin.port,
                    ssl=self._tls_context() if is_secure else None,
                )
        except TimeoutError:
            self._connect_failed(f"connecting took longer than {ways.connect_timeout_ms} ms")
        except (OSError, ValueError, OverflowError) as error:  # the name or port may be impossible
            self._connect_failed(str(error) or type(error).__name__)
        else:
            self.on_capacity(opening.connection)

    def _connect_failed(self, reason: str) -> None:
        self._failed += 1
        if any(not connection.is_retired() for connection in self._connections):
            return  # those that wait are served as streams end; the next that waits tries again
        origin = f"{self.origin.scheme}://{self._authority.decode()}"
        self._fail_waiting(StreamFailure("connect", f"can't connect to {origin}: {reason}"))

    def _fail_waiting(self, failure: StreamFailure) -> None:
        failed, self._waiting = self._waiting, deque()
        for stream in failed:
            stream.fail(failure)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = self._ways.make_tls()
            match self.origin.http_version:
                case "HTTP/1.1":
                    self._tls.set_alpn_protocols(["http/1.1"])
                case "HTTP/2.0":
                    self._tls.set_alpn_protocols(["h2"])
                case _:
                    self._tls.set_alpn_protocols(["h2", "http/1.1"])
        return self._tls


def _traffic(connection: Connection, lost: int = 0) -> ClientStatistics:
    return ClientStatistics(
        lost=lost,
        opened=connection.opened_count,
        sent_bytes=connection.sent_bytes,
        received_bytes=connection.received_bytes,
    )


class _Opening(asyncio.Protocol):
    """Waits for the handshake to say which HTTP it is, then hands over to a connection."""

    def __init__(self, pool: _Pool, ways: _Ways, version: str | None, is_secure: bool) -> None:
        self._pool = pool
        self._ways = ways
        self._version = version
        self._is_secure = is_secure
        self.connection: Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        version = self._version
        if version is None:
            tls = transport.get_extra_info("ssl_object")
            negotiated = tls.selected_alpn_protocol() if tls is not None else None
            version = "HTTP/2.0" if negotiated == "h2" else "HTTP/1.1"
        pool, ways = self._pool, self._ways
        core = ways.make_core(version, self._is_secure)
        self.connection = Connection(
            core, ways.entropy, ways.limits, ways.clock, pool.on_capacity, pool.on_gone
        )
        pool.adopt(self.connection)
        transport.set_protocol(self.connection)
        self.connection.connection_made(transport)


class HttpClient:
    """All connections of a node to services."""

    def __init__(
        self,
        make_core: CoreFactory,
        entropy: Entropy,
        connect_timeout_ms: int = CONNECT_TIMEOUT_MS,
        limits: ClientLimits | None = None,
        make_tls: Callable[[], ssl.SSLContext] = ssl.create_default_context,
        clock: Clock | None = None,
    ) -> None:
        bounds = limits or ClientLimits()
        self._ways = _Ways(
            make_core, entropy, connect_timeout_ms, bounds, make_tls, clock or SystemClock()
        )
        self._pools: dict[Origin, _Pool] = {}

    def open(
        self, origin: Origin, method: str, target: str, headers: Headers, listener: StreamListener
    ) -> RequestStream:
        """Begin a request; a body may be written until ``end``."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = _Pool(origin, self._ways)
        stream = RequestStream((method.encode(), target.encode(), headers), listener)
        pool.submit(stream)
        return stream

    def statistics(self) -> ClientStatistics:
        return sum((pool.statistics() for pool in self._pools.values()), ClientStatistics())

    def close(self) -> None:
        """Close every connection; open and waiting streams fail."""
        for pool in self._pools.values():
            pool.close()
