"""The node's own port: health, refusals, and a boot that counts."""

from pathlib import Path

import pytest
from tests.node.metrics.world import PARTITION_COUNT, Stage, World

from perdure.core.invariant import InvariantViolation
from perdure.node.metrics.document import text
from perdure.node.partition.processor import Processor

PAGE = Path(__file__).resolve().parents[3] / "docs" / "metrics.md"


def test_health_tells_who_and_how_well(stage: Stage) -> None:
    async def scenario() -> None:
        answer = await stage.world.watch("/health")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        document = answer.json()
        assert document["status"] == "Alive"
        assert document["node_id"] == "N1:1"
        assert document["cluster_name"] == "testing"
        assert document["node_name"] == "one"
        assert document["worker_status"] == "Ready"
        assert document["log_server_status"] == "Ready"
        assert document["halted_partitions"] == []
        assert "worker" in document["roles"]
        urls = {entry["name"]: entry["address"] for entry in document["advertised_addresses"]}
        assert urls == {
            "http-ingress-server": stage.world.info.ingress_url,
            "admin-api-server": stage.world.info.admin_url,
            "message-fabric-server": stage.world.info.node_url,
        }
        bound = {entry["name"]: entry["address"] for entry in document["bound_addresses"]}
        assert f"http://{bound['http-ingress-server']}/" == stage.world.info.ingress_url

    stage.run(scenario())


def test_anything_else_is_refused(stage: Stage) -> None:
    async def scenario() -> None:
        for path in ("/", "/debug/pprof/heap", "/metrics/more"):
            answer = await stage.world.watch(path)
            assert answer.status == 404
            assert answer.json()["restate_code"] == "REQ0002"
        for path in ("/health", "/metrics"):
            assert (await stage.world.watch(path, "POST")).status == 405
            head = await stage.world.watch(path, "HEAD")
            assert (head.status, head.body) == (200, b"")
        assert (await stage.world.watch("/metrics?name[]=up")).status == 200

    stage.run(scenario())


@pytest.mark.slow
def test_what_a_restart_and_a_halted_partition_look_like(tmp_path: Path, service: str) -> None:
    stage = Stage(World(tmp_path))

    async def scenario() -> None:
        world = stage.world
        await world.register(service)
        assert (await world.call("/Probe/hello", "you")).status == 200
        await world.restart()
        scrape = await world.scrape()
        assert scrape.total("perdure_node_generation") == 2
        assert (await world.watch("/health")).json()["node_id"] == "N1:2"
        assert scrape.total("perdure_boot_replayed_records") >= 0
        assert scrape.total("restate_partition_start_total") == PARTITION_COUNT

        halted = _processors(world)[1]
        halted._halt(InvariantViolation("as the test wants", {}))  # pyright: ignore[reportPrivateUsage]
        scrape = await world.scrape()
        assert scrape.total("perdure_partitions_halted") == 1
        assert scrape.total("restate_num_active_partitions") == PARTITION_COUNT - 1
        assert scrape.total("restate_num_active_partition_leaders") == PARTITION_COUNT - 1
        flare = "restate_partition_blocked_flare"
        assert scrape.total(flare, partition="1", reason="halted") == 1
        assert scrape.total(flare, partition="0", reason="halted") == 0
        health = (await world.watch("/health")).json()
        assert (health["worker_status"], health["halted_partitions"]) == ("Degraded", [1])

    try:
        stage.run(scenario())
    finally:
        stage.close()


def _processors(world: World) -> list[Processor]:
    host = world.node._host  # pyright: ignore[reportPrivateUsage]
    assert host is not None
    return [led.processor for led in host.led]


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == text(), "python -m perdure.node.metrics.document > docs/metrics.md"
