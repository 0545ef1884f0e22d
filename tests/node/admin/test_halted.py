"""A node with halted partitions says so wherever it is asked how it is, and serves the others."""

import json
from pathlib import Path

import pytest
from tests.node.admin.world import World

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
