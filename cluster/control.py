"""The control plane of one node, put together: registers, gossip, leaderships, controller.

joined = await join(store, disk, cluster_name, profile, is_running, entropy)
fabric = Fabric(me=joined.peer(), …)
plane = ControlPlane(joined, ports)
await plane.start()          # once the fabric listens and the log is open
…
await plane.stop()           # hands over what it leads, says farewell
"""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from perdure.cluster.controller import Controller, view
from perdure.cluster.core import chain
from perdure.cluster.core import membership as edits
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.controller import acting_leader, choose_successor
from perdure.cluster.core.failure_detector import FailureDetector, NodeState
from perdure.cluster.core.leadership import HandOver
from perdure.cluster.core.membership import NodeMeta, NodeRole, StorageState
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.placement import LogSite, choose_nodeset
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.cluster.gossip import Gossiper
from perdure.cluster.leadership import Leaderships, LeadershipStatistics, Replica
from perdure.cluster.membership import Joined, Membership, Probe
from perdure.cluster.registers import Registers, insist
from perdure.cluster.transport import Answer, Refusal, Transport
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import MembershipRefused, NodeReplaced, PartitionUnavailable
from perdure.core.limits import OFFER_WAIT_MS
from perdure.core.tasks import Supervisor
from perdure.core.telemetry import logger

log = logger("membership")


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlPorts:
    """What a control plane stands on. ``open_replica`` makes a partition's replica on this node;
    ``is_disk_full`` is told to others."""

    store: Registers
    transport: Transport
    clock: Clock
    entropy: Entropy
    supervisor: Supervisor
    open_replica: Callable[[int], Replica]
    is_disk_full: Callable[[], bool] = lambda: False


@dataclass(frozen=True, slots=True)
class NodeStatistics:
    """A member of the cluster, as this node sees it."""

    node: NodeId
    value: NodeMeta
    state: NodeState
    loop_lag_ms: int
    is_disk_full: bool


@dataclass(frozen=True, slots=True)
class ControlStatistics:
    """``conflicts``: beats of a second process with a generation that is taken. ``claims_lost``:
    take-overs in which somebody else was faster."""

    nodes: tuple[NodeStatistics, ...]
    partitions: tuple[LeadershipStatistics, ...]
    is_controller: bool
    is_isolated: bool
    loop_lag_ms: int
    conflicts: int
    refusals: tuple[Refusal, ...] = ()
    claims_lost: int = 0


