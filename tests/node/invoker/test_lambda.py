"""AWS Lambda deployments: a node, the official SDK's handler, and Lambda's invoke API between."""

import http.client
import json
import subprocess
import sys
import threading
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jwt
import pytest
from tests.conformance.command_line import CommandLine
from tests.conformance.processes import free_port, is_listening
from tests.conformance.server import Server
from tests.conformance.services import install_packages, node
from tests.node.admin.world import Answered, World, wait_for
from tests.node.invoker.function import Answer, LambdaApi, Reply, crash, failure, handler

from perdure.node.config.model import Config
from perdure.node.invoker.identity import create_signing_key

pytestmark = pytest.mark.slow
TYPESCRIPT = Path(__file__).resolve().parents[2] / "conformance" / "typescript"
ROLE = "arn:aws:iam::123456789012:role/caller"


def arn(name: str, version: str = "1", region: str = "eu-central-1") -> str:
    return f"arn:aws:lambda:{region}:123456789012:function:{name}:{version}"


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> Generator[LambdaApi, None, None]:
    api = LambdaApi()
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", api.url)
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", api.url)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "of-the-node")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    api.functions["sdk"] = handler()
    yield api
    api.close()


@contextmanager
def running(folder: Path, **invoker: Any) -> Generator[World, None, None]:
    def configure(config: Config) -> Config:
        retry = replace(config.retry, initial_interval_ms=20, interval_ms_max=20)
        return replace(config, invoker=replace(config.invoker, **invoker), retry=retry)

    world = World(folder, configure=configure)
    world.start()
    try:
        yield world
    finally:
        world.stop()


@pytest.fixture
def world(api: LambdaApi, tmp_path: Path) -> Generator[World, None, None]:
    with running(tmp_path) as started:
        yield started


def register(world: World, name: str, version: str = "1", **more: object) -> Answered:
    return world.admin("POST", "/deployments", {"arn": arn(name, version), **more})


def succeeds(world: World, path: str, body: object) -> bool:
    invocation = world.send(f"{path}/send", body)
    shown = world.wait_status(invocation, "completed")
    kind: str = shown["result"]["kind"]
    return kind == "success"


def always(reply: Reply | dict[str, Any]) -> Answer:
    """A function, or an API in front of it, that answers the same to everything."""

    def answer(event: dict[str, Any]) -> Reply | dict[str, Any]:
        return reply

    return answer


def manifest(**fields: object) -> Answer:
    """A function that knows how to be discovered and nothing else."""
    document = {
        "protocolMode": "REQUEST_RESPONSE",
        "minProtocolVersion": 5,
        "maxProtocolVersion": 7,
        "services": [{"name": "Mere", "ty": "SERVICE", "handlers": [{"name": "run"}]}],
        **fields,
    }

    def answer(event: dict[str, Any]) -> dict[str, Any]:
        assert (event["httpMethod"], event["path"]) == ("GET", "/discover")
        content_type = "application/vnd.restate.endpointmanifest.v4+json"
        return {
            "statusCode": 200,
            "headers": {"content-type": content_type},
            "body": json.dumps(document),
            "isBase64Encoded": False,
        }

    return answer


# --- Registering ---------------------------------------------------------------------------------


def test_function_is_discovered_and_shown(api: LambdaApi, world: World) -> None:
    answered = register(world, "sdk", metadata={"team": "a"}, additional_headers={"X-A": "1"})
    assert answered.status == 201, answered
    shown = answered.json()
    assert {service["name"] for service in shown["services"]} == {
        "FunctionGreeter",
        "FunctionCounter",
    }
    assert {service["inactivity_timeout"] for service in shown["services"]} == {"0s"}
    (asked,) = api.calls
    assert asked.function == arn("sdk")
    assert asked.event["path"] == "/discover"
    assert asked.event["httpMethod"] == "GET"
    assert asked.event["body"] == ""
    assert asked.event["headers"]["x-a"] == "1"
    assert asked.event["headers"]["x-restate-cluster-name"] == "localcluster"
    assert "/eu-central-1/lambda/" in asked.headers["authorization"]
    (item,) = world.admin("GET", "/deployments").json()["deployments"]
    assert item.pop("created_at")
    assert sorted(item.pop("services"), key=lambda service: str(service["name"])) == [
        {"name": "FunctionCounter", "revision": 1},
        {"name": "FunctionGreeter", "revision": 1},
    ]
    assert item.pop("sdk_version").startswith("restate-sdk-python/")
    assert item == {
        "id": shown["id"],
        "arn": arn("sdk"),
        "additional_headers": {"x-a": "1"},
        "metadata": {"team": "a"},
        "min_protocol_version": shown["min_protocol_version"],
        "max_protocol_version": shown["max_protocol_version"],
    }
    detail = world.admin("GET", f"/deployments/{shown['id']}").json()
    assert detail["arn"] == arn("sdk")
    assert detail["services"] == shown["services"]


