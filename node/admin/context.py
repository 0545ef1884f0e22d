"""What the endpoints of the admin API work with."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from perdure.cluster.control import ControlPlane
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import PerdureError
from perdure.core.limits import ADMIN_BODY_BYTES_MAX
from perdure.engine.actions import Outcome
from perdure.engine.commands import Command
from perdure.node.admin.elsewhere import Elsewhere
from perdure.node.admin.requests import Reply, Request
from perdure.node.invoker.discovery import Discovery
from perdure.node.log_desk import LogDesk
from perdure.node.partition.gateway import Gateway
from perdure.node.partition.members import Members
from perdure.node.partition.snapshotter import Snapshotter
from perdure.node.query.query import Query
from perdure.node.register_desk import RegisterDesk
from perdure.node.registry.store import RegistryStore
from perdure.node.standing import ClusterStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class AdminOptions:
    """``ingress_url``: where clients reach this node's ingress; ``admin_url``: where tools do."""

    ingress_url: str
    admin_url: str | None = None
    concurrent_requests_max: int | None = None
    body_bytes_max: int = ADMIN_BODY_BYTES_MAX


@dataclass(frozen=True, slots=True)
class ClusterAccess:
    """``standing``: how the cluster stands as this node sees it. ``plane``: None on a single node.
    ``backend``: what keeps the metadata: ``local``, ``members`` or ``etcd``. ``members``: the way
    to the other nodes, if there may be any."""

    standing: Callable[[], ClusterStanding]
    plane: ControlPlane | None = None
    logs: LogDesk | None = None
    registers: RegisterDesk | None = None
    backend: str = "local"
    members: Members | None = None


def check_nothing() -> None:
    """Nobody knows better."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The rest of the node, as the admin API sees it. ``check_serving`` raises what keeps the node
    as a whole from taking anything new."""

    gateway: Gateway
    registry: RegistryStore
    discovery: Discovery
    query: Query
    clock: Clock
    entropy: Entropy
    options: AdminOptions
    cluster: ClusterAccess
    snapshots: Snapshotter | None = None
    check_serving: Callable[[], None] = check_nothing
    elsewhere: Elsewhere

    async def propose(self, command: Command, partition_key: int) -> Outcome:
        """Have a command committed and applied; its outcome.

        Raises:
            PerdureError: it was not taken, or what became of it will never be known here.
        """
        applied: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()

        def on_applied(outcome: Outcome) -> None:
            if not applied.done():
                applied.set_result(outcome)

        def on_lost(error: PerdureError) -> None:
            if not applied.done():
                applied.set_exception(error)

        self.gateway.propose(command, partition_key, on_applied, on_lost)
        return await applied


Endpoint = Callable[[Context, Request], Awaitable[Reply]]