class ControlPlane:
    """Made before the transport listens, so that no message finds nobody; started after."""

    def __init__(self, joined: Joined, ports: ControlPorts) -> None:
        me = joined.peer()
        self.joined = joined
        self._ports = ports
        self.membership = Membership(ports.store, me, ports.entropy)
        self.detector = FailureDetector(me.writer, [me.node])
        self.gossiper = Gossiper(self.detector, ports.transport, ports.clock, ports.entropy)
        self.leaderships = Leaderships(
            self.detector,
            ports.transport,
            ports.clock,
            ports.entropy,
            ports.supervisor,
            ports.open_replica,
        )
        self.controller = Controller(
            self.membership,
            self.detector,
            ports.transport,
            ports.clock,
            self.leaderships.take,
        )
        ports.transport.serve(Probe, self._say_who, guests=True)
        self._tasks: list[asyncio.Task[None]] = []
        self._is_changed = asyncio.Event()

    def nodeset(self, partition: int) -> tuple[Member, ...]:
        """Replicas of the next segment that this node opens for a partition.

        Raises:
            PartitionUnavailable: fewer log servers can be used than copies are needed.
        """
        cluster, partitions = self.membership.cluster, self.membership.partitions
        assert cluster is not None
        load = Counter(
            member.node
            for meta in partitions.values()
            for member in (meta.chain[-1].nodeset if meta.chain else ())
        )
        sites = [
            LogSite(
                value.member(node), value.zone, load[node], not self.detector.state(node).is_gone
            )
            for node, value in sorted(self.membership.nodes.items())
            if value.may_store
        ]
        meta = partitions.get(partition)
        former = meta.chain[-1].nodeset if meta is not None and meta.chain else ()
        found = choose_nodeset(
            partition,
            self.detector.me.node,
            sites,
            {member.node for member in former},
            cluster.replication,
        )
        if found is None:
            raise PartitionUnavailable(
                f"partition {partition} needs {cluster.replication} log servers, "
                f"{sum(site.is_here for site in sites)} can be used now"
            )
        return found

    def statistics(self) -> ControlStatistics:
        """For status and metrics."""
        reports = {node: self.detector.report_of(node) for node in self.membership.members()}
        nodes = tuple(
            NodeStatistics(
                node,
                self.membership.nodes[node],
                self.detector.state(node),
                report.loop_lag_ms,
                report.is_disk_full,
            )
            for node, report in reports.items()
        )
        return ControlStatistics(
            nodes,
            self.leaderships.statistics(),
            self.controller.core.is_active,
            self.detector.is_isolated,
            self.gossiper.loop_lag_ms,
            self.detector.conflicts,
            self._ports.transport.statistics().refusals,
            self.leaderships.claims_lost,
        )

    def hand_over(self, partition: int, to: NodeId) -> None:
        """Ask who leads a partition to hand it over; it may come to nothing.

        Raises:
            MembershipRefused: nobody leads it, or ``to`` can't.
        """
        seen = view(self.membership, self.detector)
        meta = self.membership.partitions.get(partition)
        opened = chain.open_segment(meta) if meta is not None else None
        if seen is None or meta is None or opened is None or acting_leader(seen, partition) is None:
            raise MembershipRefused(f"nobody is known to lead partition {partition} now")
        if to not in meta.replicas.current:
            replicas = ", ".join(map(str, meta.replicas.current)) or "none yet"
            raise MembershipRefused(
                f"node {to} is no replica of partition {partition}: the replicas are {replicas}"
            )
        if self.detector.state(to) is not NodeState.ALIVE:
            raise MembershipRefused(f"node {to} is {self.detector.state(to).value}")
        self.controller.tell(opened.writer.node, HandOver(partition, to, opened.epoch))

    async def start(self) -> None:
        """Read the registers, offer storage, begin to listen and to take part.

        However long metadata takes to answer.

        Raises:
            MetadataRegressed: as ``Membership.refresh``.
        """
        clock, entropy = self._ports.clock, self._ports.entropy
        await insist(self.membership.refresh, "the registers", clock, entropy)
        self.membership.on_nodes(self._on_nodes)
        self.membership.on_partition(self._on_partition)
        self.gossiper.on_change(lambda _: self.controller.wake())
        self.gossiper.on_unknown(lambda _: self.membership.look_again())
        self.gossiper.on_replaced(self._on_replaced)
        self.gossiper.on_tick(self._on_tick)
        self._on_nodes()
        for partition, meta in sorted(self.membership.partitions.items()):
            self._on_partition(partition, meta)
        await insist(self._serve_storage, "this node's register", clock, entropy)
        supervisor = self._ports.supervisor
        self._tasks.append(supervisor.start("membership", self.membership.run()))
        self._tasks.append(supervisor.start("gossip", self.gossiper.run()))
        if NodeRole.ADMIN in self.joined.value.roles:
            self._tasks.append(supervisor.start("controller", self.controller.run()))

    async def stop(self, timeout_s: float) -> None:
        """Give away what this node leads, then tell the others that it has ended."""
        self.gossiper.stopping()
        led = self.leaderships.led()
        try:
            async with asyncio.timeout(timeout_s):
                await self.leaderships.give_away(self._successor)
                await self._wait_taken(led)
        except TimeoutError:
            log.warning("membership.stop.late", led=len(self.leaderships.led()))
        self.gossiper.farewell()
        await self.abandon()

    async def abandon(self) -> None:
        """Let go of everything at once."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.leaderships.aclose()

    async def _wait_taken(self, led: list[tuple[int, int]]) -> None:
        """Stay until the offers have been taken, for a moment: they are lost with our sessions."""
        try:
            async with asyncio.timeout(OFFER_WAIT_MS / 1000):
                while any(
                    self.membership.partitions[partition].epoch == epoch for partition, epoch in led
                ):
                    self._is_changed.clear()
                    await self._is_changed.wait()
        except TimeoutError:
            pass

    async def _serve_storage(self) -> None:
        """The log is open on a disk that the marker names: new segments may use it."""
        node = self.membership.me.node
        known = self.membership.nodes[node]
        if known.storage is not StorageState.PROVISIONING or NodeRole.LOG_SERVER not in known.roles:
            return
        try:
            await self.membership.edit_node(node, edits.serve_storage)
        except MembershipRefused as refused:
            log.error("membership.storage.refused", node=node, reason=refused.message)

    def _say_who(self, peer: Peer, probe: Probe, answer: Answer) -> None:
        answer(self.membership.me)

    def _on_nodes(self) -> None:
        mine = self.membership.nodes.get(self.membership.me.node)
        if mine is not None:
            latest = mine.writer(self.membership.me.node)
            if mine.is_removed or latest.generation > self.detector.me.generation:
                self._on_replaced(latest)
        self.gossiper.set_members(self.membership.members())
        self._ports.transport.set_directory(self.membership.directory())
        self.controller.wake()

    def _on_partition(self, partition: int, meta: PartitionMeta) -> None:
        self.leaderships.on_partition(partition, meta)
        self._is_changed.set()
        self.controller.wake()

    def _on_replaced(self, by: Writer) -> None:
        me = self.detector.me
        failure = NodeReplaced(
            f"node {me.node} runs as generation {by.generation} elsewhere, or was removed; this is "
            f"generation {me.generation}, which ends now"
        )
        self._ports.supervisor.fail(failure)

    def _on_tick(self) -> None:
        self.leaderships.tick(self.gossiper.loop_lag_ms, self._ports.is_disk_full())

    def _successor(self, partition: int) -> NodeId | None:
        seen = view(self.membership, self.detector)
        if seen is None:
            return None
        return choose_successor(seen, partition, self.membership.me.node)
