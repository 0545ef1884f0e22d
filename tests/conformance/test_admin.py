"""The admin API, request by request: what is asked, and with which status it is answered."""

import json
from collections.abc import Iterator

import pytest
from tests.conformance import dialogue as say
from tests.conformance.conftest import deploying
from tests.conformance.raw import Attempt, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

NOBODY = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"
NOWHERE = "dp_14JkF5kJ9x5Y28Ugfc8vuA9"
BATCH = "/internal/invocations_batch_operations"


async def finish(attempt: Attempt) -> None:
    await say.replay(attempt)
    await say.finish(attempt, b"1")


@pytest.fixture(scope="module")
def names(server: Server) -> Iterator[dict[str, str]]:
    """What the cases below put in for their placeholders."""
    name = unique("Admin")
    entry = {"name": f"{name}.Object", "ty": "VIRTUAL_OBJECT", "handlers": [{"name": "go"}]}
    with deploying(server) as deploy:
        scripts = {f"{name}/go": finish, f"{name}.Object/go": finish}
        endpoint = deploy(manifest([service(name, "go"), entry]), scripts)
        yield {
            "<service>": name,
            "<deployment>": server.admin.get(f"/services/{name}").json()["deployment_id"],
            "<invocation>": server.ingress.call(name, "go", "x").invocation_id,
            "<uri>": endpoint.uri,
        }


# method, path, JSON body, status
CASES: list[tuple[str, str, object, int]] = [
    ("GET", "/health", None, 200),
    ("HEAD", "/health", None, 200),
    ("GET", "/version", None, 200),
    ("GET", "/cluster-health", None, 200),
    ("GET", "/openapi", None, 200),
    ("GET", "/v2/services", None, 200),
    ("GET", "/v3/services", None, 200),
    ("GET", "/v4/services", None, 200),
    ("GET", "/v1/services", None, 400),
    ("GET", "/v5/services", None, 404),
    ("OPTIONS", "/services", None, 405),
    ("POST", "/services", None, 405),
    ("GET", "/metrics", None, 404),
    # Services
    ("GET", "/services/<service>", None, 200),
    ("GET", "/services/Nobody", None, 404),
    ("GET", "/services/<service>/handlers", None, 200),
    ("GET", "/services/<service>/handlers/go", None, 200),
    ("GET", "/services/<service>/handlers/missing", None, 404),
    ("GET", "/services/<service>/openapi", None, 200),
    ("GET", "/services/Nobody/openapi", None, 404),
    ("PATCH", "/services/<service>", {}, 200),
    ("PATCH", "/services/<service>", {"public": None}, 200),
    ("PATCH", "/services/<service>", {"unknown": 1}, 200),
    ("PATCH", "/services/<service>", {"journal_retention": "long"}, 422),
    ("PATCH", "/services/<service>", {"workflow_completion_retention": "1d"}, 400),
    ("PATCH", "/services/Nobody", {}, 404),
    ("PATCH", "/services/Nobody", {"public": True}, 404),
    # State
    ("POST", "/services/<service>.Object/state", {"object_key": "k", "new_state": {}}, 202),
    ("POST", "/services/<service>.Object/state", {"object_key": "k", "new_state": {"a": "b"}}, 202),
    ("POST", "/services/<service>.Object/state", {"object_key": "k", "new_state": {"a": [1]}}, 202),
    (
        "POST",
        "/services/<service>.Object/state",
        {"object_key": "k", "new_state": {"a": [256]}},
        422,
    ),
    ("POST", "/services/<service>.Object/state", {"new_state": {}}, 422),
    ("POST", "/services/<service>/state", {"object_key": "k", "new_state": {}}, 400),
    ("POST", "/services/Nobody/state", {"object_key": "k", "new_state": {}}, 202),
    ("POST", "/services/Nobody/state", {"object_key": "k", "new_state": {"a": [1]}}, 404),
    # Deployments
    ("GET", "/deployments", None, 200),
    ("GET", "/deployments/<deployment>", None, 200),
    ("GET", f"/deployments/{NOWHERE}", None, 404),
    ("POST", "/deployments", {}, 422),
    ("POST", "/deployments", {"uri": "/relative"}, 400),
    ("POST", "/deployments", {"uri": "<uri>", "use_http_11": "yes"}, 422),
    ("POST", "/deployments", {"uri": "<uri>"}, 200),
    ("POST", "/deployments", {"uri": "<uri>", "dry_run": True}, 200),
    ("POST", "/deployments", {"uri": "<uri>", "force": True, "dry_run": True}, 200),
    ("POST", "/deployments", {"uri": "<uri>/other", "dry_run": True}, 201),
    ("POST", "/deployments", {"arn": "arn:nonsense"}, 400),
    ("PATCH", "/deployments/<deployment>", {}, 200),
    ("PATCH", f"/deployments/{NOWHERE}", {}, 404),
    ("PUT", "/deployments/<deployment>", {}, 405),
    ("DELETE", f"/deployments/{NOWHERE}?force=true", None, 404),
    ("DELETE", "/deployments/nonsense?force=true", None, 400),
    # Invocations
    ("GET", "/invocations", None, 404),
    ("GET", "/invocations/<invocation>", None, 405),
    ("PATCH", "/invocations/nonsense/cancel", None, 400),
    ("PATCH", "/invocations/<invocation>/restart-as-new?from=abc", None, 400),
    ("PATCH", "/invocations/<invocation>/restart-as-new?deployment=nonsense", None, 400),
    ("PATCH", f"/invocations/<invocation>/restart-as-new?deployment={NOWHERE}", None, 400),
    ("PATCH", "/invocations/<invocation>/restart-as-new?deployment=Latest", None, 200),
    ("DELETE", f"/invocations/{NOBODY}", None, 202),
    ("DELETE", f"/invocations/{NOBODY}?mode=kill", None, 202),
    ("DELETE", f"/invocations/{NOBODY}?mode=nonsense", None, 400),
    ("POST", f"{BATCH}/kill", {"invocation_ids": []}, 200),
    ("POST", f"{BATCH}/kill", {"invocation_ids": ["nonsense"]}, 422),
    ("POST", f"{BATCH}/kill", {"invocation_ids": [NOBODY] * 1001}, 400),
    ("POST", f"{BATCH}/nonsense", {"invocation_ids": []}, 404),
    # What isn't there
    ("GET", "/subscriptions/sub_14JkF5kJ9x5Y28Ugfc8vuA9", None, 404),
    ("GET", "/kafka-clusters/nobody", None, 404),
    ("DELETE", "/kafka-clusters/nobody", None, 404),
    # SQL
    ("POST", "/query", {"query": "select 1"}, 200),
    ("POST", "/query", {"query": "selec"}, 400),
    ("POST", "/query", {"query": ""}, 400),
    ("POST", "/query", {"query": "create table x (a int)"}, 400),
    ("POST", "/query", {}, 422),
]
DIFFERENT: dict[str, tuple[str, str, object, int]] = {
    "two statements": ("POST", "/query", {"query": "select 1; select 2"}, 400),
    "an unknown column": ("POST", "/query", {"query": "select x from sys_invocation"}, 400),
    "an unknown table": ("POST", "/query", {"query": "select 1 from nowhere"}, 400),
}


