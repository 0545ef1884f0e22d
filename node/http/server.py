"""The answering side of HTTP: one port for HTTP/1.0, 1.1 and cleartext HTTP/2, over asyncio.

The first bytes of a connection tell the version. An exchange is handed to the application when its
body is complete; the answer goes out whole, or in pieces. Closing drains: listeners first, then
connections as their exchanges end, the rest is dropped after a limit.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import formatdate

from perdure.core.clock import Clock
from perdure.core.telemetry import logger
from perdure.node.http.accepted import Accepted
from perdure.node.http.exchange import Application, Exchange
from perdure.node.http.owner import ServerLimits
from perdure.node.http.ports import ServerCore

__all__ = ["Application", "Exchange", "HttpServer", "ServerLimits", "ServerStatistics"]

log = logger("http")

CoreFactory = Callable[[str], ServerCore]
"""Makes a core for ``HTTP/1.1`` or ``HTTP/2.0``."""

_BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class ServerStatistics:
    """Connections, exchanges not yet answered, bytes of bodies coming in and of answers going out
    that clients have yet to take; connections accepted and lost, and answers cut midway, since the
    start; answers in pieces that are going out."""

    connections: int
    exchanges: int
    receiving_bytes: int
    unsent_bytes: int
    accepted: int
    lost: int
    cut: int
    streaming: int


class HttpServer:
    """Listens for an application."""

    def __init__(
        self,
        application: Application,
        make_core: CoreFactory,
        clock: Clock,
        limits: ServerLimits | None = None,
    ) -> None:
        self.application = application
        self._clock = clock
        self.make_core = make_core
        self.limits = limits or ServerLimits()
        self.connections: set[Accepted] = set()
        self.receiving_bytes = 0
        self.unsent_bytes = 0
        self.cut = 0
        self._accepted = self._lost = 0
        self._listener: asyncio.Server | None = None
        self._check: asyncio.TimerHandle | None = None
        self._date = (b"date", b"")
        self._date_at = -1
        self._is_empty = asyncio.Event()

    async def listen(self, host: str, port: int, *, is_shared: bool = False) -> int:
        """Bind and accept; returns the port (of interest when 0 was asked for). ``is_shared``:
        other processes may listen on it too, and the kernel gives each connection to one of them.

        Raises:
            OSError: the address is taken or not ours.
        """
        loop = asyncio.get_running_loop()
        self._listener = await loop.create_server(
            self._accept, host, port, backlog=_BACKLOG, reuse_port=is_shared or None
        )
        self._check = loop.call_later(self.limits.check_ms / 1000, self._check_connections)
        return int(self._listener.sockets[0].getsockname()[1])

    def date(self) -> tuple[bytes, bytes]:
        """The date header, made once a second."""
        now = self._clock.now_ms() // 1000
        if now != self._date_at:
            self._date_at = now
            self._date = (b"date", formatdate(now, usegmt=True).encode())
        return self._date

    def statistics(self) -> ServerStatistics:
        exchanges = sum(connection.exchange_count for connection in self.connections)
        return ServerStatistics(
            len(self.connections),
            exchanges,
            self.receiving_bytes,
            self.unsent_bytes,
            self._accepted,
            self._lost,
            self.cut,
            sum(connection.streaming_count for connection in self.connections),
        )

    def left(self, connection: Accepted) -> None:
        """A connection is gone."""
        self._lost += 1
        self.connections.discard(connection)
        if not self.connections:
            self._is_empty.set()

    def make_room(self, size: int) -> None:
        """Disconnect those who are furthest behind until ``size`` more bytes may wait."""
        behind = sorted(self.connections, key=Accepted.measure, reverse=True)
        for connection in behind:
            if self.unsent_bytes + size <= self.limits.buffered_bytes_max:
                return
            log.warning("http.reader.too_slow", unsent_bytes=connection.measure())
            connection.abort()

    def stop_accepting(self) -> None:
        """Close the listener."""
        if self._listener is not None:
            self._listener.close()

    async def aclose(self, drain_seconds: float) -> None:
        """Stop accepting, let exchanges end for a while, drop what is left."""
        self.stop_accepting()
        for connection in list(self.connections):
            connection.drain()
        self._is_empty.clear()
        try:
            async with asyncio.timeout(drain_seconds):
                if self.connections:
                    await self._is_empty.wait()
        except TimeoutError:
            log.info("http.connections.dropped", count=len(self.connections))
        if self._check is not None:
            self._check.cancel()
        for connection in list(self.connections):
            connection.abort()

    def _accept(self) -> Accepted:
        self._accepted += 1
        return Accepted(self)

    def _check_connections(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for connection in list(self.connections):
            connection.check(now)
        self._check = loop.call_later(self.limits.check_ms / 1000, self._check_connections)
