"""Limits, CORS, clients that go away, and stopping."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.node.ingress.client import Client
from tests.node.ingress.endpoint import AWAKEABLE_INDEX
from tests.node.ingress.test_calls import refused
from tests.node.ingress.world import VERSIONS, Stage

from perdure.core.ids import (
    InvocationId,
    format_awakeable_id,
    format_invocation_id,
    parse_invocation_id,
)
from perdure.engine.commands import Signal
from perdure.node.ingress.awakeables import make_signal
from perdure.node.ingress.ingress import IngressOptions
from perdure.node.ingress.tally import Status

BODY_MAX = 64 * 1024


@pytest.fixture
def small(tmp_path: Path) -> Iterator[Stage]:
    """A world of its own with tight limits."""
    stage = Stage(tmp_path, IngressOptions(body_bytes_max=BODY_MAX, concurrent_requests_max=2))
    yield stage
    stage.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_body_limit(small: Stage, version: str) -> None:
    async def scenario() -> None:
        client = small.world.clients[version]
        fields = [("content-type", "x/y")]
        body = b"x" * BODY_MAX
        assert (await client.ask("POST", "/Greeter/echo", body, fields)).body == body
        refused(await client.ask("POST", "/Greeter/echo", body + b"x", fields), 413)
        # The port is still good for others.
        assert (await client.post("/Greeter/greet", "Ada")).status == 200

    small.run(scenario())


def test_declared_body_is_refused_at_once(small: Stage) -> None:
    async def scenario() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", small.world.port)
        head = f"POST /Greeter/echo HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY_MAX + 1}\r\n\r\n"
        writer.write(head.encode())
        async with asyncio.timeout(5):
            line = await reader.readline()
        assert line.startswith(b"HTTP/1.1 413 ")
        writer.close()

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_concurrency_limit(small: Stage, version: str) -> None:
    async def scenario() -> None:
        world, client = small.world, small.world.clients[version]
        waiting = [client.start("POST", "/Greeter/wait") for _ in range(2)]
        await world.wait_until(lambda: world.ingress.statistics().pending == 2)
        for target in ("/restate/health", "/Greeter/silent", "/nothing"):
            assert refused(await client.get(target), 429)["restate_code"] == "REQ0006"
        assert (await client.ask("OPTIONS", "/restate/health")).status == 200
        requests = world.ingress.statistics().requests
        assert [one.count for one in requests if one.status is Status.RATE_LIMITED] == [3]
        waiting[0].stream.reset()
        await world.wait_until(lambda: world.ingress.statistics().pending == 1)
        assert (await client.get("/restate/health")).status == 200

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_client_that_goes_away_stops_the_waiting_only(small: Stage, version: str) -> None:
    async def scenario() -> None:
        world = small.world
        leaving = Client(world.port, version)
        leaving.start("POST", "/Counter/k/wait")
        id_ = await world.endpoint.wait_started("Counter/wait")
        await world.wait_until(lambda: world.ingress.statistics().pending == 1)
        leaving.close()
        await world.wait_until(lambda: world.ingress.statistics().pending == 0)
        assert sum(led.leader.waiting() for led in world.host.led) == 0
        client = world.clients[version]
        again = client.start("GET", f"/restate/attach/{format_invocation_id(id_)}")
        await client.ask("POST", f"/restate/a/{format_awakeable_id(id_, 17)}/resolve", b"on")
        assert (await again.reply()).body == b"on"

    small.run(scenario())


def test_http1_client_that_closes_without_a_word(small: Stage) -> None:
    async def scenario() -> None:
        world = small.world
        _, writer = await asyncio.open_connection("127.0.0.1", world.port)
        writer.write(b"POST /Greeter/wait HTTP/1.1\r\nhost: a\r\ncontent-length: 0\r\n\r\n")
        await world.wait_until(lambda: world.ingress.statistics().pending == 1)
        writer.write_eof()
        await world.wait_until(lambda: world.ingress.statistics().pending == 0)
        await world.wait_until(lambda: not world.server.statistics().connections)
        writer.close()

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_preflight_and_cors(small: Stage, version: str) -> None:
    async def scenario() -> None:
        client = small.world.clients[version]
        asked = [
            ("origin", "http://ui.example"),
            ("access-control-request-method", "POST"),
            ("access-control-request-headers", "content-type, x-a"),
        ]
        for target in ("/Greeter/greet", "/no/such/thing", "/"):
            reply = await client.ask("OPTIONS", target, headers=asked)
            assert (reply.status, reply.body) == (200, b"")
            assert reply.headers["access-control-allow-methods"] == "POST"
            assert reply.headers["access-control-allow-headers"] == "content-type, x-a"
            assert reply.headers["access-control-allow-origin"] == "http://ui.example"
            assert reply.headers["access-control-allow-credentials"] == "true"
        plain = await client.ask("OPTIONS", "/Greeter/greet")
        assert plain.status == 200
        assert "access-control-allow-origin" not in plain.headers
        for method, target in (("GET", "/restate/health"), ("GET", "/nothing/here")):
            reply = await client.ask(method, target, headers=asked[:1])
            assert reply.headers["access-control-allow-origin"] == "http://ui.example"
            assert reply.headers["vary"].startswith("origin, ")

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_without_cors(tmp_path: Path, version: str) -> None:
    stage = Stage(tmp_path, IngressOptions(cors=False))

    async def scenario() -> None:
        client = stage.world.clients[version]
        reply = await client.ask("GET", "/restate/health", headers=[("origin", "http://a")])
        assert not [name for name in reply.headers if name.startswith("access-control")]
        assert (await client.ask("OPTIONS", "/restate/health")).status == 405

    stage.run(scenario())
    stage.close()


@pytest.mark.parametrize("version", VERSIONS)
def test_draining_lets_pending_requests_end(small: Stage, version: str) -> None:
    async def scenario() -> None:
        world, client = small.world, small.world.clients[version]
        call = client.start("POST", "/Greeter/wait")
        id_ = await world.endpoint.wait_started("Greeter/wait")
        await world.wait_until(lambda: world.ingress.statistics().pending == 1)
        drained = asyncio.ensure_future(world.ingress.drain(60_000))
        await world.wait_until(lambda: world.ingress.statistics().is_draining)
        other = Client(world.port, version)
        assert refused(await other.get("/restate/health"), 503)["restate_code"] == "REQ0009"
        other.close()
        # The service's side goes on: the log still takes what invocations do.
        world.host.gateway.propose(_resolve(id_), int.from_bytes(id_[:8]), _ignore, _ignore)
        assert (await call.reply()).body == b"late"
        await drained

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_draining_answers_what_does_not_end(small: Stage, version: str) -> None:
    async def scenario() -> None:
        world, client = small.world, small.world.clients[version]
        call = client.start("POST", "/Greeter/wait")
        id_ = await world.endpoint.wait_started("Greeter/wait")
        await world.wait_until(lambda: world.ingress.statistics().pending == 1)
        await world.ingress.drain(1)
        reply = await call.reply()
        assert refused(reply, 503)["restate_code"] == "REQ0009"
        assert parse_invocation_id(reply.headers["x-restate-id"]) == id_
        assert world.ingress.statistics().pending == 0

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_partition_that_stops_leading_tells_who_waits(small: Stage, version: str) -> None:
    async def scenario() -> None:
        world, client = small.world, small.world.clients[version]
        call = client.start("POST", "/Greeter/wait")
        id_ = await world.endpoint.wait_started("Greeter/wait")
        await world.wait_until(lambda: world.ingress.statistics().pending == 1)
        for led in world.host.led:
            led.leader.resign()
        reply = await call.reply()
        refused(reply, 503)
        assert parse_invocation_id(reply.headers["x-restate-id"]) == id_
        reply = await client.post("/Greeter/greet", "Ada")
        refused(reply, 503)
        assert "x-restate-id" not in reply.headers
        refused(await client.get(f"/restate/attach/{format_invocation_id(id_)}"), 503)

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_trouble_with_one_request_is_its_own(small: Stage, version: str) -> None:
    async def scenario() -> None:
        world, client = small.world, small.world.clients[version]
        catalogue = world.catalogue
        del world.catalogue  # the ingress asks for it and meets an AttributeError
        assert refused(await client.get("/restate/health"), 500)["restate_code"] == "PER0000"
        world.catalogue = catalogue
        assert (await client.get("/restate/health")).status == 200
        assert world.ingress.statistics().pending == 0

    small.run(scenario())


@pytest.mark.parametrize("version", VERSIONS)
def test_many_at_once(tmp_path: Path, version: str) -> None:
    stage = Stage(tmp_path)

    async def scenario() -> None:
        world, client = stage.world, stage.world.clients[version]
        fields = [("content-type", "x/y")]
        bodies = [f"{number}".encode() for number in range(100)]
        calls = [client.start("POST", "/Greeter/echo", body, fields) for body in bodies]
        assert [(await call.reply()).body for call in calls] == bodies
        assert world.ingress.statistics().pending == 0
        assert sum(led.leader.waiting() for led in world.host.led) == 0

    stage.run(scenario())
    stage.close()


def test_statistics(small: Stage) -> None:
    async def scenario() -> None:
        world, client = small.world, small.world.clients["HTTP/1.1"]
        await client.post("/Greeter/greet", "Ada")
        await client.post("/Greeter/greet/send", "Ada")
        await client.ask("POST", "/Greeter/fail", b"500", [("content-type", "x/y")])
        await client.post("/Greeter/greet?delay=foo", "Ada")
        statistics = world.ingress.statistics()
        counts = {(c.status.value, c.service, c.kind): c.count for c in statistics.requests}
        assert counts == {
            ("admitted", "", ""): 4,
            ("completed", "Greeter", "call"): 1,
            ("completed", "Greeter", "send"): 1,
            ("invocation_error", "Greeter", "call"): 1,
            ("request_error", "", ""): 1,
        }
        latencies = {(one.service, one.kind): one for one in statistics.latencies}
        assert latencies["Greeter", "call"].figures.count == 2
        assert latencies["Greeter", "call"].figures.seconds > 0

    small.run(scenario())


def _resolve(invocation: InvocationId) -> Signal:
    return make_signal(invocation, AWAKEABLE_INDEX, True, b"late")


def _ignore(_: object) -> None:
    pass
