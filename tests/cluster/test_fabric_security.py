"""Nobody takes part in a cluster who may not: certificates, secrets, identities, garbage."""

import asyncio
import random
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cluster.certificates import Authority
from tests.cluster.fabric_rig import (
    RUNNERS,
    Check,
    Echo,
    Member,
    Rig,
    Text,
    is_up,
    on_asyncio,
    on_sim,
    on_tcp,
    on_uvloop,
    peer,
    until,
)

from perdure.cluster.core.messages import GUEST, Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.grpc_transport import GrpcWires
from perdure.cluster.security import TlsFiles, check_exposure, is_loopback, read_secret
from perdure.cluster.tcp_transport import TcpWires
from perdure.cluster.wires import Connection, Wire, WireBroken, Wires
from perdure.core import limits
from perdure.core.errors import (
    AddressInUse,
    InvalidConfiguration,
    NotAuthenticated,
    PerdureError,
    Unreachable,
)
from perdure.core.invariant import InvariantViolation
from perdure.core.limits_telling import FABRIC_REFUSED_SHOWN_MS, FABRIC_REFUSED_TELL_MS

TWO = NodeId(2)
SECRET = b"known to all of them"


async def _tls_member(rig: Rig, node: int, files: TlsFiles, names: tuple[str, ...] = ()) -> Member:
    return await rig.start(peer(node), wires=GrpcWires("127.0.0.1:0", files), allowed_names=names)


async def _works(one: Member, two: Member) -> None:
    await until(lambda: is_up(one, two) and is_up(two, one))
    assert await one.fabric.ask(TWO, Echo("psst"), 5) == Text("psst")


# --- certificates ---------------------------------------------------------------------------------


@pytest.mark.parametrize("on", [on_asyncio, on_uvloop])
def test_nodes_with_certificates_of_one_authority_talk(
    tmp_path: Path, on: Callable[[Check], None]
) -> None:
    authority = Authority("ours")

    async def check(rig: Rig) -> None:
        names = ("node-1", "*.cluster")
        one = await _tls_member(rig, 1, authority.issue(tmp_path / "1", "node-1"), names)
        two = await _tls_member(rig, 2, authority.issue(tmp_path / "2", "b.cluster"), names)
        rig.introduce(one, two)
        await _works(one, two)

    on(check)


def test_a_certificate_may_name_the_nodes_instead_of_their_addresses(tmp_path: Path) -> None:
    authority = Authority("ours")

    async def check(rig: Rig) -> None:
        made = [
            authority.issue(tmp_path / str(node), "x", "perdure-node", server_name="perdure-node")
            for node in (1, 2)
        ]
        one, two = [
            await _tls_member(rig, node, files, ("perdure-node",))
            for node, files in enumerate(made, 1)
        ]
        rig.introduce(one, two)
        await _works(one, two)

    on_asyncio(check)


def test_whoever_has_no_proper_certificate_is_not_heard(tmp_path: Path) -> None:
    ours, theirs = Authority("ours"), Authority("theirs")

    async def check(rig: Rig) -> None:
        one = await _tls_member(rig, 1, ours.issue(tmp_path / "1", "node-1"), ("node-1", "node-2"))
        strangers = {
            "another authority": GrpcWires("127.0.0.1:0", theirs.issue(tmp_path / "a", "node-2")),
            "no certificate": GrpcWires("127.0.0.1:0"),
        }
        for wires in strangers.values():
            stranger = rig.make(peer(2), wires=wires)
            with pytest.raises(Unreachable):
                await stranger.fabric.ask_at(one.place.address, Echo("let me in"), 3)
        named = rig.make(
            peer(2), wires=GrpcWires("127.0.0.1:0", ours.issue(tmp_path / "b", "somebody"))
        )
        with pytest.raises(NotAuthenticated, match=r"somebody, 127\.0\.0\.1"):
            await named.fabric.ask_at(one.place.address, Echo("let me in"), 3)
        assert one.heard == []

    on_asyncio(check)