def test_known_function_is_left_alone_unless_forced(api: LambdaApi, world: World) -> None:
    first = register(world, "sdk").json()
    assert register(world, "sdk").status == 200
    assert len(api.calls) == 1
    forced = register(world, "sdk", force=True)
    assert (forced.status, forced.json()["id"]) == (200, first["id"])
    assert len(api.calls) == 2
    other = register(world, "sdk", "$LATEST")
    assert (other.status, other.json()["services"][0]["revision"]) == (201, 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"arn": "arn:aws:lambda:eu-central-1:123456789012:function:sdk"},
        {"arn": "nonsense"},
        {"arn": "arn:aws:s3:::bucket"},
        {"arn": arn("sdk"), "uri": "http://localhost:9080"},
        {"arn": arn("sdk"), "assume_role_arn": "root"},
        {"arn": arn("sdk"), "additional_headers": {"a b": "1"}},
    ],
)
def test_wrong_address_is_refused(api: LambdaApi, world: World, wrong: dict[str, object]) -> None:
    answered = world.admin("POST", "/deployments", wrong)
    assert answered.status == 400, answered
    assert api.calls == []


@pytest.mark.parametrize(
    ("answer", "code", "words", "tries"),
    [
        (manifest(protocolMode="BIDI_STREAM"), "META0015", "both directions", 1),
        (always(crash("Runtime.ExitError", "exited")), "META0003", "exited", 1),
        (always(Reply(200, b"")), "META0003", "returned nothing", 1),
        (always({"hello": 1}), "META0003", "is no response", 1),
        (always(failure(403, "AccessDeniedException", "no entry")), "META0003", "no entry", 5),
        (always(failure(429, "TooManyRequestsException", "slow")), "META0003", "429", 5),
        (always({"statusCode": 404}), "META0003", "404", 1),
    ],
)
def test_function_that_can_not_be_discovered(
    api: LambdaApi, world: World, answer: Answer, code: str, words: str, tries: int
) -> None:
    api.functions["bad"] = answer
    answered = register(world, "bad")
    assert (answered.status, answered.json()["restate_code"]) == (500, code), answered
    assert words in answered.json()["message"]
    assert arn("bad") in answered.json()["message"]
    assert len(api.calls) == tries


