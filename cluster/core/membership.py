"""The registers ``cluster`` and ``nodes/<id>``: who belongs, which changes are allowed. Pure edits.

Ids are dense from 1 and never used twice: a removed node leaves a tombstone, so whoever reads
``nodes/1``, ``nodes/2``, … up to the first that is absent has seen all. A node's run is published
by compare-and-set after its marker was written (``plan_start``; invariants I-19, I-21).
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from enum import StrEnum

import msgspec

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.identity import Published, Verdict, judge
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.errors import DataDirectoryForeign, MembershipRefused, MetadataRegressed

CLUSTER_KEY = "cluster"
CLUSTER_FORMAT_VERSION = 1
NODES_PREFIX = "nodes/"


class NodeRole(StrEnum):
    """What a node offers to run."""

    WORKER = "worker"
    LOG_SERVER = "log_server"
    METADATA = "metadata"
    ADMIN = "admin"
    INGRESS = "ingress"


class StorageState(StrEnum):
    """What a node's log counts for. Only read-write and read-only answers are authoritative."""

    PROVISIONING = "provisioning"
    READ_WRITE = "read_write"
    READ_ONLY = "read_only"
    DATA_LOSS = "data_loss"
    DISABLED = "disabled"


class WorkerState(StrEnum):
    """Whether partitions may be given to a node."""

    ACTIVE = "active"
    DRAINING = "draining"
    DISABLED = "disabled"


class MemberState(StrEnum):
    """A node's part in the metadata quorum."""

    STANDBY = "standby"
    VOTER = "voter"


_STORAGE_STEPS = {
    StorageState.PROVISIONING: (StorageState.READ_WRITE, StorageState.DISABLED),
    StorageState.READ_WRITE: (StorageState.READ_ONLY, StorageState.DATA_LOSS),
    StorageState.READ_ONLY: (
        StorageState.READ_WRITE,
        StorageState.DATA_LOSS,
        StorageState.DISABLED,
    ),
    StorageState.DATA_LOSS: (StorageState.PROVISIONING, StorageState.DISABLED),
    StorageState.DISABLED: (StorageState.PROVISIONING,),
}
_WORKER_STEPS = {
    WorkerState.ACTIVE: (WorkerState.DRAINING,),
    WorkerState.DRAINING: (WorkerState.ACTIVE, WorkerState.DISABLED),
    WorkerState.DISABLED: (WorkerState.ACTIVE,),
}


class ClusterMeta(msgspec.Struct, frozen=True):
    """Value of the register ``cluster``: fixed when the cluster is provisioned, but for defaults.

    ``replication``: copies that commit a record; ``partition_replicas``: nodes that hold tables.
    """

    format: int
    name: str
    fingerprint: str
    partition_count: int
    replication: int = 1
    partition_replicas: int = 1


class Addresses(msgspec.Struct, frozen=True):
    """Where a node is found, as ``host:port`` (fabric) and URLs."""

    fabric: str = ""
    ingress: str = ""
    admin: str = ""


class NodeMeta(msgspec.Struct, frozen=True):
    """Value of a register ``nodes/<id>``. ``lost_uuids``: disks that never count again.

    A value without the later fields was written by a single node.
    """

    name: str
    generation: int
    incarnation: int
    storage_uuid: str
    addresses: Addresses = Addresses()
    zone: str = ""
    roles: tuple[NodeRole, ...] = tuple(NodeRole)
    storage: StorageState = StorageState.READ_WRITE
    worker: WorkerState = WorkerState.ACTIVE
    metadata: MemberState = MemberState.STANDBY
    software: str = ""
    lost_uuids: tuple[str, ...] = ()
    is_removed: bool = False

    def writer(self, node: NodeId) -> Writer:
        """The run that was published last."""
        return Writer(node, self.generation, self.incarnation)

    def member(self, node: NodeId) -> Member:
        """The node with its present disk."""
        return Member(node, bytes.fromhex(self.storage_uuid))

    @property
    def may_store(self) -> bool:
        """Whether new segments may name it."""
        return (
            not self.is_removed
            and NodeRole.LOG_SERVER in self.roles
            and self.storage is StorageState.READ_WRITE
        )

    @property
    def may_work(self) -> bool:
        """Whether it may be given partitions."""
        return (
            not self.is_removed
            and NodeRole.WORKER in self.roles
            and self.worker is WorkerState.ACTIVE
        )


