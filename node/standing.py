"""How the cluster stands as one node sees it: its registers, gossip, and what it knows itself.

Registers may be a few seconds old, gossip a second; what is said of a node that is gone is the last
that was heard of it. For people and alarms: nothing is decided by it.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

import perdure
from perdure.cluster.control import ControlPlane
from perdure.cluster.controller import view
from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.controller import View, acting_leader, controller
from perdure.cluster.core.failure_detector import NodeState, Role
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.membership import (
    CLUSTER_FORMAT_VERSION,
    Addresses,
    ClusterMeta,
    MemberState,
    NodeMeta,
)
from perdure.cluster.core.recovery import Wait
from perdure.cluster.core.types import NodeId
from perdure.cluster.leadership import LeadershipStatistics
from perdure.cluster.transport import Refusal
from perdure.core.invariant import invariant
from perdure.node.identity import Identity
from perdure.node.log_desk import Verification
from perdure.node.partition.cluster_host import ClusterHost
from perdure.node.partition.host import Host, PartitionStatistics, partition_statistics
from perdure.node.register_desk import StoreStanding


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaStanding:
    """A node of a partition's replica set. ``role``: ``unknown`` while it has not told,
    ``gone`` with its node; then the LSNs are the last that were heard.

    ``lag_records``: what it has applied less than the leader; None without a leader.
    """

    node: NodeId
    role: str
    applied_lsn: int
    durable_lsn: int
    lag_records: int | None
    is_coming: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PartitionStanding:
    """A partition. ``epoch``: of the register. ``committed_lsn``: where this node leads.

    ``state``, ``broken_because``: what this node itself is to it, None: nothing. ``waiting``: what
    its take-over here can't go on without.
    """

    partition: int
    leader: NodeId | None
    epoch: int
    meta: PartitionMeta
    replicas: tuple[ReplicaStanding, ...]
    committed_lsn: int | None = None
    state: ReplicaState | None = None
    broken_because: str | None = None
    waiting: Wait | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeStanding:
    """A node that was not removed. ``led``, ``held``: partitions that it leads, has tables of."""

    node: NodeId
    value: NodeMeta
    state: NodeState
    loop_lag_ms: int
    is_disk_full: bool
    led: int
    held: int


@dataclass(frozen=True, slots=True)
class Findings:
    """What had to be asked for: how the metadata is kept, and what the latest comparison of each
    log found."""

    metadata: StoreStanding = field(default_factory=StoreStanding)
    verified: tuple[Verification, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStanding:
    """All of it. ``conflicts``: beats of a second process that runs as this node. ``refusals``: who
    this node doesn't get on with. ``claims_lost``: take-overs in which others were faster.
    ``pin_conflicts``: stores that this node refused to a second writer of a segment."""

    cluster: ClusterMeta
    seen_by: NodeId
    controller: NodeId | None
    nodes: tuple[NodeStanding, ...]
    partitions: tuple[PartitionStanding, ...]
    is_alone: bool = False
    is_isolated: bool = False
    conflicts: int = 0
    refusals: tuple[Refusal, ...] = ()
    claims_lost: int = 0
    pin_conflicts: int = 0
    findings: Findings = field(default_factory=Findings)

    @property
    def own(self) -> NodeStanding | None:
        """This node; None once it was removed."""
        return next((node for node in self.nodes if node.node == self.seen_by), None)

    def name_of(self, node: NodeId) -> str:
        """What people call it."""
        for known in self.nodes:
            if known.node == node:
                return known.value.name
        return f"node {node}"


def look(
    host: Host | ClusterHost, addresses: Addresses, findings: Findings | None = None
) -> ClusterStanding:
    """How it stands; ``addresses``: of this node, while no register says them."""
    own = {int(part.partition): part for part in map(partition_statistics, host.led)}
    if isinstance(host, ClusterHost):
        seen = standing(host.plane, own, host.waiting())
    else:
        seen = standing_alone(host.identity, own, host.metas, addresses, host.is_disk_full)
    return replace(
        seen,
        findings=findings or Findings(),
        pin_conflicts=host.log_server.pin_conflicts,
    )


def standing(
    plane: ControlPlane,
    own: Mapping[int, PartitionStatistics],
    waiting: Mapping[int, Wait] | None = None,
) -> ClusterStanding:
    """As a node among several sees it; ``own``: its partitions, ``waiting``: its take-overs that
    can't go on."""
    seen = view(plane.membership, plane.detector)
    invariant(seen is not None, "a started node has read the cluster's register")
    assert seen is not None
    figures = plane.statistics()
    slots = {slot.partition: slot for slot in figures.partitions}
    partitions = tuple(
        replace(
            _partition(seen, partition, slots.get(partition), own.get(partition)),
            waiting=(waiting or {}).get(partition),
        )
        for partition in sorted(seen.partitions)
    )
    led = Counter(part.leader for part in partitions if part.leader is not None)
    held = Counter(node for meta in seen.partitions.values() for node in meta.replicas.current)
    nodes = tuple(
        NodeStanding(
            node=node.node,
            value=node.value,
            state=node.state,
            loop_lag_ms=node.loop_lag_ms,
            is_disk_full=node.is_disk_full,
            led=led[node.node],
            held=held[node.node],
        )
        for node in figures.nodes
    )
    return ClusterStanding(
        cluster=seen.cluster,
        seen_by=plane.membership.me.node,
        controller=controller(seen),
        nodes=nodes,
        partitions=partitions,
        is_isolated=figures.is_isolated,
        conflicts=figures.conflicts,
        refusals=figures.refusals,
        claims_lost=figures.claims_lost,
    )


