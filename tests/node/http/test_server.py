"""The answering side over loopback: what clients of every kind may expect, and may not cost."""

import asyncio
import re
from contextlib import suppress

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

from perdure.node.http.server import ServerLimits

over_servers = pytest.mark.parametrize("core", NAMES)
over_versions = pytest.mark.parametrize("version", VERSIONS)


async def _talk(port: int, data: bytes) -> bytes:
    """Send and read until the server closes."""
    reader, writer = await connect(port)
    writer.write(data)
    answer = await reader.read()
    writer.close()
    return answer


async def _read_answer(reader: asyncio.StreamReader) -> tuple[int, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"content-length: (\d+)", head)
    assert length is not None
    return int(head.split(b" ")[1]), await reader.readexactly(int(length[1]))


@over_servers
def test_one_port_serves_every_version(core: str) -> None:
    async def work() -> None:
        async with serving(Echo(), core) as (_, port), asking() as client:
            for version in VERSIONS:
                listener = ask(client, origin_at(port, version), b"hello")
                await listener.done.wait()
                assert (listener.status, bytes(listener.body)) == (200, b"hello")
                names = [name for name, _ in listener.headers]
                assert names.count(b"content-length") == names.count(b"date") == 1
            answer = await _talk(port, b"POST / HTTP/1.0\r\ncontent-length: 2\r\n\r\nhi")
            assert answer.startswith(b"HTTP/1.1 200")
            assert answer.endswith(b"\r\n\r\nhi")

    run(work)


@over_servers
def test_pipelined_requests_are_answered_in_order(core: str) -> None:
    async def work() -> None:
        async with serving(Echo(), core) as (_, port):
            reader, writer = await connect(port)
            request = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\n\r\n%04d"
            writer.write(b"".join(request % number for number in range(500)))
            for number in range(500):
                assert await _read_answer(reader) == (200, b"%04d" % number)
            writer.close()

    run(work)


@pytest.mark.slow
@over_servers
def test_who_sends_ahead_and_reads_nothing_is_not_read(core: str) -> None:
    async def work() -> None:
        app = Echo()
        app.answer = b"x" * MIB
        async with serving(app, core) as (server, port):
            reader, writer = await connect(port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 200)
            await until(lambda: server.unsent_bytes > 0)
            seen = -1
            while seen < len(app.exchanges):
                seen = len(app.exchanges)
                await asyncio.sleep(0.05)  # let the socket's buffers fill
            assert seen < 40
            assert server.unsent_bytes <= 2 * MIB
            for _ in range(200):
                assert await _read_answer(reader) == (200, app.answer)
            writer.close()

    run(work)


@over_servers
def test_a_body_too_large_is_refused_before_it_is_sent(core: str) -> None:
    async def work() -> None:
        async with serving(Echo(body_bytes_max=10), core) as (_, port):
            reader, writer = await connect(port)
            writer.write(
                b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 11\r\nexpect: 100-continue\r\n\r\n"
            )
            assert await _read_answer(reader) == (413, b"declared")
            assert await reader.read() == b""
            writer.close()

    run(work)


@over_servers
def test_who_keeps_sending_still_gets_the_refusal(core: str) -> None:
    async def work() -> None:
        async with serving(Echo(body_bytes_max=1000), core) as (_, port):
            reader, writer = await connect(port)
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n")
            for _ in range(200):
                writer.write(b"%x\r\n%s\r\n" % (8192, b"x" * 8192))
                await asyncio.sleep(0)
            assert await _read_answer(reader) == (413, b"grown")
            writer.close()

    run(work)


@over_servers
@over_versions
def test_a_body_that_grows_too_large_is_refused(core: str, version: str) -> None:
    async def work() -> None:
        async with serving(Echo(body_bytes_max=MIB), core) as (server, port), asking() as client:
            listener = ask(client, origin_at(port, version), b"x" * (MIB + 1))
            await listener.done.wait()
            assert (listener.status, bytes(listener.body)) == (413, b"grown")
            fits = ask(client, origin_at(port, version), b"x" * MIB)
            await fits.done.wait()
            assert fits.status == 200
            assert server.receiving_bytes == 0

    run(work)


@over_versions
def test_bodies_coming_in_are_bounded_together(version: str) -> None:
    async def work() -> None:
        limits = ServerLimits(buffered_bytes_max=MIB)
        async with serving(Echo(), limits=limits) as (server, port), asking() as client:
            listeners = [ask(client, origin_at(port, version), b"x" * 700_000) for _ in range(4)]
            for listener in listeners:
                await listener.done.wait()
            statuses = sorted(listener.status for listener in listeners)
            assert statuses[0] == 200
            assert set(statuses) <= {200, 503}
            assert server.receiving_bytes == 0
            alone = ask(client, origin_at(port, version), b"x" * 700_000)
            await alone.done.wait()
            assert alone.status == 200

    run(work)


