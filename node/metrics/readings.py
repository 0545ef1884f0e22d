"""From a node's statistics to the values of its metrics. Pure.

Most metrics are rows of ``table``; those with labels of their own are here.
"""

import sys
from collections.abc import Iterator

import perdure
from perdure.cluster.core.failure_detector import NodeState
from perdure.node.invoker.tally import AttemptEnd
from perdure.node.metrics import cluster_table, finding_table, table
from perdure.node.metrics.cluster_table import read_cluster, read_trims, states
from perdure.node.metrics.finding_table import read_findings
from perdure.node.metrics.samples import Kind, Metric, Sample
from perdure.node.metrics.statistics import NodeStatistics
from perdure.node.partition.host import PartitionStatistics

COMMIT_SECONDS = Metric(
    "perdure_log_commit_seconds",
    Kind.SUMMARY,
    "From an append to its commit on as many disks as it takes; one append of each partition is "
    "timed at a time.",
)
BUILD = Metric("perdure_build_info", Kind.GAUGE, "Always 1; what runs here.", ("version", "python"))
REQUESTS = Metric(
    "restate_ingress_requests_total",
    Kind.COUNTER,
    "Ingress requests: `admitted` when they begin, then how they ended (`completed`, "
    "`request_error`, `ingress_error`, `invocation_error`), or `rate-limited` instead. Service and "
    "type are empty while not known.",
    ("status", "rpc_service", "rpc_type"),
)
REQUEST_SECONDS = Metric(
    "restate_ingress_request_duration_seconds",
    Kind.SUMMARY,
    "From a request's arrival to its answer; `rpc_type` is call, send, attach, output or "
    "awakeable.",
    ("rpc_service", "rpc_type"),
)
TASKS = Metric(
    "restate_invoker_invocation_tasks_total",
    Kind.COUNTER,
    "Attempts that `started`, and how they ended: `completed` the invocation, `suspended` it, or "
    "`failed`; `transient` tells failures that are retried from those that are not.",
    ("status", "transient", "partition_id"),
)
TASK_SECONDS = Metric(
    "restate_invoker_task_duration_seconds",
    Kind.SUMMARY,
    "How long attempts took, however they ended.",
    ("partition_id",),
)
ABORTED = Metric(
    "perdure_invoker_aborted_attempts_total",
    Kind.COUNTER,
    "Attempts whose invocation was taken away: by an operator, or by this node stopping.",
    ("partition",),
)
ANSWERS = Metric(
    "restate_invoker_client_requests_total",
    Kind.COUNTER,
    "Response heads that attempts got from services, by HTTP status.",
    ("type", "status_code"),
)
NODES = Metric(
    "restate_failure_detector_nodes_total",
    Kind.GAUGE,
    "Nodes of the cluster by state.",
    ("state",),
)
FLARE = Metric(
    "restate_partition_blocked_flare",
    Kind.GAUGE,
    "1 while the partition takes nothing new: `halted` on a broken invariant, or `disk_full`.",
    ("partition", "reason"),
)
APPLIED = Metric(
    "restate_partition_apply_command_duration_seconds",
    Kind.COUNT,
    "Records applied. Only `_count`: single records are not timed.",
    ("partition",),
)
ARCHIVED = Metric(
    "perdure_partition_archived_lsn",
    Kind.GAUGE,
    "The log needs nothing up to here: all snapshots that count have it, or all sets that are "
    "kept; 0: nothing may lean on them. Where a destination is set.",
    ("partition",),
)
ADMIN_ANSWERS = Metric(
    "perdure_admin_requests_total", Kind.COUNTER, "Admin requests answered.", ("status_class",)
)

METRICS: tuple[Metric, ...] = (
    BUILD,
    REQUESTS,
    REQUEST_SECONDS,
    TASKS,
    TASK_SECONDS,
    ABORTED,
    ANSWERS,
    NODES,
    FLARE,
    APPLIED,
    ADMIN_ANSWERS,
    ARCHIVED,
    COMMIT_SECONDS,
    *(row.metric for row in (*table.NODE, *table.SLOTS)),
    *(row.metric for row in table.PARTITION),
    *(row.metric for row in table.LISTENER),
    *(row.metric for row in table.SNAPSHOTS),
    *cluster_table.METRICS,
    *finding_table.METRICS,
)
"""Every metric there is."""


