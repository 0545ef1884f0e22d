"""Requests that are wrong, or odd and right: what the ingress says to them."""

import http.client
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any
from urllib.parse import urlsplit

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import Response
from tests.conformance.conftest import deploying
from tests.conformance.raw import Attempt, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

from perdure.proto import service_pb2 as pb

JSON = {"content-type": "application/json"}
AWAKEABLE = "sign_1zLGBtA1oKtvphDCDeoVNMkyIxrnZiezqAAAAEg"
BODY_BYTES_MAX = 32 * 1024 * 1024
PIECE_BYTES = 64 * 1024
MISSING = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"


@pytest.fixture(scope="module")
def echo(server: Server) -> Iterator[str]:
    """A service that takes JSON and echoes it, an object and a workflow with its name."""
    name = unique("Echo")

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        given = entries[0].parse(pb.InputCommandMessage)
        headers = {header.key: header.value for header in given.headers}
        key = attempt.headers.get("x-restate-service-key", "")
        seen = {"body": given.value.content.decode(), "headers": headers, "key": key}
        await say.finish(attempt, json.dumps(seen).encode())

    takes_json: dict[str, object] = {
        "input": {"required": False, "contentType": "application/json", "jsonSchema": {}},
        "output": {"contentType": "application/json"},
    }
    handlers: list[dict[str, object]] = [
        {"name": "echo", **takes_json},
        {"name": "empty", "input": {"required": False}},
    ]
    services: list[dict[str, Any]] = [
        service(name, handlers=handlers),
        {"name": f"{name}.Object", "ty": "VIRTUAL_OBJECT", "handlers": handlers},
        {
            "name": f"{name}.Flow",
            "ty": "WORKFLOW",
            "handlers": [{"name": "run", "ty": "WORKFLOW"}, {"name": "echo", **takes_json}],
        },
    ]
    scripts = {
        f"{service['name']}/{handler}": script
        for service in services
        for handler in ("echo", "empty", "run")
    }
    with deploying(server) as deploy:
        deploy(manifest(services), scripts)
        yield name