def test_answers_waiting_for_slow_readers_are_bounded() -> None:
    async def work() -> None:
        app = Echo()
        app.answer = b"x" * (8 * MIB)
        limits = ServerLimits(buffered_bytes_max=20 * MIB)
        async with serving(app, limits=limits) as (server, port):
            writers: list[asyncio.StreamWriter] = []
            for _ in range(12):  # each leaves some megabytes in the buffers of its socket
                _, writer = await connect(port)
                writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 3)
                writers.append(writer)
            await until(lambda: len(app.exchanges) >= 12)
            assert server.unsent_bytes <= 28 * MIB
            for writer in writers:
                writer.transport.abort()
            await until(lambda: server.unsent_bytes == 0)

    run(work)


def test_streams_that_take_nothing_are_bounded_together() -> None:
    async def work() -> None:
        app = Echo()
        app.answer = b"x" * (4 * MIB)
        limits = ServerLimits(buffered_bytes_max=10 * MIB)
        async with serving(app, limits=limits) as (server, port), asking() as client:
            slow = [
                ask(client, origin_at(port), listener=Listener(is_consuming=False))
                for _ in range(30)
            ]
            await until(lambda: bool(app.exchanges) and not server.connections)
            assert server.unsent_bytes == 0
            for listener in slow:
                listener.is_consuming = True
                listener.stream.consumed(len(listener.body))
            for listener in slow:
                await listener.done.wait()
                assert listener.failure is not None
            listener = ask(client, origin_at(port))
            await listener.done.wait()
            assert len(listener.body) == 4 * MIB

    run(work)


