"""Three server processes operated with the command: status, hand-over, drain, a node that dies."""

import asyncio
import json
import re
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.process.calls import request
from tests.process.cluster import ClusterNode, ClusterServers
from tests.process.commands import perdure
from tests.process.processes import ManagedProcess, free_port, wait_listening

from perdure.node.metrics import cluster_table

pytestmark = pytest.mark.slow

_DEADLINE_SECONDS = 60.0
_CALLS = 160
_RESTARTED = 20
_BODY = b"x" * 10_000
_DRAIN_STATES = ("draining", "disabled")


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[ClusterServers]:
    servers = ClusterServers(tmp_path)
    servers.start()
    yield servers
    for node in servers.nodes:
        ManagedProcess.close(node)


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[ManagedProcess]:
    port = free_port()
    command = [sys.executable, "-m", "tests.process.echo_service", "--port", str(port)]
    service = ManagedProcess("echo", command, tmp_path / "echo.log")
    service.start()
    asyncio.run(wait_listening(service, port))
    yield service
    service.close()


def watch(node: ClusterNode, is_there: Callable[[Any], bool]) -> Any:
    """Ask for the status until it is as it should be."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        _, document = perdure(node, "cluster", "status")
        if not isinstance(document, str) and is_there(document):
            return document
        assert time.monotonic() < deadline, document


def move(node: ClusterNode, partition: int, to: str) -> None:
    """Have it lead; balance may be moving the partition just now, so insist."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while True:
        code, answer = perdure(node, "partitions", "lead", str(partition), "--to", to)
        if code == 0 and answer["leader"] == to:
            return
        assert time.monotonic() < deadline, answer


def documented(scrape: str) -> set[str]:
    """The metrics that a scrape explains."""
    return {line.split()[2] for line in scrape.splitlines() if line.startswith("# HELP ")}


def get(port: int, path: str) -> Any:
    answer = asyncio.run(request(port, "GET", path))
    assert answer.status == 200, answer
    return answer


def test_a_cluster_is_operated_with_the_command(
    servers: ClusterServers, echo: ManagedProcess
) -> None:
    asyncio.run(servers.wait_healthy(_DEADLINE_SECONDS))
    one, _, three = servers.nodes
    well = watch(one, lambda document: not document["problems"])
    ids = {row["name"]: row["id"] for row in well["nodes"]}
    assert sorted(ids) == ["n1", "n2", "n3"]
    members = get(three.admin_port, "/cluster-health").json()["metadata_cluster_health"]["members"]
    assert sorted(members) == sorted(ids.values())
    assert get(one.own_port, "/health").json()["log_server_status"] == "Ready"
    # What leaders tell is told once they have looked at their logs.
    deadline = time.monotonic() + _DEADLINE_SECONDS
    wanted = {each.name for each in cluster_table.METRICS if each is not cluster_table.REPLICA_LAG}
    while missing := wanted - documented(get(one.own_port, "/metrics").body.decode()):
        assert time.monotonic() < deadline, missing

    asyncio.run(check_sql(servers, echo))

    leader = well["partitions"][0]["leader"]
    to = next(name for name in ids if name != leader)
    move(one, 0, to)
    assert perdure(three, "partitions", "pin", "0", "--to", to)[1]["pinned"] == to

    check_logs_and_metadata(servers)

    code, drained = perdure(one, "nodes", "drain", "n3")
    assert (code, drained["worker"] in _DRAIN_STATES) == (0, True)
    code, refused = perdure(one, "nodes", "remove", "n3", "--yes")
    assert code == 1
    assert "MEMB0001" in refused
    watch(one, lambda document: _node(document, "n3")["leads"] == 0)
    assert perdure(three, "nodes", "undrain", "n3")[1]["worker"] == "active"

    for number in range(1, 4):
        move(one, number, "n3")
    asyncio.run(check_sql_while_a_leader_dies(one, three))
    ill = watch(one, lambda document: _node(document, "n3")["state"] == "dead")
    assert any(problem["what"].startswith("n3 is dead") for problem in ill["problems"])
    watch(one, lambda document: all(row["leader"] for row in document["partitions"]))
    three.start()
    watch(one, lambda document: _node(document, "n3")["state"] == "alive")


