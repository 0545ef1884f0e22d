"""The table of metrics with one value for the node, or one per partition or listener. Pure.

Names that begin with ``restate_`` are those of dashboards made for other servers of the protocol;
they mean here what their help says. Ours begin with ``perdure_``.
"""

from perdure.node.metrics.samples import Row, counter, gauge
from perdure.node.metrics.statistics import Listener, Listening, NodeStatistics
from perdure.node.partition.host import PartitionStatistics
from perdure.node.partition.snapshotter import SnapshotterStatistics

NODE: tuple[Row[NodeStatistics], ...] = (
    # --- The names that dashboards know ---------------------------------------------------------
    gauge("restate_num_partitions", "Partitions of the cluster.", lambda n: len(n.host.partitions)),
    gauge(
        "restate_num_active_partitions",
        "Partitions that apply their log here: all but halted ones.",
        lambda n: sum(not p.processor.is_halted for p in n.host.partitions),
    ),
    gauge(
        "restate_num_active_partition_leaders",
        "Partitions led from here.",
        lambda n: sum(p.leader.is_leading for p in n.host.partitions),
    ),
    gauge(
        "restate_partition_num_unknown_applied_lsn_lag",
        "Partitions whose lag is unknown: none; how far followers are is told by leaders, as "
        "`perdure_cluster_replica_lag_records`.",
        lambda n: 0,
    ),
    counter(
        "restate_ingress_http_connection_created_total",
        "Connections accepted on the ingress port.",
        lambda n: sum(s.statistics.accepted for s in n.listeners if s.name == Listener.INGRESS),
    ),
    counter(
        "restate_ingress_http_connection_dropped_total",
        "Connections on the ingress port that are gone.",
        lambda n: sum(s.statistics.lost for s in n.listeners if s.name == Listener.INGRESS),
    ),
    counter(
        "restate_connection_pool_connection_opened_total",
        "Connections to services made.",
        lambda n: n.client.connected,
    ),
    counter(
        "restate_connection_pool_connection_closed_total",
        "Connections to services that are gone.",
        lambda n: n.client.lost,
    ),
    counter(
        "restate_connection_pool_connection_open_failed_total",
        "Connections to services that could not be made.",
        lambda n: n.client.failed,
    ),
    counter(
        "restate_connection_pool_stream_opened_total",
        "Requests sent to services, discovery included.",
        lambda n: n.client.opened,
    ),
    counter(
        "restate_connection_pool_stream_closed_total",
        "Requests to services that are over.",
        lambda n: n.client.opened - n.client.streams,
    ),
    counter(
        "restate_invoker_sent_bytes_total",
        "Bytes sent to services, framing included.",
        lambda n: n.client.sent_bytes,
    ),
    counter(
        "restate_invoker_received_bytes_total",
        "Bytes received from services, framing included.",
        lambda n: n.client.received_bytes,
    ),
    counter(
        "restate_bifrost_replicatedloglet_enqueued_records_total",
        "Records handed to the logs since this node leads.",
        lambda n: sum(p.leader.log.appended for p in n.host.partitions),
    ),
    counter(
        "restate_bifrost_replicatedloglet_read_record_total",
        "Records that partitions took from their logs, replay included.",
        lambda n: sum(p.processor.applied_count for p in n.host.partitions),
    ),
    gauge(
        "restate_jemalloc_resident_bytes",
        "Resident memory of the process, whatever its allocator.",
        lambda n: n.process.resident_bytes,
    ),
    # --- The write-ahead log --------------------------------------------------------------------
    gauge(
        "perdure_wal_staged_bytes",
        "Bytes that wait for the next group.",
        lambda n: n.host.writer.staged_bytes,
    ),
    counter(
        "perdure_wal_groups_total", "Groups written and synced.", lambda n: n.host.writer.groups
    ),
    counter(
        "perdure_wal_inline_groups_total",
        "Groups written on the event loop, because syncs are short.",
        lambda n: n.host.writer.inline_groups,
    ),
    gauge(
        "perdure_wal_sync_seconds",
        "Moving average of what a sync takes.",
        lambda n: n.host.writer.sync_ms / 1000,
    ),
    gauge(
        "perdure_wal_is_full",
        "1 while the disk is too full for the log to grow; nothing new is accepted then.",
        lambda n: n.host.writer.is_full,
    ),
    counter("perdure_wal_frames_total", "Frames written.", lambda n: n.host.wal.frames),
    counter("perdure_wal_bytes_total", "Bytes written.", lambda n: n.host.wal.bytes_written),
    gauge("perdure_wal_files", "Files with records in them.", lambda n: n.host.wal.files),
    gauge("perdure_wal_spare_files", "Files ready to be written to.", lambda n: n.host.wal.spares),
    gauge("perdure_wal_disk_bytes", "What all these files take.", lambda n: n.host.wal.disk_bytes),
    gauge(
        "perdure_boot_replayed_records",
        "Records replayed at the start.",
        lambda n: n.host.boot.records_replayed,
    ),
    # --- Around it ------------------------------------------------------------------------------
    gauge(
        "perdure_partitions_halted",
        "Partitions that stopped on a broken invariant. Restart the node; report it.",
        lambda n: sum(p.processor.is_halted for p in n.host.partitions),
    ),
    gauge(
        "perdure_ingress_pending_requests",
        "Requests that wait for an answer.",
        lambda n: n.ingress.pending,
    ),
    gauge(
        "perdure_ingress_is_draining",
        "1 once the node stops and takes no more requests.",
        lambda n: n.ingress.is_draining,
    ),
    gauge(
        "perdure_admin_pending_requests",
        "Admin requests that are being worked on.",
        lambda n: n.admin.pending,
    ),
    gauge(
        "perdure_query_running_statements",
        "SQL statements that are worked on, or whose answers are going out.",
        lambda n: n.query.running,
    ),
    gauge(
        "perdure_query_waiting_statements",
        "SQL statements that wait for their turn.",
        lambda n: n.query.waiting,
    ),
    counter(
        "perdure_query_answered_statements_total",
        "SQL statements answered to the end.",
        lambda n: n.query.answered,
    ),
    counter(
        "perdure_query_failed_statements_total",
        "SQL statements refused, given up, or too large.",
        lambda n: n.query.failed,
    ),
    counter(
        "perdure_query_rows_read_total",
        "Rows of tables read for SQL statements.",
        lambda n: n.query.rows_read,
    ),
    gauge(
        "perdure_http_client_connections",
        "Open connections to services.",
        lambda n: n.client.connections,
    ),
    gauge(
        "perdure_http_client_streams", "Requests to services under way.", lambda n: n.client.streams
    ),
    gauge(
        "perdure_http_client_waiting_streams",
        "Requests to services that wait for a connection.",
        lambda n: n.client.waiting,
    ),
    gauge("perdure_deployments", "Registered deployments.", lambda n: n.deployment_count),
    gauge("perdure_services", "Registered services.", lambda n: n.service_count),
    gauge("perdure_node_generation", "Starts of this node so far.", lambda n: n.generation),
    gauge("perdure_uptime_seconds", "Age of the process.", lambda n: n.age_ms / 1000),
    # --- The process, under the names that all Prometheus clients use ----------------------------
    counter(
        "process_cpu_seconds_total",
        "CPU time used, by user and system.",
        lambda n: n.process.cpu_seconds,
    ),
    gauge("process_resident_memory_bytes", "Resident memory.", lambda n: n.process.resident_bytes),
    gauge(
        "process_open_fds",
        "Open files and sockets; -1 where the system doesn't tell.",
        lambda n: n.process.open_files,
    ),
)

