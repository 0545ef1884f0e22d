"""Writes docs/metrics.md from the metrics themselves.

``python -m perdure.node.metrics.document > docs/metrics.md``; a test holds the two together.
"""

from perdure.core.summary import QUANTILES, RECENT_COUNT
from perdure.node.metrics.readings import METRICS
from perdure.node.metrics.samples import Kind, Metric

_QUANTILES = ", ".join(f"{quantile:g}" for quantile in QUANTILES)
_HEAD = f"""# Metrics

<!-- Generated: python -m perdure.node.metrics.document > docs/metrics.md -->

`GET /metrics` on the node's own port (`bind-address`, 127.0.0.1:5122 unless told otherwise) answers
in Prometheus text; `GET /health` there tells whether the node lives, and how well.

```yaml
scrape_configs:
  - job_name: perdure
    static_configs: [{{ targets: ["127.0.0.1:5122"] }}]
```

- Every series has the labels `cluster_name` and `node_name`; the tables name the others.
- Counters start at 0 when the process starts.
- Summaries have `_sum`, `_count` and the quantiles {_QUANTILES}. The quantiles are exact, over
  the latest {RECENT_COUNT} observations of the series, however long ago those were; averages over
  a time are `rate(…_sum[5m]) / rate(…_count[5m])`.
- A label that isn't known is empty, which to Prometheus means that it isn't there.
- Nothing is sent anywhere: a node that nobody scrapes does no work for it.

What to watch: `perdure_partitions_halted` and `perdure_wal_is_full` must be 0;
`perdure_partition_backlog_records`, `perdure_log_waiting_proposals`, `perdure_invoker_held_back`
(services have more to do than they manage) and `perdure_invoker_queued` show where work piles up;
`restate_invoker_invocation_tasks_total` with `status="failed"` shows services in trouble.
With snapshots, `perdure_snapshots_is_sound` must be 1, and the age
`time() - perdure_snapshots_newest_timestamp_seconds` not much above `snapshots.interval`, unless
nothing happens.
"""
_SECTIONS = (
    (
        "restate_",
        "## Names that dashboards know",
        "Dashboards made for Restate servers work with these. Series of parts that perdure doesn't "
        "have (RocksDB, Kafka), or has in its own way (gossip, metadata), are left out.",
    ),
    ("perdure_", "## perdure's own", "Every queue and every watermark."),
    ("process_", "## The process", "Under the names that all Prometheus clients use."),
)


def text() -> str:
    """The page."""
    parts = [_HEAD]
    for prefix, title, meaning in _SECTIONS:
        parts.append(f"\n{title}\n\n{meaning}\n\n| metric | type | labels | meaning |\n")
        parts.append("| --- | --- | --- | --- |\n")
        parts += [_line(metric) for metric in METRICS if metric.name.startswith(prefix)]
    return "".join(parts)


def _line(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    kind = "summary" if metric.kind is Kind.COUNT else metric.kind.value
    return f"| `{metric.name}` | {kind} | {labels} | {metric.meaning} |\n"


if __name__ == "__main__":
    print(text(), end="")
