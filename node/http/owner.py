"""The server, seen from its connections: its limits and what it counts over all of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from perdure.core import limits
from perdure.node.http.exchange import Application
from perdure.node.http.ports import ServerCore

if TYPE_CHECKING:
    from perdure.node.http.accepted import Accepted


@dataclass(frozen=True, slots=True)
class ServerLimits:
    """Bounds of a server; tests lower them."""

    buffered_bytes_max: int = limits.INGRESS_BUFFERED_BYTES_MAX
    connections_max: int = limits.SERVER_CONNECTIONS_MAX
    requests_per_connection_max: int = limits.REQUESTS_PER_CONNECTION_MAX
    idle_ms: int = limits.CONNECTION_IDLE_MS
    head_ms: int = limits.REQUEST_HEAD_MS
    request_stall_ms: int = limits.REQUEST_STALL_MS
    response_stall_ms: int = limits.RESPONSE_STALL_MS
    linger_ms: int = limits.LINGER_MS

    @property
    def check_ms(self) -> float:
        """How often connections are looked at."""
        times = (self.idle_ms, self.head_ms, self.request_stall_ms, self.response_stall_ms)
        return min(times) / 4


class Owner(Protocol):
    """The server, seen from its connections."""

    application: Application
    limits: ServerLimits
    make_core: Callable[[str], ServerCore]
    connections: set["Accepted"]
    receiving_bytes: int
    unsent_bytes: int
    cut: int

    def date(self) -> tuple[bytes, bytes]: ...

    def left(self, connection: "Accepted") -> None: ...

    def make_room(self, size: int) -> None: ...
