"""One member of the metadata quorum: the Raft library, fenced in.

The only module that knows pysyncobj, and it knows exactly one version of it: the files that were
read and hardened, by their hashes. It reaches into private names; they are all here. The member is
a plain object without a loop or threads: the owner calls ``tick`` often and ``receive`` for what
comes, and both raise when the member must stop (whatever it is: the process ends, and the
supervisor starts it again from its disk).
"""

import hashlib
import importlib
import importlib.util
import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import msgspec

from perdure.cluster.metadata.provision import read_base
from perdure.cluster.metadata.raft_journal import DurableJournal
from perdure.cluster.metadata.raft_links import MemberIdentity, PeerConnection, PeerHooks
from perdure.cluster.metadata.raft_messages import PeerMessage
from perdure.cluster.metadata.raft_serializer import DumpSerializer
from perdure.cluster.metadata.raft_state import Applied, Command, RegisterMap, encode_command
from perdure.cluster.metadata.raft_transport import LibraryTransport, MessageFilter
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import DataDirectoryDamaged, UnauditedLibrary
from perdure.core.invariant import invariant
from perdure.core.limits import (
    METADATA_ENTRIES_BYTES,
    METADATA_ENTRIES_KEPT,
    METADATA_JOURNAL_BYTES,
)
from perdure.core.telemetry import logger
from perdure.storage.disk import Disk

log = logger("metadata")

# pysyncobj 0.3.17: sha256, the first 16 digits.
AUDITED = {
    "syncobj.py": "e8bdf06797085d73",
    "journal.py": "9cf1eaf6acc70458",
    "serializer.py": "4d39fde2f15000ad",
    "transport.py": "0c9d89f9c4781ec9",
    "tcp_connection.py": "7784ed8da031369f",
    "node.py": "e4a3f027cd8291f5",
    "config.py": "fbbc7ff9f18e4d15",
}
_REGULAR = b"\0"
_SUCCESS = 0
_NEVER = 10**9
# A message always carries all entries up to the log's end: a shorter one, sent again, would cut off
# what its receiver has acknowledged.
_BATCH_BYTES = 2**30

Finished = Callable[[Applied | None], None]
"""Told of a command's outcome; None: unknown, which includes "never sent"."""


