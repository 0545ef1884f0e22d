"""The asking side over loopback: pools, retirement, failures by kind, pings, TLS."""

import asyncio
import ssl
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from tests.node.http.loopback import (
    MIB,
    Echo,
    Listener,
    ask,
    asking,
    origin_at,
    run,
    serving,
    until,
)
from tests.node.http.wire import NAMES, VERSIONS

from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.node.http.accepted import Accepted
from perdure.node.http.client import ClientLimits, HttpClient
from perdure.node.http.cores import make_client_core, make_server_core
from perdure.node.http.server import HttpServer
from perdure.node.http.stream import Origin

over_clients = pytest.mark.parametrize("core", NAMES)
over_versions = pytest.mark.parametrize("version", VERSIONS)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"


class Peer(asyncio.Protocol):
    """A server by hand: keeps what it gets, says what it is told."""

    def __init__(self, greeting: bytes = b"") -> None:
        self.greeting = greeting
        self.received = bytearray()
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]  # uvloop's is none by inheritance
        if self.greeting:
            self.transport.write(self.greeting)

    def data_received(self, data: bytes) -> None:
        self.received += data

    @property
    def request_count(self) -> int:
        """Heads of requests that came."""
        if not self.received.startswith(PREFACE):
            return self.received.count(b"/echo")
        count, position = 0, len(PREFACE)
        while position + 9 <= len(self.received):
            count += self.received[position + 3] == 1
            position += 9 + int.from_bytes(self.received[position : position + 3])
        return count


@asynccontextmanager
async def peering(greeting: bytes = b"") -> AsyncGenerator[tuple[list[Peer], int]]:
    peers: list[Peer] = []

    def make() -> Peer:
        peers.append(Peer(greeting))
        return peers[-1]

    listener = await asyncio.get_running_loop().create_server(make, "127.0.0.1", 0)
    try:
        yield peers, int(listener.sockets[0].getsockname()[1])
    finally:
        listener.close()
        for peer in peers:
            peer.transport.abort()


