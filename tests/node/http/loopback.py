"""A server and a client over loopback, with an application and listeners that remember."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import uvloop

from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.node.http.client import ClientLimits, HttpClient
from perdure.node.http.cores import make_client_core, make_server_core
from perdure.node.http.ports import Headers
from perdure.node.http.server import Exchange, HttpServer, ServerLimits
from perdure.node.http.stream import Origin, RequestStream, StreamFailure

MIB = 1024 * 1024
DEADLINE_SECONDS = 6.0
_writers: list[asyncio.StreamWriter] = []


def run(work: Callable[[], Coroutine[Any, Any, None]]) -> None:
    """Run a test's body on the loop that production uses, within a deadline."""

    async def bounded() -> None:
        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                await work()
        finally:
            while _writers:
                writer = _writers.pop()
                writer.transport.abort()
                with suppress(OSError):
                    await writer.wait_closed()

    uvloop.run(bounded())


async def connect(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A raw connection; ``run`` closes it if the test does not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    _writers.append(writer)
    return reader, writer


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop turn until the condition holds, within a deadline."""
    async with asyncio.timeout(DEADLINE_SECONDS / 2):
        while not condition():  # noqa: ASYNC110 (what sockets do rings no bell)
            await asyncio.sleep(0.002)


class Echo:
    """Answers with the body, at once or when told."""

    def __init__(self, body_bytes_max: int = 32 * MIB, is_patient: bool = False) -> None:
        self.body_bytes_max = body_bytes_max
        self.is_patient = is_patient
        self.exchanges: list[Exchange] = []
        self.gone: list[Exchange] = []
        self.answer: bytes | None = None

    def on_exchange(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.on_gone = lambda: self.gone.append(exchange)
        if not self.is_patient:
            self.respond(exchange)

    def respond(self, exchange: Exchange) -> None:
        body = self.answer if self.answer is not None else exchange.body
        exchange.respond(200, [(b"content-type", b"text/plain")], body)

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        exchange.respond(413, [], b"declared" if is_declared else b"grown")


class Listener:
    """Remembers what a stream brings; ``done`` is set at its end."""

    def __init__(self, is_consuming: bool = True) -> None:
        self.is_consuming = is_consuming
        self.status = 0
        self.headers: Headers = []
        self.body = bytearray()
        self.failure: StreamFailure | None = None
        self.is_ended = False
        self.writable_count = 0
        self.done = asyncio.Event()
        self.stream: RequestStream

    def on_response(self, status: int, headers: Headers) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data
        if self.is_consuming:
            self.stream.consumed(len(data))

    def on_end(self) -> None:
        assert not self.done.is_set(), "nothing follows the end"
        self.is_ended = True
        self.done.set()

    def on_failed(self, failure: StreamFailure) -> None:
        assert not self.done.is_set(), "nothing follows the end"
        self.failure = failure
        self.done.set()

    def on_writable(self) -> None:
        self.writable_count += 1


def ask(
    client: HttpClient,
    origin: Origin,
    body: bytes = b"",
    method: str = "POST",
    listener: Listener | None = None,
) -> Listener:
    """A whole request."""
    listener = listener or Listener()
    headers = [(b"content-type", b"text/plain")]
    listener.stream = client.open(origin, method, "/echo", headers, listener)
    if body:
        listener.stream.write(body)
    listener.stream.end()
    return listener


@asynccontextmanager
async def serving(
    application: Echo, core: str = "zttp", limits: ServerLimits | None = None
) -> AsyncGenerator[tuple[HttpServer, int]]:
    server = HttpServer(application, partial(make_server_core, core), SystemClock(), limits)
    port = await server.listen("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.aclose(0.0)
        await until(lambda: not server.connections)


@asynccontextmanager
async def asking(
    core: str = "zttp", limits: ClientLimits | None = None
) -> AsyncGenerator[HttpClient]:
    client = HttpClient(partial(make_client_core, core), SystemEntropy(), limits=limits)
    try:
        yield client
    finally:
        client.close()
        await until(lambda: client.statistics().connections == 0)


def origin_at(port: int, version: str | None = "HTTP/2.0", scheme: str = "http") -> Origin:
    return Origin(scheme, "127.0.0.1", port, version)