class Link(Protocol):
    """Takes frames for a peer; may lose them."""

    def send(self, peer: int, frame: bytes) -> None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds; for members in one data centre."""

    election_min: float = 0.5
    election_max: float = 1.0
    heartbeat: float = 0.05
    leader_fallback: float = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """When files are rewritten; the simulation makes them small."""

    journal_bytes: int = METADATA_JOURNAL_BYTES
    entries_kept: int = METADATA_ENTRIES_KEPT
    entries_bytes: int = METADATA_ENTRIES_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberStatus:
    """What a member believes; no basis for decisions."""

    node: int
    leader: int | None
    is_leader: bool
    term: int
    applied_index: int
    commit_index: int
    entry_count: int
    connected: tuple[int, ...]


class RaftMember:
    """A member over its disk and links."""

    def __init__(
        self,
        identity: MemberIdentity,
        ports: "MemberPorts",
        timing: Timing = Timing(),
        sizes: Sizes = Sizes(),
    ) -> None:
        """Open what ``provision`` laid.

        Raises:
            DataDirectoryDamaged: journal and dump are not what was written, or don't fit together.
            UnauditedLibrary: another pysyncobj than the one this module was written for.
        """
        self.identity = identity
        self.state = RegisterMap()
        self._ports = ports
        self._sizes = sizes
        self._library = load_library()
        self._finished: list[tuple[Finished, Applied | None]] = []
        self._journal = DurableJournal(ports.disk, ports.entropy, sizes.journal_bytes)
        self._serializer = DumpSerializer(
            ports.disk, self._journal, self.state, self._translate_written
        )
        peers = sorted(set(identity.storages) - {identity.node})
        self._connections = {peer: self._connection(peer) for peer in peers}
        self._transport = LibraryTransport(self._barrier, self._connections)
        self._core = self._build(peers, timing)
        self._transport.filter = MessageFilter(self, ports.clock, timing.election_min)
        self._load()

    # --- Driving --------------------------------------------------------------------------------

    def tick(self) -> None:
        """Let time act: elections, heartbeats, commits, dumps."""
        now = self._ports.clock.monotonic()
        for connection in self._connections.values():
            connection.tick(now)
        self._barrier()
        if (
            len(self._journal) > self._sizes.entries_kept
            or self._journal.entries_bytes > self._sizes.entries_bytes
        ):
            self._core.forceLogCompaction()
        self._core.doTick(0.0)
        self._serializer.check()
        self._deliver()

    def receive(self, peer: int, frame: bytes) -> None:
        """Take a frame from a peer; who it is, the link knows."""
        connection = self._connections.get(peer)
        if connection is None:
            log.warning("metadata.peer.unknown", peer=peer)
            return
        connection.receive(self._ports.clock.monotonic(), frame)
        self._serializer.check()
        self._deliver()

    def disconnect(self, peer: int) -> None:
        """The link to a peer broke: frames may be lost."""
        if peer in self._connections:
            self._connections[peer].reset()

    def submit(self, command: Command, finished: Finished) -> None:
        """Propose a command, here or through the leader. ``finished`` may never be called."""
        request = (command.client, command.number)

        def done(result: Any, error: int) -> None:
            # A forwarded command's answer may name another command's place in the log: after a
            # restart numbers begin again. Only an outcome that says whose it is counts.
            is_ours = (
                error == _SUCCESS
                and isinstance(result, Applied)
                and (result.client, result.number) == request
            )
            self._finished.append((finished, result if is_ours else None))

        self._core._applyCommand(_REGULAR + encode_command(command), done)

    def close(self) -> None:
        """Let go of files; nothing is written."""
        self._core.destroy()

    def status(self) -> MemberStatus:
        leader = self._core._getLeader()
        return MemberStatus(
            node=self.identity.node,
            leader=leader.id if leader is not None else None,
            is_leader=self._core._isLeader(),
            term=self.term(),
            applied_index=self.applied_index(),
            commit_index=self.commit_index(),
            entry_count=len(self._journal),
            connected=tuple(peer for peer, link in self._connections.items() if link.is_connected),
        )

    # --- Inside: what the filter asks -------------------------------------------------------------

    def term(self) -> int:
        return int(self._core.raftCurrentTerm)

    def commit_index(self) -> int:
        return int(self._core.raftCommitIndex)

    def applied_index(self) -> int:
        return int(self._core.raftLastApplied)

    def match_index(self, peer: int) -> int:
        return int(self._core._SyncObj__raftMatchIndex.get(self._nodes[peer], 0))

    def entry_term(self, index: int) -> int | None:
        position = index - self._journal[0][1]
        return self._journal[position][2] if 0 <= position < len(self._journal) else None

    def dump_end(self) -> tuple[int, int]:
        return self._serializer.end

    def cancel_dump(self, peer: int) -> None:
        self._serializer.cancelTransmisstion(self._nodes[peer])

    # --- Building ---------------------------------------------------------------------------------

    def _build(self, peers: list[int], timing: Timing) -> Any:
        library = self._library
        nodes = importlib.import_module("pysyncobj.node")
        config = importlib.import_module("pysyncobj.config")
        self._nodes = {peer: nodes.Node(peer) for peer in peers}
        settings = config.SyncObjConf(
            autoTick=False,
            appendEntriesUseBatch=False,
            appendEntriesBatchSizeBytes=_BATCH_BYTES,
            useFork=False,
            serializer=_unused,
            deserializer=_unused,
            fullDumpFile="unused",
            raftMinTimeout=timing.election_min,
            raftMaxTimeout=timing.election_max,
            appendEntriesPeriod=timing.heartbeat,
            leaderFallbackTimeout=timing.leader_fallback,
            connectionTimeout=timing.election_max,
            dynamicMembershipChange=False,
            commandsWaitLeader=False,
            logCompactionMinEntries=_NEVER,
            logCompactionMinTime=_NEVER,
        )
        # The library makes these by its own names; they are put in place for the construction.

        def journal(name: object) -> DurableJournal:
            return self._journal

        def serializer(*arguments: object) -> DumpSerializer:
            return self._serializer

        library.createJournal = journal
        library.Serializer = serializer
        library.monotonicTime = self._ports.clock.monotonic
        library.random = _Dice(self._ports.entropy)
        library.PIPE_NOTIFIER_ENABLED = False
        core = library.SyncObj(
            nodes.Node(self.identity.node),
            list(self._nodes.values()),
            settings,
            nodeClass=nodes.Node,
            transport=self._transport,
        )
        core._SyncObj__doApplyCommand = self._apply
        core._SyncObj__needLoadDumpFile = False
        return core

    def _load(self) -> None:
        if self._serializer.has_dump():
            self._core._SyncObj__loadDumpFile(False)
            self._serializer.check()
        elif self._journal[0][1] != 1:
            raise DataDirectoryDamaged(
                f"the metadata member's dump is missing: its journal starts at entry "
                f"{self._journal[0][1]}"
            )
        else:
            self._begin()
        self._barrier()

    def _begin(self) -> None:
        """All members of a quorum that isn't the first begin alike, before its first entry."""
        base = read_base(self._ports.disk)
        if base is None:
            if self.identity.quorum > 1:
                raise DataDirectoryDamaged("the metadata member lacks what its quorum began with")
            return
        try:
            self.state.begin(base)
        except msgspec.MsgspecError as error:
            raise DataDirectoryDamaged("what the quorum began with makes no sense") from error

    def _connection(self, peer: int) -> PeerConnection:
        def on_message(message: PeerMessage) -> None:
            assert self._transport.filter is not None
            passed = self._transport.filter.incoming(peer, message)
            if passed is not None and self._transport.on_message is not None:
                self._transport.on_message(self._nodes[peer], passed)

        def on_connected() -> None:
            self.cancel_dump(peer)
            assert self._transport.on_connected is not None
            self._transport.on_connected(self._nodes[peer])
            log.info("metadata.peer.connected", peer=peer)

        def on_disconnected() -> None:
            assert self._transport.on_disconnected is not None
            self._transport.on_disconnected(self._nodes[peer])
            log.info("metadata.peer.disconnected", peer=peer)

        return PeerConnection(
            self.identity,
            peer,
            PeerHooks(
                draw=lambda: self._ports.entropy.bits(62) + 1,
                send=lambda frame: self._ports.link.send(peer, frame),
                on_connected=on_connected,
                on_disconnected=on_disconnected,
                on_message=on_message,
            ),
        )

    # --- Called by the library --------------------------------------------------------------------

    def _barrier(self) -> None:
        self._serializer.check()
        self._journal.barrier()

    def _apply(self, entry: bytes) -> Applied | None:
        index = self.applied_index() + 1
        invariant(index <= self.commit_index(), "an entry is applied before it is committed")
        return self.state.apply(entry[1:]) if entry[:1] == _REGULAR else None

    def _translate_written(self, written: bool | None) -> object:
        states = self._library.SERIALIZER_STATE
        if written is None:
            return states.NOT_SERIALIZING
        return states.SUCCESS if written else states.FAILED

    def _deliver(self) -> None:
        finished, self._finished = self._finished, []
        for told, outcome in finished:
            told(outcome)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemberPorts:
    """The world of a member. All members of a process share one clock."""

    disk: Disk
    link: Link
    clock: Clock
    entropy: Entropy


