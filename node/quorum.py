"""Keeps this node's part of the metadata quorum, and takes it along from one quorum to the next.

When the register ``quorum`` names other members (cluster/metadata/quorum), every node follows:

1. It notes them in its data directory, so that a start goes on with what a death interrupted.
2. A member of the next quorum has the present one stopped, and makes its storage with all that this
   was then, or with what another member has got already.
3. Once a majority has storage, nobody needs the present quorum any more: all change over.

A storage is made once, on the disk that the register names: a node that has lost that disk since
may have voted in the next quorum already. It makes none, and has to be named again.
"""

import asyncio
import contextlib
import shutil
from collections.abc import Callable, Container, Mapping
from pathlib import Path

import msgspec

from perdure.cluster.core.membership import NODES_PREFIX, MemberState, NodeMeta
from perdure.cluster.core.messages import Message, Peer, Request
from perdure.cluster.fabric import Fabric
from perdure.cluster.metadata.client import Door, DoorClosed, RaftMetadata
from perdure.cluster.metadata.fabric_door import VisitorDoor
from perdure.cluster.metadata.local_door import LocalDoor
from perdure.cluster.metadata.messages import Answer as MemberAnswer
from perdure.cluster.metadata.messages import Ask
from perdure.cluster.metadata.provision import provision, read_base, read_identity
from perdure.cluster.metadata.quorum import (
    QUORUM_KEY,
    Quorum,
    Quorums,
    decode_quorums,
    finish_move,
)
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.server import FOLDER, MemberSettings, encode_settings, folder_of
from perdure.cluster.metadata.store import Versioned
from perdure.cluster.metadata.supervisor import MemberProcess
from perdure.cluster.registers import edit_register
from perdure.cluster.transport import Answer, Transport
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import MetadataUnavailable, PerdureError
from perdure.core.failpoint import failpoint
from perdure.core.limits import FORMATION_RETRY_MS, REGISTER_REFRESH_MS
from perdure.core.tasks import Supervisor
from perdure.core.telemetry import logger
from perdure.storage.data_directory import read_marker
from perdure.storage.disk import Disk, OsDisk

log = logger("metadata")

NOTE = "quorum"
_ASK_S = 3.0
_READ_S = 1.0

MakeSettings = Callable[[str, Mapping[int, str]], MemberSettings]
"""Of a member's process, from its folder and the addresses of all members' nodes."""


class Base(Message, frozen=True, tag=0x0321):
    """``content``: None unless it was asked for, and is there."""

    is_here: bool
    content: bytes | None


class AskBase(Request[Base], frozen=True, tag=0x0320):
    """Do you have storage for this quorum of the cluster? With what does it begin?"""

    cluster: str
    quorum: int
    with_content: bool


class _Beside:
    """The way to the member beside this node, whichever it is now."""

    def __init__(self) -> None:
        self.inner: LocalDoor | None = None

    async def ask(self, ask: Ask, timeout_s: float) -> MemberAnswer:
        if self.inner is None:
            raise DoorClosed("this node holds no metadata")
        return await self.inner.ask(ask, timeout_s)

    async def aclose(self) -> None:
        if self.inner is not None:
            await self.inner.aclose()


