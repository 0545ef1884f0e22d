"""Answers in pieces, over every pairing of cores: whole, slow, given up by either side."""

import asyncio

import pytest
from tests.node.http.loopback import (
    MIB,
    Echo,
    Listener,
    ask,
    asking,
    connect,
    origin_at,
    run,
    serving,
    until,
)
from tests.node.http.wire import NAMES, VERSIONS

from perdure.core.limits import RESPONSE_PENDING_BYTES_HIGH
from perdure.node.http.exchange import Exchange
from perdure.node.http.server import HttpServer, ServerLimits

over_servers = pytest.mark.parametrize("core", NAMES)
over_clients = pytest.mark.parametrize("client_core", NAMES)
over_versions = pytest.mark.parametrize("version", VERSIONS)

_PIECE = bytes(range(256)) * 64
_REQUEST = b"%s / HTTP/%s\r\nhost: a\r\n\r\n"


class Producer(Echo):
    """Begins an answer and writes pieces of it while the client takes them."""

    def __init__(self, piece_count: int = 0, is_patient: bool = False) -> None:
        super().__init__(is_patient=is_patient)
        self.piece_count = piece_count
        self.written = 0
        self.refusals = 0

    def respond(self, exchange: Exchange) -> None:
        exchange.begin(200, [(b"content-type", b"text/plain")])
        exchange.on_writable = lambda: self.produce(exchange)
        self.produce(exchange)

    def produce(self, exchange: Exchange) -> None:
        while self.written < self.piece_count:
            if not exchange.is_writable:
                self.refusals += 1
                return
            exchange.write(_PIECE)
            self.written += 1
        exchange.end()


def _begin(app: Echo, index: int = 0) -> Exchange:
    """Begin the answer to a request that waits, with one piece."""
    exchange = app.exchanges[index]
    exchange.begin(200, [])
    exchange.write(b"first")
    return exchange


def _unsent(server: HttpServer) -> int:
    """What clients have yet to take, as it is now."""
    return sum(connection.measure() for connection in server.connections)


