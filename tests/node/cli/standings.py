"""Clusters as a node might see them, for tests of what is said about them."""

from typing import Any

from perdure.cluster.core.chain import PartitionMeta, Replicas, SegmentMeta
from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.membership import (
    Addresses,
    ClusterMeta,
    MemberState,
    NodeMeta,
    StorageState,
    WorkerState,
)
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.node.standing import (
    ClusterStanding,
    NodeStanding,
    PartitionStanding,
    ReplicaStanding,
)

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def node(
    number: NodeId,
    state: NodeState = NodeState.ALIVE,
    storage: StorageState = StorageState.READ_WRITE,
    worker: WorkerState = WorkerState.ACTIVE,
    **fields: Any,
) -> NodeStanding:
    value = NodeMeta(
        f"node-{number}",
        4,
        7,
        f"{number:032x}",
        addresses=Addresses(f"h{number}:5122"),
        storage=storage,
        worker=worker,
        metadata=MemberState.VOTER,
    )
    known: dict[str, Any] = {"loop_lag_ms": 3, "is_disk_full": False, "led": 1, "held": 1}
    return NodeStanding(node=number, value=value, state=state, **{**known, **fields})


def partition(leader: NodeId | None = ONE, *, lag: int = 0, **fields: Any) -> PartitionStanding:
    nodeset = tuple(Member(number, b"S" * 16) for number in (ONE, TWO, THREE))
    segment = SegmentMeta(0, 1, None, 5, Writer(ONE, 4, 7), nodeset, 2)
    meta = PartitionMeta(5, None, 1, (segment,), Replicas((ONE, TWO, THREE)))
    replicas = tuple(
        ReplicaStanding(
            node=number,
            role="leader" if number == leader else "follower",
            applied_lsn=9000 - lag * (number == THREE),
            durable_lsn=40,
            lag_records=lag * (number == THREE) if leader is not None else None,
        )
        for number in (ONE, TWO, THREE)
    )
    return PartitionStanding(
        partition=0, leader=leader, epoch=5, meta=meta, replicas=replicas, **fields
    )


def cluster(
    *nodes: NodeStanding, part: PartitionStanding | None = None, **fields: Any
) -> ClusterStanding:
    return ClusterStanding(
        cluster=ClusterMeta(1, "shop", "ab" * 16, 1, 2, 3),
        seen_by=ONE,
        controller=ONE,
        nodes=nodes or (node(ONE), node(TWO), node(THREE)),
        partitions=(part or partition(),),
        **fields,
    )
