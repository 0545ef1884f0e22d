"""The asking side of HTTP: pools of connections, one pool per origin.

``HttpClient.open`` gives a stream at once; it waits by itself for a connection.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from perdure.core.entropy import Entropy
from perdure.core.limits import CONNECT_TIMEOUT_MS, CONNECTIONS_PER_ORIGIN_MAX
from perdure.node.http.connection import Connection
from perdure.node.http.ports import ClientCore, Headers
from perdure.node.http.stream import Origin, RequestStream, StreamFailure, StreamListener

CoreFactory = Callable[[str, bool], ClientCore]
"""Makes a core for an HTTP version (``HTTP/1.1`` or ``HTTP/2.0``); the flag: over TLS."""


@dataclass(frozen=True, slots=True)
class ClientStatistics:
    """Connections, streams open on them, and streams waiting for one."""

    connections: int
    streams: int
    waiting: int


class _Pool:
    """The connections to one origin, and the streams that wait for one."""

    def __init__(self, origin: Origin, make_core: CoreFactory, entropy: Entropy) -> None:
        self.origin = origin
        self.entropy = entropy
        self._make_core = make_core
        self._connections: list[Connection] = []
        self._waiting: deque[RequestStream] = deque()
        self._connecting: set[asyncio.Task[None]] = set()
        self._tls: ssl.SSLContext | None = None

    def submit(self, stream: RequestStream) -> None:
        """Give the stream to a connection, now or as soon as there is one."""
        connection = None if self._waiting else self._choose()
        if connection is not None:
            connection.open(stream, self.origin.authority)
        else:
            self._waiting.append(stream)
            self._connect_more()

    def rebalance(self) -> None:
        """Capacity may have changed: serve who waits, close who retired."""
        for connection in self._connections:
            if connection.stream_count == 0 and connection.is_retired():
                connection.close()
        while self._waiting:
            if self._waiting[0].is_closed:
                self._waiting.popleft()
                continue
            free = self._choose()
            if free is None:
                self._connect_more()
                return
            free.open(self._waiting.popleft(), self.origin.authority)

    def remove(self, connection: Connection) -> None:
        """The connection is lost."""
        if connection in self._connections:
            self._connections.remove(connection)
        self.rebalance()

    def statistics(self) -> ClientStatistics:
        streams = sum(connection.stream_count for connection in self._connections)
        return ClientStatistics(len(self._connections), streams, len(self._waiting))

    def close(self) -> None:
        for task in self._connecting:
            task.cancel()
        for connection in list(self._connections):
            connection.close()

    def _choose(self) -> Connection | None:
        for connection in self._connections:
            if connection.can_open():
                return connection
        return None

    def _connect_more(self) -> None:
        # One connection at a time carries many HTTP/2 streams; HTTP/1.1 needs one per request.
        wanted = len(self._waiting) if self.origin.http_version == "HTTP/1.1" else 1
        room = CONNECTIONS_PER_ORIGIN_MAX - len(self._connections) - len(self._connecting)
        for _ in range(min(wanted - len(self._connecting), room)):
            task = asyncio.create_task(self._connect())
            self._connecting.add(task)
            task.add_done_callback(self._connecting.discard)

    async def _connect(self) -> None:
        loop = asyncio.get_running_loop()
        origin = self.origin
        is_secure = origin.scheme == "https"
        version = origin.http_version

        def make() -> asyncio.Protocol:
            return _Opening(self, version, is_secure, self._make_core)

        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_MS / 1000):
                _, opening = await loop.create_connection(
                    make,
                    origin.host,
                    origin.port,
                    ssl=self._tls_context() if is_secure else None,
                )
        except TimeoutError:
            self._connect_failed(f"connecting took longer than {CONNECT_TIMEOUT_MS} ms")
            return
        except OSError as error:
            self._connect_failed(str(error))
            return
        assert isinstance(opening, _Opening)
        self._connections.append(opening.connection)
        self.rebalance()

    def _connect_failed(self, reason: str) -> None:
        message = f"can't connect to {self.origin.scheme}://{self.origin.authority.decode()}"
        failed, self._waiting = self._waiting, deque()
        for stream in failed:
            if not stream.is_closed:
                stream.finish()
                stream.listener.on_failed(StreamFailure("connect", f"{message}: {reason}"))

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = ssl.create_default_context()
            match self.origin.http_version:
                case "HTTP/1.1":
                    self._tls.set_alpn_protocols(["http/1.1"])
                case "HTTP/2.0":
                    self._tls.set_alpn_protocols(["h2"])
                case _:
                    self._tls.set_alpn_protocols(["h2", "http/1.1"])
        return self._tls


class _Opening(asyncio.Protocol):
    """Waits for the handshake to say which HTTP it is, then hands over to a connection."""

    def __init__(
        self, pool: _Pool, version: str | None, is_secure: bool, make_core: CoreFactory
    ) -> None:
        self._pool = pool
        self._version = version
        self._is_secure = is_secure
        self._make_core = make_core
        self.connection: Connection

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        version = self._version
        if version is None:
            tls = transport.get_extra_info("ssl_object")
            negotiated = tls.selected_alpn_protocol() if tls is not None else None
            version = "HTTP/2.0" if negotiated == "h2" else "HTTP/1.1"
        core = self._make_core(version, self._is_secure)
        pool = self._pool
        self.connection = Connection(core, pool.entropy, pool.rebalance, pool.remove)
        transport.set_protocol(self.connection)
        self.connection.connection_made(transport)


class HttpClient:
    """All connections of a node to services."""

    def __init__(self, make_core: CoreFactory, entropy: Entropy) -> None:
        self._make_core = make_core
        self._entropy = entropy
        self._pools: dict[Origin, _Pool] = {}

    def open(
        self, origin: Origin, method: str, target: str, headers: Headers, listener: StreamListener
    ) -> RequestStream:
        """Begin a request; a body may be written until ``end``."""
        pool = self._pools.get(origin)
        if pool is None:
            pool = self._pools[origin] = _Pool(origin, self._make_core, self._entropy)
        stream = RequestStream((method.encode(), target.encode(), headers), listener)
        pool.submit(stream)
        return stream

    def statistics(self) -> ClientStatistics:
        parts = [pool.statistics() for pool in self._pools.values()]
        return ClientStatistics(
            sum(part.connections for part in parts),
            sum(part.streams for part in parts),
            sum(part.waiting for part in parts),
        )

    def close(self) -> None:
        """Close every connection; open streams fail."""
        for pool in self._pools.values():
            pool.close()