@over_servers
@over_clients
@over_versions
def test_pieces_arrive_as_they_are_written(core: str, client_core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (server, port), asking(client_core) as client:
            listener = ask(client, origin_at(port, version), b"hello")
            await until(lambda: bool(app.exchanges))
            exchange = _begin(app)
            await until(lambda: bytes(listener.body) == b"first")
            assert (listener.status, listener.is_ended) == (200, False)
            names = [name for name, _ in listener.headers]
            assert names.count(b"date") == 1 and b"content-length" not in names
            assert server.statistics().streaming == 1
            exchange.write(b"")
            exchange.write(b" second")
            exchange.end()
            await listener.done.wait()
            assert listener.is_ended and bytes(listener.body) == b"first second"
            exchange.write(b"too late")
            exchange.cut()
            again = ask(client, origin_at(port, version), b"again")
            await until(lambda: len(app.exchanges) == 2)
            app.respond(app.exchanges[1])
            await again.done.wait()
            assert bytes(again.body) == b"again"
            found = server.statistics()
            assert (found.streaming, found.cut, found.exchanges, found.accepted) == (0, 0, 0, 1)
            assert app.gone == []

    run(work)


@over_servers
@over_clients
@over_versions
def test_a_slow_reader_holds_its_producer_back(core: str, client_core: str, version: str) -> None:
    async def work() -> None:
        app = Producer(piece_count=16 * MIB // len(_PIECE))
        async with serving(app, core) as (server, port), asking(client_core) as client:
            listener = Listener(is_consuming=False)
            ask(client, origin_at(port, version), listener=listener)
            await until(lambda: app.refusals > 0)
            peak, seen = 0, -1
            while seen < app.written:  # until the kernel's buffers are full, too
                seen = app.written
                await asyncio.sleep(0.02)
                peak = max(peak, server.statistics().unsent_bytes)
            assert app.written < app.piece_count
            assert 0 < peak <= RESPONSE_PENDING_BYTES_HIGH + MIB
            listener.is_consuming = True
            listener.stream.consumed(len(listener.body))
            await listener.done.wait()
            assert bytes(listener.body) == _PIECE * app.piece_count
            await until(lambda: _unsent(server) == 0)

    run(work)


@over_servers
@over_clients
@over_versions
def test_an_answer_cut_midway_is_seen_to_be_cut(core: str, client_core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (server, port), asking(client_core) as client:
            listener = ask(client, origin_at(port, version))
            await until(lambda: bool(app.exchanges))
            exchange = _begin(app)
            await until(lambda: bytes(listener.body) == b"first")
            exchange.cut()
            await listener.done.wait()
            assert listener.failure is not None and not listener.is_ended
            found = server.statistics()
            assert (found.cut, found.streaming, found.exchanges) == (1, 0, 0)
            again = ask(client, origin_at(port, version), b"again")
            await until(lambda: len(app.exchanges) == 2)
            app.respond(app.exchanges[1])
            await again.done.wait()
            assert bytes(again.body) == b"again"

    run(work)


@over_servers
@over_versions
def test_a_client_that_leaves_is_noticed(core: str, version: str) -> None:
    async def work() -> None:
        app = Producer(piece_count=64 * MIB // len(_PIECE))
        async with serving(app, core) as (server, port), asking() as client:
            listener = Listener(is_consuming=False)
            ask(client, origin_at(port, version), listener=listener)
            await until(lambda: app.refusals > 0)
            listener.stream.reset()
            await until(lambda: app.gone == app.exchanges)
            written = app.written
            app.exchanges[0].write(_PIECE)
            assert app.exchanges[0].is_answered and not app.exchanges[0].is_writable
            await until(lambda: _unsent(server) == 0)
            assert (server.statistics().streaming, app.written) == (0, written)

    run(work)


@over_servers
@over_versions
def test_who_takes_nothing_for_long_is_disconnected(core: str, version: str) -> None:
    async def work() -> None:
        app = Producer(piece_count=64 * MIB // len(_PIECE))
        limits = ServerLimits(response_stall_ms=200)
        async with serving(app, core, limits) as (server, port), asking() as client:
            ask(client, origin_at(port, version), listener=Listener(is_consuming=False))
            await until(lambda: app.refusals > 0)
            await until(lambda: app.gone == app.exchanges)
            assert _unsent(server) == 0

    run(work)


@over_servers
def test_streams_share_a_connection(core: str) -> None:
    """One that isn't taken doesn't hold up the other."""

    async def work() -> None:
        app = Producer(piece_count=MIB // len(_PIECE))
        app.is_patient = True
        async with serving(app, core) as (server, port), asking() as client:
            slow = Listener(is_consuming=False)
            ask(client, origin_at(port), listener=slow)
            quick = ask(client, origin_at(port))
            await until(lambda: len(app.exchanges) == 2)
            begun = _begin(app, 0)
            app.respond(app.exchanges[1])
            await quick.done.wait()
            assert bytes(quick.body) == _PIECE * app.piece_count
            begun.end()
            await slow.done.wait()
            assert (bytes(slow.body), server.statistics().accepted) == (b"first", 1)

    run(work)


async def _talk(port: int, data: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await connect(port)
    writer.write(data)
    return reader, writer


@over_servers
def test_http_1_0_is_answered_without_chunks(core: str) -> None:
    async def work() -> None:
        app = Producer(piece_count=3)
        async with serving(app, core) as (_, port):
            reader, _ = await _talk(port, _REQUEST % (b"GET", b"1.0"))
            head, _, body = (await reader.read()).partition(b"\r\n\r\n")
            assert b"chunked" not in head and b"connection: close" in head.lower()
            assert body == _PIECE * 3

    run(work)


@over_servers
def test_http_1_0_sees_a_cut_as_a_reset(core: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (_, port):
            reader, _ = await _talk(port, _REQUEST % (b"GET", b"1.0"))
            await until(lambda: bool(app.exchanges))
            exchange = _begin(app)
            await reader.readuntil(b"first")
            exchange.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()

    run(work)


@over_servers
def test_head_gets_no_body(core: str) -> None:
    async def work() -> None:
        app = Producer(piece_count=3)
        async with serving(app, core) as (_, port):
            reader, writer = await _talk(port, _REQUEST % (b"HEAD", b"1.1"))
            await reader.readuntil(b"\r\n\r\n")
            app.written = app.piece_count
            writer.write(_REQUEST % (b"GET", b"1.1"))
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200")
            assert await reader.readexactly(5) == b"0\r\n\r\n"

    run(work)


@over_servers
def test_what_was_sent_ahead_comes_next(core: str) -> None:
    async def work() -> None:
        app = Producer(piece_count=2)
        async with serving(app, core) as (_, port):
            reader, _ = await _talk(port, _REQUEST % (b"GET", b"1.1") * 3)
            for _ in range(3):
                app.written = 0
                await reader.readuntil(b"\r\n0\r\n\r\n")
            assert len(app.exchanges) == 3

    run(work)


@over_servers
@over_versions
def test_a_head_that_cannot_be_sent_is_a_500(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (server, port), asking() as client:
            listener = ask(client, origin_at(port, version))
            await until(lambda: bool(app.exchanges))
            app.exchanges[0].begin(200, [(b"x-bad", b"a\r\nb: c")])
            app.exchanges[0].write(b"nowhere to go")
            await listener.done.wait()
            assert (listener.status, bytes(listener.body)) == (500, b"")
            assert app.gone == app.exchanges
            assert server.statistics().exchanges == 0

    run(work)


@over_servers
@over_versions
def test_closing_lets_an_answer_be_completed(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (server, port), asking() as client:
            listener = ask(client, origin_at(port, version))
            await until(lambda: bool(app.exchanges))
            exchange = _begin(app)
            closing = asyncio.ensure_future(server.aclose(5.0))
            await until(lambda: bytes(listener.body) == b"first")
            exchange.write(b" last")
            exchange.end()
            await closing
            await listener.done.wait()
            assert listener.is_ended and bytes(listener.body) == b"first last"

    run(work)