def test_nobody_answers(api: LambdaApi, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_LAMBDA", "http://127.0.0.1:1")
    answered = register(world, "sdk")
    assert answered.json()["restate_code"] == "META0003"
    assert "127.0.0.1:1" in answered.json()["message"]


# --- Updating ------------------------------------------------------------------------------------


def patch(world: World, deployment: str, **body: object) -> Answered:
    return world.admin("PATCH", f"/deployments/{deployment}", body)


def test_deployment_moves_to_another_version(api: LambdaApi, world: World) -> None:
    deployment = register(world, "sdk").json()["id"]
    api.calls.clear()
    assert patch(world, deployment).json()["arn"] == arn("sdk")
    assert api.calls == []
    moved = patch(world, deployment, arn=arn("sdk", "2"), additional_headers={"b": "2"})
    assert (moved.status, moved.json()["arn"]) == (200, arn("sdk", "2"))
    assert moved.json()["additional_headers"] == {"b": "2"}
    (asked,) = api.calls
    assert asked.function == arn("sdk", "2")
    assert patch(world, deployment, use_http_11=True).status == 400
    assert patch(world, deployment, uri="http://x", arn=arn("sdk")).status == 400


def test_deployment_moves_between_http_and_lambda(api: LambdaApi, world: World) -> None:
    registered = world.admin("POST", "/deployments", {"uri": world.service})
    deployment = registered.json()["id"]
    assert patch(world, deployment, assume_role_arn=ROLE).status == 400
    moved = patch(world, deployment, arn=arn("sdk"), overwrite=True)
    assert moved.status == 200, moved
    assert "uri" not in moved.json()
    assert succeeds(world, "/FunctionGreeter/echo", "x")
    back = patch(world, deployment, uri=world.service, overwrite=True)
    assert (back.status, back.json()["uri"]) == (200, f"{world.service}/")
    assert "arn" not in back.json()


# --- Running -------------------------------------------------------------------------------------


def test_invocation_goes_on_over_many_calls(api: LambdaApi, world: World) -> None:
    register(world, "sdk")
    api.calls.clear()
    assert succeeds(world, "/FunctionGreeter/greet", "Al")
    paths = [asked.event["path"] for asked in api.calls]
    assert paths.count("/invoke/FunctionCounter/add") == 1
    assert paths.count("/invoke/FunctionGreeter/greet") >= 3
    add = next(asked.event for asked in api.calls if asked.event["path"].endswith("/add"))
    assert add["headers"]["x-restate-service-key"] == "Al"
    assert add["headers"]["content-type"].startswith("application/vnd.restate.invocation.v")
    assert "accept-encoding" not in add["headers"]


def test_deployment_is_known_after_a_restart(api: LambdaApi, tmp_path: Path) -> None:
    with running(tmp_path) as world:
        register(world, "sdk", additional_headers={"a": "1"})
        before = world.admin("GET", "/deployments").json()
    with running(tmp_path) as world:
        assert world.admin("GET", "/deployments").json() == before
        assert succeeds(world, "/FunctionGreeter/echo", "x")
    assert api.calls[-1].event["headers"]["a"] == "1"


@pytest.mark.parametrize(
    ("answer", "code", "words"),
    [
        (always(crash("Sandbox.Timedout", "timed out after 3 s")), "RT0010", "timed out"),
        (always(Reply(200, b"")), "RT0010", "returned nothing"),
        (always(failure(404, "ResourceNotFoundException", "no such")), "RT0010", "no such"),
        (always(failure(500, "ServiceException", "oops")), "RT0010", "oops"),
        (always(failure(429, "TooManyRequestsException", "slow")), "RT0023", "429"),
        (always(failure(413, "RequestTooLargeException", "big")), "RT0019", "too large"),
        (always({"statusCode": 401}), "RT0012", "401"),
        (always({"statusCode": 200, "headers": {}}), "RT0012", "content type"),
    ],
)
def test_failed_call_is_retried_until_the_function_works(
    api: LambdaApi, world: World, answer: Answer, code: str, words: str
) -> None:
    register(world, "sdk")
    api.functions["sdk"] = answer
    invocation = world.send("/FunctionGreeter/echo/send", "x")
    shown = wait_for(
        lambda: world.describe(invocation), lambda shown: shown.get("last_failure") is not None
    )
    assert shown["last_failure"]["error_code"] == code, shown
    assert words in shown["last_failure"]["message"]
    api.functions["sdk"] = handler()
    world.wait_status(invocation, "completed")


def test_throttled_call_waits_as_long_as_it_is_told(api: LambdaApi, world: World) -> None:
    register(world, "sdk")
    api.functions["sdk"] = lambda _: failure(
        429, "TooManyRequestsException", "slow", {"retry-after": "3600"}
    )
    invocation = world.send("/FunctionGreeter/echo/send", "x")
    shown = world.wait_status(invocation, "backing-off")
    failed, again = (
        datetime.fromisoformat(shown[name][:19]) for name in ("created_at", "next_retry_at")
    )
    assert timedelta(seconds=3590) < again - failed < timedelta(seconds=3700)


def test_killed_invocation_is_over_while_its_function_runs(api: LambdaApi, world: World) -> None:
    register(world, "sdk")
    entered, released = threading.Event(), threading.Event()

    def wait(event: dict[str, Any]) -> dict[str, Any]:
        entered.set()
        assert released.wait(20)
        return handler()(event)

    api.functions["sdk"] = wait
    invocation = world.send("/FunctionGreeter/echo/send", "x")
    assert entered.wait(20)
    assert world.admin("PATCH", f"/invocations/{invocation}/kill").status in (200, 202)
    world.wait_status(invocation, "completed")
    released.set()
    api.functions["sdk"] = handler()
    assert succeeds(world, "/FunctionGreeter/echo", "y")


def test_calls_beyond_the_limit_wait(api: LambdaApi, tmp_path: Path) -> None:
    lock = threading.Lock()
    inside: list[int] = [0, 0]
    sdk = handler()

    def count(event: dict[str, Any]) -> dict[str, Any]:
        with lock:
            inside[0] += 1
            inside[1] = max(inside)
        try:
            return sdk(event)
        finally:
            with lock:
                inside[0] -= 1

    api.functions["sdk"] = count
    with running(tmp_path, lambda_calls_max=2) as world:
        register(world, "sdk")
        sent = [world.send("/FunctionGreeter/greet/send", f"n{index}") for index in range(8)]
        for invocation in sent:
            world.wait_status(invocation, "completed")
    assert 1 <= inside[1] <= 2


# --- Identity, roles, compression ----------------------------------------------------------------


def test_calls_are_signed(api: LambdaApi, tmp_path: Path) -> None:
    key, pem = create_signing_key()
    file = tmp_path / "key.pem"
    file.write_bytes(pem)
    api.functions["sdk"] = handler([key.public_form])
    with running(tmp_path / "data", request_identity_private_key_pem_file=file) as world:
        assert register(world, "sdk").status == 201
        assert succeeds(world, "/FunctionCounter/a%20b/add", 1)
    headers = api.calls[-1].event["headers"]
    assert headers["x-restate-signature-scheme"] == "v1"
    claims = jwt.decode(headers["x-restate-jwt-v1"], options={"verify_signature": False})
    assert (claims["aud"], claims["sub"]) == ("/invoke/FunctionCounter/add", "a b")
    with running(tmp_path / "other") as world:
        answered = register(world, "sdk")
        assert answered.json()["restate_code"] == "META0003"
        assert "401" in answered.json()["message"]


def test_role_is_assumed_with_the_external_id(api: LambdaApi, tmp_path: Path) -> None:
    with running(tmp_path, aws_assume_role_external_id="42") as world:
        answered = register(world, "sdk", assume_role_arn=ROLE)
        assert answered.status == 201, answered
        (item,) = world.admin("GET", "/deployments").json()["deployments"]
        assert item["assume_role_arn"] == ROLE
    (asked,) = api.calls
    assert "Credential=of-the-role/" in asked.headers["authorization"]
    (assumed,) = api.roles
    assert assumed["RoleArn"] == ROLE
    assert assumed["ExternalId"] == "42"


def test_compressed_bodies_where_the_sdk_takes_them(api: LambdaApi, tmp_path: Path) -> None:
    api.functions["mere"] = manifest(lambdaCompression="zstd")
    with running(tmp_path, request_compression_threshold=0) as world:
        assert register(world, "mere").status == 201
        (item,) = world.admin("GET", "/deployments").json()["deployments"]
        assert item["compression"] == "Zstd"
        api.functions["mere"] = lambda _: {"statusCode": 503}
        world.send("/Mere/run/send", None)
        wait_for(lambda: len(api.calls), lambda count: count >= 2)
    headers = api.calls[1].event["headers"]
    assert (headers["accept-encoding"], headers["content-encoding"]) == ("zstd", "zstd")


def test_missing_credentials_and_libraries_are_named(
    api: LambdaApi, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    answered = register(world, "sdk")
    assert "credentials" in answered.json()["message"], answered
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    answered = register(world, "sdk")
    assert "pip install 'perdure[lambda]'" in answered.json()["message"], answered
    assert api.calls == []


def test_restates_command_line_tool_knows_functions(
    api: LambdaApi, world: World, tmp_path: Path
) -> None:
    home = tmp_path / "cli"
    home.mkdir()
    ports = SimpleNamespace(
        admin=SimpleNamespace(url=world.admin_url), ingress=SimpleNamespace(url=world.ingress_url)
    )
    tool = CommandLine(cast(Server, ports), home)
    assert "FunctionGreeter" in tool.run("deployments", "register", arn("sdk")).text
    (item,) = world.admin("GET", "/deployments").json()["deployments"]
    assert arn("sdk") in tool.run("deployments", "list").text
    described = tool.run("deployments", "describe", item["id"]).text
    assert "AWS Lambda" in described
    assert "Request/Response" in described
    refused = tool.try_to("deployments", "register", "arn:aws:lambda:eu-central-1:1:function:x")
    assert refused.code != 0


# --- The TypeScript SDK --------------------------------------------------------------------------


@contextmanager
def typescript() -> Generator[Answer, None, None]:
    """A function of the TypeScript SDK."""
    install_packages()
    port = free_port()
    process = subprocess.Popen(
        [str(node()), str(TYPESCRIPT / "function.ts")],
        env={"PORT": str(port)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=sys.stderr,
    )

    def answer(event: dict[str, Any]) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request("POST", "/", json.dumps(event))
            found: dict[str, Any] = json.loads(connection.getresponse().read())
            return found
        finally:
            connection.close()

    try:
        wait_for(lambda: is_listening(port), bool)
        yield answer
    finally:
        process.kill()
        process.wait()


def test_typescript_sdk_takes_and_gives_compressed_bodies(api: LambdaApi, tmp_path: Path) -> None:
    with typescript() as function, running(tmp_path, request_compression_threshold=0) as world:
        api.functions["ts"] = function
        assert register(world, "ts").status == 201
        (item,) = world.admin("GET", "/deployments").json()["deployments"]
        assert item["compression"] == "Zstd"
        assert succeeds(world, "/FunctionTs/greet", "Al")
        assert api.calls[-1].event["headers"]["content-encoding"] == "zstd"
        assert succeeds(world, "/FunctionTs/repeat", 5_000_000)
    assert "zstd" in api.encodings
