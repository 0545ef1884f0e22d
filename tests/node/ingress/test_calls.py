"""Calls and sends over real sockets, in both HTTP versions, into real partitions."""

import itertools
import json
from typing import Any

import pytest
from tests.node.ingress.client import Client, Reply
from tests.node.ingress.world import Stage

from perdure.core.ids import parse_invocation_id
from perdure.storage.tables.invocations import Scheduled

_FRESH = itertools.count()
JSON = ("content-type", "application/json")


def fresh(stem: str) -> str:
    """A key that no other test uses."""
    return f"{stem}{next(_FRESH)}"


def refused(reply: Reply, status: int, source: str = "ingress") -> dict[str, Any]:
    """Check an error's form; its document."""
    assert reply.status == status, reply
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-restate-error-source"] == source
    assert reply.headers["access-control-allow-credentials"] == "true"
    document: dict[str, Any] = reply.document
    assert document["code"] == status
    assert document["message"]
    assert document["source"] == source
    return document


def test_call_of_a_service(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        reply = await client.post("/Greeter/greet", "Ada")
        assert (reply.status, reply.body) == (200, b'"Hello Ada"')
        assert reply.headers["content-type"] == "application/json"
        assert parse_invocation_id(reply.headers["x-restate-id"])
        assert "idempotency-expires" not in reply.headers
        assert "x-restate-error-source" not in reply.headers
        assert "date" in reply.headers
        for target in ("//Greeter/greet", "/Greeter/greet/", "/restate/call/Greeter/greet"):
            assert (await client.post(target, "Ada")).body == b'"Hello Ada"'

    stage.run(scenario())


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_call_without_input_or_output(stage: Stage, client: Client, method: str) -> None:
    async def scenario() -> None:
        reply = await client.ask(method, "/Greeter/silent")
        assert (reply.status, reply.body) == (200, b"")
        assert "content-type" not in reply.headers
        assert "x-restate-id" in reply.headers

    stage.run(scenario())


@pytest.mark.parametrize(
    ("segment", "key"),
    [
        ("k", "k"),
        ("a%2Fb", "a/b"),
        ("a+b%20c", "a+b c"),
        ("a%zz", "a%zz"),
        ("", ""),
        ("%C3%A4", "ä"),
    ],
)
def test_keys_arrive(stage: Stage, client: Client, segment: str, key: str) -> None:
    async def scenario() -> None:
        for target in (f"/Counter/{segment}/key", f"/restate/call/Counter/{segment}/key"):
            assert (await client.ask("GET", target)).body.decode() == key

    stage.run(scenario())


def test_handler_sees_path_and_headers(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        fields = [("x-b", "1"), ("X-A".lower(), "2"), ("authorization", "t"), ("cookie", "c")]
        fields += [("idempotency-key", fresh("headers")), ("x-b", "3")]
        reply = await client.ask("GET", "/Greeter/headers?a=%20b", headers=fields)
        seen = [tuple(pair) for pair in json.loads(reply.body)]
        assert seen[0] == ("x-restate-ingress-path", "/Greeter/headers?a=%20b")
        assert [pair for pair in seen if pair[0] in ("x-b", "x-a", "authorization", "cookie")] == [
            ("x-b", "1"),
            ("x-a", "2"),
            ("authorization", "t"),
            ("cookie", "c"),
        ]
        assert not {"host", "connection", "idempotency-key"} & {name for name, _ in seen}
        assert not [name for name, _ in seen if name.startswith(":")]

    stage.run(scenario())


def test_large_body_comes_back(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        body = bytes(range(256)) * 8 * 1024
        reply = await client.ask("POST", "/Greeter/echo", body, [("content-type", "x/y")])
        assert reply.body == body
        assert reply.headers["content-type"] == "application/octet-stream"

    stage.run(scenario())


@pytest.mark.parametrize("code", [200, 418, 599])
def test_terminal_error_is_the_answer(stage: Stage, client: Client, code: int) -> None:
    async def scenario() -> None:
        body = str(code).encode()
        reply = await client.ask("POST", "/Greeter/fail", body, [("content-type", "x/y")])
        document = refused(reply, code, "invocation")
        assert (document["message"], document["metadata"]) == ("as asked", {"k": "v"})
        assert "x-restate-id" in reply.headers

    stage.run(scenario())


@pytest.mark.parametrize("code", [99, 101, 204, 304, 999, 1000])
def test_error_codes_that_http_lacks(stage: Stage, client: Client, code: int) -> None:
    async def scenario() -> None:
        body = str(code).encode()
        reply = await client.ask("POST", "/Greeter/fail", body, [("content-type", "x/y")])
        assert reply.status == 500
        assert reply.document["code"] == code
        # The connection is still good.
        assert (await client.post("/Greeter/greet", "Ada")).status == 200

    stage.run(scenario())


REFUSED: list[tuple[str, str, list[tuple[str, str]], bytes, int]] = [
    ("GET", "/", [], b"", 400),
    ("POST", "/Greeter", [JSON], b"1", 400),
    ("POST", "/Greeter/greet/foo", [JSON], b"1", 400),
    ("POST", "/openapi/x", [], b"", 404),
    ("POST", "/Nobody/greet", [JSON], b"1", 404),
    ("POST", "/Greeter/nothing", [JSON], b"1", 404),
    ("POST", "/Gr%65eter/greet", [JSON], b"1", 404),
    ("POST", "/Greeter/hidden", [JSON], b"1", 400),
    ("PUT", "/Greeter/greet", [JSON], b"1", 405),
    ("DELETE", "/Greeter/greet", [JSON], b"", 405),
    ("PUT", "/Nobody/greet", [JSON], b"1", 404),
    ("POST", "/Greeter/greet", [], b"1", 400),
    ("POST", "/Greeter/greet", [("content-type", "text/plain")], b"1", 400),
    ("POST", "/Greeter/greet", [JSON], b"", 400),
    ("POST", "/Greeter/silent", [JSON], b"1", 400),
    ("POST", "/Greeter/greet?delay=1s", [JSON], b"1", 400),
    ("POST", "/Greeter/greet/send?delay=foo", [JSON], b"1", 400),
    ("POST", "/Greeter/greet", [JSON, ("x-a", "b\u00e9r")], b"1", 400),
    ("POST", "/Greeter/greet", [JSON, ("idempotency-key", "b\u00e9r")], b"1", 400),
    ("POST", "/Flow/w/run", [JSON, ("idempotency-key", "k")], b"1", 400),
    ("POST", "/restate/scope/s/call/Greeter/greet", [JSON], b"1", 400),
    ("POST", "/Greeter/greet?limit-key=a", [JSON], b"1", 400),
    ("POST", "/Greeter/greet", [JSON, ("x-restate-limit-key", "a/b")], b"1", 400),
    ("POST", "/Counter/%ff%fe/add", [JSON], b"1", 400),
]


@pytest.mark.parametrize(("method", "target", "headers", "body", "status"), REFUSED)
def test_refusals(
    stage: Stage,
    client: Client,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    body: bytes,
    status: int,
) -> None:
    async def scenario() -> None:
        reply = await client.ask(method, target, body, headers)
        assert refused(reply, status)["restate_code"].startswith("REQ")
        assert "x-restate-id" not in reply.headers

    stage.run(scenario())


def test_send(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        for target in ("/Greeter/wait/send", "/restate/send/Greeter/wait"):
            reply = await client.ask("POST", target)
            assert reply.status == 202
            assert reply.document == {
                "invocationId": reply.headers["x-restate-id"],
                "status": "Accepted",
            }

    stage.run(scenario())


def test_delayed_send_is_scheduled(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        key = fresh("delayed")
        first = await client.post("/Greeter/greet/send?delay=P1D", "Ada", idempotency_key=key)
        assert first.document["status"] == "Accepted"
        id_ = parse_invocation_id(first.document["invocationId"])
        row = stage.world.host.gateway.store(int.from_bytes(id_[:8])).invocations.get(id_)
        assert isinstance(row, Scheduled)
        assert first.document["executionTime"].endswith("000000Z")
        again = await client.post("/Greeter/greet/send?delay=1s", "Ada", idempotency_key=key)
        assert again.document == {**first.document, "status": "PreviouslyAccepted"}

    stage.run(scenario())


def test_delay_of_nothing_runs_at_once(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        key = fresh("now")
        sent = await client.post("/Greeter/greet/send?delay=0s", "Ada", idempotency_key=key)
        assert "executionTime" in sent.document
        reply = await client.get(f"/restate/attach/{sent.document['invocationId']}")
        assert reply.body == b'"Hello Ada"'

    stage.run(scenario())


@pytest.mark.parametrize("key", ["k", "", "with blanks, and more"])
def test_idempotency_key_repeats_the_answer(stage: Stage, client: Client, key: str) -> None:
    async def scenario() -> None:
        target = f"/Counter/{fresh('idempotent')}/add"
        first = await client.post(target, "Ada", idempotency_key=key)
        assert (first.status, first.body) == (200, b'"Hello Ada"')
        assert "idempotency-expires" not in first.headers
        again = await client.post(target, "Bob", idempotency_key=key)
        assert (again.status, again.body) == (200, b'"Hello Ada"')
        assert again.headers["x-restate-id"] == first.headers["x-restate-id"]
        assert again.headers["idempotency-expires"].endswith("+00:00")
        sent = await client.post(f"{target}/send", "Cyd", idempotency_key=key)
        assert sent.status == 202
        assert sent.document == {
            "invocationId": first.headers["x-restate-id"],
            "status": "PreviouslyAccepted",
        }

    stage.run(scenario())


def test_failure_is_repeated_too(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        fields = [("content-type", "x/y"), ("idempotency-key", fresh("failing"))]
        first = await client.ask("POST", "/Greeter/fail", b"418", fields)
        again = await client.ask("POST", "/Greeter/fail", b"500", fields)
        assert refused(first, 418, "invocation") == refused(again, 418, "invocation")
        assert "idempotency-expires" in again.headers
        assert "idempotency-expires" not in first.headers

    stage.run(scenario())


def test_workflow_runs_once(stage: Stage, client: Client) -> None:
    async def scenario() -> None:
        key = fresh("flow")
        sent = await client.post(f"/Flow/{key}/run/send", 1)
        assert sent.document["status"] == "Accepted"
        again = await client.post(f"/Flow/{key}/run/send", 1)
        assert again.document["status"] == "PreviouslyAccepted"
        called = await client.post(f"/Flow/{key}/run", 1)
        refused(called, 409, "invocation")
        assert called.headers["x-restate-id"] == sent.document["invocationId"]
        status = await client.post(f"/Flow/{key}/status", "Ada", idempotency_key="k")
        assert status.body == b'"Hello Ada"'

    stage.run(scenario())
