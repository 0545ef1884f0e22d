"""What holds for every path: versions, methods, errors, limits, state edits, the node itself."""

import http.client
import json
import socket
from pathlib import Path

import pytest
from tests.node.admin.world import World, wait_for


@pytest.mark.parametrize("prefix", ["", "/v2", "/v3", "/v4"])
def test_every_version_is_mounted(world: World, prefix: str) -> None:
    answered = world.admin("GET", f"{prefix}/health")
    assert (answered.status, answered.body) == (200, b"")
    document = world.admin("GET", f"{prefix}/version").json()
    assert (document["min_admin_api_version"], document["max_admin_api_version"]) == (2, 4)
    assert document["version"].startswith("1.7.") and document["features"] == {}
    assert document["ingress_endpoint"] == world.ingress_url
    assert document["server"] == "perdure"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/health", 400),
        ("GET", "/v5/health", 404),
        ("GET", "/", 404),
        ("GET", "/services/", 404),
        ("GET", "/nope", 404),
        ("GET", "/v4", 404),
        ("PUT", "/services", 405),
        ("OPTIONS", "/services", 405),
        ("GET", "/invocations/x/cancel", 405),
        ("GET", "/services/%ff", 400),
        ("GET", "/kafka-clusters/x", 404),
        ("POST", "/query", 400),
        ("PUT", "/limits/rules", 501),
    ],
)
def test_paths_and_methods(world: World, method: str, path: str, status: int) -> None:
    answered = world.admin(method, path)
    assert answered.status == status
    document = answered.json()
    assert set(document) == {"message", "restate_code"}
    assert answered.headers["content-type"] == "application/json"
    assert ("allow" in answered.headers) == (status == 405)


def test_allow_names_what_the_path_takes(world: World) -> None:
    answered = world.admin("PUT", "/services")
    assert answered.headers["allow"] == "GET, HEAD"


def test_head_is_get_without_a_body(world: World) -> None:
    answered = world.admin("HEAD", "/services")
    assert (answered.status, answered.body) == (200, b"")
    assert world.admin("HEAD", "/services/Nope").status == 404


def test_cluster_health(world: World) -> None:
    document = world.admin("GET", "/cluster-health").json()
    assert document["cluster_name"] and document["metadata_cluster_health"]["members"] == [1]


@pytest.mark.parametrize(
    ("raw", "content_type", "status"),
    [
        (b"{", "application/json", 400),
        (b"", "application/json", 400),
        (b'{"uri": "\xff"}', "application/json", 400),
        (b'{"x": ' + b"[" * 100_000, "application/json", 400),
        (b"{}", "application/json; charset=utf-8", 422),
        (b"{}", "text/plain", 415),
        (b"{}", None, 415),
        (b'{"uri": "' + b"x" * (2 << 20) + b'"}', "application/json", 413),
    ],
)
def test_bodies(world: World, raw: bytes, content_type: str | None, status: int) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answered = world.admin("POST", "/deployments", raw=raw, headers=headers)
    assert answered.status == status
    assert answered.json()["restate_code"].startswith("REQ")


def test_kafka_is_empty(world: World) -> None:
    assert world.admin("GET", "/kafka-clusters").json() == {"clusters": []}
    assert world.admin("GET", "/subscriptions").json() == {"subscriptions": []}
    answered = world.admin("POST", "/subscriptions", {"source": "kafka://a/b"})
    assert (answered.status, answered.json()["restate_code"]) == (501, "REQ0008")


@pytest.mark.parametrize(
    ("service", "body", "status"),
    [
        ("Keyed", {"object_key": "a", "new_state": {"x": [1, 255]}}, 202),
        ("Keyed", {"object_key": "a", "new_state": {}, "version": None}, 202),
        ("Flow", {"object_key": "a", "new_state": {"x": "text"}}, 202),
        ("Probe", {"object_key": "a", "new_state": {}}, 400),
        ("Nope", {"object_key": "a", "new_state": {"x": "s"}}, 404),
        ("Nope", {"object_key": "a", "new_state": {}}, 202),
        ("Keyed", {"object_key": "a"}, 422),
        ("Keyed", {"object_key": "a", "new_state": {"x": [256]}}, 422),
        ("Keyed", {"object_key": "a", "new_state": {"x": [-1]}}, 422),
        ("Keyed", {"object_key": "a", "new_state": {}, "scope": "s"}, 400),
    ],
)
def test_state_edit(world: World, service: str, body: object, status: int) -> None:
    answered = world.admin("POST", f"/services/{service}/state", body)
    assert answered.status == status, answered
    assert (answered.body == b"") == (status == 202)


def test_state_edit_is_seen_by_handlers_and_guarded_by_its_version(world: World) -> None:
    def edit(value: str, version: str | None) -> None:
        new_state = {"value": list(value.encode())}
        body = {"object_key": "edited", "new_state": new_state, "version": version}
        assert world.admin("POST", "/services/Keyed/state", body).status == 202

    def peeked() -> object:
        return world.call("/Keyed/edited/peek").json()

    edit('"first"', None)
    assert wait_for(peeked, lambda value: value == "first")
    edit('"never"', "not-its-version")
    edit('"never"', "47DEQpj8HBSa-_TImW-5JCeuQeRkm5NMpJWZG3hSuFU")
    assert peeked() == "first"


@pytest.mark.slow
def test_requests_at_once_are_limited_and_end_with_their_client(tmp_path: Path) -> None:
    world = World(tmp_path, admin_requests_max=1)
    world.start()
    silent = socket.create_server(("127.0.0.1", 0))  # connects, and never answers
    try:
        client = http.client.HTTPConnection(world.admin_url.removeprefix("http://").rstrip("/"))
        body = json.dumps({"uri": f"http://127.0.0.1:{silent.getsockname()[1]}/"})
        client.request("POST", "/deployments", body, {"content-type": "application/json"})
        refused = wait_for(
            lambda: world.admin("GET", "/health"), lambda answered: answered.status == 429
        )
        assert refused.json()["restate_code"] == "REQ0006"
        assert refused.headers["retry-after"] == "1"
        client.close()
        wait_for(lambda: world.admin("GET", "/health"), lambda answered: answered.status == 200)
    finally:
        silent.close()
        world.stop()