PARTITION: tuple[Row[PartitionStatistics], ...] = (
    counter(
        "restate_invoker_enqueue_total",
        "Invocations handed to the invoker.",
        lambda p: p.leader.invoker.enqueued,
        "partition_id",
    ),
    gauge(
        "restate_invoker_concurrency_limit",
        "Invocations that may run or back off at once.",
        lambda p: p.leader.invoker.slots,
        "invoker_id",
    ),
    counter(
        "restate_partition_start_total",
        "Starts of the partition in this process.",
        lambda p: 1,
        "partition",
    ),
    counter(
        "restate_partition_stop_total",
        "Stops of the partition in this process, by itself or not.",
        lambda p: p.processor.is_halted,
        "partition",
    ),
    gauge(
        "restate_partition_applied_lsn_lag",
        "Records of the log not yet applied, of partitions led from here; 0 for others.",
        lambda p: _lag(p),
        "partition",
    ),
    counter(
        "restate_partition_shuffle_message_total",
        "Messages sent to partitions.",
        lambda p: p.leader.outbox_sent,
        "partition",
    ),
    gauge(
        "restate_partition_shuffle_inflight",
        "Messages sent to partitions and not known to be applied.",
        lambda p: p.leader.outbox_in_flight,
        "partition",
    ),
    gauge(
        "perdure_partition_is_leading",
        "1 while the partition is led from here.",
        lambda p: p.leader.is_leading,
        "partition",
    ),
    gauge(
        "perdure_log_tail_lsn",
        "LSN that the next record gets.",
        lambda p: p.leader.log.tail_lsn,
        "partition",
    ),
    gauge(
        "perdure_log_committed_lsn",
        "LSN behind the last committed record.",
        lambda p: p.leader.log.committed_lsn,
        "partition",
    ),
    gauge(
        "perdure_log_window_records",
        "Records appended and not yet committed.",
        lambda p: p.leader.log.tail_lsn - p.leader.log.committed_lsn,
        "partition",
    ),
    gauge(
        "perdure_log_window_bytes",
        "Bytes appended and not yet committed.",
        lambda p: p.leader.log.window_bytes,
        "partition",
    ),
    gauge(
        "perdure_log_waiting_proposals",
        "Proposals that wait for room in the window.",
        lambda p: p.leader.log.waiting,
        "partition",
    ),
    gauge(
        "perdure_partition_applied_lsn",
        "Last record applied.",
        lambda p: p.processor.applied_lsn,
        "partition",
    ),
    gauge(
        "perdure_partition_durable_lsn",
        "Last record in the tables on disk; the log is kept from here on.",
        lambda p: p.processor.durable_lsn,
        "partition",
    ),
    gauge(
        "perdure_partition_backlog_records",
        "Records committed and not yet applied.",
        lambda p: p.processor.backlog,
        "partition",
    ),
    gauge(
        "perdure_partition_memtable_bytes",
        "Changes in memory that no flush has taken yet.",
        lambda p: p.processor.memtable_bytes,
        "partition",
    ),
    gauge(
        "perdure_partition_flushing_bytes",
        "Changes that are being flushed.",
        lambda p: p.processor.flushing_bytes,
        "partition",
    ),
    gauge(
        "perdure_partition_waiters",
        "Invocations that somebody outside waits for.",
        lambda p: p.leader.waiting,
        "partition",
    ),
    gauge(
        "perdure_partition_timers",
        "Due times in memory; those further ahead are in the table only.",
        lambda p: p.leader.timers,
        "partition",
    ),
    gauge(
        "perdure_invoker_running",
        "Invocations that hold a slot: their attempt is under way, or they back off.",
        lambda p: p.leader.invoker.running,
        "partition",
    ),
    gauge(
        "perdure_invoker_backing_off",
        "Invocations that wait for their next attempt; they hold a slot.",
        lambda p: p.leader.invoker.backing_off,
        "partition",
    ),
    gauge(
        "perdure_invoker_held_back",
        "Invocations whose attempt waits because their service is busy; they hold a slot.",
        lambda p: p.leader.invoker.held_back,
        "partition",
    ),
    gauge(
        "perdure_invoker_queued",
        "Invocations that wait for a slot.",
        lambda p: p.leader.invoker.queued,
        "partition",
    ),
)

