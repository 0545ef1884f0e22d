"""Logs and metadata over the admin port of a real node: chains, comparisons, registers, a copy."""

import base64
from urllib.parse import quote

from tests.node.admin.world import World, wait_for

from perdure.cluster.metadata.provision import decode_backup


def test_the_log_of_a_partition_is_described(world: World) -> None:
    logs = world.admin("GET", "/perdure/logs").json()["logs"]
    assert [row["partition"] for row in logs] == [0, 1, 2]
    assert all(row["leader"] == row["nodeset"][0] for row in logs)
    detail = world.admin("GET", "/perdure/logs/0").json()
    assert detail["chain"][-1]["is_open"] is True
    assert "tail_lsn" not in detail["chain"][-1]
    assert world.admin("GET", "/perdure/logs/9").status == 404


def test_a_log_is_compared_and_the_result_stays(world: World) -> None:
    assert world.admin("GET", "/perdure/logs/2/verify").status == 404
    begun = world.admin("POST", "/perdure/logs/2/verify")
    assert begun.status == 202
    done = wait_for(
        lambda: world.admin("GET", "/perdure/logs/2/verify").json(),
        lambda row: not row["is_under_way"],
    )
    assert done["is_sound"] is True
    assert done["ended_at"] >= done["began_at"]
    assert all(row["absent"] == [] and row["missing"] == [] for row in done["segments"])


def test_a_single_node_s_log_is_not_taken_away(world: World) -> None:
    for verb in ("seal", "reconfigure"):
        refused = world.admin("PATCH", f"/perdure/logs/0/{verb}")
        assert (refused.status, refused.json()["restate_code"]) == (409, "MEMB0001")
    refused = world.admin("GET", "/perdure/logs/0/unsafe-close")
    assert (refused.status, refused.json()["restate_code"]) == (409, "MEMB0001")


def test_registers_are_shown_for_people(world: World) -> None:
    status = world.admin("GET", "/perdure/metadata").json()
    assert (status["backend"], status["places"]) == ("local", [])
    rows = world.admin("GET", "/perdure/metadata/registers?prefix=p/").json()["registers"]
    assert [row["key"] for row in rows] == ["p/0", "p/1", "p/2"]
    assert rows[0]["value"]["chain"][-1]["writer"]["generation"] == 1
    one = world.admin("GET", f"/perdure/metadata/registers/{quote('nodes/1', safe='')}").json()
    assert one["value"]["name"] and one["version"] >= 1
    assert world.admin("GET", "/perdure/metadata/registers/nowhere").status == 404


def test_a_copy_of_the_registers_is_whole(world: World) -> None:
    document = world.admin("GET", "/perdure/metadata/backup").json()
    fingerprint, registers = decode_backup(base64.b64decode(document["content"]))
    assert fingerprint == document["fingerprint"]
    found = world.admin("GET", "/perdure/metadata/registers").json()["registers"]
    assert {row["key"]: row["version"] for row in found} == {
        key: at.version for key, at in registers.items()
    }
