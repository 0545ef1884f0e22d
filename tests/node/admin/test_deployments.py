"""/deployments and /services over HTTP: registering a real service, reading, changing, removing."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.node.admin.world import World

_UNKNOWN = "dp_10GKJsDUCgXLbXSpQ8sSCDM"


@pytest.fixture
def empty(empty_world: World) -> Iterator[World]:
    """A node on which nothing is registered, before and after."""
    yield empty_world
    for deployment in empty_world.admin("GET", "/deployments").json()["deployments"]:
        path = f"/deployments/{deployment['id']}?force=true"
        assert empty_world.admin("DELETE", path).status == 202


def register(world: World, path: str = "/deployments", **fields: object) -> tuple[int, Any]:
    answered = world.admin("POST", path, {"uri": world.service, **fields})
    document = answered.json()
    if answered.status < 400:
        assert answered.headers["location"] == f"deployments/{document['id']}"
    return answered.status, document


def test_registering_over_http2(empty: World) -> None:
    status, document = register(
        empty, metadata={"git": "abc"}, additional_headers={"X-Token": "secret"}
    )
    assert status == 201
    assert (document["min_protocol_version"], document["max_protocol_version"]) == (5, 7)
    assert document["sdk_version"].startswith("restate-sdk-python/")
    services = {service["name"]: service for service in document["services"]}
    assert {name: service["ty"] for name, service in services.items()} == {
        "Probe": "Service",
        "Keyed": "VirtualObject",
        "Flow": "Workflow",
    }
    probe = services["Probe"]
    assert probe["documentation"] == "what tests need" and probe["metadata"] == {"team": "core"}
    assert probe["revision"] == 1 and probe["deployment_id"] == document["id"]
    assert "workflow_completion_retention" not in probe
    assert services["Flow"]["workflow_completion_retention"] == "1d"
    (item,) = empty.admin("GET", "/deployments").json()["deployments"]
    assert item["uri"] == f"{empty.service}/"
    assert (item["protocol_type"], item["http_version"]) == ("BidiStream", "HTTP/2.0")
    assert item["created_at"].endswith("Z")
    assert item["additional_headers"] == {"x-token": "secret"}
    assert item["metadata"] == {"git": "abc"}
    assert {"name": "Probe", "revision": 1} in item["services"]


def test_registering_over_http1_makes_a_request_response_deployment(empty: World) -> None:
    status, document = register(empty, use_http_11=True)
    assert status == 201
    shown = empty.admin("GET", f"/deployments/{document['id']}").json()
    assert (shown["protocol_type"], shown["http_version"]) == ("RequestResponse", "HTTP/1.1")
    services = {service["name"]: service for service in shown["services"]}
    assert services["Keyed"]["inactivity_timeout"] == "0s"
    handlers = {handler["name"]: handler for handler in services["Probe"]["handlers"]}
    assert handlers["nap"]["info"][0]["code"] == "RT0021"
    assert "inactivity_timeout" not in handlers["nap"]


@pytest.mark.parametrize(
    ("path", "first", "again", "forced"),
    [("/deployments", 201, 200, 200), ("/v3/deployments", 201, 200, 200)],
)
def test_registering_again(empty: World, path: str, first: int, again: int, forced: int) -> None:
    status, created = register(empty, path)
    assert status == first
    status, unchanged = register(empty, path)
    assert (status, unchanged) == (again, created)
    status, overwritten = register(empty, path, force=True)
    assert status == forced
    assert overwritten["id"] == created["id"]
    assert {service["revision"] for service in overwritten["services"]} == {2}


def test_version_two_forces_unless_told_otherwise(empty: World) -> None:
    assert register(empty, "/v2/deployments")[0] == 201
    status, document = register(empty, "/v2/deployments")
    assert status == 201 and document["services"][0]["revision"] == 2
    status, document = register(empty, "/v2/deployments", force=False)
    assert (status, document["restate_code"]) == (409, "REQ0004")


def test_dry_run_stores_nothing(empty: World) -> None:
    status, document = register(empty, dry_run=True)
    assert status == 201
    assert empty.admin("GET", f"/deployments/{document['id']}").status == 404
    assert empty.admin("GET", "/services").json() == {"services": []}
    register(empty)
    status, document = register(empty, force=True, dry_run=True)
    assert status == 200 and document["services"][0]["revision"] == 2
    assert empty.admin("GET", "/services/Probe").json()["revision"] == 1


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"uri": "127.0.0.1:1"}, 400, "REQ0001"),
        ({"uri": "ftp://127.0.0.1/"}, 400, "REQ0001"),
        ({"uri": "http://u:p@127.0.0.1/"}, 400, "REQ0001"),
        ({"uri": "http://127.0.0.1:99999/"}, 400, "REQ0001"),
        ({"uri": "http://127.0.0.1/ä b"}, 400, "REQ0001"),
        ({"uri": "http://127.0.0.1/", "additional_headers": {"a b": "c"}}, 400, "REQ0001"),
        ({"uri": "http://127.0.0.1/", "additional_headers": {"a": "b\r\nc: d"}}, 400, "REQ0001"),
        ({"uri": "http://127.0.0.1/", "additional_headers": {"Host": "x"}}, 400, "REQ0001"),
        ({}, 422, "REQ0011"),
        ([], 422, "REQ0011"),
        ({"uri": 5}, 422, "REQ0011"),
        ({"uri": "http://127.0.0.1/", "force": "yes"}, 422, "REQ0011"),
        ({"arn": "arn:aws:lambda:eu-west-1:123456789012:function:x"}, 400, "REQ0001"),
        ({"uri": "https://127.0.0.1/", "auth": {"GoogleIdToken": {}}}, 501, "REQ0008"),
    ],
)
def test_bodies_that_are_refused(empty: World, body: object, status: int, code: str) -> None:
    answered = empty.admin("POST", "/deployments", body)
    assert (answered.status, answered.json()["restate_code"]) == (status, code), answered
    assert answered.json()["message"].startswith(f"[{code}] ")


def test_patch_moves_a_deployment_and_keeps_its_identity(empty: World) -> None:
    _, created = register(empty, metadata={"a": "b"})
    path = f"/deployments/{created['id']}"
    before = empty.admin("GET", path).json()
    assert empty.admin("PATCH", path, {}).json() == before
    assert empty.admin("PATCH", path, {"overwrite": True}).json() == before
    change = {"additional_headers": {"x-new": "1"}, "use_http_11": True}
    dry = empty.admin("PATCH", path, {**change, "dry_run": True})
    assert dry.status == 200 and dry.json()["http_version"] == "HTTP/1.1"
    assert empty.admin("GET", path).json() == before
    moved = empty.admin("PATCH", path, change)
    assert moved.status == 200
    after = moved.json()
    assert after["additional_headers"] == {"x-new": "1"}
    assert after["protocol_type"] == "RequestResponse"
    for kept in ("id", "uri", "metadata", "created_at", "min_protocol_version"):
        assert after[kept] == before[kept]
    assert {service["revision"] for service in after["services"]} == {1}
    replaced = empty.admin("PATCH", path, {"use_http_11": False, "overwrite": True}).json()
    assert replaced["http_version"] == "HTTP/2.0"
    assert {service["revision"] for service in replaced["services"]} == {1}


def test_patch_refusals(empty: World) -> None:
    _, created = register(empty)
    path = f"/deployments/{created['id']}"
    assert empty.admin("PATCH", f"/deployments/{_UNKNOWN}", {}).status == 404
    assert empty.admin("PATCH", "/deployments/dp_1", {}).status == 400
    assert empty.admin("PATCH", path, {"arn": "arn:x"}).status == 400
    assert empty.admin("PUT", path, {}).status == 405
    assert empty.admin("PUT", f"/v2{path}", {}).status == 200


def test_delete(empty: World) -> None:
    _, created = register(empty)
    path = f"/deployments/{created['id']}"
    refused = empty.admin("DELETE", path)
    assert refused.status == 409
    assert "serves new calls of Flow, Keyed, Probe" in refused.json()["message"]
    assert empty.admin("DELETE", f"{path}?force=maybe").status == 400
    answered = empty.admin("DELETE", f"{path}?force=true")
    assert (answered.status, answered.body) == (202, b"")
    assert empty.admin("DELETE", f"{path}?force=true").status == 404
    assert empty.admin("GET", "/services/Probe").status == 404
    assert register(empty)[1]["services"][0]["revision"] == 1


def test_a_deployment_drains(empty: World) -> None:
    """It goes when nothing needs it: not what is pinned, nor what is under way unpinned."""
    _, old = register(empty)
    path = f"/deployments/{old['id']}"
    pinned = empty.send("/Probe/nap/send", 3600)
    empty.wait_status(pinned, "suspended")
    unpinned = empty.send("/Probe/hang/send")
    empty.wait_status(unpinned, "running")
    waiting = empty.send("/Probe/trip/send")  # backs off, without a step: goes on elsewhere
    empty.wait_status(waiting, "backing-off")
    uses = f"/perdure{path}"
    services = ["Flow", "Keyed", "Probe"]
    assert empty.admin("GET", uses).json() == {
        "id": old["id"],
        "latest_of": services,
        "pinned_invocations": 2,
        "is_removable": False,
    }
    register(empty, uri=f"{empty.service}/mounted/")
    assert empty.admin("GET", uses).json()["latest_of"] == []
    refused = empty.admin("DELETE", path)
    assert refused.status == 409
    assert refused.json()["message"].startswith("[REQ0004] 2 invocations need dp_")
    for target in (pinned, unpinned):
        assert empty.admin("PATCH", f"/invocations/{target}/kill").status == 200
    assert empty.admin("GET", uses).json()["is_removable"]
    assert empty.admin("DELETE", path).status == 202
    assert empty.admin("GET", uses).status == 404
    assert empty.describe(waiting)["status"] == "backing-off"
    assert empty.admin("PATCH", f"/invocations/{waiting}/kill").status == 200


def test_a_pinned_deployment_that_is_removed_is_missed_and_comes_back(empty: World) -> None:
    _, old = register(empty)
    target = empty.send("/Probe/nap/send", 1)
    empty.wait_status(target, "suspended")
    assert empty.admin("DELETE", f"/deployments/{old['id']}?force=true").status == 202
    stuck = empty.wait_status(target, "backing-off")
    assert stuck["last_failure"]["error_code"] == "RT0011"
    _, new = register(empty)
    assert empty.admin("PATCH", f"/invocations/{target}/pause").status == 202
    empty.wait_status(target, "paused")
    resumed = empty.admin("PATCH", f"/invocations/{target}/resume?deployment=latest")
    assert resumed.status == 200
    assert empty.wait_status(target, "completed")["deployment"] == new["id"]


def test_services_and_handlers(world: World) -> None:
    listed = world.admin("GET", "/services").json()["services"]
    assert [service["name"] for service in listed] == ["Flow", "Keyed", "Probe"]
    assert world.admin("GET", "/services/K%65yed").json() == listed[1]
    handlers = world.admin("GET", "/v4/services/Keyed/handlers").json()["handlers"]
    assert {handler["name"]: handler["ty"] for handler in handlers} == {
        "hold": "Exclusive",
        "put": "Exclusive",
        "peek": "Shared",
    }
    one = world.admin("GET", "/services/Probe/handlers/echo").json()
    assert one["input_description"] == one["output_description"] == "JSON string"
    assert one["retry_policy"] == {"max_attempts": None} and "ty" not in one
    trip = world.admin("GET", "/services/Probe/handlers/trip").json()
    assert trip["retry_policy"]["initial_interval"] == "1h"
    for path in ("/services/Nope", "/services/Nope/handlers", "/services/Probe/handlers/nope"):
        answered = world.admin("GET", path)
        assert (answered.status, answered.json()["restate_code"]) == (404, "META0103")


def test_changing_settings(empty: World) -> None:
    register(empty)
    before = empty.admin("GET", "/services/Flow").json()
    assert empty.admin("PATCH", "/services/Flow", {"public": None}).json() == before
    change = {
        "public": False,
        "idempotency_retention": "2 days 3h",
        "workflow_completion_retention": "PT1M30S",
        "journal_retention": "0s",
        "inactivity_timeout": "1500ms",
        "abort_timeout": "1w",
    }
    after = empty.admin("PATCH", "/services/Flow", change).json()
    assert after["public"] is False
    assert all(handler["public"] is False for handler in after["handlers"])
    expected = {
        "idempotency_retention": "2d 3h",
        "workflow_completion_retention": "1m 30s",
        "journal_retention": "0s",
        "inactivity_timeout": "1s 500ms",
        "abort_timeout": "7d",
    }
    assert {name: after[name] for name in expected} == expected
    assert after["revision"] == before["revision"]
    assert empty.admin("GET", "/services/Flow").json() == after


@pytest.mark.parametrize(
    ("service", "body", "status"),
    [
        ("Keyed", {"workflow_completion_retention": "5m"}, 400),
        ("Keyed", {"journal_retention": "abc"}, 422),
        ("Keyed", {"journal_retention": 5}, 422),
        ("Keyed", {"public": "no"}, 422),
        ("Nope", {}, 404),
        ("Nope", {"public": True}, 404),
    ],
)
def test_settings_that_are_refused(world: World, service: str, body: object, status: int) -> None:
    assert world.admin("PATCH", f"/services/{service}", body).status == status


def test_openapi_of_a_service(world: World) -> None:
    document = world.admin("GET", "/services/Keyed/openapi").json()
    assert document["openapi"] == "3.1.0" and document["info"]["title"] == "Keyed"
    assert document["servers"] == [{"url": world.ingress_url}]
    put = document["paths"]["/restate/call/Keyed/{key}/put"]["post"]
    assert put["operationId"] == "put"
    assert {"$ref": "#/components/parameters/key"} in put["parameters"]
    flow = world.admin("GET", "/services/Flow/openapi").json()
    assert "/restate/workflow/Flow/{key}/attach" in flow["paths"]
    for name, section in (("Send", "responses"), ("delay", "parameters"), ("key", "parameters")):
        assert name in document["components"][section]
    assert world.admin("GET", "/services/Nope/openapi").status == 404


def test_a_paused_invocation_goes_on_with_another_deployment(empty: World) -> None:
    _, old = register(empty)
    target = empty.send("/Probe/nap/send", 3600)
    empty.wait_status(target, "suspended")
    assert empty.admin("PATCH", f"/invocations/{target}/pause").status == 202
    status, new = register(empty, uri=f"{empty.service}/mounted/")
    assert status == 201 and new["id"] != old["id"]
    assert empty.describe(target)["deployment"] == old["id"]
    answered = empty.admin("PATCH", f"/invocations/{target}/resume?deployment=latest")
    assert answered.status == 200, answered
    assert empty.wait_status(target, "suspended")["deployment"] == new["id"]


def test_a_restart_keeps_a_prefix_of_the_journal(empty: World) -> None:
    register(empty)
    target = empty.send("/Probe/step/send", "x")
    empty.wait_status(target, "completed")
    old = {entry["index"]: entry for entry in empty.describe(target)["journal"]}
    upto = next(index for index, entry in old.items() if entry["type"] == "RunCompletion")
    answered = empty.admin("PATCH", f"/invocations/{target}/restart-as-new?from={upto}")
    assert answered.status == 200, answered
    fresh = answered.json()["new_invocation_id"]
    journal = empty.wait_status(fresh, "completed")["journal"]
    assert [entry["type"] for entry in journal] == [entry["type"] for entry in old.values()]