def test_a_node_is_not_taken_for_another_host(tmp_path: Path) -> None:
    authority = Authority("ours")

    async def check(rig: Rig) -> None:
        elsewhere = authority.issue(tmp_path / "1", "node-1", "elsewhere.example")
        one = await _tls_member(rig, 1, elsewhere)
        two = rig.make(
            peer(2), wires=GrpcWires("127.0.0.1:0", authority.issue(tmp_path / "2", "node-2"))
        )
        with pytest.raises(Unreachable):
            await two.fabric.ask_at(one.place.address, Echo("who are you"), 3)

    on_asyncio(check)


def test_certificates_are_renewed_without_a_restart(tmp_path: Path) -> None:
    old, new = Authority("old"), Authority("new")

    async def check(rig: Rig) -> None:
        one = await _tls_member(rig, 1, old.issue(tmp_path / "1", "node-1"))
        two = await _tls_member(rig, 2, old.issue(tmp_path / "2", "node-2"))
        rig.introduce(one, two)
        await _works(one, two)
        late = rig.make(
            Peer(GUEST, 0, 3, b""), wires=GrpcWires("127.0.0.1:0", old.issue(tmp_path / "3", "x"))
        )
        with pytest.raises(Unreachable, match="not served"):
            await late.fabric.ask_at(one.place.address, Echo("hello"), 3)

        new.issue(tmp_path / "1", "node-1")
        new.issue(tmp_path / "2", "node-2")
        with pytest.raises(Unreachable, match="nobody answers"):
            await late.fabric.ask_at(one.place.address, Echo("hello again"), 3)
        assert is_up(one, two)  # what is open stays open
        one.fabric.set_directory({})
        two.fabric.set_directory({})
        rig.introduce(one, two)
        await _works(one, two)

        (tmp_path / "2" / "node.pem").write_text("half a certific")
        two.fabric.set_directory({})
        rig.introduce(one, two)
        await until(lambda: is_up(one, two))  # it still serves with what it had

    on_asyncio(check)


def test_files_that_are_no_certificates_stop_the_start(tmp_path: Path) -> None:
    files = Authority("ours").issue(tmp_path, "node-1")

    async def listen() -> None:
        await GrpcWires("127.0.0.1:0", files).listen(lambda wire: wire.close())

    files.key.write_text("not a key")
    with pytest.raises(InvalidConfiguration, match=r"node\.key"):
        asyncio.run(listen())
    files.key.unlink()
    with pytest.raises(InvalidConfiguration, match=r"node\.key"):
        asyncio.run(listen())


# --- secrets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("runner", RUNNERS)
def test_nodes_with_one_secret_talk_and_others_do_not(runner: str) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair(secret=SECRET)
        await _works(one, two)
        for secret in (None, b"some other secret"):
            other = rig.make(Peer(GUEST, 0, 3, b""), secret=secret)
            with pytest.raises(NotAuthenticated):
                await other.fabric.ask_at(one.place.address, Echo("let me in"), 5)
        assert all(sender == peer(1) for sender, _ in two.heard)

    RUNNERS[runner](check)


def test_a_refusal_of_a_stranger_is_not_believed() -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1), secret=SECRET)
        two = await rig.start(peer(2), secret=b"some other secret")
        rig.introduce(one, two)
        await until(lambda: two.fabric.statistics().refused_in + one.fabric.statistics().refused_in)
        await until(lambda: two.fabric.statistics().refused_out > 1)
        assert one.refusals == two.refusals == []

    on_sim(check)


def test_nodes_that_turn_each_other_away_are_told_of_again_and_again_but_seldom(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1), secret=SECRET)
        two = await rig.start(peer(2), secret=b"some other secret")
        rig.introduce(one, two)
        with caplog.at_level("WARNING", logger="perdure"):
            await asyncio.sleep(2.5 * FABRIC_REFUSED_TELL_MS / 1000)
        told = [r for r in caplog.records if r.getMessage() == "fabric.hello.refused"]
        assert len(told) == 2 * 3  # both: at once, and after one and two intervals
        assert all("doesn't know this node's cluster secret" in str(vars(r)) for r in told)
        (seen,) = (r for r in one.fabric.statistics().refusals if r.node == 2)
        assert (seen.address, seen.code) == (two.place.address, "FAB0004")
        assert seen.times > 60  # all the while
        one.fabric.set_directory({NodeId(1): one.place})
        two.fabric.set_directory({TWO: two.place})
        await asyncio.sleep(FABRIC_REFUSED_SHOWN_MS / 1000 + 3)
        assert one.fabric.statistics().refusals == ()

    on_sim(check)