class QuorumKeeper:
    """One per process. ``way``: the transport, which becomes another one while a node starts;
    ``seeds``: members of the first quorum."""

    def __init__(
        self,
        me: str,
        disk: Disk,
        root: Path,
        seeds: Mapping[str, str],
        make_settings: MakeSettings,
        chances: tuple[Clock, Entropy],
        supervisor: Supervisor,
        way: Callable[[], Fabric],
    ) -> None:
        self._me = me
        self._disk, self._root = disk, root
        self._seeds = dict(seeds)
        self._make_settings = make_settings
        self._clock, self._entropy = chances
        self._supervisor = supervisor
        self._way = way
        self.known = _read_note(disk)
        self.door = _Beside()
        self._registers: RaftMetadata
        self._process: asyncio.Task[None] | None = None
        self._hinted = asyncio.Event()
        self._is_told = True  # who is a member now, and who no more

    # --- What there is --------------------------------------------------------------------------

    @property
    def state(self) -> MemberState:
        """This node's part in the present quorum."""
        current = self.known.current
        names = current.members if current is not None else self._seeds
        return MemberState.VOTER if self._me in names else MemberState.STANDBY

    def open_registers(self) -> RaftMetadata:
        """The registers, by way of all members that are known; ``run`` follows where they go."""
        self._registers = RaftMetadata([], self._clock, self._entropy)
        self._registers.on_elsewhere = self._on_elsewhere
        self._set_doors()
        return self._registers

    def _set_doors(self) -> None:
        current, following = self.known.current, self.known.following
        members = current.members if current is not None else self._seeds
        spare = {**(following.members if following is not None else {}), **self._seeds}
        here: list[Door] = [self.door] if self.door.inner is not None else []
        self._registers.set_doors(
            [*here, *self._visit(members)],
            self._visit({name: at for name, at in spare.items() if name not in members}),
        )

    def _visit(self, members: Mapping[str, str]) -> list[Door]:
        others = [address for name, address in members.items() if name != self._me]
        return [VisitorDoor(self._way, address) for address in others]

    def note(self, known: Quorums) -> None:
        """Keep what is known over a restart."""
        self._disk.replace(NOTE, msgspec.json.encode(known))
        self.known = known

    def start_member(self) -> None:
        """Run the member of the present quorum beside this node, if it has storage for it."""
        current = self.known.current
        members = current.members if current is not None else self._seeds
        folder = self._root / folder_of(self.known.number)
        if self._me not in members:
            return
        if self._identity(self.known.number) is None:
            log.error("metadata.member.missing", quorum=self.known.number)
            return
        places = dict(enumerate(members.values(), start=1))
        settings = encode_settings(self._make_settings(str(folder), places))
        process = MemberProcess(settings, self._clock, self._entropy)
        self._process = self._supervisor.start("metadata.process", process.run())
        self.door.inner = LocalDoor(folder)

    def serve(self, transport: Transport) -> None:
        """Tell others whether there is storage of a quorum here, and what it begins with."""

        def tell(_: Peer, ask: AskBase, answer: Answer) -> None:
            identity = self._identity(ask.quorum)
            is_here = identity is not None and identity.cluster == ask.cluster
            content = None
            if is_here and ask.with_content:
                content = read_base(self._storage(ask.quorum))
            answer(Base(is_here, content))

        transport.serve(AskBase, tell, guests=True)

    # --- Following ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Follow the register, until cancelled."""
        forget = self._registers.watch(QUORUM_KEY, lambda _: self._hinted.set())
        told = ""
        try:
            while True:
                is_moving = self.known.following is not None
                pause_ms = FORMATION_RETRY_MS if is_moving else REGISTER_REFRESH_MS
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_ms / 1000):
                        await self._hinted.wait()
                self._hinted.clear()
                try:
                    await self._look()
                    told = ""
                except (PerdureError, OSError) as failure:
                    if is_moving and str(failure) != told:
                        log.warning("metadata.quorum.awaited", reason=failure)
                    told = str(failure)
        finally:
            forget()

    def _on_elsewhere(self, register: bytes) -> None:
        """A quorum that was stopped says who follows it."""
        following = decode_quorums(register).following
        if following is not None and following.number > self.known.number:
            self._follow(following)

    def _follow(self, following: Quorum) -> None:
        if following == self.known.following:
            return
        log.info("metadata.quorum.following", quorum=following.number, members=[*following.members])
        self.note(Quorums(self.known.current, following))
        self._set_doors()
        self._hinted.set()

    async def _look(self) -> None:
        following = self.known.following
        if following is not None and await self._is_ready(following):
            await self._switch(following)
        found = await self._read()
        seen = decode_quorums(found.value) if found is not None else Quorums()
        is_there = seen.current is not None and seen.number > self.known.number
        following = seen.current if is_there else seen.following
        if following is not None and following.number > self.known.number:
            self._follow(following)
            if is_there:
                await self._take_storage(following)
                await self._switch(following)
        await self._settle(seen)

    async def _read(self) -> Versioned | None:
        """The register, or MetadataUnavailable soon: the present quorum may have been stopped."""
        try:
            async with asyncio.timeout(_READ_S):
                return await self._registers.get(QUORUM_KEY)
        except TimeoutError:
            raise MetadataUnavailable("no quorum answers yet") from None

    async def _is_ready(self, following: Quorum) -> bool:
        """Whether the present quorum is needed no more."""
        await self._take_storage(following)
        return await self._count_storages(following) >= following.majority

    async def _take_storage(self, following: Quorum) -> None:
        place = following.place_of(self._me)
        if place is None or self._identity(following.number) is not None:
            return
        if self._disk_uuid() == following.disks[place]:
            await self._make_storage(following, place)

    async def _switch(self, quorum: Quorum) -> None:
        """From here on this is the quorum; the process and the doors of another one go."""
        self.note(Quorums(quorum))
        failpoint("quorum.noted")
        process, self._process = self._process, None
        if process is not None:
            process.cancel()
            await asyncio.gather(process, return_exceptions=True)
        await self.door.aclose()
        self.door.inner = None
        self.start_member()
        self._set_doors()
        log.info("metadata.quorum.changed", quorum=quorum.number, members=[*quorum.members])
        self._is_told = False
        self._hinted.set()

    async def _settle(self, seen: Quorums) -> None:
        """The present quorum answers: say so, say what part this node has, drop what was before."""
        number = self.known.number
        if seen.following is not None and seen.following.number == number:
            edited = await edit_register(
                self._registers, QUORUM_KEY, Quorums, lambda known: finish_move(known, number)
            )
            seen = edited.value if edited is not None else seen
        if self.known.following is not None or seen.number != number:
            return
        if not self._is_told:
            await self._tell_parts()
            self._is_told = True
        if seen.following is None and self.known.current is not None:
            self._drop_others(number)

    async def _tell_parts(self) -> None:
        """In the registers of all nodes: who is gone can't tell its own."""
        current = self.known.current
        names = current.members if current is not None else self._seeds
        for key in await self._registers.scan(NODES_PREFIX):
            await edit_register(
                self._registers, key, NodeMeta, lambda known: _with_part(known, names)
            )

    def _drop_others(self, number: int) -> None:
        for path in (*self._root.glob("metadata-[0-9]*"), *self._root.glob(FOLDER)):
            if path.name != folder_of(number) or self.state is MemberState.STANDBY:
                shutil.rmtree(path)

    # --- Storage --------------------------------------------------------------------------------

    def _storage(self, quorum: int) -> OsDisk:
        return OsDisk(self._root / folder_of(quorum))

    def _identity(self, quorum: int) -> MemberIdentity | None:
        if not self._disk.exists(folder_of(quorum)):
            return None
        return read_identity(self._storage(quorum))

    def _disk_uuid(self) -> str | None:
        marker = read_marker(self._disk)
        return marker.storage_uuid if marker is not None else None

    async def _make_storage(self, following: Quorum, place: int) -> None:
        base = await self._find_base(following)
        failpoint("quorum.stopped")
        self._disk.make_folder(folder_of(following.number))
        identity = MemberIdentity(following.cluster, place, following.storages, following.number)
        provision(self._storage(following.number), identity, self._entropy, base=base)
        failpoint("quorum.stored")

    async def _find_base(self, following: Quorum) -> bytes:
        """From another member, or from the quorum before, which is stopped for it.

        Raises:
            MetadataUnavailable: not now.
        """
        for told in await self._ask_others(following, with_content=True):
            if told.content is not None:
                return told.content
        registers, number = self._registers, following.number - 1
        with contextlib.suppress(MetadataUnavailable):  # it may have been stopped before
            found = await self._read()
            if found is not None and decode_quorums(found.value).following == following:
                await registers.halt(number, QUORUM_KEY, found.version)
        try:
            async with asyncio.timeout(_ASK_S):
                return await registers.export(number)
        except TimeoutError:
            raise MetadataUnavailable("no member of the quorum before answers yet") from None

    async def _count_storages(self, following: Quorum) -> int:
        is_here = self._identity(following.number) is not None
        told = await self._ask_others(following, with_content=False)
        return is_here + sum(base.is_here for base in told)

    async def _ask_others(self, following: Quorum, *, with_content: bool) -> list[Base]:
        ask = AskBase(following.cluster, following.number, with_content)
        others = [at for name, at in following.members.items() if name != self._me]
        told = await asyncio.gather(*(self._ask(address, ask) for address in others))
        return [base for base in told if base is not None]

    async def _ask(self, address: str, ask: AskBase) -> Base | None:
        try:
            return await self._way().ask_at(address, ask, _ASK_S)
        except PerdureError:
            return None


def _read_note(disk: Disk) -> Quorums:
    if not disk.exists(NOTE):
        return Quorums()
    return msgspec.json.decode(disk.read_file(NOTE), type=Quorums)


def _with_part(known: NodeMeta | None, names: Container[str]) -> NodeMeta | None:
    if known is None or known.is_removed:
        return None
    state = MemberState.VOTER if known.name in names else MemberState.STANDBY
    return msgspec.structs.replace(known, metadata=state) if known.metadata is not state else None
