"""The durable half of a node among several: its log, its tables, its part in the cluster.

The transport listens once all that others may ask for is there, and nothing is followed or led
before that. Which partitions are led here changes while it runs; ``gateway`` serves them all, here
or by the node that leads them.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from perdure.cluster.control import ControlPlane, ControlPorts
from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.identity import Verdict
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.trim import TrimPolicy
from perdure.cluster.core.types import NodeId, Writer
from perdure.cluster.leadership import Replica
from perdure.cluster.log import LogBatcher
from perdure.cluster.log_reader import held_until_trimmed, restore_replicas
from perdure.cluster.log_server import LogServer
from perdure.cluster.log_service import LogService
from perdure.cluster.membership import Joined
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.registers import Registers
from perdure.cluster.replica_links import ReplicaLinks
from perdure.cluster.takeover import Takeover
from perdure.cluster.transport import Answer, Transport
from perdure.cluster.wal_writer import WalWriter
from perdure.core.errors import PartitionUnavailable, Unreachable
from perdure.core.ids import PartitionId
from perdure.core.limits import HAND_OVER_MS
from perdure.core.tasks import Supervisor
from perdure.core.telemetry import logger
from perdure.node.identity import Identity
from perdure.node.partition.archive import Archive
from perdure.node.partition.assembly import Assembly
from perdure.node.partition.cluster_cut import CutDesk
from perdure.node.partition.cluster_sets import ClusterSets, ClusterSetsPorts
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.host import (
    BootFigures,
    HostStatistics,
    flush_at_end,
    partition_statistics,
)
from perdure.node.partition.messages import Deliver, Delivered, Led
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.partition.remote import RemoteDesk
from perdure.node.partition.replica import PartitionReplica, ReplicaPorts
from perdure.node.partition.routing import RoutedGateway
from perdure.node.partition.table_copy import TableDesk
from perdure.node.partition.taker import Taker
from perdure.node.partition.trimmer import WITHOUT_SNAPSHOTS, Trimmer, TrimmerPorts
from perdure.node.registry.model import Registry
from perdure.node.registry.store import KEY as REGISTRY_KEY
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.timers import Outgoing
from perdure.storage.wal import Wal, WalIdentity
from perdure.storage.wal_recovery import open_wal

log = logger("node")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterPorts:
    """The way to the other nodes, and what holds this one together. ``listen`` opens the transport
    once everything that others may ask for is served. ``trim``: when the log is let go of;
    ``archived``: what snapshots have of a partition; ``archive``: where tables can be had;
    ``taker``: takes this node's part in snapshots, where there is a destination."""

    joined: Joined
    registers: Registers
    transport: Transport
    listen: Callable[[], Awaitable[object]]
    supervisor: Supervisor
    trim: TrimPolicy = WITHOUT_SNAPSHOTS
    archived: Callable[[int], int | None] = lambda _partition: None
    archive: Archive | None = None
    taker: Taker | None = None