def read(node: NodeStatistics) -> Iterator[Sample]:
    """Every value, grouped by metric."""
    yield Sample(BUILD, (perdure.__version__, sys.version.split()[0]), 1)
    yield from _ingress(node)
    yield from _attempts(node.host.partitions)
    counts = states(node.cluster) if node.cluster is not None else {NodeState.ALIVE: 1}
    for state in NodeState:
        yield Sample(NODES, (state.value,), counts.get(state, 0))
    for partition in node.host.partitions:
        name = str(partition.partition)
        yield Sample(FLARE, (name, "halted"), partition.processor.is_halted)
        yield Sample(FLARE, (name, "disk_full"), node.host.writer.is_full)
    for partition in node.host.partitions:
        yield Sample(APPLIED, (str(partition.partition),), partition.processor.applied_count)
    for kind, count in sorted(node.admin.answered.items()):
        yield Sample(ADMIN_ANSWERS, (f"{kind}xx",), count)
    yield Sample(COMMIT_SECONDS, (), node.host.commits)
    for row in (*table.NODE, *table.SLOTS):
        yield Sample(row.metric, (), row.read(node))
    for item in table.PARTITION:
        for partition in node.host.partitions:
            yield Sample(item.metric, (str(partition.partition),), item.read(partition))
    for entry in table.LISTENER:
        for listener in node.listeners:
            yield Sample(entry.metric, (listener.name.value,), entry.read(listener))
    yield from _snapshots(node)
    if node.cluster is not None:
        yield from read_cluster(node.cluster)
        yield from read_trims(node.host.trims)
        yield from read_findings(node.cluster.standing)


def _snapshots(node: NodeStatistics) -> Iterator[Sample]:
    if node.snapshots is None:
        return
    for partition in node.host.partitions:
        lsn = node.snapshots.archived.get(partition.partition, 0)
        yield Sample(ARCHIVED, (str(partition.partition),), lsn)
    for row in table.SNAPSHOTS:
        yield Sample(row.metric, (), row.read(node.snapshots))


def _ingress(node: NodeStatistics) -> Iterator[Sample]:
    for request in node.ingress.requests:
        labels = (request.status.value, request.service, request.kind)
        yield Sample(REQUESTS, labels, request.count)
    for latency in node.ingress.latencies:
        yield Sample(REQUEST_SECONDS, (latency.service, latency.kind), latency.figures)


def _attempts(partitions: tuple[PartitionStatistics, ...]) -> Iterator[Sample]:
    for partition in partitions:
        name = str(partition.partition)
        attempts = partition.leader.invoker.attempts
        yield Sample(TASKS, ("started", "", name), attempts.started)
        yield Sample(TASKS, ("completed", "", name), attempts.ended[AttemptEnd.COMPLETED])
        yield Sample(TASKS, ("suspended", "", name), attempts.ended[AttemptEnd.SUSPENDED])
        yield Sample(TASKS, ("failed", "true", name), attempts.ended[AttemptEnd.RETRIED])
        yield Sample(TASKS, ("failed", "false", name), attempts.ended[AttemptEnd.FAILED])
    answers: dict[int, int] = {}
    for partition in partitions:
        attempts = partition.leader.invoker.attempts
        yield Sample(TASK_SECONDS, (str(partition.partition),), attempts.duration)
        for status, count in attempts.answers.items():
            answers[status] = answers.get(status, 0) + count
    for partition in partitions:
        ended = partition.leader.invoker.attempts.ended
        yield Sample(ABORTED, (str(partition.partition),), ended[AttemptEnd.ABORTED])
    for status, count in sorted(answers.items()):
        yield Sample(ANSWERS, ("http", str(status)), count)