class Meddling:
    """Wires on which somebody listens, and plays with what is sent after the handshake."""

    def __init__(self, inner: Wires, trick: str = "") -> None:
        self.inner = inner
        self.trick = trick
        self.overheard: list[bytes] = []

    def connect(self, address: str) -> "MeddlingConnection":
        return MeddlingConnection(self, self.inner.connect(address))

    async def listen(self, accept: Callable[[Wire], None]) -> str:
        return await self.inner.listen(accept)

    async def aclose(self) -> None:
        await self.inner.aclose()


class MeddlingConnection:
    """A connection through the hands of ``Meddling``."""

    def __init__(self, wires: Meddling, inner: Connection) -> None:
        self._wires = wires
        self._inner = inner

    async def open(self) -> "MeddlingWire":
        return MeddlingWire(self._wires, await self._inner.open())

    async def aclose(self) -> None:
        await self._inner.aclose()


class MeddlingWire:
    """A wire through the hands of ``Meddling``."""

    names: tuple[str, ...] | None = None
    is_private = False
    remote = "nowhere"

    def __init__(self, wires: Meddling, inner: Wire) -> None:
        self._wires = wires
        self._inner = inner
        self._sent: list[bytes] = []

    async def read(self) -> bytes | None:
        return await self._inner.read()

    def write_soon(self, frame: bytes) -> bool:
        return False

    async def write(self, frame: bytes) -> None:
        self._sent.append(frame)
        self._wires.overheard.append(frame)
        trick, count = self._wires.trick, len(self._sent)
        if count == 3:  # after Hello and Confirm: the first frame of the session
            if trick == "change":
                frame = frame.replace(b"pay 10", b"pay 99")
            elif trick == "leave out":
                return
        if count == 4 and trick in ("repeat", "slip in"):
            await self._inner.write(self._sent[2])
            if trick == "repeat":
                return
        await self._inner.write(frame)

    def close(self) -> None:
        self._inner.close()


@pytest.mark.parametrize("trick", ["change", "leave out", "repeat", "slip in"])
def test_with_a_secret_nobody_in_between_can_change_what_is_said(trick: str) -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1), secret=SECRET, wires=Meddling(rig.net.wires(1), trick))
        two = await rig.start(peer(2), secret=SECRET)
        rig.introduce(one, two)
        await until(lambda: one.fabric.session(TWO))
        one.fabric.send(TWO, Text("pay 10"))
        if trick != "change":
            await asyncio.sleep(0.1)
            one.fabric.send(TWO, Text("pay 20"))
        await until(lambda: (peer(2), False) in one.sessions)
        assert two.texts == ([] if trick in ("change", "leave out") else ["pay 10"])

    on_sim(check)


# --- garbage --------------------------------------------------------------------------------------


async def _try(wires: Wires, address: str, frames: list[bytes]) -> None:
    connection = wires.connect(address)
    try:
        wire = await connection.open()
        for frame in frames:
            await wire.write(frame)
        async with asyncio.timeout(0.05):
            while await wire.read() is not None:
                pass
    except (WireBroken, TimeoutError):
        return
    finally:
        await connection.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("secret", [None, SECRET])
@pytest.mark.parametrize(("make_wires", "on"), [(GrpcWires, on_asyncio), (TcpWires, on_tcp)])
def test_garbage_on_the_port_harms_nobody(
    secret: bytes | None, make_wires: Callable[[str], Wires], on: Callable[[Check], None]
) -> None:
    dice = random.Random(1)

    async def check(rig: Rig) -> None:
        one, two = await rig.pair(secret=secret)
        wires = make_wires("127.0.0.1:0")
        hellos = await _overheard(rig, one, make_wires(""), secret)
        for number in range(60):
            frames = [dice.randbytes(dice.choice((0, 1, 7, 300, 70_000))) for _ in range(3)]
            if number % 2:
                frames[0] = hellos[0]
            if number % 4 == 3:
                frames[1] = hellos[1]
            await _try(wires, one.place.address, frames)
            _throw(one.place.address, dice.randbytes(500))
        await _try(wires, one.place.address, [bytes(limits.FABRIC_FRAME_BYTES_MAX + 1)])
        await _works(one, two)
        await until(lambda: one.fabric.statistics().sessions_in == 1)

    on(check)