CASES: list[tuple[str, str, dict[str, str], bytes | None, int]] = [
    # method, path, headers, body, status
    ("POST", "/{echo}/echo", JSON, b'"x"', 200),
    ("GET", "/{echo}/echo", {}, None, 200),
    ("POST", "/{echo}/echo", {"content-type": "application/json; charset=utf-8"}, b'"x"', 200),
    ("POST", "/{echo}/echo/", JSON, b'"x"', 200),
    ("POST", "//{echo}/echo", JSON, b'"x"', 200),
    ("POST", "/restate/call/{echo}/echo", JSON, b'"x"', 200),
    ("POST", "/restate/send/{echo}/echo", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=1ms", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=PT0S", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=1h%2030m", JSON, b'"x"', 202),
    ("GET", "/{echo}/empty", {}, None, 200),
    ("POST", "/{echo}/echo", {}, b'"x"', 400),
    ("POST", "/{echo}/echo", {"content-type": "text/plain"}, b'"x"', 400),
    ("POST", "/{echo}/echo", {"content-type": "Application/JSON"}, b'"x"', 400),
    ("POST", "/{echo}/echo", JSON, b"", 400),
    ("POST", "/{echo}/empty", JSON, b'"x"', 400),
    ("PUT", "/{echo}/echo", JSON, b'"x"', 405),
    ("DELETE", "/{echo}/echo", {}, None, 405),
    ("POST", "/{echo}/missing", JSON, b'"x"', 404),
    ("POST", "/Nobody/echo", JSON, b'"x"', 404),
    ("POST", "/{echo}/ec%68o", JSON, b'"x"', 404),
    ("POST", "/{echo}", JSON, b'"x"', 400),
    ("GET", "/", {}, None, 400),
    ("GET", "/openapi", {}, None, 400),
    ("GET", "/restate", {}, None, 400),
    ("GET", "/restate/nothing", {}, None, 404),
    ("POST", "/{echo}/key/echo", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo/send/more", JSON, b'"x"', 400),
    ("POST", "/{echo}.Object/echo", JSON, b'"x"', 400),
    ("POST", "/{echo}.Object/%ff%fe/echo", JSON, b'"x"', 400),
    ("POST", "/restate/call/{echo}/echo/send", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo?delay=1s", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo/send?delay=soon", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo/send?delay=", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo/send?delay=-1s", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo/send?delay=P1M", JSON, b'"x"', 400),
    ("POST", "/{echo}.Flow/k/run", {**JSON, "idempotency-key": "i"}, b'"x"', 400),
    ("POST", "/restate/scope/a/call/{echo}/echo", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo", {**JSON, "x-restate-limit-key": "a"}, b'"x"', 400),
    ("POST", "/restate/health", {}, b"", 405),
    ("GET", f"/restate/invocation/{MISSING}/attach", {}, None, 404),
    ("GET", f"/restate/invocation/{MISSING}/output", {}, None, 404),
    ("GET", "/restate/invocation/inv_1short/attach", {}, None, 400),
    ("GET", "/restate/invocation/nonsense/output", {}, None, 400),
    ("GET", "/restate/workflow/{echo}.Flow/nobody/output", {}, None, 404),
    ("POST", "/restate/awakeables/nonsense/resolve", JSON, b"1", 400),
    ("POST", "/restate/awakeables/sign_1AAAA/resolve", JSON, b"1", 400),
    ("GET", f"/restate/awakeables/{AWAKEABLE}/resolve", {}, None, 405),
    ("POST", f"/restate/awakeables/{AWAKEABLE}/resolve", JSON, b"1", 202),
    ("POST", f"/restate/a/{AWAKEABLE}/reject", {}, b"", 202),
    ("POST", f"/restate/awakeables/{AWAKEABLE}/nothing", {}, b"", 404),
    ("POST", f"/restate/awakeables/{AWAKEABLE}", {}, b"", 400),
    ("POST", "/restate/awakeables/prom_1AAAA/resolve", {}, b"", 400),
    ("HEAD", "/{echo}/empty", {}, None, 405),
    ("PATCH", "/{echo}/echo", JSON, b'"x"', 405),
    ("PUT", "/Nobody/echo", {}, b"", 404),
    ("PUT", "/{echo}/missing", {}, b"", 404),
    ("OPTIONS", "/{echo}", {}, None, 200),
    ("GET", "/{echo}/echo/a/b/c/d/e/f", {}, None, 400),
    ("POST", "/{echo}/echo", {**JSON, "idempotency-key": ""}, b'"x"', 200),
    ("POST", "/restate/call/{echo}.Object/k/echo", JSON, b'"x"', 200),
    ("POST", "/restate/send/{echo}.Object/k/echo?delay=1ms", JSON, b'"x"', 202),
    ("POST", "/restate/call/{echo}", JSON, b'"x"', 400),
    ("POST", "/restate/call/Nobody/echo", JSON, b'"x"', 404),
    ("POST", "/{echo}/echo/send?DELAY=1ms", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=1ms&delay=soon", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=60+sec", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=1w", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=P1W", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=1.5h", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=pt1s", JSON, b'"x"', 202),
    ("POST", "/{echo}/echo/send?delay=1H", JSON, b'"x"', 400),
    ("POST", "/{echo}/echo/send?limit-key=a", JSON, b'"x"', 400),
    ("GET", "/restate/health/more", {}, None, 200),
    ("GET", f"/restate/attach/{MISSING}", {}, None, 404),
    ("GET", f"/restate/output/{MISSING}", {}, None, 404),
    ("POST", f"/restate/output/{MISSING}", {}, None, 405),
    ("GET", "/restate/lookup", {}, None, 405),
    ("GET", "/restate/invocation/{echo}/echo/nokey/output", {}, None, 404),
    ("GET", "/restate/invocation/{echo}/echo/nokey/attach", {}, None, 404),
    ("GET", "/restate/invocation/{echo}/missing/nokey/output", {}, None, 404),
    ("GET", "/restate/invocation/Nobody/echo/nokey/output", {}, None, 404),
    ("GET", "/restate/workflow/{echo}/k/output", {}, None, 404),
    ("GET", "/restate/workflow/Nobody/k/output", {}, None, 404),
    ("POST", "/restate/lookup", JSON, b'{"target": "invocation", "invocationId": "x"}', 400),
]


@pytest.mark.parametrize(("method", "path", "headers", "body", "status"), CASES)
def test_the_status_of_a_request(
    server: Server,
    echo: str,
    method: str,
    path: str,
    headers: dict[str, str],
    body: bytes | None,
    status: int,
) -> None:
    answer = server.ingress.request(method, path.format(echo=echo), body, headers)

    assert answer.status == status, answer.body
    if status >= 400 and method != "HEAD":
        _is_ingress_error(answer, status)


def _is_ingress_error(answer: Response, status: int) -> None:
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body["code"] == status
    assert body["message"]
    assert answer.headers["x-restate-error-source"] == body["source"]


@pytest.mark.parametrize(
    ("segment", "key"),
    [
        ("a%2Fb", "a%2Fb"),
        ("a+b%20c", "a%2Bb%20c"),
        ("a%zz", "a%25zz"),
        ("", ""),
        ("%C3%A9", "%C3%A9"),
    ],
)
def test_keys_are_decoded_once(server: Server, echo: str, segment: str, key: str) -> None:
    answer = server.ingress.request("POST", f"/{echo}.Object/{segment}/echo", b'"x"', JSON)

    assert answer.json()["key"] == key


def test_what_a_handler_sees_of_a_request(server: Server, echo: str) -> None:
    headers = {**JSON, "X-Custom": "1", "Idempotency-Key": unique("key"), "Cookie": "a=b"}
    answer = server.ingress.request("POST", f"/{echo}/echo?q=1", b'{"a": 1}', headers)

    seen = answer.json()
    assert seen["body"] == '{"a": 1}'
    assert seen["headers"]["x-custom"] == "1"
    assert seen["headers"]["cookie"] == "a=b"
    assert seen["headers"]["x-restate-ingress-path"] == f"/{echo}/echo?q=1"
    assert not {"host", "idempotency-key", "connection"} & set(seen["headers"])


def test_a_header_that_is_no_text_is_refused(server: Server, echo: str) -> None:
    answer = server.ingress.request("POST", f"/{echo}/echo", b"1", {**JSON, "x-odd": "b\xe9r"})

    assert answer.status == 400


def test_an_announced_body_over_the_limit_is_refused_unread(server: Server, echo: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.ingress.url).netloc, timeout=20)
    try:
        connection.putrequest("POST", f"/{echo}/echo")
        connection.putheader("content-type", "application/json")
        connection.putheader("content-length", str(BODY_BYTES_MAX + 1))
        connection.endheaders()
        assert connection.getresponse().status == 413
    finally:
        connection.close()


async def _measure(attempt: Attempt) -> None:
    """Says how long its input was."""
    _, entries = await say.replay(attempt)
    content = entries[0].parse(pb.InputCommandMessage).value.content
    await say.finish(attempt, b"%d" % len(content))


@pytest.fixture
def measure(server: Server) -> Iterator[str]:
    name = unique("Measure")
    with deploying(server) as deploy:
        deploy(manifest([service(name, "measure")]), {f"{name}/measure": _measure})
        yield name


def _pieces(size: int) -> Iterator[bytes]:
    for start in range(0, size, PIECE_BYTES):
        yield b"x" * min(PIECE_BYTES, size - start)


@pytest.mark.slow
@pytest.mark.differs("a body of exactly the limit")
@pytest.mark.parametrize("is_chunked", [False, True], ids=["announced", "chunked"])
def test_a_body_at_the_limit_goes_through(server: Server, measure: str, is_chunked: bool) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.ingress.url).netloc, timeout=10)
    headers = {"content-type": "text/plain"}
    if not is_chunked:
        headers["content-length"] = str(BODY_BYTES_MAX)
    try:
        connection.request("POST", f"/{measure}/measure", _pieces(BODY_BYTES_MAX), headers)
        answer = connection.getresponse()
        assert answer.status == 200
        assert json.loads(answer.read()) == BODY_BYTES_MAX
    finally:
        connection.close()


@pytest.mark.slow
def test_a_chunked_body_over_the_limit_is_refused(server: Server, measure: str) -> None:
    connection = http.client.HTTPConnection(urlsplit(server.ingress.url).netloc, timeout=30)
    try:
        # The answer may come, and the reading end, before all is sent.
        with suppress(ConnectionError):
            body = _pieces(BODY_BYTES_MAX + 1)
            connection.request("POST", f"/{measure}/measure", body, {"content-type": "text/plain"})
        answer = connection.getresponse()
        assert answer.status == 413
        assert json.loads(answer.read())["source"] == "ingress"
    finally:
        connection.close()
    assert server.ingress.call(measure, "measure", b"x").json() == 1


def test_preflight_requests_are_answered(server: Server) -> None:
    headers = {
        "origin": "https://ui.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": "content-type, x-custom",
    }
    answer = server.ingress.request("OPTIONS", "/any/where", None, headers)

    assert answer.status == 200
    assert answer.headers["access-control-allow-origin"] == "https://ui.example"
    assert "POST" in answer.headers["access-control-allow-methods"]
    assert "x-custom" in answer.headers["access-control-allow-headers"]


def test_lookup_computes_ids(server: Server, echo: str) -> None:
    key = unique("lookup")
    sent = server.ingress.request(
        "POST", f"/{echo}/echo/send", b"1", {**JSON, "idempotency-key": key}
    )
    target = {
        "target": "idempotentInvocation",
        "service": echo,
        "handler": "echo",
        "idempotencyKey": key,
    }
    found = server.ingress.send_json("POST", "/restate/lookup", target)
    attached = server.ingress.send_json("POST", "/restate/attach", target)

    assert found.json() == {"invocationId": sent.invocation_id}
    assert attached.invocation_id == sent.invocation_id
    assert attached.status == 200


def test_a_malformed_lookup_is_an_error(server: Server) -> None:
    answer = server.ingress.request("POST", "/restate/lookup", b"{", JSON)

    assert answer.status in (400, 500)
    assert answer.json()["message"]