@over_servers
@over_versions
def test_a_slow_reader_gets_all_of_a_large_answer(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo()
        app.answer = bytes(range(256)) * (32 * MIB // 256)
        async with serving(app, core) as (server, port), asking(core) as client:
            listener = Listener(is_consuming=False)
            ask(client, origin_at(port, version), listener=listener)
            await until(lambda: len(listener.body) >= 4 * MIB)
            assert len(listener.body) <= 6 * MIB
            assert server.unsent_bytes > 0
            listener.is_consuming = True
            listener.stream.consumed(len(listener.body))
            await listener.done.wait()
            assert bytes(listener.body) == app.answer
            await until(lambda: server.unsent_bytes == 0)

    run(work)


@over_servers
@over_versions
def test_the_application_hears_of_a_client_that_left(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (_, port), asking() as client:
            listener = ask(client, origin_at(port, version), b"wait for it")
            await until(lambda: bool(app.exchanges))
            assert not app.gone
            listener.stream.reset()
            await until(lambda: app.gone == app.exchanges)
            app.respond(app.exchanges[0])  # too late, and harmless
            again = ask(client, origin_at(port, version), b"again")
            await until(lambda: len(app.exchanges) == 2)
            app.respond(app.exchanges[1])
            await again.done.wait()
            assert bytes(again.body) == b"again"
            assert len(app.gone) == 1

    run(work)


@over_servers
def test_the_application_hears_of_a_connection_that_broke(core: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (server, port):
            _, writer = await connect(port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            await until(lambda: bool(app.exchanges))
            writer.transport.abort()
            await until(lambda: app.gone == app.exchanges)
            _, writer = await connect(port)
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")
            await until(lambda: server.receiving_bytes == 4)
            writer.transport.abort()
            await until(lambda: server.receiving_bytes == 0)
            assert len(app.exchanges) == 1

    run(work)


@over_servers
@over_versions
def test_closing_lets_exchanges_end(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app, core) as (server, port), asking() as client:
            listener = ask(client, origin_at(port, version), b"slow")
            await until(lambda: bool(app.exchanges))
            closing = asyncio.create_task(server.aclose(10.0))
            await asyncio.sleep(0)
            assert not closing.done()
            app.respond(app.exchanges[0])
            await closing
            await listener.done.wait()
            assert bytes(listener.body) == b"slow"
            refused = ask(client, origin_at(port, version))
            await refused.done.wait()
            assert refused.failure is not None
            assert refused.failure.kind == "connect"

    run(work)


@over_versions
def test_closing_drops_what_does_not_end(version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app) as (server, port), asking() as client:
            listener = ask(client, origin_at(port, version), b"never")
            await until(lambda: bool(app.exchanges))
            await server.aclose(0.05)
            await listener.done.wait()
            assert listener.failure is not None
            assert listener.failure.kind == "lost"
            assert app.gone == app.exchanges

    run(work)


@over_servers
@over_versions
def test_a_connection_retires_without_losing_a_request(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo()
        limits = ServerLimits(requests_per_connection_max=10)
        async with serving(app, core, limits) as (_, port), asking() as client:
            left = 600

            async def one_after_the_other() -> None:
                nonlocal left
                while left:
                    left -= 1
                    listener = ask(client, origin_at(port, version), b"%d" % left)
                    await listener.done.wait()
                    assert listener.failure is None, listener.failure
                    assert listener.status == 200

            await asyncio.gather(*(one_after_the_other() for _ in range(20)))
            assert len(app.exchanges) == 600
            assert len({exchange.body for exchange in app.exchanges}) == 600

    run(work)


@over_servers
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"complete nonsense\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n", b"400"),
    ],
    ids=["nonsense", "large head", "bad chunk"],
)
def test_what_is_not_http_is_refused(core: str, data: bytes, status: bytes) -> None:
    async def work() -> None:
        async with serving(Echo(), core) as (server, port):
            answer = await _talk(port, data)
            assert answer.startswith(b"HTTP/1.1 " + status), answer
            await until(lambda: not server.connections)

    run(work)


@over_servers
def test_garbage_after_the_preface_closes_the_connection(core: str) -> None:
    async def work() -> None:
        async with serving(Echo(), core) as (server, port):
            await _talk(port, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(9))
            await until(lambda: not server.connections)

    run(work)


@over_servers
@pytest.mark.parametrize(
    "data",
    [b"", b"PRI * HT", b"GET / HTTP/1.1\r\nhos", b"\r\n"],
    ids=["nothing", "half a preface", "half a head", "empty line"],
)
def test_a_head_must_come_in_time(core: str, data: bytes) -> None:
    async def work() -> None:
        limits = ServerLimits(head_ms=80)
        async with serving(Echo(), core, limits) as (server, port):
            reader, writer = await connect(port)
            writer.write(data)
            with suppress(ConnectionResetError):
                assert b"200" not in await reader.read()
            writer.close()
            await until(lambda: not server.connections)

    run(work)


@over_servers
def test_a_body_must_keep_coming(core: str) -> None:
    async def work() -> None:
        limits = ServerLimits(request_stall_ms=80)
        async with serving(Echo(), core, limits) as (server, port):
            reader, writer = await connect(port)
            writer.write(b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 9\r\n\r\nhalf")
            status, _ = await _read_answer(reader)
            assert status == 408
            assert await reader.read() == b""
            writer.close()
            assert server.receiving_bytes == 0

    run(work)


@over_versions
def test_who_takes_no_byte_of_an_answer_is_left(version: str) -> None:
    async def work() -> None:
        app = Echo()
        app.answer = b"x" * (16 * MIB)
        limits = ServerLimits(response_stall_ms=150)
        async with serving(app, limits=limits) as (server, port), asking() as client:
            listener = Listener(is_consuming=False)
            ask(client, origin_at(port, version), listener=listener)
            await until(lambda: server.unsent_bytes > 0)
            await until(lambda: not server.connections)
            assert server.unsent_bytes == 0
            listener.is_consuming = True
            listener.stream.consumed(len(listener.body))
            await listener.done.wait()
            assert listener.failure is not None
            assert listener.failure.kind == "lost"

    run(work)


@over_servers
@over_versions
def test_an_idle_connection_is_closed(core: str, version: str) -> None:
    async def work() -> None:
        limits = ServerLimits(idle_ms=80)
        async with serving(Echo(), core, limits) as (server, port), asking() as client:
            listener = ask(client, origin_at(port, version))
            await listener.done.wait()
            assert len(server.connections) == 1
            await until(lambda: not server.connections)
            again = ask(client, origin_at(port, version))
            await again.done.wait()
            assert again.status == 200

    run(work)


def test_connections_are_bounded() -> None:
    async def work() -> None:
        limits = ServerLimits(connections_max=2)
        async with serving(Echo(), limits=limits) as (server, port):
            first, second = await connect(port), await connect(port)
            await until(lambda: len(server.connections) == 2)
            with pytest.raises((ConnectionResetError, BrokenPipeError)):
                answer = await _talk(port, b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
                raise ConnectionResetError if not answer else AssertionError(answer)
            first[1].close()
            await until(lambda: len(server.connections) == 1)
            reader, writer = await connect(port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n")
            assert await _read_answer(reader) == (200, b"")
            writer.close()
            second[1].close()

    run(work)


@over_versions
@pytest.mark.parametrize("status", [204, 304, 99, 600, 1000])
def test_every_status_an_application_may_think_of_is_answered(version: str, status: int) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app) as (_, port), asking() as client:
            for _ in range(2):
                listener = ask(client, origin_at(port, version))
                await until(lambda: bool(app.exchanges))
                app.exchanges.pop().respond(status, [], b"a body")
                await listener.done.wait()
                assert listener.is_ended
                assert bytes(listener.body) == (b"" if status in (204, 304) else b"a body")

    run(work)
