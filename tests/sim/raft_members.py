"""Members for the metadata world: the hardened one on its simulated disk, and the bare library."""

import importlib
import importlib.util
import pickle
import random
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from tests.sim.disk import SimDisk
from tests.sim.ports import SimEntropy
from tests.sim.raft_world import Machine, Member, Plan, World

from perdure.cluster.metadata import raft_journal, raft_serializer
from perdure.cluster.metadata.raft import (
    MemberPorts,
    MemberStatus,
    RaftMember,
    Sizes,
    Timing,
    load_library,
)
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.raft_state import Applied, Command, RegisterMap, encode_command

TIMING = Timing(election_min=1.0, election_max=2.0, heartbeat=0.1, leader_fallback=3.0)
ENTRIES_KEPT = 15


def run_hardened(seed: int, count: int | None = None) -> int:
    """One seed of hardened members; how many writes were acknowledged."""
    dice = random.Random(seed)
    plan = Plan.drawn(dice)
    count = count or dice.choice((1, 3, 3, 3, 5, 5))
    sizes = Sizes(
        journal_bytes=512 * dice.choice((8, 16, 64)),
        entries_kept=dice.choice((4, 15, 15, 40)),
        entries_bytes=4_000,
    )
    piece_bytes = dice.choice((100, 1_000))
    storages = {node: f"storage {node}" for node in range(1, count + 1)}
    machines: dict[int, Machine] = {
        node: HardenedMachine(MemberIdentity("cluster", node, storages), dice, sizes)
        for node in storages
    }
    with patch.object(raft_serializer, "METADATA_DUMP_PIECE_BYTES", piece_bytes):
        return World(seed, machines, plan).run()


def run_bare(seed: int, folder: Path, count: int = 3, batch_bytes: int = 2**16) -> int:
    """One seed of the library as it comes: processes are killed, the power stays on."""
    plan = Plan(
        fault=0.02,
        lose_frame=0.0,
        repeat_frame=0.0,
        keep_frames=0.0,
        bounce=0.0,
        power=False,
        pause=0.0,
        deliver=0.3,
        tick=0.2,
    )
    nodes = list(range(1, count + 1))
    machines: dict[int, Machine] = {
        node: BareMachine(node, nodes, folder / str(node), batch_bytes) for node in nodes
    }
    random.seed(seed)  # the library's own dice
    world = World(seed, machines, plan)
    try:
        return world.run()
    finally:
        for member in world.members.values():
            member.close()


class _HardenedLife(RaftMember):
    def connect(self, peer: int) -> None:
        """Members find out by themselves."""


class HardenedMachine:
    """A disk with a member's storage on it."""

    def __init__(self, identity: MemberIdentity, dice: random.Random, sizes: Sizes) -> None:
        self.identity = identity
        self._sizes = sizes
        self.disk = SimDisk(dice)
        self.entropy = SimEntropy(dice)
        raft_journal.create_journal(self.disk, self.entropy, sizes.journal_bytes)

    def boot(self, world: World) -> Member:
        node = self.identity.node
        ports = MemberPorts(
            disk=self.disk, link=_WorldLink(world, node), clock=world.clock, entropy=self.entropy
        )
        member = _HardenedLife(self.identity, ports, TIMING, self._sizes)
        _watch(world, node, member.state, member.applied_index)
        return member


class _WorldLink:
    def __init__(self, world: World, node: int) -> None:
        self._world = world
        self._node = node

    def send(self, peer: int, frame: bytes) -> None:
        self._world.send(self._node, peer, frame)


def _watch(world: World, node: int, state: RegisterMap, applied_index: Callable[[], int]) -> None:
    apply = state.apply

    def watched(blob: bytes) -> Applied:
        world.on_apply(node, applied_index() + 1, blob)
        return apply(blob)

    state.apply = watched  # type: ignore[method-assign]


# --- The library as it comes ----------------------------------------------------------------------


class BareMachine:
    """Files that survive a kill."""

    def __init__(self, node: int, nodes: list[int], folder: Path, batch_bytes: int) -> None:
        self.disk = SimDisk(random.Random(0))  # unused: the library has its own way with files
        self._node = node
        self._nodes = nodes
        self._folder = folder
        self._batch_bytes = batch_bytes
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)

    def boot(self, world: World) -> Member:
        return _BareLife(world, self._node, self._nodes, self._folder, self._batch_bytes)