Nodes = Mapping[NodeId, NodeMeta]
Partitions = Mapping[int, PartitionMeta]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeProfile:
    """What a starting process says of itself. ``fresh_uuid`` becomes that of an empty disk;
    ``metadata``: whether it runs a member of the metadata quorum."""

    name: str
    addresses: Addresses
    zone: str
    roles: tuple[NodeRole, ...]
    software: str
    incarnation: int
    fresh_uuid: str
    metadata: MemberState = MemberState.STANDBY


@dataclass(frozen=True, slots=True)
class Mark:
    """What the marker on the disk says."""

    node: NodeId
    generation: int
    storage_uuid: str


@dataclass(frozen=True, slots=True)
class StartPlan:
    """Write a marker of ``node`` and ``value`` (generation, uuid) first, then publish ``value``.

    ``is_new``: the register must be absent.
    """

    node: NodeId
    value: NodeMeta
    is_new: bool
    verdict: Verdict


def node_key(node: NodeId) -> str:
    """Metadata key of a node's register."""
    return f"{NODES_PREFIX}{node}"


def next_id(nodes: Nodes) -> NodeId:
    """The id of the next node that joins."""
    return NodeId(max(nodes, default=0) + 1)


def find(nodes: Nodes, name: str) -> NodeId | None:
    """The node of this name, unless it was removed."""
    for node, value in nodes.items():
        if value.name == name and not value.is_removed:
            return node
    return None


# --- Starting -----------------------------------------------------------------------------------


def plan_start(nodes: Nodes, mark: Mark | None, profile: NodeProfile) -> StartPlan:
    """What a process has to write and publish before it may serve.

    ``mark`` is None in a directory that was never used.

    Raises:
        DataDirectoryForeign: the directory belongs to another node, or to one that was removed.
        MetadataRegressed: metadata has forgotten a start of this node.
    """
    if mark is not None and _was_never_published(nodes, mark):
        return _plan_join(nodes, profile, mark.storage_uuid)
    if mark is None:
        node = find(nodes, profile.name)
        if node is None:
            return _plan_join(nodes, profile, profile.fresh_uuid)
        return _plan_empty(node, nodes[node], profile)
    known = nodes.get(mark.node)
    if known is None:
        raise MetadataRegressed(
            f"the data directory has run as node {mark.node}, generation {mark.generation}; "
            "metadata knows no such node: restore metadata from its newest copy"
        )
    if known.is_removed or known.name != profile.name:
        was = "was removed from the cluster" if known.is_removed else f"is named {known.name!r}"
        raise DataDirectoryForeign(
            f"the data directory is that of node {mark.node}, which {was}; this process is "
            f"{profile.name!r}: choose another --base-dir, or wipe it to join as a new node"
        )
    published = Published(generation=known.generation, was_writable=True)
    verdict = judge(mark.generation, published)
    if verdict is Verdict.METADATA_REGRESSED:
        raise MetadataRegressed(
            f"the data directory has run as generation {mark.generation}, metadata knows "
            f"{known.generation}: restore metadata from its newest copy"
        )
    is_other_disk = mark.storage_uuid != known.storage_uuid or mark.storage_uuid in known.lost_uuids
    if verdict is Verdict.DATA_LOSS or is_other_disk:
        value = _lose(_run(known, profile, mark.storage_uuid), known.storage_uuid)
        value = _lose(value, mark.storage_uuid)
        return StartPlan(mark.node, value, False, Verdict.DATA_LOSS)
    return StartPlan(mark.node, _run(known, profile, mark.storage_uuid), False, Verdict.START)


def is_published(found: NodeMeta, plan: StartPlan) -> bool:
    """Whether the register shows that the plan was carried out, by us."""
    return (found.generation, found.incarnation) == (
        plan.value.generation,
        plan.value.incarnation,
    )


