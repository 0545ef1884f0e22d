"""Metrics of what a node among several had to ask for: its metadata, what its take-overs wait for,
what comparisons of logs found. Pure."""

from collections.abc import Iterator

from perdure.node.log_desk import Verification
from perdure.node.metrics.samples import Kind, Metric, Row, Sample, gauge
from perdure.node.register_desk import StoreStanding
from perdure.node.standing import ClusterStanding

WAITS = Metric(
    "perdure_cluster_partitions_waiting",
    Kind.GAUGE,
    "Partitions whose recovery here can't go on, by reason: `seal_quorum`: too few replicas answer "
    "to know where the log ends; `repair_copies`: too few to hold copies; `repair_source`: nobody "
    "with the last records answers. Must pass.",
    ("reason",),
)
_REASONS = ("seal_quorum", "repair_copies", "repair_source")

METADATA: tuple[Row[StoreStanding], ...] = (
    gauge(
        "perdure_metadata_is_readable",
        "1 while this node can read the cluster's registers; without them nobody can take over.",
        lambda m: m.failure is None,
    ),
    gauge(
        "perdure_metadata_places",
        "Places that hold the metadata: members of its quorum, or etcd servers.",
        lambda m: len(m.places),
    ),
    gauge(
        "perdure_metadata_places_reached",
        "Places that answer this node: less than all of them means trouble.",
        lambda m: m.reached,
    ),
    gauge(
        "perdure_metadata_term",
        "How often a leader of the metadata was elected: it should hardly grow.",
        lambda m: m.term,
    ),
    gauge(
        "perdure_metadata_registers",
        "Registers that there are.",
        lambda m: m.register_count or 0,
    ),
)

LOGS: tuple[Row[Verification], ...] = (
    gauge(
        "perdure_log_verified_timestamp_seconds",
        "When this node last compared the replicas of the partition's log, since the epoch.",
        lambda v: (v.ended_at_ms or 0) / 1000,
        "partition",
    ),
    gauge(
        "perdure_log_diverging_records",
        "Records that differed between replicas then: must be 0.",
        lambda v: v.count("diverging"),
        "partition",
    ),
    gauge(
        "perdure_log_missing_records",
        "Records that no replica had then, of those that answered.",
        lambda v: v.count("missing"),
        "partition",
    ),
    gauge(
        "perdure_log_short_records",
        "Records that too few replicas had then, of those that answered.",
        lambda v: v.count("under_replicated"),
        "partition",
    ),
)

METRICS: tuple[Metric, ...] = (
    WAITS,
    *(row.metric for row in METADATA),
    *(row.metric for row in LOGS),
)


def read_findings(seen: ClusterStanding) -> Iterator[Sample]:
    """Every value, grouped by metric."""
    waits = [part.waiting.reason for part in seen.partitions if part.waiting is not None]
    for reason in _REASONS:
        yield Sample(WAITS, (reason,), waits.count(reason))
    for row in METADATA:
        yield Sample(row.metric, (), row.read(seen.findings.metadata))
    for item in LOGS:
        for found in seen.findings.verified:
            yield Sample(item.metric, (str(found.partition),), item.read(found))