class _BareLife:
    def __init__(
        self, world: World, node: int, nodes: list[int], folder: Path, batch_bytes: int
    ) -> None:
        library = _bare_library()
        self.state = RegisterMap()
        self._node = node
        kinds: Any = importlib.import_module("pysyncobj.node")
        self._peers = {peer: kinds.Node(peer) for peer in nodes if peer != node}
        self._transport = _BareTransport(world, node)
        settings = importlib.import_module("pysyncobj.config").SyncObjConf(
            autoTick=False,
            raftMinTimeout=TIMING.election_min,
            raftMaxTimeout=TIMING.election_max,
            appendEntriesPeriod=TIMING.heartbeat,
            connectionTimeout=3,
            leaderFallbackTimeout=TIMING.leader_fallback,
            appendEntriesBatchSizeBytes=batch_bytes,
            journalFile=str(folder / "journal"),
            fullDumpFile=str(folder / "dump"),
            useFork=False,
            logCompactionMinEntries=ENTRIES_KEPT,
            logCompactionMinTime=10**9,
            serializer=self._write,
            deserializer=self._read,
        )
        library.monotonicTime = world.clock.monotonic
        library.PIPE_NOTIFIER_ENABLED = False
        self._core = library.SyncObj(
            kinds.Node(node),
            list(self._peers.values()),
            settings,
            nodeClass=kinds.Node,
            transport=self._transport,
        )
        self._core._idToMethod = {0: self._apply}
        _watch(world, node, self.state, lambda: self._core.raftLastApplied)

    def _apply(self, blob: bytes, _doApply: bool = False) -> Applied:
        return self.state.apply(blob)

    def _write(self, name: str, rest: object) -> None:
        Path(name).write_bytes(pickle.dumps((self.state.encode(), rest)))

    def _read(self, name: str) -> tuple[Any, ...]:
        state, rest = pickle.loads(Path(name).read_bytes())
        self.state.load(state)
        return tuple(rest)

    def tick(self) -> None:
        self._core.doTick(0.0)

    def receive(self, peer: int, frame: bytes) -> None:
        self._transport.on_message(self._peers[peer], pickle.loads(frame))

    def connect(self, peer: int) -> None:
        self._transport.on_connected(self._peers[peer])

    def disconnect(self, peer: int) -> None:
        self._transport.on_disconnected(self._peers[peer])

    def submit(self, command: Command, finished: Callable[[Applied | None], None]) -> None:
        def done(result: Applied | None, error: int) -> None:
            finished(result if error == 0 else None)

        entry = b"\0" + pickle.dumps((0, (encode_command(command),)))
        self._core._applyCommand(entry, done)

    def status(self) -> MemberStatus:
        return MemberStatus(
            node=self._node,
            leader=None,
            is_leader=self._core._isLeader(),
            term=self._core.raftCurrentTerm,
            applied_index=self._core.raftLastApplied,
            commit_index=self._core.raftCommitIndex,
            entry_count=self._core._getRaftLogSize(),
            connected=(),
        )

    def close(self) -> None:
        """As a kill: what is in the page cache stays."""
        self._core._SyncObj__raftLog._destroy()


@cache
def _bare_library() -> Any:
    """A copy of the library's module that nobody has laid hands on."""
    name = "pysyncobj.bare"
    spec = importlib.util.spec_from_file_location(name, load_library().__file__)
    assert spec is not None
    assert spec.loader is not None
    library = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(library)
    return library


class _BareTransport:
    ready = True
    on_message: Callable[[Any, Any], None]
    on_connected: Callable[[Any], None]
    on_disconnected: Callable[[Any], None]

    def __init__(self, world: World, node: int) -> None:
        self._world = world
        self._node = node

    def send(self, node: Any, message: Any) -> bool:
        self._world.send(self._node, node.id, pickle.dumps(message))
        return True

    def setOnMessageReceivedCallback(self, callback: Any) -> None:
        self.on_message = callback

    def setOnNodeConnectedCallback(self, callback: Any) -> None:
        self.on_connected = callback

    def setOnNodeDisconnectedCallback(self, callback: Any) -> None:
        self.on_disconnected = callback

    def setOnReadonlyNodeConnectedCallback(self, callback: Any) -> None:
        """There are no such nodes."""

    def setOnReadonlyNodeDisconnectedCallback(self, callback: Any) -> None:
        """There are no such nodes."""

    def setOnUtilityMessageCallback(self, message: str, callback: Any) -> None:
        """There are no such messages."""

    def destroy(self) -> None:
        """Nothing to close."""
