"""Discovery against real peers: the official SDK over both versions of HTTP, and bad ones."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable
from functools import partial

import pytest
from tests.node.admin.world import World

from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import (
    BadManifest,
    DiscoveryFailed,
    EndpointSpeaksHttp1,
    PerdureError,
)
from perdure.core.limits import MANIFEST_BYTES_MAX
from perdure.node.http.client import HttpClient
from perdure.node.http.cores import CORE_NAMES, make_client_core
from perdure.node.invoker.discovery import Discovery
from perdure.node.registry.discovery import Endpoint, Found
from perdure.node.registry.manifest import MANIFEST_TYPES

_MANIFEST = (
    b'{"protocolMode": "BIDI_STREAM", "minProtocolVersion": 5, "maxProtocolVersion": 7,'
    b' "services": [{"name": "A", "ty": "SERVICE", "handlers": [{"name": "run"}]}]}'
)
_TYPE = f"content-type: {MANIFEST_TYPES[3]}\r\n".encode()
_GOOD = b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n%b" % (_TYPE, len(_MANIFEST), _MANIFEST)
_BUSY = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"
_HUGE = b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n\r\n" % (_TYPE, MANIFEST_BYTES_MAX + 1)

CORES = [name for name in CORE_NAMES if name != "auto"]


def discover(endpoint: Endpoint, core: str) -> Found:
    async def scenario() -> Found:
        return await _discover(endpoint, core)

    return asyncio.run(scenario())


async def _discover(endpoint: Endpoint, core: str) -> Found:
    client = HttpClient(partial(make_client_core, core), SystemEntropy())
    try:
        return await Discovery(client, SystemClock(), "prod").discover(endpoint)
    finally:
        client.close()


def against(
    answers: list[bytes], *, use_http_11: bool = True, core: str = "auto"
) -> tuple[Found, list[bytes]]:
    """Discover a peer that gives these answers, one per connection; what it was asked."""
    asked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        answer = answers[min(len(asked), len(answers) - 1)]
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(answer)
        with contextlib.suppress(ConnectionError):  # the client may have heard enough
            await writer.drain()
        writer.close()

    return asyncio.run(_against(serve, asked, use_http_11, core))


async def _against(
    serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    asked: list[bytes],
    use_http_11: bool,
    core: str,
) -> tuple[Found, list[bytes]]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with server:
        endpoint = Endpoint(
            uri=f"http://127.0.0.1:{port}/", use_http_11=use_http_11, headers={"x-token": "t"}
        )
        return await _discover(endpoint, core), asked


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("use_http_11", "version"), [(False, "HTTP/2.0"), (True, "HTTP/1.1")])
def test_the_official_sdk(world: World, core: str, use_http_11: bool, version: str) -> None:
    found = discover(Endpoint(uri=f"{world.service}/", use_http_11=use_http_11), core)
    assert found.http_version == version
    assert found.discovered.is_bidirectional == (version == "HTTP/2.0")
    assert {service.name for service in found.discovered.services} == {"Probe", "Keyed", "Flow"}


def test_what_is_asked() -> None:
    found, asked = against([_GOOD])
    assert [service.name for service in found.discovered.services] == ["A"]
    (head,) = asked
    assert head.startswith(b"GET /discover HTTP/1.1\r\n")
    lowered = head.lower()
    assert b"x-restate-cluster-name: prod\r\n" in lowered and b"x-token: t\r\n" in lowered


@pytest.mark.slow
def test_a_busy_endpoint_is_asked_again() -> None:
    found, asked = against([_BUSY, _BUSY, _GOOD])
    assert found.discovered.services[0].name == "A"
    assert len(asked) == 3


@pytest.mark.slow
def test_trying_ends() -> None:
    with pytest.raises(DiscoveryFailed, match="503"):
        against([_BUSY])


@pytest.mark.slow
def test_nobody_listens() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and not listening: connections are refused
        uri = f"http://127.0.0.1:{bound.getsockname()[1]}/"
        with pytest.raises(DiscoveryFailed, match="can't connect"):
            discover(Endpoint(uri=uri), "auto")


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (_GOOD.replace(_TYPE, b"content-type: application/json\r\n"), BadManifest),
        (_GOOD.replace(_TYPE, b""), BadManifest),
        (_GOOD.replace(b'"run"', b'"r-n"'), BadManifest),
        (_HUGE + b"x" * (MANIFEST_BYTES_MAX + 1), BadManifest),
        (b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n", DiscoveryFailed),
        (b"HTTP/1.1 302 Found\r\nlocation: /x\r\ncontent-length: 0\r\n\r\n", DiscoveryFailed),
    ],
    ids=["json", "untyped", "misnamed", "huge", "absent", "redirect"],
)
def test_answers_that_are_refused_at_once(answer: bytes, error: type[PerdureError]) -> None:
    with pytest.raises(error):
        against([answer])


@pytest.mark.parametrize("core", CORES)
def test_an_endpoint_that_speaks_http1_only(core: str) -> None:
    refusal = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"
    with pytest.raises(EndpointSpeaksHttp1, match="use_http_11"):
        against([refusal], use_http_11=False, core=core)