@pytest.mark.parametrize(("method", "path", "body", "status"), CASES)
def test_the_status_of_a_request(
    server: Server, names: dict[str, str], method: str, path: str, body: object, status: int
) -> None:
    _ask(server, names, method, path, body, status)


@pytest.mark.differs("mistakes in SQL: 400")
@pytest.mark.parametrize(
    ("method", "path", "body", "status"), DIFFERENT.values(), ids=DIFFERENT.keys()
)
def test_the_status_of_a_mistake_in_sql(
    server: Server, names: dict[str, str], method: str, path: str, body: object, status: int
) -> None:
    _ask(server, names, method, path, body, status)


def _ask(
    server: Server, names: dict[str, str], method: str, path: str, body: object, status: int
) -> None:
    content = "" if body is None else json.dumps(body)
    for placeholder, name in names.items():
        path, content = path.replace(placeholder, name), content.replace(placeholder, name)
    headers = {"content-type": "application/json"} if content else {}
    answer = server.admin.request(method, path, content.encode() or None, headers)

    assert answer.status == status, answer.body


@pytest.mark.differs("`where id = 'nonsense'` finds nothing")
def test_an_id_that_is_none_finds_nothing(server: Server) -> None:
    assert server.admin.query("select * from sys_invocation where id = 'nonsense'") == []


@pytest.mark.differs("removed without `force` when nothing needs it")
def test_a_deployment_that_is_needed_is_not_removed(server: Server, names: dict[str, str]) -> None:
    _ask(server, names, "DELETE", "/deployments/<deployment>", None, 409)
    _ask(server, names, "GET", "/deployments/<deployment>", None, 200)


@pytest.mark.differs("removed without `force` when nothing needs it")
def test_a_deployment_that_nothing_needs_is_removed(server: Server) -> None:
    discovery = manifest([service(unique("Replaced"), "go")])
    with deploying(server) as deploy:
        old = f"{deploy(discovery, {}).uri}/"
        deploy(discovery, {})
        listed = server.admin.get("/deployments").json()["deployments"]
        (found,) = (each["id"] for each in listed if each["uri"] == old)

        assert server.admin.request("DELETE", f"/deployments/{found}").status == 202
        assert server.admin.get(f"/deployments/{found}").status == 404


def test_a_body_without_its_type_is_refused(server: Server) -> None:
    answer = server.admin.request("POST", "/deployments", b'{"uri": "http://127.0.0.1:1"}')

    assert answer.status == 415


def test_many_invocations_at_once(server: Server, names: dict[str, str]) -> None:
    ids = [names["<invocation>"], NOBODY]
    done = server.admin.send_json("POST", f"{BATCH}/restart-as-new", {"invocation_ids": ids})

    assert done.status == 200
    outcome = done.json()
    (restarted,) = outcome["succeeded"]
    assert restarted["old_invocation_id"] == names["<invocation>"]
    assert server.ingress.attach(restarted["new_invocation_id"]).json() == 1
    assert [each["invocation_id"] for each in outcome["failed"]] == [NOBODY]
