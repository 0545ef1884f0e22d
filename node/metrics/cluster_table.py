"""Metrics of a node among several: the cluster as it sees it, and its ways to the others. Pure.

A single node has none of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from perdure.cluster.core.failure_detector import NodeState
from perdure.cluster.core.leadership import ReplicaState
from perdure.cluster.core.trim import TrimStatistics
from perdure.cluster.transport import TransportStatistics
from perdure.node.metrics.samples import Kind, Metric, Row, Sample, counter, gauge
from perdure.node.problems import Severity, problems
from perdure.node.standing import ClusterStanding, PartitionStanding


@dataclass(frozen=True, slots=True)
class ClusterFigures:
    """What these metrics are read from."""

    standing: ClusterStanding
    transport: TransportStatistics


_TAKING_OVER = (ReplicaState.CLAIMING, ReplicaState.RECOVERING, ReplicaState.CANDIDATE)

PROBLEMS = Metric(
    "perdure_cluster_problems",
    Kind.GAUGE,
    "What `perdure cluster status` lists as wrong, by severity: alert on `critical`.",
    ("severity",),
)
REPLICA_LAG = Metric(
    "perdure_cluster_replica_lag_records",
    Kind.GAUGE,
    "Records that a replica has applied less than the leader, told by the leader.",
    ("partition", "node"),
)

CLUSTER: tuple[Row[ClusterFigures], ...] = (
    gauge(
        "perdure_cluster_is_controller",
        "1 on the node that places leaders and replicas.",
        lambda c: c.standing.controller == c.standing.seen_by,
    ),
    gauge(
        "perdure_cluster_is_isolated",
        "1 while this node hears no other, or none hears it: it gives up what it leads.",
        lambda c: c.standing.is_isolated,
    ),
    counter(
        "perdure_cluster_identity_conflicts_total",
        "Signs of a second process that runs as this node: must be 0.",
        lambda c: c.standing.conflicts,
    ),
    counter(
        "perdure_cluster_pin_conflicts_total",
        "Stores that this node refused to a second writer of a segment: must be 0.",
        lambda c: c.standing.pin_conflicts,
    ),
    counter(
        "perdure_cluster_claims_lost_total",
        "Take-overs of this node in which another one was faster.",
        lambda c: c.standing.claims_lost,
    ),
    gauge(
        "perdure_cluster_loop_lag_seconds",
        "How long this node's event loop stood still lately.",
        lambda c: c.standing.own.loop_lag_ms / 1000 if c.standing.own else 0,
    ),
    gauge(
        "perdure_cluster_partitions_without_leader",
        "Partitions that nobody is known to lead.",
        lambda c: sum(part.leader is None for part in c.standing.partitions),
    ),
    gauge(
        "perdure_cluster_partitions_taken_over",
        "Partitions that this node is about to lead: their log is being recovered. Must pass.",
        lambda c: sum(part.state in _TAKING_OVER for part in c.standing.partitions),
    ),
    gauge(
        "perdure_cluster_partitions_broken",
        "Partitions whose replica on this node can't go on: must be 0.",
        lambda c: sum(part.state is ReplicaState.BROKEN for part in c.standing.partitions),
    ),
    gauge(
        "perdure_fabric_members",
        "Other nodes of the cluster.",
        lambda c: c.transport.members,
    ),
    gauge(
        "perdure_fabric_sessions",
        "Other nodes that this one has a session to: less than the members means trouble.",
        lambda c: c.transport.sessions_out,
    ),
    gauge(
        "perdure_fabric_sessions_in",
        "Sessions that other nodes have to this one.",
        lambda c: c.transport.sessions_in,
    ),
    gauge(
        "perdure_fabric_streams",
        "Streams between nodes: followers, copies of tables.",
        lambda c: c.transport.streams,
    ),
    gauge(
        "perdure_fabric_asks_waiting",
        "Questions to other nodes without an answer yet.",
        lambda c: c.transport.asks_waiting,
    ),
    gauge(
        "perdure_fabric_queued_bytes",
        "Bytes that the network has not taken yet.",
        lambda c: c.transport.queued_bytes,
    ),
    counter(
        "perdure_fabric_messages_sent_total",
        "Messages sent to other nodes.",
        lambda c: c.transport.messages_sent,
    ),
    counter(
        "perdure_fabric_messages_received_total",
        "Messages received from other nodes.",
        lambda c: c.transport.messages_received,
    ),
    counter(
        "perdure_fabric_sent_bytes_total",
        "Bytes sent to other nodes.",
        lambda c: c.transport.bytes_sent,
    ),
    counter(
        "perdure_fabric_received_bytes_total",
        "Bytes received from other nodes.",
        lambda c: c.transport.bytes_received,
    ),
    counter(
        "perdure_fabric_sessions_opened_total",
        "Sessions to a node beyond the first one: reconnects.",
        lambda c: c.transport.sessions_opened,
    ),
    counter(
        "perdure_fabric_sessions_lost_total",
        "Sessions that ended.",
        lambda c: c.transport.sessions_lost,
    ),
    counter(
        "perdure_fabric_refused_total",
        "Connections that were turned down, by this node or by others.",
        lambda c: c.transport.refused_in + c.transport.refused_out,
    ),
    gauge(
        "perdure_fabric_refusals",
        "Nodes that this one turned away, or that turned this one away, these moments: another "
        "secret, certificate, cluster or release. Must be 0.",
        lambda c: len(c.transport.refusals),
    ),
    counter(
        "perdure_fabric_slow_cut_total",
        "Sessions that were cut because the other node didn't read.",
        lambda c: c.transport.slow_cut,
    ),
)

PARTITION: tuple[Row[PartitionStanding], ...] = (
    gauge(
        "perdure_cluster_partition_epoch",
        "Epoch of the partition: each change of leader or of log servers takes the next.",
        lambda p: p.epoch,
        "partition",
    ),
    gauge(
        "perdure_cluster_partition_segments",
        "Segments of the partition's log: they go with trimming.",
        lambda p: len(p.meta.chain),
        "partition",
    ),
    gauge(
        "perdure_cluster_partition_trim_lsn",
        "Below this LSN the log was let go.",
        lambda p: p.meta.trim_lsn,
        "partition",
    ),
    gauge(
        "perdure_cluster_partition_unsafe_closes",
        "Segments of the partition's log that operators had closed without a quorum of its "
        "replicas, ever: each may have lost acknowledged records.",
        lambda p: len(p.meta.unsafe),
        "partition",
    ),
    gauge(
        "perdure_cluster_partition_is_leader",
        "1 where this node leads the partition.",
        lambda p: p.state is ReplicaState.LEADER,
        "partition",
    ),
)

TRIM: tuple[Row[TrimStatistics], ...] = (
    gauge(
        "perdure_cluster_partition_held_records",
        "Committed records that the partition's log still has, told by the leader.",
        lambda t: t.held_records,
        "partition",
    ),
    gauge(
        "perdure_cluster_partition_trim_floor_age_seconds",
        "How long nothing more of the partition's log could go, told by the leader: with "
        "`held_records` that grow, a replica or the snapshots hold it up.",
        lambda t: t.floor_age_ms / 1000,
        "partition",
    ),
)

METRICS: tuple[Metric, ...] = (
    PROBLEMS,
    *(row.metric for row in CLUSTER),
    *(row.metric for row in PARTITION),
    *(row.metric for row in TRIM),
    REPLICA_LAG,
)


def read_cluster(cluster: ClusterFigures) -> Iterator[Sample]:
    """Every value, grouped by metric."""
    seen = cluster.standing
    found = problems(seen)
    for severity in Severity:
        count = sum(problem.severity is severity for problem in found)
        yield Sample(PROBLEMS, (severity.name.lower(),), count)
    for row in CLUSTER:
        yield Sample(row.metric, (), row.read(cluster))
    for item in PARTITION:
        for part in seen.partitions:
            yield Sample(item.metric, (str(part.partition),), item.read(part))
    for part in seen.partitions:
        if part.leader == seen.seen_by:
            for replica in part.replicas:
                if replica.lag_records is not None and replica.node != seen.seen_by:
                    labels = (str(part.partition), seen.name_of(replica.node))
                    yield Sample(REPLICA_LAG, labels, replica.lag_records)


def read_trims(trims: tuple[TrimStatistics, ...]) -> Iterator[Sample]:
    """How far the logs of what is led here are let go of."""
    for row in TRIM:
        for trim in trims:
            yield Sample(row.metric, (str(trim.partition),), row.read(trim))


def states(cluster: ClusterFigures) -> dict[NodeState, int]:
    """How many nodes are in each state."""
    found = dict.fromkeys(NodeState, 0)
    for node in cluster.standing.nodes:
        found[node.state] += 1
    return found