@over_clients
@over_versions
def test_many_requests_at_once(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo()
        async with serving(app) as (server, port), asking(core) as client:
            listeners = [ask(client, origin_at(port, version), b"%d" % n) for n in range(400)]
            for number, listener in enumerate(listeners):
                await listener.done.wait()
                assert bytes(listener.body) == b"%d" % number
            assert len(app.exchanges) == 400
            connections = len(server.connections)
            assert connections >= 3 if version == "HTTP/1.1" else connections <= 4
            assert client.statistics().streams == client.statistics().waiting == 0

    run(work)


@over_versions
def test_connections_to_an_origin_are_bounded(version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        limits = ClientLimits(connections_per_origin_max=2)
        async with serving(app) as (server, port), asking(limits=limits) as client:
            listeners = [ask(client, origin_at(port, version), b"%d" % n) for n in range(300)]
            per_connection = 1 if version == "HTTP/1.1" else 128
            await until(lambda: len(app.exchanges) == 2 * per_connection)
            assert client.statistics().waiting == 300 - 2 * per_connection
            app.is_patient = False
            for exchange in list(app.exchanges):
                app.respond(exchange)
            for listener in listeners:
                await listener.done.wait()
                assert listener.status == 200
            assert len(server.connections) == 2

    run(work)


@over_clients
@over_versions
def test_a_connection_is_retired_after_its_requests(core: str, version: str) -> None:
    async def work() -> None:
        limits = ClientLimits(requests_per_connection_max=10)
        async with serving(Echo()) as (server, port), asking(core, limits) as client:
            seen: set[object] = set()
            for _ in range(35):
                listener = ask(client, origin_at(port, version))
                await listener.done.wait()
                assert listener.status == 200
                seen |= server.connections
            assert len(seen) == 4
            await until(lambda: len(server.connections) == 1)

    run(work)


@over_clients
def test_a_farewell_tells_the_refused_from_the_served(core: str) -> None:
    async def work() -> None:
        async with peering(SETTINGS) as (peers, port), asking(core) as client:
            first, second = ask(client, origin_at(port)), ask(client, origin_at(port))
            await until(lambda: bool(peers) and peers[0].request_count == 2)
            goaway = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + (1).to_bytes(4) + bytes(4)
            peers[0].transport.write(goaway)
            await second.done.wait()
            assert second.failure is not None
            assert second.failure.kind == "refused"
            assert not first.done.is_set()
            third = ask(client, origin_at(port))
            await until(lambda: len(peers) == 2 and peers[1].request_count == 1)
            peers[0].transport.write(b"\x00\x00\x01\x01\x05\x00\x00\x00\x01\x88")
            await first.done.wait()
            assert (first.status, first.is_ended) == (200, True)
            peers[1].transport.abort()
            await third.done.wait()
            assert third.failure is not None
            assert third.failure.kind == "lost"

    run(work)


@over_clients
def test_who_says_farewell_and_then_nothing_is_given_up(core: str) -> None:
    """The farewell itself is no sign of life after it: a ping of its own asks for one."""

    async def work() -> None:
        limits = ClientLimits(keep_alive_timeout_ms=100)
        async with peering(SETTINGS) as (peers, port), asking(core, limits) as client:
            asked = ask(client, origin_at(port))
            await until(lambda: bool(peers) and peers[0].request_count == 1)
            goaway = b"\x00\x00\x08\x07\x00\x00\x00\x00\x00" + (1).to_bytes(4) + bytes(4)
            peers[0].transport.write(goaway)
            await asked.done.wait()
            assert asked.failure is not None
            assert asked.failure.kind == "lost"
            assert peers[0].received.endswith(b"perdure!")

    run(work)


@over_clients
@pytest.mark.parametrize(("code", "kind"), [(7, "refused"), (8, "lost"), (2, "lost")])
def test_a_reset_stream_fails_by_kind(core: str, code: int, kind: str) -> None:
    async def work() -> None:
        async with peering(SETTINGS) as (peers, port), asking(core) as client:
            asked = ask(client, origin_at(port))
            await until(lambda: bool(peers) and peers[0].request_count == 1)
            peers[0].transport.write(b"\x00\x00\x04\x03\x00\x00\x00\x00\x01" + code.to_bytes(4))
            await asked.done.wait()
            assert asked.failure is not None
            assert asked.failure.kind == kind
            assert client.statistics().connections == 1, "the connection lives on"

    run(work)


@over_clients
@over_versions
def test_a_connection_lost_in_mid_answer_fails_its_streams(core: str, version: str) -> None:
    async def work() -> None:
        is_http1 = version == "HTTP/1.1"
        async with peering(b"" if is_http1 else SETTINGS) as (peers, port), asking(core) as client:
            asked = ask(client, origin_at(port, version))
            await until(lambda: bool(peers) and peers[0].request_count == 1)
            peers[0].transport.write(
                b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart"
                if is_http1
                else b"\x00\x00\x01\x01\x04\x00\x00\x00\x01\x88"
                b"\x00\x00\x04\x00\x00\x00\x00\x00\x01part"
            )
            await until(lambda: bytes(asked.body) == b"part")
            peers[0].transport.close()
            await asked.done.wait()
            assert asked.failure is not None
            assert asked.failure.kind == "lost"
            assert not asked.is_ended

    run(work)


@over_clients
@over_versions
def test_what_is_not_http_is_said_so(core: str, version: str) -> None:
    async def work() -> None:
        async with (
            peering(b"SSH-2.0-OpenSSH_9.6\r\n\r\n\r\n") as (peers, port),
            asking(core) as client,
        ):
            asked = ask(client, origin_at(port, version))
            await asked.done.wait()
            assert asked.failure is not None
            assert asked.failure.kind in ("broken", "connect")
            assert len(peers) == 1, "nobody is asked again and again"
            await until(lambda: client.statistics().connections == 0)

    run(work)


@over_clients
def test_silence_is_noticed_by_pings(core: str) -> None:
    async def work() -> None:
        limits = ClientLimits(keep_alive_interval_ms=50, keep_alive_timeout_ms=50)
        async with peering(SETTINGS) as (peers, port), asking(core, limits) as client:
            asked = ask(client, origin_at(port))
            await asked.done.wait()
            assert asked.failure is not None
            assert asked.failure.kind == "lost"
            assert "ping" in asked.failure.message
            assert peers[0].received.endswith(b"perdure!")

    run(work)


@over_clients
def test_a_peer_that_answers_pings_is_left_in_peace(core: str) -> None:
    async def work() -> None:
        limits = ClientLimits(keep_alive_interval_ms=20, keep_alive_timeout_ms=200)
        app = Echo(is_patient=True)
        async with serving(app, "hyper") as (_, port), asking(core, limits) as client:
            asked = ask(client, origin_at(port), b"slow")
            await until(lambda: bool(app.exchanges))
            started = asyncio.get_running_loop().time()
            await until(lambda: asyncio.get_running_loop().time() - started > 0.3)
            assert not asked.done.is_set()
            app.respond(app.exchanges[0])
            await asked.done.wait()
            assert asked.is_ended

    run(work)


@over_versions
def test_an_idle_connection_is_given_up(version: str) -> None:
    async def work() -> None:
        limits = ClientLimits(idle_ms=30, keep_alive_interval_ms=20)
        async with serving(Echo()) as (server, port), asking(limits=limits) as client:
            await ask(client, origin_at(port, version)).done.wait()
            assert client.statistics().connections == 1
            await until(lambda: client.statistics().connections == 0)
            await until(lambda: not server.connections)

    run(work)


@over_clients
@over_versions
def test_a_stream_given_up_leaves_the_pool_usable(core: str, version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        async with serving(app) as (_, port), asking(core) as client:
            given_up: list[Listener] = []
            for _ in range(5):
                given_up.append(ask(client, origin_at(port, version)))
                await until(lambda: len(app.exchanges) == len(given_up))
                given_up[-1].stream.reset()
            app.is_patient = False
            again = ask(client, origin_at(port, version), b"again")
            await again.done.wait()
            assert bytes(again.body) == b"again"
            for asked in given_up:
                assert not asked.done.is_set(), "who gave up hears nothing more"

    run(work)


@over_versions
def test_a_stream_given_up_before_it_has_a_connection_is_never_sent(version: str) -> None:
    async def work() -> None:
        app = Echo()
        async with serving(app) as (_, port), asking() as client:
            asked = ask(client, origin_at(port, version))
            asked.stream.reset()
            second = ask(client, origin_at(port, version), b"second")
            await second.done.wait()
            assert [exchange.body for exchange in app.exchanges] == [b"second"]

    run(work)


@over_clients
def test_a_large_body_waits_until_the_peer_reads(core: str) -> None:
    """Who heeds ``is_writable`` keeps little in memory, whatever the size of what it sends."""

    async def work() -> None:
        async with peering(SETTINGS) as (peers, port), asking(core) as client:
            asked = Listener()
            asked.stream = client.open(origin_at(port), "POST", "/", [], asked)
            piece = b"x" * 65_536
            written = 0
            await until(lambda: bool(peers) and peers[0].request_count == 1)
            while asked.stream.is_writable():
                asked.stream.write(piece)
                written += len(piece)
            assert written <= MIB
            assert asked.writable_count == 0
            update = b"\x00\x00\x04\x08\x00"
            grant = (10 * MIB).to_bytes(4)
            peers[0].transport.write(update + bytes(4) + grant + update + (1).to_bytes(4) + grant)
            await until(lambda: asked.writable_count > 0)
            assert asked.stream.is_writable()
            await until(lambda: len(peers[0].received) > written)

    run(work)


def test_nobody_there_is_a_failure_to_connect() -> None:
    async def work() -> None:
        async with peering() as (peers, port):
            pass
        async with asking() as client:
            for host in ("127.0.0.1", "no-such-host.invalid", "x" * 70 + ".invalid"):
                asked = ask(client, Origin("http", host, port, "HTTP/2.0"))
                await asked.done.wait()
                assert asked.failure is not None
                assert asked.failure.kind == "connect"
                assert host in asked.failure.message
            assert not peers

    run(work)


@over_clients
@over_versions
def test_a_request_that_cannot_be_sent_fails_alone(core: str, version: str) -> None:
    async def work() -> None:
        async with serving(Echo()) as (_, port), asking(core) as client:
            bad = Listener()
            headers = [(b"x", b"y\r\nz: smuggled")]
            bad.stream = client.open(origin_at(port, version), "POST", "/", headers, bad)
            good = ask(client, origin_at(port, version), b"good")
            await bad.done.wait()
            await good.done.wait()
            assert bad.failure is not None
            assert bad.failure.kind == "broken"
            assert bytes(good.body) == b"good"

    run(work)


@over_versions
def test_closing_fails_what_is_open_and_what_waits(version: str) -> None:
    async def work() -> None:
        app = Echo(is_patient=True)
        limits = ClientLimits(connections_per_origin_max=1)
        async with serving(app) as (_, port), asking(limits=limits) as client:
            asked = [ask(client, origin_at(port, version)) for _ in range(200)]
            await until(lambda: bool(app.exchanges))
            client.close()
            for listener in asked:
                await listener.done.wait()
                assert listener.failure is not None

    run(work)


# --- TLS ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for localhost that signs itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "localhost.pem"
    secret = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    path.write_bytes(secret + made.public_bytes(Encoding.PEM))
    return path


@pytest.mark.parametrize(
    ("wanted", "offered", "spoken"),
    [
        (None, ["h2", "http/1.1"], "HTTP/2.0"),
        (None, ["http/1.1"], "HTTP/1.1"),
        (None, [], "HTTP/1.1"),
        ("HTTP/1.1", ["h2", "http/1.1"], "HTTP/1.1"),
        ("HTTP/2.0", ["h2", "http/1.1"], "HTTP/2.0"),
    ],
)
@over_clients
def test_tls_negotiates_the_version(
    core: str, certificate: Path, wanted: str | None, offered: list[str], spoken: str
) -> None:
    async def work() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        if offered:
            context.set_alpn_protocols(offered)
        server = HttpServer(Echo(), partial(make_server_core, core), SystemClock())
        listener = await asyncio.get_running_loop().create_server(
            lambda: Accepted(server), "127.0.0.1", 0, ssl=context
        )
        port = int(listener.sockets[0].getsockname()[1])
        origin = Origin("https", "localhost", port, wanted)
        client = HttpClient(
            partial(make_client_core, core),
            SystemEntropy(),
            make_tls=lambda: ssl.create_default_context(cafile=str(certificate)),
        )
        for _ in range(3):
            asked = ask(client, origin, b"secret" * 10_000)
            await asked.done.wait()
            assert asked.failure is None, asked.failure
            assert bytes(asked.body) == b"secret" * 10_000
            assert asked.stream.http_version == spoken
        distrustful = HttpClient(partial(make_client_core, core), SystemEntropy())
        asked = ask(distrustful, origin)
        await asked.done.wait()
        assert asked.failure is not None
        assert asked.failure.kind == "connect"
        client.close()
        distrustful.close()
        listener.close()
        await server.aclose(1.0)
        await until(lambda: not server.connections)

    run(work)