def _was_never_published(nodes: Nodes, mark: Mark) -> bool:
    """The first start died between marker and register; somebody else may have the id by now."""
    known = nodes.get(mark.node)
    return mark.generation == 1 and (known is None or known.storage_uuid != mark.storage_uuid)


def _plan_join(nodes: Nodes, profile: NodeProfile, storage_uuid: str) -> StartPlan:
    if (holder := find(nodes, profile.name)) is not None:
        raise MembershipRefused(
            f"the name {profile.name!r} belongs to node {holder} already: choose another one"
        )
    value = NodeMeta(
        name=profile.name,
        generation=1,
        incarnation=profile.incarnation,
        storage_uuid=storage_uuid,
        addresses=profile.addresses,
        zone=profile.zone,
        roles=profile.roles,
        storage=StorageState.PROVISIONING,
        metadata=profile.metadata,
        software=profile.software,
    )
    return StartPlan(next_id(nodes), value, True, Verdict.JOIN)


def _plan_empty(node: NodeId, known: NodeMeta, profile: NodeProfile) -> StartPlan:
    """An empty disk under a known name: the one before is gone, and counted for nothing or much.

    Once it is known to be lost, the new one is what is asked for: it takes its place at once.
    """
    started = _run(known, profile, profile.fresh_uuid)
    was_writable = known.storage in (StorageState.READ_WRITE, StorageState.READ_ONLY)
    verdict = judge(None, Published(generation=known.generation, was_writable=was_writable))
    if verdict is Verdict.DATA_LOSS:
        started = _lose(started, known.storage_uuid)
    elif known.storage is StorageState.DATA_LOSS:
        started = _lose(started, known.storage_uuid)
        started = _to_storage(started, StorageState.PROVISIONING)
    return StartPlan(node, started, False, verdict)


def _run(known: NodeMeta, profile: NodeProfile, storage_uuid: str) -> NodeMeta:
    return msgspec.structs.replace(
        known,
        generation=known.generation + 1,
        incarnation=profile.incarnation,
        storage_uuid=storage_uuid,
        addresses=profile.addresses,
        zone=profile.zone,
        roles=profile.roles,
        metadata=profile.metadata,
        software=profile.software,
    )


def _lose(value: NodeMeta, storage_uuid: str) -> NodeMeta:
    lost = tuple(sorted({*value.lost_uuids, storage_uuid}))
    return msgspec.structs.replace(value, storage=StorageState.DATA_LOSS, lost_uuids=lost)


# --- Changing -----------------------------------------------------------------------------------


def serve_storage(node: NodeMeta) -> NodeMeta:
    """The log is there and the marker names its disk: new segments may use it."""
    if node.storage_uuid in node.lost_uuids:
        raise MembershipRefused(
            f"node {node.name!r} has the disk {node.storage_uuid} that was given up as lost: stop "
            "it, wipe its data directory and start it again"
        )
    return _to_storage(node, StorageState.READ_WRITE)


def resume(node: NodeMeta) -> NodeMeta:
    """Let a node whose disk was lost, or that was disabled, offer storage again."""
    return _to_storage(node, StorageState.PROVISIONING)


def mark_lost(node: NodeMeta) -> NodeMeta:
    """An operator says that the disk will not come back."""
    _to_storage(node, StorageState.DATA_LOSS)
    return _lose(node, node.storage_uuid)


def drain(nodes: Nodes, node: NodeId, replication: int) -> NodeMeta:
    """Begin to move everything off a node.

    Raises:
        MembershipRefused: it can't be drained, or the rest could not keep ``replication`` copies.
    """
    value = _existing(nodes, node)
    if not any(its.may_work for other, its in nodes.items() if other != node):
        raise MembershipRefused(f"node {value.name!r} is the only one that takes partitions")
    left = sum(
        other != node and its.may_store and its.worker is WorkerState.ACTIVE  # it stays
        for other, its in nodes.items()
    )
    if value.may_store and left < replication:
        raise MembershipRefused(
            f"without node {value.name!r} there are {left} nodes with writable storage, and each "
            f"record is stored {replication} times: add a node first"
        )
    return _to_worker(value, WorkerState.DRAINING)


