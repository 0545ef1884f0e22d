"""A live node is scraped: every metric is there, and values move as invocations do."""

import asyncio

import pytest
from tests.node.metrics.world import DEADLINE_SECONDS, PARTITION_COUNT, Scrape, Stage

from perdure.node.metrics import cluster_table, finding_table
from perdure.node.metrics.readings import METRICS
from perdure.node.metrics.samples import Kind

# What dashboards read that apply here (others: Kafka, RocksDB, gossip, snapshots).
DASHBOARD_NAMES = (
    "restate_ingress_requests_total",
    "restate_ingress_request_duration_seconds_sum",
    "restate_ingress_request_duration_seconds_count",
    "restate_ingress_request_duration_seconds",
    "restate_invoker_invocation_tasks_total",
    "restate_invoker_task_duration_seconds",
    "restate_invoker_task_duration_seconds_count",
    "restate_invoker_concurrency_limit",
    "restate_invoker_concurrency_slots_acquired",
    "restate_invoker_concurrency_slots_released",
    "restate_invoker_enqueue_total",
    "restate_invoker_client_requests_total",
    "restate_invoker_sent_bytes_total",
    "restate_invoker_received_bytes_total",
    "restate_num_partitions",
    "restate_num_active_partitions",
    "restate_num_active_partition_leaders",
    "restate_failure_detector_nodes_total",
    "restate_partition_blocked_flare",
    "restate_partition_apply_command_duration_seconds_count",
    "restate_partition_applied_lsn_lag",
    "restate_partition_num_unknown_applied_lsn_lag",
    "restate_partition_start_total",
    "restate_partition_stop_total",
    "restate_partition_shuffle_message_total",
    "restate_bifrost_replicatedloglet_enqueued_records_total",
    "restate_bifrost_replicatedloglet_read_record_total",
    "restate_ingress_http_connection_created_total",
    "restate_ingress_http_connection_dropped_total",
    "restate_connection_pool_connection_opened_total",
    "restate_connection_pool_connection_closed_total",
    "restate_connection_pool_connection_open_failed_total",
    "restate_connection_pool_stream_opened_total",
    "restate_connection_pool_stream_closed_total",
    "restate_jemalloc_resident_bytes",
)
TASKS = "restate_invoker_invocation_tasks_total"

# A node without others has nothing to tell of them.
_OF_SEVERAL = (*cluster_table.METRICS, *finding_table.METRICS)
_OF_ONE_NODE = [metric for metric in METRICS if metric not in _OF_SEVERAL]


def grown(before: Scrape, after: Scrape, name: str, **labels: str) -> float:
    """By how much the series with these labels grew together."""
    known = [value for found, value in before.samples(name) if labels.items() <= found.items()]
    return after.total(name, **labels) - sum(known)


def test_every_metric_is_there_and_no_other(stage: Stage) -> None:
    async def scenario() -> None:
        assert (await stage.world.call("/Probe/hello", "all")).status == 200
        scrape = await stage.world.scrape()
        expected = {
            metric.name.removesuffix("_total") if metric.kind is Kind.COUNTER else metric.name
            for metric in _OF_ONE_NODE
        }
        assert set(scrape.families) == expected
        for name in DASHBOARD_NAMES:
            assert list(scrape.samples(name)), name

    stage.run(scenario())


def test_types_help_and_common_labels(stage: Stage) -> None:
    async def scenario() -> None:
        assert (await stage.world.call("/Probe/hello", "all")).status == 200
        scrape = await stage.world.scrape()
        for metric in _OF_ONE_NODE:
            is_counter = metric.kind is Kind.COUNTER and metric.name.endswith("_total")
            family = scrape.families[
                metric.name.removesuffix("_total") if is_counter else metric.name
            ]
            is_summary = metric.kind in (Kind.SUMMARY, Kind.COUNT)
            if metric.kind is Kind.COUNTER and not is_counter:
                assert family.type == "unknown"
            else:
                assert family.type == ("summary" if is_summary else metric.kind.value)
            assert family.documentation == metric.meaning
            for sample in family.samples:
                assert sample.labels["cluster_name"] == "testing"
                assert sample.labels["node_name"] == "one"
                own = set(sample.labels) - {"cluster_name", "node_name", "quantile"}
                assert own == set(metric.labels), sample

    stage.run(scenario())