def standing_alone(
    identity: Identity,
    own: Mapping[int, PartitionStatistics],
    metas: Mapping[int, PartitionMeta],
    addresses: Addresses,
    is_disk_full: bool,
) -> ClusterStanding:
    """Of a single node: it is everything."""
    me = NodeId(identity.node_id)
    value = NodeMeta(
        name=identity.node,
        generation=identity.generation,
        incarnation=identity.incarnation,
        storage_uuid=identity.storage_uuid.hex(),
        addresses=addresses,
        metadata=MemberState.VOTER,
        software=perdure.__version__,
    )
    partitions = tuple(_alone(part, me, metas[number]) for number, part in sorted(own.items()))
    led = sum(part.leader is not None for part in partitions)
    node = NodeStanding(
        node=me,
        value=value,
        state=NodeState.ALIVE,
        loop_lag_ms=0,
        is_disk_full=is_disk_full,
        led=led,
        held=len(partitions),
    )
    cluster = ClusterMeta(
        format=CLUSTER_FORMAT_VERSION,
        name=identity.cluster,
        fingerprint=identity.fingerprint.hex(),
        partition_count=identity.partition_count,
    )
    return ClusterStanding(
        cluster=cluster,
        seen_by=me,
        controller=me,
        nodes=(node,),
        partitions=partitions,
        is_alone=True,
    )


def _partition(
    seen: View,
    partition: int,
    slot: LeadershipStatistics | None,
    own: PartitionStatistics | None,
) -> PartitionStanding:
    meta = seen.partitions[partition]
    report = acting_leader(seen, partition)
    leads = report is not None and report.role is Role.LEADER
    opened = chain.open_segment(meta)
    leader = opened.writer.node if leads and opened is not None else None
    newest = report.applied_lsn if leads and report is not None else None
    is_own = leader == seen.detector.me.node and own is not None
    return PartitionStanding(
        partition=partition,
        leader=leader,
        epoch=meta.epoch,
        meta=meta,
        replicas=tuple(
            _replica(seen, partition, node, newest, is_coming=node not in meta.replicas.current)
            for node in meta.replicas.named
        ),
        committed_lsn=own.leader.log.committed_lsn - 1 if is_own and own is not None else None,
        state=slot.state if slot is not None else None,
        broken_because=slot.broken_because if slot is not None else None,
    )


def _replica(
    seen: View, partition: int, node: NodeId, newest: int | None, *, is_coming: bool
) -> ReplicaStanding:
    writer = seen.detector.writer(node)
    report = seen.detector.replica_report(writer, partition) if writer is not None else None
    is_gone = seen.detector.state(node).is_gone
    if report is None:
        return ReplicaStanding(
            node=node,
            role="gone" if is_gone else "unknown",
            applied_lsn=0,
            durable_lsn=0,
            lag_records=None,
            is_coming=is_coming,
        )
    return ReplicaStanding(
        node=node,
        role="gone" if is_gone else report.role.name.lower(),
        applied_lsn=report.applied_lsn,
        durable_lsn=report.durable_lsn,
        lag_records=max(0, newest - report.applied_lsn) if newest is not None else None,
        is_coming=is_coming,
    )


def _alone(own: PartitionStatistics, me: NodeId, meta: PartitionMeta) -> PartitionStanding:
    leads = own.leader.is_leading and not own.processor.is_halted
    replica = ReplicaStanding(
        node=me,
        role="leader" if leads else "absent",
        applied_lsn=own.processor.applied_lsn,
        durable_lsn=own.processor.durable_lsn,
        lag_records=0 if leads else None,
    )
    return PartitionStanding(
        partition=own.partition,
        leader=me if leads else None,
        epoch=meta.epoch,
        meta=msgspec.structs.replace(meta, replicas=Replicas((me,))),
        replicas=(replica,),
        committed_lsn=own.leader.log.committed_lsn - 1,
        state=ReplicaState.LEADER if leads else ReplicaState.BROKEN,
        broken_because="it was halted: see the log" if own.processor.is_halted else None,
    )