async def _overheard(rig: Rig, target: Member, inner: Wires, secret: bytes | None) -> list[bytes]:
    """The first frames of somebody who may talk."""
    wires = Meddling(inner)
    guest = rig.make(Peer(GUEST, 0, 3, b""), secret=secret, wires=wires)
    with pytest.raises(Unreachable):
        await guest.fabric.ask_at(target.place.address, Echo("overheard"), 5)
    return wires.overheard


def _throw(address: str, data: bytes) -> None:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=5) as connection:
        connection.sendall(data)


def test_a_crowd_of_strangers_keeps_no_member_out() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.start(peer(1)), await rig.start(peer(2))
        crowd = [
            rig.net.wires(9).connect(one.place.address)
            for _ in range(2 * limits.FABRIC_HANDSHAKES_MAX)
        ]
        wires = await asyncio.gather(*(connection.open() for connection in crowd))
        rig.introduce(one, two)
        await until(lambda: is_up(two, one))
        assert asyncio.get_running_loop().time() < limits.FABRIC_HANDSHAKE_MS / 1000
        for wire in wires:  # each is turned away in the end
            assert await wire.read() is None

    on_sim(check)


def test_a_second_handler_for_a_message_is_a_bug() -> None:
    async def check(rig: Rig) -> None:
        one = rig.make(peer(1))
        with pytest.raises(InvariantViolation, match="two handlers"):
            one.fabric.serve(Echo, one.echo)

    on_sim(check)


# --- where and how the port may be opened ---------------------------------------------------------


@pytest.mark.parametrize(
    ("bind", "is_local"),
    [
        ("127.0.0.1:5122", True),
        ("127.1.2.3:0", True),
        ("[::1]:5122", True),
        ("localhost:5122", True),
        ("0.0.0.0:5122", False),
        ("[::]:5122", False),
        ("10.0.0.7:5122", False),
        ("node-1.cluster:5122", False),
        (":5122", False),
    ],
)
def test_only_this_machine_is_trusted_unasked(bind: str, is_local: bool, tmp_path: Path) -> None:
    assert is_loopback(bind) == is_local
    files = TlsFiles(certificate=tmp_path, key=tmp_path, authority=tmp_path)
    check_exposure(bind, tls=files, is_trusted=False)
    check_exposure(bind, tls=None, is_trusted=True)
    if is_local:
        check_exposure(bind, tls=None, is_trusted=False)
    else:
        for kind in (GrpcWires, TcpWires):
            with pytest.raises(InvalidConfiguration, match=r"cluster\.insecure"):
                asyncio.run(kind(bind).listen(lambda wire: wire.close()))


def test_secrets_come_from_files_and_are_long(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    with pytest.raises(InvalidConfiguration, match="can't read"):
        read_secret(path)
    path.write_text("  short\n")
    with pytest.raises(InvalidConfiguration, match="openssl"):
        read_secret(path)
    path.write_text("0123456789abcdef\n")
    assert read_secret(path) == b"0123456789abcdef"


def test_a_port_that_is_taken() -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        for kind in (GrpcWires, TcpWires):
            with pytest.raises(AddressInUse):
                await kind(one.place.address).listen(lambda wire: wire.close())

    on_asyncio(check)


@pytest.mark.slow
def test_single_nodes_do_without_the_library() -> None:
    """What a node imports to run alone has no part in it."""
    code = "import sys, perdure.node.server; print('grpc' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_refusals_are_errors_with_codes() -> None:
    async def check(rig: Rig) -> None:
        one = await rig.start(peer(1))
        cases: list[tuple[Member, str]] = [
            (rig.make(peer(2), cluster="other"), "FAB0003"),
            (rig.make(peer(2), fingerprint=b"G" * 16), "FAB0003"),
            (rig.make(peer(2)), "FAB0005"),
            (rig.make(peer(1, generation=2)), "FAB0007"),
        ]
        for stranger, code in cases:
            with pytest.raises(PerdureError) as caught:
                await stranger.fabric.ask_at(one.place.address, Echo("let me in"), 5)
            assert caught.value.code == code

    on_sim(check)
