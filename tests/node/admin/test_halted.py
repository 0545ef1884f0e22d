"""A node that can't serve everything says so wherever it is asked how it is: halted partitions, of
which it serves the others, a full disk, a stop under way."""

import http.client
import json
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.node.admin.world import World, wait_for

from perdure.core.ids import parse_invocation_id, partition_key_of, partition_of

_PARTITIONS = 3


@pytest.mark.slow
def test_health_is_honest_while_partitions_are_halted(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start()
    try:
        assert world.admin("POST", "/deployments", {"uri": world.service}).status == 201
        sleepers: dict[int, str] = {}
        while len(sleepers) < _PARTITIONS:
            invocation = world.send("/Probe/nap/send", 3600)
            key = partition_key_of(parse_invocation_id(invocation))
            sleepers[partition_of(key, _PARTITIONS)] = invocation
        assert world.admin("GET", "/health").status == 200
        assert set(json.loads(world.ingress("GET", "/restate/health").body)) == {"services"}

        world.halt(1)
        refused = world.admin("GET", "/health")
        assert (refused.status, refused.json()["restate_code"]) == (503, "PART0001")
        assert "halted partitions: 1 of 3" in refused.json()["message"]
        partly = world.ingress("GET", "/restate/health")
        assert partly.status == 200
        assert partly.json() == {
            "services": ["Flow", "Keyed", "Probe"],
            "halted_partitions": [1],
        }
        for partition, invocation in sleepers.items():
            answered = world.admin("PATCH", f"/invocations/{invocation}/kill")
            assert answered.status == (503 if partition == 1 else 200), partition
        # What was applied before can still be looked at.
        assert world.describe(sleepers[1])["id"] == sleepers[1]

        world.halt(0)
        world.halt(2)
        assert world.ingress("GET", "/restate/health").status == 503
        assert world.admin("GET", "/version").status == 200
    finally:
        world.stop()


@pytest.mark.slow
def test_health_tells_of_a_full_disk_and_of_a_stop(tmp_path: Path) -> None:
    world = World(tmp_path)
    world.start()
    try:
        assert world.admin("POST", "/deployments", {"uri": world.service}).status == 201
        world.set_disk_full(True)
        refused = world.admin("GET", "/health")
        assert (refused.status, refused.json()["restate_code"]) == (503, "LOG0003")
        assert "until there is room" in refused.json()["message"]
        assert world.admin("GET", "/version").status == 200
        world.set_disk_full(False)

        with closing(_connect(world.admin_url)) as admin, closing(_connect(world.ingress_url)) as c:
            assert _health(admin)[0] == 200
            c.request("POST", "/Probe/hang")  # the node waits for it while it stops
            wait_for(lambda: _is_running(world), bool)
            world.begin_stop()
            found = wait_for(lambda: _health(admin), lambda health: health != (200, ""))
            assert found == (503, "REQ0009")
    finally:
        world.stop()


def _connect(url: str) -> http.client.HTTPConnection:
    address = urlsplit(url)
    return http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)


def _health(connection: http.client.HTTPConnection) -> tuple[int, str]:
    """Status and error code."""
    connection.request("GET", "/health")
    response = connection.getresponse()
    body = response.read()
    return response.status, json.loads(body)["restate_code"] if body else ""


def _is_running(world: World) -> bool:
    found = world.admin("GET", "/perdure/invocations?status=running").json()
    return bool(found["invocations"])