class ClusterHost:
    """Open it once; then ``gateway`` serves until ``close``."""

    def __init__(
        self, identity: Identity, ports: HostPorts, options: HostOptions, cluster: ClusterPorts
    ) -> None:
        self.identity = identity
        self._ports = ports
        self._cluster = cluster
        self._transport = cluster.transport
        self._loop = asyncio.get_running_loop()
        routes = (self._route_message, self._route_applied)
        self._assembly = Assembly(identity, ports, options, routes, self._on_durable)
        self._stores: list[PartitionStore] = []
        self._replicas: dict[int, PartitionReplica] = {}
        self.led: list[LedPartition] = []
        self._told: dict[PartitionId, tuple[int, Writer]] = {}  # epochs and leaders, as they say
        self.figures = BootFigures(0, 0, None)
        self._wal: Wal
        self.writer: WalWriter
        self.log_server: LogServer
        self.plane: ControlPlane
        self.gateway: RoutedGateway
        self._trimmer: Trimmer
        self._desk: CutDesk | None = None
        self._links: ReplicaLinks

    # --- Opening --------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open tables and log, let the others in, and take part: follow, lead, nominate.

        Raises:
            PerdureError: the data directory can't be served, or metadata can't be reached.
        """
        for partition in map(PartitionId, range(self.identity.partition_count)):
            store = self._assembly.open_store(partition)
            self._stores.append(store)
            self.led.append(self._assembly.assemble(store, partition))
        replicas = self._open_log()
        LogService(self.log_server, self._transport)
        self._transport.serve(Led, self._hear_led)
        RemoteDesk(self.led, self._transport)
        TableDesk([led.processor for led in self.led], self._transport)
        cluster, ports = self._cluster, self._ports
        count = self.identity.partition_count
        if cluster.taker is not None:
            self._desk = CutDesk(self.led, self._transport, cluster.taker, count)
        control = ControlPorts(
            store=cluster.registers,
            transport=self._transport,
            clock=ports.clock,
            entropy=ports.entropy,
            supervisor=cluster.supervisor,
            open_replica=self._open_replica,
            is_disk_full=lambda: self.is_disk_full,
        )
        self.plane = ControlPlane(cluster.joined, control)
        self._links = ReplicaLinks(self._transport, ports.clock)
        self._batcher = LogBatcher(self.writer, self._links)
        self._replica_ports = ReplicaPorts(
            me=self._assembly.me,
            member=self._assembly.member,
            metadata=cluster.registers,
            transport=self._transport,
            server=self.log_server,
            replicas=replicas,
            links=self._links,
            batcher=self._batcher,
            nodeset=lambda partition: self.plane.nodeset(partition),
            replication=self._replication,
            announcement=self._assembly.announcement,
            known=lambda partition: self.plane.membership.found(partition),
            opened=self._on_opened,
            led=self._on_led,
            seat=lambda: self.plane.leaderships,
            is_short=self._is_short,
            begins=self._begins,
            archive=cluster.archive,
            holders=self._holders,
            storage=ports.storage_thread,
        )
        me = NodeId(self.identity.node_id)
        self.gateway = RoutedGateway(me, self.led, count, self, self._transport)
        self._trimmer = self._make_trimmer()
        self.plane.membership.on_partition(self._on_chain)
        await cluster.listen()
        await self.plane.start()
        cluster.supervisor.start("trim", self._trimmer.run(self._recycle))

    def _make_trimmer(self) -> Trimmer:
        cluster = self._cluster
        return Trimmer(
            TrimmerPorts(
                plane=self.plane,
                replicas=self._replicas,
                clock=self._ports.clock,
                policy=cluster.trim,
                archived=cluster.archived,
                log_bytes=lambda: self._wal.statistics().disk_bytes,
                is_disk_full=lambda: self.is_disk_full,
            )
        )

    def _open_log(self) -> ReplicaCore:
        ports = self._ports
        is_whole = self._cluster.joined.verdict is not Verdict.DATA_LOSS
        replicas = ReplicaCore(self._assembly.member, is_authoritative=is_whole)
        identity = WalIdentity(
            fingerprint=self.identity.fingerprint, storage_uuid=self.identity.storage_uuid
        )
        is_dead = held_until_trimmed(replicas)
        found = open_wal(
            ports.disk,
            identity,
            ports.entropy,
            restore_replicas(replicas),
            lambda _segment, _end: False,  # what is dead is only known when all was read
            ports.wal_sizes,
        )
        self.figures = BootFigures(found.frames, 0, found.torn_at)
        self._wal = found.wal
        self.writer = WalWriter(
            found.wal,
            ports.clock,
            ports.log_thread,
            ports.housekeeping_thread,
            ports.on_failure,
            replicas.checkpoint,
        )
        self.log_server = LogServer(replicas, self.writer)
        self._is_dead = is_dead
        return replicas

    # --- While it runs --------------------------------------------------------------------------

    def sets(self) -> ClusterSets | None:
        """What takes snapshots of all partitions; None: there is no destination."""
        if self._desk is None:
            return None
        return ClusterSets(
            ClusterSetsPorts(
                plane=self.plane,
                transport=self._transport,
                desk=self._desk,
                leader_of=self.leader_of,
                registry=self._read_registry,
                entropy=self._ports.entropy,
                partition_count=self.identity.partition_count,
            )
        )

    async def _read_registry(self) -> bytes:
        found = await self._cluster.registers.get(REGISTRY_KEY)
        return found.value if found is not None else msgspec.msgpack.encode(Registry())

    @property
    def is_disk_full(self) -> bool:
        """Whether the log takes nothing new for want of room, or tables can't be written."""
        return self.writer.is_full or any(led.processor.is_unwritable for led in self.led)

    def statistics(self) -> HostStatistics:
        """Only after ``open``."""
        return HostStatistics(
            self._wal.statistics(),
            self.writer.statistics(),
            self.figures,
            tuple(map(partition_statistics, self.led)),
            is_alone=False,
            trims=self._trimmer.statistics(),
            commits=self._batcher.commits.figures(),
        )

    def leader_of(self, partition: PartitionId) -> NodeId | None:
        """Who leads, as far as registers and gossip tell this node."""
        meta = self.plane.membership.partitions.get(partition)
        opened = chain.open_segment(meta) if meta is not None else None
        told = self._told.get(partition)
        if told is not None and (opened is None or told[0] > opened.epoch):
            writer = told[1]  # it was faster than the register's news
        elif opened is not None:
            writer = opened.writer
        else:
            return None
        return None if self.plane.detector.is_gone(writer) else writer.node

    def waiting(self) -> dict[int, Wait]:
        """What take-overs of partitions here can't go on without."""
        return {
            partition: replica.waiting
            for partition, replica in self._replicas.items()
            if replica.waiting is not None
        }

    def on_catalogue_change(self) -> None:
        """The registry changed: what failed for want of a deployment may work now."""
        for led in self.led:
            led.leader.invoker.on_catalogue_change()

    def _on_chain(self, partition: int, meta: PartitionMeta) -> None:
        """What a chain no longer lists is dropped here, whether we follow the partition or not."""
        version = self.plane.membership.version_of(partition)
        self.log_server.on_chain(partition, meta, version)

    def _on_opened(self, partition: int, taken: Takeover) -> None:
        found = Versioned(taken.version, msgspec.msgpack.encode(taken.meta))
        self.plane.membership.note_partition(partition, found)

    def _on_led(self, partition: int, epoch: int) -> None:
        """This node leads from now on: nobody is to find out by asking around."""
        self._note_led(partition, epoch, self._assembly.me)
        for node in self.plane.membership.members():
            if node != self.identity.node_id:
                self._transport.send(node, Led(partition, epoch))

    def _hear_led(self, peer: Peer, message: Led, _: Answer) -> None:
        self._note_led(message.partition, message.epoch, peer.writer)

    def _note_led(self, partition: int, epoch: int, writer: Writer) -> None:
        if epoch > self._told.get(PartitionId(partition), (0, writer))[0]:
            self._told[PartitionId(partition)] = epoch, writer
            self.gateway.on_led(PartitionId(partition))

    def _replication(self) -> int:
        cluster = self.plane.membership.cluster
        assert cluster is not None  # read before anything is led
        return cluster.replication

    def _is_short(self, partition: int) -> bool:
        """Whether fewer disks of the open segment's nodeset are left than it has copies.

        A disk that was given up never counts again: to wait for it would be to wait forever.
        """
        membership = self.plane.membership
        opened = chain.open_segment(membership.partitions[partition])
        if opened is None:
            return False
        nodes = membership.nodes
        left = [m for m in opened.nodeset if m.node in nodes and nodes[m.node].member(m.node) == m]
        return len(left) < opened.replication

    def _begins(self, partition: int) -> int:
        """Where the partition's log begins, as far as its chain tells; it may begin later."""
        meta = self.plane.membership.partitions[partition]
        return meta.chain[0].base_lsn if meta.chain else meta.trim_lsn

    def _holders(self, partition: int) -> list[NodeId]:
        """Other nodes that have the partition's tables; who leads comes first."""
        leader = self.leader_of(PartitionId(partition))
        replicas = self.plane.membership.partitions[partition].replicas.current
        others = [node for node in replicas if node != self.identity.node_id]
        return sorted(others, key=lambda node: node != leader)

    def _open_replica(self, partition: int) -> Replica:
        """Also once more: it knows in what state its tables were left."""
        replica = self._replicas.get(partition)
        if replica is None:
            replica = PartitionReplica(self.led[partition], self._replica_ports)
            self._replicas[partition] = replica
        return replica

    def _route_message(
        self, source: PartitionId, target: int, sequence: int, message: Outgoing
    ) -> None:
        led = self.led[target]
        if led.leader.is_leading:
            led.leader.receive(source, sequence, message)
            return
        node = self.leader_of(PartitionId(target))
        if node is None or node == self.identity.node_id:
            raise PartitionUnavailable(f"partition {target} has no leader now")
        delivery = Deliver(source, target, sequence, message.partition_key, message.payload)
        if not self._transport.send(node, delivery):
            raise Unreachable(f"there is no session to node {node}")

    def _route_applied(self, target: PartitionId, source: int, sequence: int) -> None:
        led = self.led[source]
        if led.leader.is_leading:
            led.leader.shuffle.applied(target, sequence)
            return
        node = self.leader_of(PartitionId(source))
        if node is not None and node != self.identity.node_id:
            # If it gets lost, the message comes again and is acknowledged again.
            self._transport.send(node, Delivered(source, target, sequence))

    def _on_durable(self, partition: PartitionId, lsn: int) -> None:
        """Others hear of it by gossip; the leader then lets the log go."""

    def _recycle(self) -> None:
        if self._wal.statistics().files > 1:
            self.writer.recycle(self._is_dead)

    # --- Closing --------------------------------------------------------------------------------

    async def close(self) -> None:
        """Hand over what is led here, flush what is applied, close log and tables."""
        await self.plane.stop(2 * HAND_OVER_MS / 1000)
        for replica in self._replicas.values():
            replica.close()
        await self.gateway.aclose()
        await asyncio.gather(*(flush_at_end(led.processor) for led in self.led))
        self._let_go()

    async def abandon(self) -> None:
        """Let go of everything at once; the log keeps what tables don't have."""
        self._cease()
        await self.plane.abandon()
        await self.gateway.aclose()
        self._let_go()

    def _cease(self) -> None:
        """From here on nothing is written, read for others, or led."""
        if self._desk is not None:
            self._desk.close()
        for replica in self._replicas.values():
            replica.close()
        for led in self.led:
            led.leader.resign()
            led.processor.close()
        self._links.close()
        self.writer.close()

    def _let_go(self) -> None:
        self._cease()
        ports = self._ports
        for thread in (ports.log_thread, ports.housekeeping_thread, ports.storage_thread):
            thread.close()
        self._wal.close()
        for store in self._stores:
            store.close()


def identity_of(joined: Joined) -> Identity:
    """This process, as its cluster knows it."""
    cluster, value = joined.cluster, joined.value
    return Identity(
        cluster=cluster.name,
        fingerprint=bytes.fromhex(cluster.fingerprint),
        node=value.name,
        node_id=joined.node,
        storage_uuid=bytes.fromhex(value.storage_uuid),
        generation=value.generation,
        incarnation=value.incarnation,
        partition_count=cluster.partition_count,
    )
