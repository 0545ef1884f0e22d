"""How a process becomes a node among others: metadata, a name there, and a door to the others.

1. The metadata members are made once, by the first of them: it draws their storages and the
   cluster's fingerprint, notes both down, and gives them to the others. A member without storage
   never makes it by itself: it would have forgotten its votes.
2. Each of those nodes runs its member as a process beside it, and answers for it to other nodes.
3. The first of them puts the cluster's register there, or all that it had as a single node
   (``promotion``); every process then joins, which gives it the next generation of its node.

Where an etcd holds the metadata there are no members: the first two steps fall away.
"""

import asyncio
import contextlib
from collections.abc import Coroutine, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

import perdure
from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.membership import (
    CLUSTER_FORMAT_VERSION,
    Addresses,
    ClusterMeta,
    NodeProfile,
    NodeRole,
)
from perdure.cluster.core.messages import GUEST, Message, Peer, Request
from perdure.cluster.fabric import Fabric
from perdure.cluster.membership import Joined, join, probing, provision, read_cluster
from perdure.cluster.metadata.client import Door, RaftMetadata
from perdure.cluster.metadata.fabric_door import VisitorDoor, serve_questions
from perdure.cluster.metadata.provision import draw_storages, read_identity
from perdure.cluster.metadata.provision import provision as make_storage
from perdure.cluster.metadata.quorum import QUORUM_KEY, Quorums, decode_quorums
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.server import FOLDER, MemberSettings
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.registers import Registers, insist
from perdure.cluster.security import TlsFiles, check_exposure, read_secret
from perdure.cluster.transport import Answer
from perdure.cluster.wiring import make_wires
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    DataDirectoryDamaged,
    DataDirectoryForeign,
    InvalidConfiguration,
    MetadataNotEmpty,
    PerdureError,
)
from perdure.core.failpoint import failpoint
from perdure.core.limits import FORMATION_RETRY_MS, FORMATION_TELL_MS
from perdure.core.offload import PoolOffload, run_offloaded
from perdure.core.tasks import Supervisor
from perdure.core.telemetry import logger
from perdure.node.config.model import Config, advertised
from perdure.node.config.values import Address, parse_address
from perdure.node.origin import check_destinations, find_document, restored_registers
from perdure.node.partition.cluster_host import ClusterPorts
from perdure.node.promotion import (
    Intent,
    check_cluster,
    promoted_registers,
    read_note,
    write_note,
)
from perdure.node.quorum import QuorumKeeper
from perdure.node.snapshots import open_store
from perdure.storage.disk import Disk, OsDisk

T = TypeVar("T")

log = logger("cluster")

_ASK_S = 5.0


class _Followed(Exception):
    """The first quorum is gone, and this node is no member of the present one."""


class Adopted(Message, frozen=True, tag=0x0311):
    """The fingerprint of the cluster whose member's storage the receiver has now."""

    cluster: str


class Adopt(Request[Adopted], frozen=True, tag=0x0310):
    """Make the storage of your metadata member, unless you have one."""

    cluster: str
    storages: dict[int, str]


class OpenRegisters(Registers, Protocol):
    """The cluster's registers, wherever they are kept."""

    async def fill(self, registers: dict[str, Versioned]) -> None:
        """Put registers into the empty store, versions kept."""
        ...

    async def aclose(self) -> None:
        """Stop watching and close the connections."""
        ...


@dataclass(frozen=True, slots=True)
class Formed:
    """This process is a node: its registers, who it is, and the door to the others, still shut."""

    registers: OpenRegisters
    joined: Joined
    fabric: Fabric

    def ports(self, supervisor: Supervisor) -> ClusterPorts:
        """What the node's durable half stands on."""
        return ClusterPorts(
            joined=self.joined,
            registers=self.registers,
            transport=self.fabric,
            listen=self.fabric.listen,
            supervisor=supervisor,
        )


