"""The process of a metadata member: ``python -m perdure.cluster.metadata.server``.

Its first line of input is its settings as JSON; when the input ends, it ends. It holds the folder's
lock, listens on the local socket for its node, and talks to the other members over a fabric of its
own. Whatever goes wrong inside the member ends the process: its supervisor starts it again from
what its disk holds.
"""

import asyncio
import faulthandler
import gc
import signal
import sys
from pathlib import Path
from typing import Any

import msgspec

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.metadata.local_door import LocalServer
from perdure.cluster.metadata.peer_link import FabricLink, PeerLives, serve_peers
from perdure.cluster.metadata.provision import count_start, read_identity
from perdure.cluster.metadata.quorum import FIRST
from perdure.cluster.metadata.raft import MemberPorts, RaftMember, Timing
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.service import MemberService
from perdure.cluster.security import TlsFiles, read_secret
from perdure.cluster.transport import Place
from perdure.cluster.wiring import make_wires
from perdure.core import telemetry
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import DataDirectoryDamaged, DataDirectoryLocked, PerdureError
from perdure.core.limits import METADATA_STUCK_MS
from perdure.core.tasks import Supervisor
from perdure.storage.disk import FolderLock, OsDisk

log = telemetry.logger("metadata")

FOLDER = "metadata-member"
"""Below the data directory of the node: a member of the first quorum."""


def folder_of(quorum: int) -> str:
    """Where a member of a quorum is kept, below the data directory. No longer than the first one's:
    its socket's path must fit too."""
    return FOLDER if quorum == FIRST else f"metadata-{quorum}"


def fingerprint_of(identity: MemberIdentity) -> bytes:
    """What a quorum's members show each other: those of another one are strangers."""
    suffix = "" if identity.quorum == FIRST else f"/{identity.quorum}"
    return f"{identity.cluster}{suffix}".encode()


class MemberSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What the supervisor tells the process. ``members`` are addresses by node."""

    folder: str
    listen: str
    members: dict[int, str]
    cluster_name: str
    secret_file: str | None = None
    certificate: str | None = None
    key: str | None = None
    authority: str | None = None
    server_name: str = ""
    is_insecure: bool = False  # neither certificates nor secret, and not only loopback
    allowed_names: list[str] = []
    election_ms: tuple[int, int] = (500, 1_000)
    heartbeat_ms: int = 50
    log_level: str = "info"
    log_format: telemetry.LogFormat = "pretty"

    def tls(self) -> TlsFiles | None:
        if self.certificate is None or self.key is None or self.authority is None:
            return None
        return TlsFiles(
            certificate=Path(self.certificate),
            key=Path(self.key),
            authority=Path(self.authority),
            server_name=self.server_name,
        )


def encode_settings(settings: MemberSettings) -> bytes:
    """One line."""
    return msgspec.json.encode(settings)


async def run(settings: MemberSettings, stopped: asyncio.Event) -> BaseException | None:
    """Serve until ``stopped``; what made it end before, if anything.

    Raises:
        PerdureError: it can't start.
    """
    folder = Path(settings.folder)
    disk = OsDisk(folder)
    identity = read_identity(disk)
    if identity is None:
        raise DataDirectoryDamaged(f"{folder} is no storage of a metadata member: provision it")
    lock = FolderLock(folder)
    if not lock.try_acquire():
        raise DataDirectoryLocked(f"{folder} is in use by process {lock.holder()}")
    clock, entropy = SystemClock(), SystemEntropy()
    supervisor = Supervisor()
    fabric = _fabric(settings, identity, count_start(disk), supervisor)
    timing = Timing(
        election_min=settings.election_ms[0] / 1000,
        election_max=settings.election_ms[1] / 1000,
        heartbeat=settings.heartbeat_ms / 1000,
        leader_fallback=2 * settings.election_ms[1] / 1000,
    )
    member = RaftMember(
        identity,
        MemberPorts(disk=disk, link=FabricLink(fabric), clock=clock, entropy=entropy),
        timing,
    )
    service = MemberService(member, clock, entropy)
    door = LocalServer(folder, service.answer)
    serve_peers(fabric, service, PeerLives(disk))
    try:
        await fabric.listen()
        fabric.set_directory(
            {NodeId(node): Place(address=at) for node, at in settings.members.items()}
        )
        await door.start(entropy)
        service.start()
        log.info("metadata.member.started", node=identity.node, listen=settings.listen)
        gc.collect()
        gc.freeze()
        return await _wait(service, supervisor, stopped)
    finally:
        await door.aclose()
        await fabric.aclose()
        await service.aclose()
        await supervisor.aclose()
        lock.release()


def main() -> None:
    """The process. Exit codes: 0 it was told to end, 1 it failed, 2 it can't start."""
    settings = msgspec.json.decode(sys.stdin.buffer.readline(), type=MemberSettings)
    telemetry.configure(settings.log_level, settings.log_format)
    sys.exit(asyncio.run(_main(settings)))


async def _main(settings: MemberSettings) -> int:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()
    loop.add_reader(sys.stdin.fileno(), stopped.set)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    _outlive_no_standstill(loop)
    try:
        failure = await run(settings, stopped)
    except PerdureError as error:
        log.error("metadata.member.refused", cause=error)
        return 2
    return 0 if failure is None else 1


async def _wait(
    service: MemberService, supervisor: Supervisor, stopped: asyncio.Event
) -> BaseException | None:
    stop = asyncio.create_task(stopped.wait())
    lost = asyncio.create_task(supervisor.wait_failed())
    try:
        waits: set[asyncio.Future[Any]] = {stop, lost, service.failed}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stop.cancel()
        lost.cancel()
    if service.failed.done():
        return service.failed.result()
    return supervisor.failure


def _fabric(
    settings: MemberSettings, identity: MemberIdentity, start: int, supervisor: Supervisor
) -> Fabric:
    entropy = SystemEntropy()
    secret = read_secret(Path(settings.secret_file)) if settings.secret_file else None
    return Fabric(
        me=Peer(
            NodeId(identity.node),
            start,
            entropy.bits(62),
            bytes.fromhex(identity.storages[identity.node]),
        ),
        cluster=ClusterIdentity(
            name=settings.cluster_name, fingerprint=fingerprint_of(identity), secret=secret
        ),
        wires=make_wires(
            settings.listen,
            settings.tls(),
            is_trusted=secret is not None or settings.is_insecure,
        ),
        entropy=entropy,
        supervisor=supervisor,
        allowed_names=settings.allowed_names,
    )


def _outlive_no_standstill(loop: asyncio.AbstractEventLoop) -> None:
    """A loop that stands still can't end the process: a watchdog outside of it does."""
    faulthandler.dump_traceback_later(METADATA_STUCK_MS / 1000, exit=True)
    loop.call_later(1.0, _outlive_no_standstill, loop)


if __name__ == "__main__":
    main()