SLOTS: tuple[Row[NodeStatistics], ...] = (
    counter(
        "restate_invoker_concurrency_slots_acquired",
        "Slots taken.",
        lambda n: sum(p.leader.invoker.acquired for p in n.host.partitions),
    ),
    counter(
        "restate_invoker_concurrency_slots_released",
        "Slots given back.",
        lambda n: sum(p.leader.invoker.released for p in n.host.partitions),
    ),
)

LISTENER: tuple[Row[Listening], ...] = (
    gauge(
        "perdure_http_server_connections",
        "Open connections.",
        lambda s: s.statistics.connections,
        "listener",
    ),
    gauge(
        "perdure_http_server_exchanges",
        "Requests not yet answered.",
        lambda s: s.statistics.exchanges,
        "listener",
    ),
    gauge(
        "perdure_http_server_receiving_bytes",
        "Bodies that are coming in.",
        lambda s: s.statistics.receiving_bytes,
        "listener",
    ),
    gauge(
        "perdure_http_server_unsent_bytes",
        "Answers that clients have yet to take.",
        lambda s: s.statistics.unsent_bytes,
        "listener",
    ),
    gauge(
        "perdure_http_server_streaming_answers",
        "Answers in pieces that are going out.",
        lambda s: s.statistics.streaming,
        "listener",
    ),
    counter(
        "perdure_http_server_cut_answers_total",
        "Answers that ended midway: what made them failed, or the node stopped.",
        lambda s: s.statistics.cut,
        "listener",
    ),
    counter(
        "perdure_http_server_accepted_total",
        "Connections accepted.",
        lambda s: s.statistics.accepted,
        "listener",
    ),
)

# Only where a destination is set.
SNAPSHOTS: tuple[Row[SnapshotterStatistics], ...] = (
    gauge(
        "perdure_snapshots_is_sound",
        "1 while the object store keeps what it should; 0 while it doesn't, refuses or is not "
        "known yet: then nothing is trimmed on the strength of snapshots.",
        lambda s: bool(s.is_sound),
    ),
    gauge("perdure_snapshots_is_taking", "1 while snapshots are taken.", lambda s: s.is_taking),
    counter(
        "perdure_snapshots_sets_taken_total", "Sets of snapshots taken.", lambda s: s.sets_taken
    ),
    counter(
        "perdure_snapshots_failures_total",
        "Times that snapshots could not be taken, or the object store not be reached.",
        lambda s: s.failures,
    ),
    gauge(
        "perdure_snapshots_newest_timestamp_seconds",
        "When the newest set was taken, since the epoch; 0: there is none. Its age is what a "
        "restored node would lack.",
        lambda s: (s.newest_ms or 0) / 1000,
    ),
    gauge(
        "perdure_snapshots_stored_bytes",
        "Size of all snapshots that count, as they are stored.",
        lambda s: s.stored_bytes,
    ),
)


def _lag(p: PartitionStatistics) -> int:
    """Who follows knows the log as it was when it led, if it ever did."""
    return p.leader.log.tail_lsn - 1 - p.processor.applied_lsn if p.leader.is_leading else 0