class _Dice:
    """The library's ``random``."""

    def __init__(self, entropy: Entropy) -> None:
        self._entropy = entropy

    def random(self) -> float:
        return self._entropy.jitter(1.0)


@cache
def load_library() -> Any:
    """The audited library.

    Raises:
        UnauditedLibrary: it is missing, or its files are others than those that were read.
    """
    spec = importlib.util.find_spec("pysyncobj")
    if spec is None or spec.origin is None:
        raise UnauditedLibrary("pysyncobj is not installed: pip install 'perdure[server]'")
    check_files(Path(spec.origin).parent)
    # What it would say is checked and told here.
    logging.getLogger("pysyncobj").setLevel(logging.CRITICAL + 1)
    return importlib.import_module("pysyncobj.syncobj")


def check_files(folder: Path) -> None:
    """Raise UnauditedLibrary unless the files in ``folder`` are the ones that were read."""
    for name, expected in AUDITED.items():
        path = folder / name
        found = hashlib.sha256(path.read_bytes()).hexdigest()[:16] if path.is_file() else "nothing"
        if found != expected:
            raise UnauditedLibrary(
                f"pysyncobj/{name} is {found}, not the audited {expected}: "
                "install pysyncobj==0.3.17"
            )


def _unused(*arguments: object) -> None:
    invariant(False, "the library's serializer was replaced as a whole")