class Formation:
    """Forms, or joins, the cluster that the configuration names."""

    def __init__(
        self,
        config: Config,
        disk: Disk,
        folder: Path,
        chances: tuple[Clock, Entropy],
        supervisor: Supervisor,
    ) -> None:
        self._config = config
        self._disk = disk
        self._member_folder = folder / FOLDER
        self._clock, self._entropy = chances
        self._supervisor = supervisor
        self._members = dict(config.cluster.members)
        self._number = _number_of(config.node_name, list(self._members))
        secret_file = config.cluster.secret_file
        self._secret = read_secret(secret_file) if secret_file is not None else None
        self._tls = _tls(config)
        is_trusted = self._secret is not None or config.cluster.insecure
        check_exposure(self._listen_at(), tls=self._tls, is_trusted=is_trusted)
        self._way: Fabric
        self._keeper = QuorumKeeper(
            config.node_name,
            disk,
            folder,
            self._members,
            self._settings,
            chances,
            supervisor,
            lambda: self._way,
        )

    async def form(self) -> Formed:
        """Everything up to the point where the transport may listen.

        Raises:
            PerdureError: why this process can't be a node of the cluster.
        """
        check_cluster(self._disk, self._number)
        guest = self._way = self.make_guest()
        try:
            registers = await self._open_registers(guest)
            await self._provision(registers)
            profile = NodeProfile(
                name=self._config.node_name,
                addresses=self._addresses(),
                zone=self._config.cluster.zone or "",
                roles=tuple(NodeRole),
                software=perdure.__version__,
                incarnation=self._entropy.bits(60),
                fresh_uuid=f"{self._entropy.bits(128):032x}",
                metadata=self._keeper.state,
            )
            joined = await self._join(registers, profile, guest)
        finally:
            await guest.aclose()
        fabric = self._make_fabric(joined.peer(), bytes.fromhex(joined.cluster.fingerprint))
        self._way = fabric
        if not self._config.etcd.endpoints:
            serve_questions(fabric, self._keeper.door)
            self._keeper.serve(fabric)
        return Formed(registers, joined, fabric)

    async def _open_registers(self, guest: Fabric) -> OpenRegisters:
        if self._config.etcd.endpoints:
            from perdure.node.etcd import open_etcd

            return open_etcd(self._config, self._clock)
        keeper = self._keeper
        if self._number is not None and keeper.known.current is None:
            await self._find_member(guest, self._number)
        keeper.start_member()
        if keeper.known.following is not None:  # all may be here, and can't join before it is done
            keeper.serve(guest)
            await guest.listen()
        registers = keeper.open_registers()
        self._supervisor.start("metadata.quorum", keeper.run())
        return registers

    # --- The metadata quorum --------------------------------------------------------------------

    async def _find_member(self, guest: Fabric, number: int) -> None:
        """Have storage for our member of the first quorum, unless that has long been followed."""
        self._disk.make_folder(FOLDER)
        member_disk = OsDisk(self._member_folder)
        if read_identity(member_disk) is None:
            with contextlib.suppress(_Followed):
                await self._make_member(guest, member_disk, number)

    async def _make_member(self, guest: Fabric, disk: Disk, number: int) -> MemberIdentity:
        """Give out storages, or wait to be given one."""
        given: asyncio.Future[MemberIdentity] = asyncio.get_running_loop().create_future()

        def adopt(_: Peer, request: Adopt, answer: Answer) -> None:
            identity = MemberIdentity(request.cluster, number, request.storages)
            make_storage(disk, identity, self._entropy)  # refuses when there is another
            if not given.done():
                given.set_result(identity)
            answer(Adopted(request.cluster))

        guest.serve(Adopt, adopt, guests=True)
        await guest.listen()
        if number != 1:
            return await self._unless_lost(self._wait_given(given), None)
        intent = read_note(self._disk)
        if intent is None:
            fingerprint = f"{self._entropy.bits(128):032x}"
            storages = draw_storages(range(1, len(self._members) + 1), self._entropy)
            intent = Intent(fingerprint, storages)
            write_note(self._disk, intent)
        await self._unless_lost(self._give_all(guest, intent), intent.cluster)
        failpoint("formation.given")
        identity = MemberIdentity(intent.cluster, number, intent.storages)
        make_storage(disk, identity, self._entropy)
        log.info("cluster.formed", fingerprint=intent.cluster, members=list(self._members))
        return identity

    async def _give_all(self, guest: Fabric, intent: Intent) -> None:
        for address in list(self._members.values())[1:]:
            await self._give(guest, address, intent)

    async def _give(self, guest: Fabric, address: str, intent: Intent) -> None:
        """Insist until the member at ``address`` has its storage."""
        told_at = self._clock.monotonic()
        while True:
            try:
                await guest.ask_at(address, Adopt(intent.cluster, intent.storages), _ASK_S)
                return
            except DataDirectoryForeign as refused:
                raise DataDirectoryForeign(
                    f"{address} is a metadata member of another cluster, or this node has lost "
                    f"its own member's storage: {refused.message}. Restore the data directory"
                ) from refused
            except PerdureError as failure:
                told_at = self._tell(told_at, address, str(failure))
            await asyncio.sleep(FORMATION_RETRY_MS / 1000)

    async def _wait_given(self, given: "asyncio.Future[MemberIdentity]") -> MemberIdentity:
        told_at = self._clock.monotonic()
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(FORMATION_RETRY_MS / 1000):
                    return await asyncio.shield(given)
            first = next(iter(self._members.values()))
            told_at = self._tell(told_at, first, "it has to form the cluster")

    async def _unless_lost(self, work: Coroutine[None, None, T], ours: str | None) -> T:
        """The cluster is there only once all its members have storage: who finds one there that is
        not ``ours``, while it waits for its own storage, has had one."""
        task, look = asyncio.create_task(work), asyncio.create_task(self._find_lost(ours))
        try:
            await asyncio.wait((task, look), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                look.result()
            return await task
        finally:
            task.cancel()
            look.cancel()

    async def _find_lost(self, ours: str | None) -> None:
        registers = RaftMetadata(self._doors_to_others(), self._clock, self._entropy)
        while True:
            with contextlib.suppress(PerdureError):
                found = await read_cluster(registers)
                if found is not None and found.fingerprint != ours:
                    await self._check_followed(registers)
                    break
            await asyncio.sleep(FORMATION_RETRY_MS / 1000)
        raise DataDirectoryDamaged(
            f"{self._config.node_name} is one of the first members of a cluster that is there, but "
            f"{self._member_folder} is empty: it has forgotten its votes. Restore the data "
            "directory as it was; or name others with `perdure cluster voters`, at a node that "
            "runs, then start this one again; or start it under another --node-name"
        )

    async def _check_followed(self, registers: RaftMetadata) -> None:
        found = await registers.get(QUORUM_KEY)
        current = decode_quorums(found.value).current if found is not None else None
        if current is not None and self._config.node_name not in current.members:
            self._keeper.note(Quorums(current))
            raise _Followed

    def _doors_to_others(self) -> list[Door]:
        return [
            VisitorDoor(lambda: self._way, address)
            for name, address in self._members.items()
            if name != self._config.node_name
        ]

    def _tell(self, told_at: float, address: str, reason: str) -> float:
        """Complain about what is awaited, now and then; returns when that was done last."""
        now = self._clock.monotonic()
        if now - told_at < FORMATION_TELL_MS / 1000:
            return told_at
        log.warning("cluster.members.awaited", address=address, reason=reason)
        return now

    async def _provision(self, registers: OpenRegisters) -> None:
        """Where this node holds metadata, or nobody does: have the cluster's register put there, by
        the first."""
        is_elsewhere = bool(self._config.etcd.endpoints)
        is_first = self._number == 1 and self._keeper.known.current is None
        if self._number is None and not is_elsewhere:
            return
        told_at = self._clock.monotonic()
        while True:
            awaited = "metadata"
            try:
                if await read_cluster(registers) is not None:
                    return
                if is_first or is_elsewhere:
                    await self._put_first(registers)
                    return
                awaited, reason = next(iter(self._members.values())), "it has to form the cluster"
            except PerdureError as failure:
                # Not empty: an earlier attempt, whose answer was lost, has put it there.
                if not failure.retriable and not isinstance(failure, MetadataNotEmpty):
                    raise
                reason = str(failure)
            told_at = self._tell(told_at, awaited, reason)
            await asyncio.sleep(FORMATION_RETRY_MS / 1000)

    async def _join(self, registers: OpenRegisters, profile: NodeProfile, guest: Fabric) -> Joined:
        """However long metadata takes to answer, and however many join at once."""
        name, entropy = self._config.cluster_name, self._entropy
        return await insist(
            lambda: join(registers, self._disk, name, profile, probing(guest), entropy),
            "a place among the nodes",
            self._clock,
            entropy,
        )

    async def _put_first(self, registers: OpenRegisters) -> None:
        intent = read_note(self._disk)
        if intent is not None and intent.promoted is not None:
            await registers.fill(await promoted_registers(self._disk, intent.promoted))
            failpoint("promotion.filled")
            log.info("cluster.promoted", fingerprint=intent.cluster)
            return
        if self._number is None:
            fingerprint = f"{self._entropy.bits(128):032x}"
        else:
            identity = read_identity(OsDisk(self._member_folder))
            assert identity is not None
            fingerprint = identity.cluster
        cluster = self._config.cluster
        wanted = ClusterMeta(
            format=CLUSTER_FORMAT_VERSION,
            name=self._config.cluster_name,
            fingerprint=fingerprint,
            partition_count=self._config.worker.partition_count,
            replication=cluster.replication,
            partition_replicas=cluster.partition_replicas,
        )
        if cluster.restore_from is None:
            await provision(registers, wanted)
        else:
            await self._restore(registers, cluster.restore_from, wanted)

    async def _restore(self, registers: OpenRegisters, source: str, wanted: ClusterMeta) -> None:
        """Make the cluster out of a set of snapshots."""
        snapshots = self._config.snapshots
        check_destinations(source, snapshots.destination)
        store = open_store(replace(snapshots, destination=source))
        assert store is not None
        thread = PoolOffload("restore", 1)
        name = self._config.cluster.restore_set
        try:
            document = await run_offloaded(thread, lambda: find_document(store, name))
        finally:
            thread.close()
        await registers.fill(restored_registers(source, document, wanted))
        failpoint("restore.filled")
        log.info("cluster.restored", fingerprint=wanted.fingerprint, set=document.name)

    def _settings(self, folder: str, members: Mapping[int, str]) -> MemberSettings:
        config = self._config.cluster
        tls = self._tls
        return MemberSettings(
            folder=folder,
            listen=_next_port(config.bind_address),
            members={place: _next_port(parse_address(at)) for place, at in members.items()},
            cluster_name=self._config.cluster_name,
            secret_file=str(config.secret_file) if config.secret_file else None,
            certificate=str(tls.certificate) if tls else None,
            key=str(tls.key) if tls else None,
            authority=str(tls.authority) if tls else None,
            is_insecure=config.insecure,
            log_level=self._config.log_level.value,
            log_format=self._config.log_format.value,
        )

    # --- The fabric -----------------------------------------------------------------------------

    def make_guest(self) -> Fabric:
        """The door to the others of a process that is no node yet, shut."""
        return self._make_fabric(Peer(GUEST, 0, self._entropy.bits(60), b""), b"")

    def _make_fabric(self, me: Peer, fingerprint: bytes) -> Fabric:
        return Fabric(
            me=me,
            cluster=ClusterIdentity(
                name=self._config.cluster_name, fingerprint=fingerprint, secret=self._secret
            ),
            wires=make_wires(
                self._listen_at(),
                self._tls,
                is_trusted=self._secret is not None or self._config.cluster.insecure,
            ),
            entropy=self._entropy,
            supervisor=self._supervisor,
        )

    def _listen_at(self) -> str:
        bind = self._config.cluster.bind_address
        return f"{bind.listen_host or '0.0.0.0'}:{bind.port}"

    def _addresses(self) -> Addresses:
        ingress, admin = self._config.ingress, self._config.admin
        return Addresses(
            fabric=self._advertised(),
            ingress=advertised(
                ingress.advertised_address, ingress.bind_address, ingress.bind_address.port
            ),
            admin=advertised(admin.advertised_address, admin.bind_address, admin.bind_address.port),
        )

    def _advertised(self) -> str:
        config = self._config.cluster
        if config.advertised_address is not None:
            return config.advertised_address
        known = self._members.get(self._config.node_name)
        if known is not None:
            return known
        bind = config.bind_address
        if bind.reachable_host != bind.host:
            raise InvalidConfiguration(
                f"cluster.bind-address {bind} is no address that other nodes could connect to: set "
                "cluster.advertised-address"
            )
        return str(bind)


def _number_of(name: str, members: list[str]) -> int | None:
    return members.index(name) + 1 if name in members else None


def _next_port(address: Address) -> str:
    return f"{address.listen_host or '0.0.0.0'}:{address.port + 1}"


def _tls(config: Config) -> TlsFiles | None:
    files = (
        config.cluster.tls_certificate_file,
        config.cluster.tls_key_file,
        config.cluster.tls_authority_file,
    )
    if files == (None, None, None):
        return None
    certificate, key, authority = files
    if certificate is None or key is None or authority is None:
        raise InvalidConfiguration(
            "cluster.tls-certificate-file, tls-key-file and tls-authority-file belong together: "
            "set all three, or none"
        )
    return TlsFiles(certificate=certificate, key=key, authority=authority)
