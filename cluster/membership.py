"""Who belongs to the cluster: joining it at a start, and following and changing its registers."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from perdure.cluster.core import membership
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.identity import Verdict
from perdure.cluster.core.membership import (
    CLUSTER_FORMAT_VERSION,
    CLUSTER_KEY,
    NODES_PREFIX,
    ClusterMeta,
    Mark,
    NodeMeta,
    NodeProfile,
    StartPlan,
    node_key,
)
from perdure.cluster.core.messages import Peer, Request
from perdure.cluster.core.types import NodeId
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.registers import RegisterCache, Registers, edit_register
from perdure.cluster.transport import Directory, Place, Transport
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    DataDirectoryForeign,
    DataDirectoryTooNew,
    MembershipRefused,
    MetadataConflict,
    PerdureError,
)
from perdure.core.limits import JOIN_PAUSE_MS, REGISTER_EDIT_ROUNDS_MAX
from perdure.core.telemetry import logger
from perdure.storage.data_directory import (
    DIRECTORY_FORMAT_VERSION,
    Marker,
    check_owner,
    read_marker,
    write_marker,
)
from perdure.storage.disk import Disk

log = logger("membership")

PARTITIONS_PREFIX = "p/"

_PROBE_S = 2.0

IsRunning = Callable[[NodeId, NodeMeta], Awaitable[bool]]
"""Whether the process that a register names answers at its address."""


class Probe(Request[Peer], frozen=True, tag=0x0205):
    """Who are you? Open to guests: processes that are about to join."""


def probing(guest: Transport) -> IsRunning:
    """Ask for it over a transport that is a guest so far."""

    async def is_running(node: NodeId, known: NodeMeta) -> bool:
        try:
            found = await guest.ask_at(known.addresses.fabric, Probe(), _PROBE_S)
        except PerdureError:
            return False
        return found.writer == known.writer(node)

    return is_running


@dataclass(frozen=True, slots=True)
class Joined:
    """This process is published. With ``DATA_LOSS`` it may serve all but its log."""

    cluster: ClusterMeta
    node: NodeId
    value: NodeMeta
    verdict: Verdict

    def peer(self) -> Peer:
        """Who this process is to others."""
        return Peer(
            self.node,
            self.value.generation,
            self.value.incarnation,
            bytes.fromhex(self.value.storage_uuid),
        )


async def provision(store: Registers, wanted: ClusterMeta) -> ClusterMeta:
    """Make the cluster; when somebody else has made it, theirs stands."""
    made = await edit_register(
        store, CLUSTER_KEY, ClusterMeta, lambda known: wanted if known is None else None
    )
    assert made is not None
    return made.value


async def read_cluster(store: Registers) -> ClusterMeta | None:
    """The cluster's register; None before it is provisioned.

    Raises:
        DataDirectoryTooNew: a later release made it.
    """
    found = await store.get(CLUSTER_KEY)
    if found is None:
        return None
    cluster = msgspec.msgpack.decode(found.value, type=ClusterMeta)
    if cluster.format > CLUSTER_FORMAT_VERSION:
        raise DataDirectoryTooNew(
            f"the cluster has format {cluster.format}, this release reads up to "
            f"{CLUSTER_FORMAT_VERSION}: start the release that wrote it, or a later one"
        )
    return cluster


async def join(
    store: Registers,
    disk: Disk,
    cluster_name: str,
    profile: NodeProfile,
    is_running: IsRunning,
    entropy: Entropy,
) -> Joined:
    """Take the next generation of this node: marker first, then the register.

    The data directory is locked. ``is_running`` is asked before an empty disk takes a known name.

    Raises:
        MembershipRefused: the cluster is not there, or has another node of this name.
        DataDirectoryForeign, DataDirectoryDamaged, DataDirectoryTooNew: it is not ours to serve.
        MetadataRegressed: metadata has forgotten a start of this node.
        MetadataConflict: others joined faster each time.
    """
    marker = read_marker(disk)
    if marker is not None:
        check_owner(marker, cluster_name, profile.name)
    cluster = await _find_cluster(store, cluster_name, marker)
    mark = None
    if marker is not None:
        mark = Mark(NodeId(marker.node_id), marker.generation, marker.storage_uuid)
    for lost in range(REGISTER_EDIT_ROUNDS_MAX):
        nodes = decode_nodes(await store.scan(NODES_PREFIX))
        plan = membership.plan_start(nodes, mark, profile)
        if mark is None and not plan.is_new:
            await _refuse_twin(plan, nodes[plan.node], is_running)
        write_marker(disk, _marker(cluster, plan))
        published = await _publish(store, plan, nodes.get(plan.node))
        if published is not None:
            _log_joined(plan)
            return Joined(cluster, plan.node, published, plan.verdict)
        # A marker that was not published is as the one before: its generation names no run.
        await asyncio.sleep(entropy.jitter(JOIN_PAUSE_MS << min(lost, 5)) / 1000)
    raise MetadataConflict(f"the registers of nodes kept changing while {profile.name!r} joined")


async def _find_cluster(store: Registers, name: str, marker: Marker | None) -> ClusterMeta:
    cluster = await read_cluster(store)
    if cluster is None:
        raise MembershipRefused(
            f"there is no cluster {name!r} in this metadata yet: provision it first"
        )
    if cluster.name != name:
        raise MembershipRefused(
            f"this metadata is of cluster {cluster.name!r}, not {name!r}: check cluster-name and "
            "the metadata addresses"
        )
    if marker is not None and marker.fingerprint != cluster.fingerprint:
        raise DataDirectoryForeign(
            f"the data directory belongs to cluster {marker.fingerprint}, this metadata to "
            f"{cluster.fingerprint}: choose another --base-dir, or other metadata addresses"
        )
    return cluster


async def _refuse_twin(plan: StartPlan, known: NodeMeta, is_running: IsRunning) -> None:
    """An empty disk under a known name: only when the process that had the name is not there."""
    if await is_running(plan.node, known):
        raise MembershipRefused(
            f"node {plan.node} runs as {known.name!r} already, at {known.addresses.fabric}: "
            "choose another --node-name"
        )


def _marker(cluster: ClusterMeta, plan: StartPlan) -> Marker:
    return Marker(
        format=DIRECTORY_FORMAT_VERSION,
        cluster=cluster.name,
        fingerprint=cluster.fingerprint,
        node_id=plan.node,
        node=plan.value.name,
        storage_uuid=plan.value.storage_uuid,
        generation=plan.value.generation,
    )


async def _publish(store: Registers, plan: StartPlan, seen: NodeMeta | None) -> NodeMeta | None:
    """Publish our run, unless the register is no longer what the plan was made for."""
    edited = await edit_register(
        store,
        node_key(plan.node),
        NodeMeta,
        lambda known: plan.value if known == seen else None,
    )
    if edited is None or not membership.is_published(edited.value, plan):
        return None
    return edited.value


def _log_joined(plan: StartPlan) -> None:
    if plan.verdict is Verdict.DATA_LOSS:
        log.error(
            "membership.storage.lost",
            node=plan.node,
            generation=plan.value.generation,
            lost=list(plan.value.lost_uuids),
        )
    else:
        log.info(
            "membership.joined",
            node=plan.node,
            name=plan.value.name,
            generation=plan.value.generation,
            storage=plan.value.storage.value,
        )


def decode_nodes(found: dict[str, Versioned]) -> dict[NodeId, NodeMeta]:
    """Registers below ``nodes/``."""
    return {
        NodeId(int(key.removeprefix(NODES_PREFIX))): msgspec.msgpack.decode(
            value.value, type=NodeMeta
        )
        for key, value in sorted(found.items())
    }


class Membership:
    """The cluster's registers as this node last saw them, decoded; and the way to change them."""

    def __init__(self, store: Registers, me: Peer, entropy: Entropy) -> None:
        self.me = me
        self.cluster: ClusterMeta | None = None
        self.nodes: dict[NodeId, NodeMeta] = {}
        self.partitions: dict[int, PartitionMeta] = {}
        self._cache = RegisterCache(store, (CLUSTER_KEY, NODES_PREFIX, PARTITIONS_PREFIX), entropy)
        self._cache.on_change(self._note)
        self._on_nodes: list[Callable[[], None]] = []
        self._on_partition: list[Callable[[int, PartitionMeta], None]] = []

    def on_nodes(self, callback: Callable[[], None]) -> None:
        """Be told when a node's register has changed."""
        self._on_nodes.append(callback)

    def on_partition(self, callback: Callable[[int, PartitionMeta], None]) -> None:
        """Be told each new value of a partition's register."""
        self._on_partition.append(callback)

    def members(self) -> list[NodeId]:
        """Nodes that were not removed."""
        return [node for node, value in sorted(self.nodes.items()) if not value.is_removed]

    def directory(self) -> Directory:
        """Where the others are, for the transport."""
        return {
            node: Place(
                address=value.addresses.fabric,
                identity=Peer(
                    node,
                    value.generation,
                    value.incarnation,
                    bytes.fromhex(value.storage_uuid),
                ),
            )
            for node, value in self.nodes.items()
            if not value.is_removed and value.addresses.fabric
        }

    async def refresh(self) -> None:
        """Read everything; once before anything is served, then ``run`` keeps it up.

        Raises: as ``RegisterCache.refresh``.
        """
        await self._cache.refresh()

    async def run(self) -> None:
        """Follow the registers, until cancelled."""
        await self._cache.run()

    @property
    def store(self) -> Registers:
        """Where they are kept."""
        return self._cache.store

    def look_again(self) -> None:
        """Somebody knows more than we do: read the nodes' registers soon."""
        self._cache.hint(node_key(membership.next_id(self.nodes)))
        for node in self.nodes:
            self._cache.hint(node_key(node))

    def look_at(self, partition: int) -> None:
        """The partition's register may have changed: read it soon."""
        self._cache.hint(f"{PARTITIONS_PREFIX}{partition}")

    def note_partition(self, partition: int, found: Versioned) -> None:
        """This process has read or written the partition's register itself."""
        self._cache.note(f"{PARTITIONS_PREFIX}{partition}", found)

    def found(self, partition: int) -> Versioned | None:
        """The partition's register as it was seen last; it may have changed since."""
        return self._cache.get(f"{PARTITIONS_PREFIX}{partition}")

    def version_of(self, partition: int) -> int:
        """The version of the partition's register as it was seen last; 0: never."""
        found = self._cache.get(f"{PARTITIONS_PREFIX}{partition}")
        return found.version if found is not None else 0

    async def edit_node(
        self, node: NodeId, change: Callable[[NodeMeta], NodeMeta | None]
    ) -> NodeMeta:
        """Change a node's register with one of the edits of ``core.membership``.

        Raises:
            MembershipRefused: the edit is not allowed, or there is no such node.
            MetadataConflict, MetadataUnavailable: as ``edit_register``.
        """
        edited = await edit_register(
            self._cache.store,
            node_key(node),
            NodeMeta,
            lambda known: change(known) if known is not None else None,
        )
        if edited is None:
            raise MembershipRefused(f"there is no node {node}")
        found = Versioned(edited.version, msgspec.msgpack.encode(edited.value))
        self._cache.note(node_key(node), found)
        return edited.value

    async def edit_partition(
        self, partition: int, change: Callable[[PartitionMeta | None], PartitionMeta | None]
    ) -> PartitionMeta | None:
        """Change a partition's register; what it holds afterwards.

        Raises:
            MetadataConflict, MetadataUnavailable: as ``edit_register``.
        """
        key = f"{PARTITIONS_PREFIX}{partition}"
        edited = await edit_register(self._cache.store, key, PartitionMeta, change)
        if edited is None:
            return None
        self._cache.note(key, Versioned(edited.version, msgspec.msgpack.encode(edited.value)))
        return edited.value

    def _note(self, key: str, found: Versioned) -> None:
        if key == CLUSTER_KEY:
            self.cluster = msgspec.msgpack.decode(found.value, type=ClusterMeta)
        elif key.startswith(NODES_PREFIX):
            node = NodeId(int(key.removeprefix(NODES_PREFIX)))
            self.nodes[node] = msgspec.msgpack.decode(found.value, type=NodeMeta)
            for callback in self._on_nodes:
                callback()
        else:
            partition = int(key.removeprefix(PARTITIONS_PREFIX))
            meta = msgspec.msgpack.decode(found.value, type=PartitionMeta)
            self.partitions[partition] = meta
            for tell in self._on_partition:
                tell(partition, meta)
