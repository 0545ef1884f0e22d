"""What perdure does otherwise, on purpose: each line is one of docs/compatibility.md."""

import http.client
import json
from urllib.parse import urlsplit

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import Response
from tests.conformance.conftest import Deploy
from tests.conformance.raw import Attempt, Script, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

from perdure.core.ids import format_awakeable_id, parse_invocation_id
from perdure.proto import service_pb2 as pb

BODY_BYTES_MAX = 32 * 1024 * 1024
JSON = {"content-type": "application/json"}
MISSING = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"
CANCEL_SIGNAL, AWAKEABLE = (
    format_awakeable_id(parse_invocation_id(MISSING), index) for index in (1, 17)
)


async def finish(attempt: Attempt) -> None:
    await say.replay(attempt)
    await say.finish(attempt, b"1")


@pytest.mark.differs("a call without idempotency key has none")
def test_no_key_is_invented(server: Server, deploy: Deploy) -> None:
    name = unique("Keyless")
    discovery = manifest([service(name, "go", journalRetention=0)])
    deploy(discovery, {f"{name}/go": finish})
    answer = server.ingress.call(name, "go", "x")

    assert answer.json() == 1
    assert server.ingress.output(answer.invocation_id).status == 404


@pytest.mark.differs("one JSON format for every error")
def test_a_body_announced_too_large_is_refused_in_json(server: Server) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.ingress.url).netloc, timeout=20)
    try:
        connection.putrequest("POST", "/Any/handler")
        connection.putheader("content-length", str(BODY_BYTES_MAX + 1))
        connection.endheaders()
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["code"] == 413
    finally:
        connection.close()


@pytest.mark.differs("one JSON format for every error")
@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/deployments", b"{", 400),
        ("GET", "/deployments/nonsense", None, 400),
        ("GET", "/nowhere", None, 404),
        ("DELETE", "/health", None, 405),
    ],
)
def test_admin_errors_are_json(
    server: Server, method: str, path: str, body: bytes | None, status: int
) -> None:
    answer = server.admin.request(method, path, body, JSON)

    assert answer.status == status
    assert answer.json()["message"]
    assert answer.json()["restate_code"]


@pytest.mark.differs("that are malformed: 400")
@pytest.mark.parametrize("verb", ["attach", "output", "lookup"])
@pytest.mark.parametrize("body", [b"", b"{", b"{}", b"[]", b'{"target":"invocation"}'])
def test_a_malformed_target_is_the_clients_mistake(server: Server, verb: str, body: bytes) -> None:
    assert server.ingress.request("POST", f"/restate/{verb}", body, JSON).status == 400


def _failing(code: int) -> Script:
    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        failure = pb.Failure(code=code, message="so be it")
        attempt.send(say.OUTPUT, pb.OutputCommandMessage(failure=failure))
        await say.close(attempt, say.END)

    return script


@pytest.mark.differs("from 200 to 599 without 204, 205 and 304")
@pytest.mark.parametrize("code", [204, 304, 600, 999])
def test_a_code_that_is_no_final_status_is_answered_with_500(
    server: Server, deploy: Deploy, code: int
) -> None:
    name = unique("Codes")
    deploy(manifest([service(name, "go")]), {f"{name}/go": _failing(code)})
    answer = server.ingress.call(name, "go", "x")

    assert answer.status == 500
    assert answer.json()["code"] == code


AWAKEABLES = {
    "signal numbers below 16": ("POST", f"{CANCEL_SIGNAL}/resolve"),
    "/resolve/more`: 400": ("POST", f"{AWAKEABLE}/resolve/more"),
    "on a malformed awakeable id: 400": ("GET", "nonsense/resolve"),
}


@pytest.mark.parametrize(
    ("method", "path"),
    [
        pytest.param(*request, marks=pytest.mark.differs(reason))
        for reason, request in AWAKEABLES.items()
    ],
)
def test_an_awakeable_that_is_none(server: Server, method: str, path: str) -> None:
    answer = server.ingress.request(method, f"/restate/awakeables/{path}", b"1", JSON)

    assert answer.status == 400


@pytest.mark.differs("scopes and limit keys: 400")
def test_an_output_has_no_scope(server: Server) -> None:
    target = {"target": "workflow", "workflowName": "Any", "workflowKey": "k", "scope": "s"}

    assert server.ingress.send_json("POST", "/restate/output", target).status == 400


@pytest.mark.differs("state edits with a scope: 400")
def test_state_has_no_scopes(server: Server, deploy: Deploy) -> None:
    name = unique("Scoped")
    entry = {"name": name, "ty": "VIRTUAL_OBJECT", "handlers": [{"name": "go"}]}
    deploy(manifest([entry]), {f"{name}/go": finish})
    edit: dict[str, object] = {"object_key": "k", "new_state": {"a": [49]}, "scope": "s"}

    assert _edit(server, name, edit).status == 400
    del edit["scope"]
    assert _edit(server, name, edit).status == 202


def _edit(server: Server, name: str, edit: dict[str, object]) -> Response:
    return server.admin.send_json("POST", f"/services/{name}/state", edit)


@pytest.mark.differs("reads invocations, journals and state")
def test_reading_without_sql(server: Server, deploy: Deploy) -> None:
    name = unique("Read")
    deploy(manifest([service(name, "go")]), {f"{name}/go": finish})
    invocation = server.ingress.call(name, "go", "x").invocation_id

    answer = server.admin.get(f"/perdure/invocations/{invocation}")

    assert answer.status == 200
    assert answer.json()["status"] == "completed"
    assert [entry["type"] for entry in answer.json()["journal"]] == ["Input", "Output"]


@pytest.mark.differs("lists are empty, creating answers 501")
def test_there_is_no_kafka(server: Server) -> None:
    assert server.admin.get("/kafka-clusters").json() == {"clusters": []}
    assert server.admin.get("/subscriptions").json() == {"subscriptions": []}
    cluster = {"name": unique("kafka"), "properties": {"bootstrap.servers": "127.0.0.1:1"}}
    assert server.admin.send_json("POST", "/kafka-clusters", cluster).status == 501


@pytest.mark.differs("more than 90 deep")
def test_a_future_nested_too_deep_pauses(server: Server, deploy: Deploy) -> None:
    name = unique("Deep")
    future = pb.Future(waiting_signals=[17], combinator_type=pb.FIRST_COMPLETED)
    for _ in range(95):
        outer = pb.Future(combinator_type=pb.FIRST_COMPLETED)
        outer.nested_futures.append(future)
        future = outer

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        attempt.send(say.SUSPENSION, pb.SuspensionMessage(awaiting_on=future))
        attempt.end()

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})
    invocation = server.ingress.send(name, "go", "x").invocation_id

    server.admin.await_status(invocation, "paused")
    assert server.admin.kill(invocation).status == 200