def check_logs_and_metadata(servers: ClusterServers) -> None:
    """Replicas agree, a log moves to a new segment, one is taken away, the registers are there."""
    one, two, _ = servers.nodes
    code, verified = perdure(two, "log", "verify", "0", "1")
    assert code == 0, verified
    assert [row["partition"] for row in verified["verifications"]] == [0, 1]
    (first, *_) = verified["verifications"][0]["segments"]
    # The very first segments may have begun before all nodes were there.
    assert len(first["answered"]) >= 2
    assert first["absent"] == first["missing"] == first["diverging"] == []
    scrape = get(two.own_port, "/metrics").body.decode()
    assert re.search(r'perdure_log_diverging_records{[^}]*partition="1"} 0.0', scrape)
    assert re.search(r"perdure_metadata_places_reached{[^}]*} 3.0", scrape)

    before = perdure(one, "log", "describe", "1")[1]
    code, after = perdure(one, "log", "reconfigure", "1")
    assert (code, after["epoch"] > before["epoch"]) == (0, True)
    code, sealed = perdure(one, "log", "seal", "1", "--yes")
    assert (code, sealed["absent"]) == (0, [])

    code, looked = perdure(two, "log", "unsafe-close", "2")
    assert (code, looked["silent"], looked["given_up"]) == (1, [], [])
    assert "by the rules" in looked["refusal"]
    segment = str(looked["segment"])
    code, refused = perdure(two, "log", "unsafe-close", "2", "--segment", segment, "--yes")
    assert (code, "LOG0009" in refused) == (1, True)

    code, status = perdure(two, "metadata", "status")
    assert (code, status["backend"], len(status["places"])) == (0, "members", 3)
    assert [place["state"] for place in status["places"]].count("leader") == 1
    assert perdure(two, "metadata", "get", "cluster")[1]["value"]["partition_count"] == 8
    keys = [row["key"] for row in perdure(one, "metadata", "list", "nodes/")[1]["registers"]]
    assert keys == ["nodes/1", "nodes/2", "nodes/3"]
    assert len(perdure(one, "partitions", "replicas", "0")[1]["partitions"][0]["replicas"]) == 3


async def sql(node: ClusterNode, statement: str) -> list[dict[str, Any]]:
    """The rows of an answer; a cluster without a leader is asked again."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    headers = {"content-type": "application/json", "accept": "application/json"}
    body = json.dumps({"query": statement}).encode()
    while True:
        answer = await request(node.admin_port, "POST", "/query", body, headers)
        if answer.status == 200:
            rows: list[dict[str, Any]] = answer.json()["rows"]
            return rows
        assert answer.status == 503, answer
        assert time.monotonic() < deadline, answer


async def check_sql(servers: ClusterServers, echo: ManagedProcess) -> None:
    """Every node sees what all of them lead, in the same moment as it was acknowledged; also what
    only the memory of a leader knows."""
    port = int(echo.command[-1])
    await servers.nodes[0].register(port)
    deadline = time.monotonic() + _DEADLINE_SECONDS
    for node in servers.nodes:
        while (await request(node.admin_port, "GET", "/services/Echo")).status != 200:
            assert time.monotonic() < deadline, f"{node.node_name} doesn't hear of the service"

    async def call(number: int, verb: str) -> str:
        node = servers.nodes[number % len(servers.nodes)]
        headers = {"idempotency-key": str(number), "content-type": "text/plain"}
        path = f"/Echo/echo{verb}"
        answer = await request(node.ingress_port, "POST", path, _BODY, headers)
        assert answer.status < 300, answer
        return answer.headers["x-restate-id"]

    ids = sorted(await asyncio.gather(*(call(number, "") for number in range(_CALLS))))
    for node in servers.nodes:
        rows = await sql(node, "select id, status from sys_invocation order by id")
        assert rows == [{"id": id, "status": "completed"} for id in ids]
        (row,) = await sql(node, "select count(*) as n, sum(raw_length) as size from sys_journal")
        assert row["n"] == 2 * _CALLS
        assert row["size"] > _CALLS * len(_BODY)
    echo.kill()
    failing = [await call(_CALLS + number, "/send") for number in range(3)]
    statement = "select id, retry_count from sys_invocation where status = 'backing-off'"
    for node in servers.nodes:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        rows = await sql(node, statement)
        while sorted(row["id"] for row in rows) != sorted(failing):
            assert time.monotonic() < deadline, rows
            rows = await sql(node, statement)
        assert all(row["retry_count"] >= 1 for row in rows)
    echo.start()
    await wait_listening(echo, port)
    await check_batch(servers.nodes[0], ids[:_RESTARTED])


async def check_batch(node: ClusterNode, ids: list[str]) -> None:
    """One node has all of them done, wherever they are led."""
    path = "/internal/invocations_batch_operations/restart-as-new"
    headers = {"content-type": "application/json"}
    body = json.dumps({"invocation_ids": ids}).encode()
    answer = await request(node.admin_port, "POST", path, body, headers)
    assert answer.status == 200, answer
    document = answer.json()
    assert sorted(each["old_invocation_id"] for each in document["succeeded"]) == ids, document
    assert not document["failed"]


async def check_sql_while_a_leader_dies(one: ClusterNode, other: ClusterNode) -> None:
    """What an answer that has begun can't go on with cuts it; the next statement waits for the new
    leaders, and misses nothing."""
    # Each row of the large side comes many times: long before its last one the answer has begun.
    statement = (
        "select b.raw, a.index from (select index from sys_journal limit 12) a cross join "
        "sys_journal b"
    )
    body = json.dumps({"query": statement}).encode()
    reader, writer = await asyncio.open_connection("127.0.0.1", one.admin_port)
    writer.write(
        b"POST /query HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        b"accept: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
        % len(body)
        + body
    )
    async with asyncio.timeout(_DEADLINE_SECONDS):
        assert b" 200 " in await reader.readline()
        other.kill()
        rest = await reader.read()
    writer.close()
    assert not rest.endswith(b"0\r\n\r\n"), "it ended as if it were whole"
    (row,) = await sql(one, "select count(*) as n from sys_invocation")
    assert row["n"] == _CALLS + 3 + _RESTARTED


def _node(document: Any, name: str) -> Any:
    return next(row for row in document["nodes"] if row["name"] == name)
