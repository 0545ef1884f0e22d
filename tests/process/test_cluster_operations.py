"""Three server processes operated with the command: status, hand-over, drain, a node that dies."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.process.calls import request
from tests.process.cluster import ClusterNode, ClusterServers
from tests.process.processes import ROOT, ManagedProcess

from perdure.node.metrics import cluster_table

pytestmark = pytest.mark.slow

_DEADLINE_SECONDS = 30.0
_DRAIN_STATES = ("draining", "disabled")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path)
    servers.start()
    yield servers
    for node in servers.nodes:
        ManagedProcess.close(node)


def perdure(node: ClusterNode, *arguments: str) -> tuple[int, Any]:
    """Run the command against a node; its exit code and what it printed as JSON."""
    where = ("--json", "--admin-url", f"http://127.0.0.1:{node.admin_port}")
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *arguments, *where],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")},
        capture_output=True,
        text=True,
        timeout=_DEADLINE_SECONDS,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr


def watch(node: ClusterNode, is_there: Callable[[Any], bool]) -> Any:
    """Ask for the status until it is as it should be."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        _, document = perdure(node, "cluster", "status")
        if not isinstance(document, str) and is_there(document):
            return document
        assert time.monotonic() < deadline, document


def get(port: int, path: str) -> Any:
    answer = asyncio.run(request(port, "GET", path))
    assert answer.status == 200, answer
    return answer


def test_a_cluster_is_operated_with_the_command(servers: ClusterServers) -> None:
    asyncio.run(servers.wait_healthy(_DEADLINE_SECONDS))
    one, _, three = servers.nodes
    well = watch(one, lambda document: not document["problems"])
    ids = {row["name"]: row["id"] for row in well["nodes"]}
    assert sorted(ids) == ["n1", "n2", "n3"]
    members = get(three.admin_port, "/cluster-health").json()["metadata_cluster_health"]["members"]
    assert sorted(members) == sorted(ids.values())
    assert get(one.own_port, "/health").json()["log_server_status"] == "Ready"
    scrape = get(one.own_port, "/metrics").body.decode()
    for metric in cluster_table.METRICS:
        assert f"# HELP {metric.name} " in scrape or metric is cluster_table.REPLICA_LAG

    leader = well["partitions"][0]["leader"]
    to = next(name for name in ids if name != leader)
    assert perdure(one, "partitions", "lead", "0", "--to", to)[1]["leader"] == to
    assert perdure(three, "partitions", "pin", "0", "--to", to)[1]["pinned"] == to

    code, drained = perdure(one, "nodes", "drain", "n3")
    assert (code, drained["worker"] in _DRAIN_STATES) == (0, True)
    code, refused = perdure(one, "nodes", "remove", "n3", "--yes")
    assert code == 1
    assert "MEMB0001" in refused
    watch(one, lambda document: _node(document, "n3")["leads"] == 0)
    assert perdure(three, "nodes", "undrain", "n3")[1]["worker"] == "active"

    three.kill()
    ill = watch(one, lambda document: _node(document, "n3")["state"] == "dead")
    assert any(problem["what"].startswith("n3 is dead") for problem in ill["problems"])
    watch(one, lambda document: all(row["leader"] for row in document["partitions"]))
    three.start()
    watch(one, lambda document: _node(document, "n3")["state"] == "alive")


def _node(document: Any, name: str) -> Any:
    return next(row for row in document["nodes"] if row["name"] == name)