def test_names_and_meanings_are_well_formed() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith(("restate_", "perdure_", "process_"))
        assert metric.meaning.endswith("."), metric
        if metric.kind is Kind.COUNTER and metric.name.startswith("perdure_"):
            assert metric.name.endswith("_total")


def test_partitions_and_nodes(stage: Stage) -> None:
    async def scenario() -> None:
        scrape = await stage.world.scrape()
        for name in ("partitions", "active_partitions", "active_partition_leaders"):
            assert scrape.total(f"restate_num_{name}") == PARTITION_COUNT
        assert scrape.total("restate_failure_detector_nodes_total", state="alive") == 1
        for state in ("suspect", "dead", "failing_over"):
            assert scrape.total("restate_failure_detector_nodes_total", state=state) == 0
        assert scrape.total("restate_partition_blocked_flare") == 0
        assert scrape.total("perdure_partitions_halted") == 0
        assert scrape.total("perdure_wal_is_full") == 0
        assert scrape.total("perdure_partition_is_leading") == PARTITION_COUNT
        assert scrape.total("restate_invoker_concurrency_limit", invoker_id="1") == 1000
        assert scrape.total("perdure_node_generation") == 1
        assert scrape.total("process_resident_memory_bytes") > 10_000_000
        assert scrape.total("process_cpu_seconds_total") > 0
        assert scrape.total("process_open_fds") > 3

    stage.run(scenario())


def test_calls_move_the_ingress_the_invoker_and_the_log(stage: Stage) -> None:
    async def scenario() -> None:
        world = stage.world
        before = await world.scrape()
        for _ in range(5):
            assert (await world.call("/Probe/hello", "you")).status == 200
        after = await world.wait_scrape(
            lambda scrape: grown(before, scrape, TASKS, status="completed") == 5
        )
        greeting = {"rpc_service": "Probe", "rpc_type": "call"}
        requests = "restate_ingress_requests_total"
        assert grown(before, after, requests, status="completed", **greeting) == 5
        assert grown(before, after, requests, status="admitted") == 5
        seconds = "restate_ingress_request_duration_seconds"
        assert grown(before, after, f"{seconds}_count", **greeting) == 5
        assert 0 < grown(before, after, f"{seconds}_sum", **greeting) < 50
        median = after.total(seconds, quantile="0.5", **greeting)
        assert 0 < median <= after.total(seconds, quantile="1", **greeting)
        assert grown(before, after, TASKS, status="started") == 5
        assert grown(before, after, "restate_invoker_task_duration_seconds_count") == 5
        assert grown(before, after, "restate_invoker_concurrency_slots_acquired") == 5
        assert grown(before, after, "restate_invoker_concurrency_slots_released") == 5
        assert grown(before, after, "restate_invoker_enqueue_total") == 5
        assert grown(before, after, "restate_invoker_client_requests_total", status_code="200") == 5
        assert grown(before, after, "restate_connection_pool_stream_opened_total") == 5
        assert grown(before, after, "restate_invoker_sent_bytes_total") > 5 * 50
        assert grown(before, after, "restate_invoker_received_bytes_total") > 5 * 50
        applied = "restate_partition_apply_command_duration_seconds_count"
        # Each call is two records at least: the invocation, and what its attempt did.
        assert grown(before, after, applied) >= 10
        appended = "restate_bifrost_replicatedloglet_enqueued_records_total"
        assert grown(before, after, appended) == grown(before, after, applied)
        assert grown(before, after, "perdure_log_tail_lsn") == grown(before, after, applied)
        assert after.total("restate_partition_applied_lsn_lag") == 0
        assert grown(before, after, "perdure_wal_groups_total") >= 2
        assert grown(before, after, "perdure_wal_bytes_total") > 500
        assert grown(before, after, "restate_ingress_http_connection_created_total") == 5

    stage.run(scenario())