def undrain(node: NodeMeta) -> NodeMeta:
    """Give work to a node again that was being drained."""
    if node.storage is StorageState.READ_ONLY:
        node = _to_storage(node, StorageState.READ_WRITE)
    return _to_worker(node, WorkerState.ACTIVE)


def advance_drain(nodes: Nodes, node: NodeId, partitions: Partitions) -> NodeMeta | None:
    """The next step of a drain that has become possible; None: wait, or nothing to do.

    Partitions go first, then storage takes no more, then, when no chain names it, it is off.
    """
    value = nodes[node]
    if value.is_removed or value.worker is WorkerState.ACTIVE:
        return None
    if value.worker is WorkerState.DRAINING:
        if _worker_holds(node, partitions):
            return None
        return _to_worker(value, WorkerState.DISABLED)
    if value.storage is StorageState.READ_WRITE:
        return _to_storage(value, StorageState.READ_ONLY)
    can_end = StorageState.DISABLED in _STORAGE_STEPS[value.storage]
    if can_end and not _log_holds(node, partitions):
        return _to_storage(value, StorageState.DISABLED)
    return None


def holds(nodes: Nodes, node: NodeId, partitions: Partitions) -> list[str]:
    """All that keeps a node from being removed, for people to read; empty: nothing."""
    value = _existing(nodes, node)
    found: list[str] = []
    if value.worker is not WorkerState.DISABLED:
        found.append(f"it takes part in the work (worker state {value.worker.value}): drain it")
    found.extend(_worker_holds(node, partitions))
    if value.storage is not StorageState.DISABLED:
        found.append(f"its storage is {value.storage.value}, not disabled")
    found.extend(_log_holds(node, partitions))
    if value.metadata is not MemberState.STANDBY:
        found.append("it holds metadata: name others with `perdure cluster voters`")
    return found


def remove(nodes: Nodes, node: NodeId, partitions: Partitions) -> NodeMeta:
    """Leave a tombstone.

    Raises:
        MembershipRefused: something holds it still.
    """
    value = _existing(nodes, node)
    if found := holds(nodes, node, partitions):
        raise MembershipRefused(f"node {value.name!r} can't be removed: {'; '.join(found)}")
    return msgspec.structs.replace(value, is_removed=True)


def _existing(nodes: Nodes, node: NodeId) -> NodeMeta:
    value = nodes.get(node)
    if value is None or value.is_removed:
        raise MembershipRefused(f"there is no node {node}")
    return value


def _to_storage(node: NodeMeta, state: StorageState) -> NodeMeta:
    _check_step(node, "storage", state, _STORAGE_STEPS[node.storage], node.storage)
    return msgspec.structs.replace(node, storage=state)


def _to_worker(node: NodeMeta, state: WorkerState) -> NodeMeta:
    _check_step(node, "worker", state, _WORKER_STEPS[node.worker], node.worker)
    return msgspec.structs.replace(node, worker=state)


def _check_step(
    node: NodeMeta, what: str, wanted: StrEnum, allowed: Collection[StrEnum], present: StrEnum
) -> None:
    if node.is_removed:
        raise MembershipRefused(f"node {node.name!r} was removed")
    if wanted not in allowed:
        ways = " or ".join(state.value for state in allowed)
        raise MembershipRefused(
            f"{what} state of node {node.name!r} is {present.value} and may become {ways}, "
            f"not {wanted.value}"
        )


def _worker_holds(node: NodeId, partitions: Partitions) -> list[str]:
    found: list[str] = []
    for partition, meta in sorted(partitions.items()):
        if node in meta.replicas.named:
            found.append(f"it holds tables of partition {partition}")
        if meta.chain and meta.chain[-1].writer.node == node and meta.chain[-1].tail_lsn is None:
            found.append(f"it leads partition {partition}")
    return found


def _log_holds(node: NodeId, partitions: Partitions) -> list[str]:
    return [
        f"segment {segment.index} of partition {partition} names its log"
        for partition, meta in sorted(partitions.items())
        for segment in meta.chain
        if any(member.node == node for member in segment.nodeset)
    ]
