"""Puts the parts of a partition together: tables, processor, leader, invoker, announcement."""

from collections.abc import Callable
from functools import partial

from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.errors import (
    DataDirectoryForeign,
    DataDirectoryTooNew,
    DataDirectoryTooOld,
    PerdureError,
)
from perdure.core.ids import PartitionId
from perdure.core.limits import FRAME_BYTES_MAX, MESSAGE_BYTES_MAX
from perdure.engine.commands import Announce
from perdure.node.identity import Identity
from perdure.node.invoker.gate import Gates
from perdure.node.invoker.invoker import Invoker
from perdure.node.invoker.ports import RunPorts
from perdure.node.invoker.validation import CatalogueResolver
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.leader import Leader
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.partition.processor import Processor
from perdure.node.partition.table_copy import drop_partial
from perdure.storage.partition_store import STORE_FORMAT_VERSION, PartitionStore
from perdure.storage.tables.timers import Outgoing

RouteMessage = Callable[[PartitionId, int, int, Outgoing], None]
RouteApplied = Callable[[PartitionId, int, int], None]


class Assembly:
    """Everything about a partition that its node decides, in one place.

    ``route_message`` and ``route_applied`` carry outboxes: see ``Leader``. ``on_durable`` is told
    how far a partition's tables are on the disk.
    """

    def __init__(
        self,
        identity: Identity,
        ports: HostPorts,
        options: HostOptions,
        routes: tuple[RouteMessage, RouteApplied],
        on_durable: Callable[[PartitionId, int], None],
    ) -> None:
        self._identity = identity
        self._ports = ports
        self._options = options
        self._routes = routes
        self._on_durable = on_durable
        self._gates = Gates()
        self.me = Writer(NodeId(identity.node_id), identity.generation, identity.incarnation)
        self.member = Member(NodeId(identity.node_id), identity.storage_uuid)

    def open_store(self, partition: PartitionId) -> PartitionStore:
        """The partition's tables, if they are ours to use.

        Raises:
            DataDirectoryTooNew, DataDirectoryTooOld, DataDirectoryForeign: they are not.
        """
        fingerprint = self._identity.fingerprint
        env = self._ports.open_env(partition)
        drop_partial(env)
        store = PartitionStore(env, fingerprint, partition)
        obstacle = _obstacle(store, partition, fingerprint)
        if obstacle is not None:
            store.close()
            raise obstacle
        return store

    def assemble(self, store: PartitionStore, partition: PartitionId) -> LedPartition:
        """Processor and leader over the tables; nothing runs yet."""
        ports = self._ports
        processor = Processor(
            partition,
            self._identity.partition_count,
            store,
            ports.storage_thread,
            self._on_durable,
            ports.on_failure,
        )
        leader = Leader(processor, ports.clock, *self._routes, partial(self._make_invoker, store))
        leader.tracer = ports.tracer
        return LedPartition(processor, leader)

    def announcement(self, epoch: int) -> Announce:
        """First record of a segment that this process opened."""
        identity = self._identity
        return Announce(
            epoch,
            identity.node_id,
            identity.generation,
            identity.incarnation,
            self._options.software,
        )

    def _make_invoker(self, store: PartitionStore, leader: Leader) -> Invoker:
        return Invoker(self._run_ports(leader, store), self._options.slots)

    def _run_ports(self, leader: Leader, store: PartitionStore) -> RunPorts:
        ports = self._ports
        return RunPorts(
            store=store,
            propose=leader.propose_effects,
            caller=ports.caller,
            catalogue=ports.catalogue,
            resolver=CatalogueResolver(ports.catalogue, ports.clock, ports.entropy),
            clock=ports.clock,
            entropy=ports.entropy,
            cluster_name=self._identity.cluster,
            additional_headers=self._options.additional_headers,
            frame_bytes_max=self._options.message_bytes_max + FRAME_BYTES_MAX - MESSAGE_BYTES_MAX,
            tracer=ports.tracer,
            gates=self._gates,
            fence=lambda: leader.fence,
        )


def _obstacle(
    store: PartitionStore, partition: PartitionId, fingerprint: bytes
) -> PerdureError | None:
    opened = store.opened
    if opened.format > STORE_FORMAT_VERSION:
        return DataDirectoryTooNew(
            f"the tables of partition {partition} have format {opened.format}, this release "
            f"reads up to {STORE_FORMAT_VERSION}: start the release that wrote them"
        )
    if opened.format < STORE_FORMAT_VERSION:
        return DataDirectoryTooOld(
            f"the tables of partition {partition} have format {opened.format}, this release "
            f"reads {STORE_FORMAT_VERSION}: start the release that wrote them, or an empty "
            "data directory"
        )
    if (opened.fingerprint, opened.partition) != (fingerprint, partition):
        return DataDirectoryForeign(
            f"the tables in the folder of partition {partition} are those of partition "
            f"{opened.partition} of cluster {opened.fingerprint.hex()}, this is cluster "
            f"{fingerprint.hex()}: put the right folder back"
        )
    return None
