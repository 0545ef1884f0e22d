"""What operators look at through the admin port and metrics, put together for one node.

``access`` is what the admin endpoints work with; ``figures`` what metrics are read from.
"""

import asyncio

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.membership import Addresses
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Transport
from perdure.core.clock import Clock
from perdure.core.tasks import Supervisor
from perdure.node.admin.context import ClusterAccess
from perdure.node.config.model import Config
from perdure.node.log_desk import LogDesk
from perdure.node.metrics.cluster_table import ClusterFigures
from perdure.node.partition.cluster_host import ClusterHost
from perdure.node.partition.host import Host
from perdure.node.partition.members import Members
from perdure.node.register_desk import Listable, RegisterDesk
from perdure.node.standing import ClusterStanding, Findings, look


class Desks:
    """Belongs to a running loop; start it once the host is open. ``transport``: None on a single
    node."""

    def __init__(
        self,
        host: Host | ClusterHost,
        registers: Listable,
        transport: Transport | None,
        config: Config,
        clock: Clock,
    ) -> None:
        self._host = host
        self._transport = transport
        self._addresses = Addresses(admin=config.admin.advertised_address or "")
        self._verify_interval_ms = config.worker.log_verify_interval_ms
        self._looking: list[asyncio.Task[None]] = []
        self.logs = LogDesk(host.log_server, transport, clock)
        self.registers = RegisterDesk(registers, host.identity.fingerprint.hex())
        backend = "local"
        if transport is not None:
            backend = "etcd" if config.etcd.endpoints else "members"
        self.access = ClusterAccess(
            standing=self.standing,
            plane=host.plane if isinstance(host, ClusterHost) else None,
            logs=self.logs,
            registers=self.registers,
            backend=backend,
            members=self._members(),
        )

    def _members(self) -> Members | None:
        if self._transport is None or not isinstance(self._host, ClusterHost):
            return None
        return Members(NodeId(self._host.identity.node_id), self._host, self._transport)

    def start(self, supervisor: Supervisor, ingress_url: str) -> None:
        """Look at what has to be asked for, now and then."""
        self._addresses = Addresses(ingress=ingress_url, admin=self._addresses.admin)
        if self._transport is None:
            return
        self._looking.append(supervisor.start("desks.metadata", self.registers.run()))
        if self._verify_interval_ms is not None:
            work = self.logs.run(self._verify_interval_ms, self._led)
            self._looking.append(supervisor.start("desks.logs", work))

    def _led(self) -> dict[int, PartitionMeta]:
        """The logs of partitions that this node leads."""
        host = self._host
        if not isinstance(host, ClusterHost):
            return {}
        known = host.plane.membership.partitions
        return {number: known[number] for number, _ in host.plane.leaderships.led()}

    def standing(self) -> ClusterStanding:
        """How the cluster stands as this node sees it."""
        findings = Findings(self.registers.latest, self.logs.verifications())
        return look(self._host, self._addresses, findings)

    def figures(self) -> ClusterFigures | None:
        """For metrics; None on a single node."""
        if self._transport is None:
            return None
        return ClusterFigures(self.standing(), self._transport.statistics())

    async def aclose(self) -> None:
        """End what is under way."""
        for task in self._looking:
            task.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        await self.logs.aclose()