@pytest.mark.slow
def test_each_end_of_an_attempt_is_counted_as_what_it_is(stage: Stage) -> None:
    async def scenario() -> None:
        world = stage.world
        before = await world.scrape()
        assert (await world.call("/Probe/nap")).status == 200
        after = await world.wait_scrape(
            lambda scrape: grown(before, scrape, TASKS, status="completed") == 1
        )
        assert grown(before, after, TASKS, status="suspended") == 1
        assert grown(before, after, TASKS, status="started") == 2

        assert (await world.call("/Probe/stumble", "metrics")).status == 200
        before, after = after, await world.scrape()
        assert grown(before, after, TASKS, status="failed", transient="true") == 1
        assert grown(before, after, TASKS, status="failed", transient="false") == 0

        assert (await world.call("/Probe/fall")).status == 500
        before, after = after, await world.scrape()
        assert grown(before, after, TASKS, status="failed", transient="true") == 1
        assert grown(before, after, TASKS, status="failed", transient="false") == 1

        assert (await world.call("/Probe/refuse")).status == 418
        before, after = after, await world.scrape()
        assert grown(before, after, TASKS, status="failed") == 0
        failed = "restate_ingress_requests_total"
        assert grown(before, after, failed, status="invocation_error", rpc_service="Probe") == 1

    stage.run(scenario())


@pytest.mark.slow
def test_waiting_shows_while_it_lasts(stage: Stage) -> None:
    async def scenario() -> None:
        world = stage.world
        call = asyncio.create_task(world.call("/Probe/await_word"))
        waiting = await world.wait_scrape(
            lambda scrape: scrape.total("perdure_ingress_pending_requests") == 1
        )
        assert waiting.total("perdure_http_server_exchanges", listener="ingress") == 1
        await world.wait_scrape(lambda scrape: scrape.total("perdure_partition_waiters") == 1)
        await world.wait_scrape(lambda scrape: scrape.total(TASKS, status="suspended") >= 1)
        await world.wait_scrape(lambda scrape: scrape.total("perdure_invoker_running") == 0)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await world.wait_scrape(
            lambda scrape: scrape.total("perdure_ingress_pending_requests") == 0
        )

    stage.run(scenario())


def test_calls_between_partitions_are_counted(stage: Stage) -> None:
    async def scenario() -> None:
        world, sent = stage.world, "restate_partition_shuffle_message_total"
        before = after = await world.scrape()
        async with asyncio.timeout(DEADLINE_SECONDS):
            # Which partition a callee falls to is drawn at random.
            while grown(before, after, sent) == 0:
                assert (await world.call("/Probe/steps", "on")).status == 200
                after = await world.scrape()
        await world.wait_scrape(
            lambda scrape: scrape.total("restate_partition_shuffle_inflight") == 0
        )

    stage.run(scenario())


@pytest.mark.slow
def test_an_unreachable_service_shows(stage: Stage) -> None:
    async def scenario() -> None:
        world = stage.world
        before = await world.scrape()
        host = "http://127.0.0.1:1/"  # nobody listens on the port of tcpmux
        with pytest.raises(AssertionError):
            await world.register(host)
        after = await world.scrape()
        failed = "restate_connection_pool_connection_open_failed_total"
        assert grown(before, after, failed) >= 1
        assert grown(before, after, "perdure_admin_requests_total") >= 1

    stage.run(scenario())


@pytest.mark.slow
def test_statements_are_counted(stage: Stage) -> None:
    async def scenario() -> None:
        world = stage.world
        assert (await world.call("/Probe/hello", "counted")).status == 200
        before = await world.scrape()
        assert (await world.query("select id, target from sys_invocation")).status == 200
        assert (await world.query("select nope")).status == 400
        after = await world.scrape()
        assert grown(before, after, "perdure_query_answered_statements_total") == 1
        assert grown(before, after, "perdure_query_failed_statements_total") == 1
        assert grown(before, after, "perdure_query_rows_read_total") >= 1
        assert after.total("perdure_query_running_statements") == 0
        assert after.total("perdure_query_waiting_statements") == 0
        # Long answers go out in pieces.
        columns = "information_schema.columns"
        statement = f"select a.column_name, b.* from {columns} a, {columns} b limit 50000"
        answer = await world.query(statement)
        assert len(answer.body) > 1_000_000 and answer.body.endswith(b"\r\n0\r\n\r\n")
        assert (await world.scrape()).total("perdure_http_server_streaming_answers") == 0
        # One that fails midway is cut: the last chunk is missing.
        statement = f"select 1 / (row_number() over () - 60000) as x from {columns} a, {columns} b"
        assert not (await world.query(statement)).body.endswith(b"\r\n0\r\n\r\n")
        scrape = await world.scrape()
        assert scrape.total("perdure_http_server_cut_answers_total", listener="admin") == 1

    stage.run(scenario())
