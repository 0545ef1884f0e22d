"""The asking side against a real peer: hypercorn, which closes connections as it pleases."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from tests.node.http.loopback import MIB, Listener, ask, asking, origin_at, run, until
from tests.node.http.wire import NAMES

over_clients = pytest.mark.parametrize("core", NAMES)
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class _Mirror:
    """Sends back what it gets while it gets it, and counts."""

    def __init__(self) -> None:
        self.requests = 0

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        self.requests += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        is_more = True
        while is_more:
            message = await receive()
            if message["type"] != "http.request":
                return
            is_more = message.get("more_body", False)
            body = message.get("body", b"")
            await send({"type": "http.response.body", "body": body, "more_body": is_more})


@asynccontextmanager
async def _hypercorn(app: Any, requests_max: int) -> AsyncGenerator[int]:
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    listener.listen(100)
    port = int(listener.getsockname()[1])
    config = Config()
    config.bind = [f"fd://{listener.detach()}"]
    config.keep_alive_max_requests = requests_max
    config.loglevel = "CRITICAL"
    config.graceful_timeout = 0.1
    stop = asyncio.Event()
    task = asyncio.create_task(serve(app, config, shutdown_trigger=stop.wait))
    try:
        yield port
    finally:
        stop.set()
        with suppress(asyncio.CancelledError):
            await task


@pytest.mark.slow
@over_clients
def test_every_call_ends_though_connections_do(core: str) -> None:
    """What was refused or lost is asked again; nothing hangs, nothing fails otherwise."""

    async def work() -> None:
        app = _Mirror()
        async with _hypercorn(app, 100) as port, asking(core) as client:
            left, kinds = 1_000, list[str]()

            async def one_after_the_other() -> None:
                nonlocal left
                while left:
                    left -= 1
                    body = b"%d" % left
                    while True:
                        listener = ask(client, origin_at(port), body)
                        await listener.done.wait()
                        if listener.failure is None:
                            assert bytes(listener.body) == body
                            break
                        kinds.append(listener.failure.kind)

            await asyncio.gather(*(one_after_the_other() for _ in range(16)))
            assert set(kinds) <= {"refused", "lost"}
            assert app.requests >= 1_000

    run(work)


@over_clients
def test_a_crowd_on_new_connections_is_not_hung_up_on(core: str) -> None:
    """Before its SETTINGS arrive nobody knows that it takes no more than 100 streams."""

    async def work() -> None:
        async with _hypercorn(_Mirror(), 1_000) as port, asking(core) as client:
            crowd = [ask(client, origin_at(port), b"one of many") for _ in range(250)]
            for listener in crowd:
                await listener.done.wait()
            assert [one.failure for one in crowd if one.failure is not None] == []
            assert client.statistics().lost == 0

    run(work)


@pytest.mark.slow
@over_clients
def test_a_replay_of_ten_megabytes_goes_up_while_the_answer_comes_down(core: str) -> None:
    async def work() -> None:
        async with _hypercorn(_Mirror(), 1000) as port, asking(core) as client:
            size, piece = 10 * MIB, bytes(range(256)) * 128
            written = 0

            class Replay(Listener):
                def on_writable(self) -> None:
                    nonlocal written
                    while written < size and self.stream.is_writable():
                        self.stream.write(piece)
                        written += len(piece)
                    if written == size:
                        written += 1
                        self.stream.end()

            replay = Replay()
            replay.stream = client.open(origin_at(port), "POST", "/", [], replay)
            replay.on_writable()
            assert written < MIB, "a slow start costs a buffer, not a body"
            await until(lambda: len(replay.body) > MIB)
            assert written < size, "the answer comes while the request goes"
            await replay.done.wait()
            assert replay.failure is None
            assert bytes(replay.body) == piece * (size // len(piece))

    run(work)
