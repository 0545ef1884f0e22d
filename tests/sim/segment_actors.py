"""Who acts in the world of segments: disks with replicas, leaders with sequencers, claimants.

Each wraps one of the real machines; what they send goes through the world, which loses, repeats and
reorders it, and checks what becomes of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from perdure.cluster.core import chain
from perdure.cluster.core.chain import Claim, SegmentMeta
from perdure.cluster.core.recovery import Copy, Recovered, RecoveryCore, Repair, Seal
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.sequencer import Committed, Event, SequencerCore, Stopped
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Proposal,
    Refused,
    SealOk,
    SegmentKey,
    SegmentParams,
    SegmentState,
    Store,
    StoreAck,
    Writer,
)
from perdure.storage.wal_format import Frame, FrameHeader, FrameType

if TYPE_CHECKING:
    from tests.sim.segment_world import World

OUTSTANDING_MAX = 24


class Violation(AssertionError):
    """The log broke a promise."""


def require(condition: bool, promise: str, *at: object) -> None:
    """Stop unless the promise holds."""
    if not condition:
        raise Violation(f"{promise} (at {at})")


@dataclass(frozen=True, kw_only=True)
class Shape:
    """``nodes`` replicas, ``replication`` copies; up to ``wipes`` disks are lost for good."""

    nodes: int
    replication: int
    wipes: int = 0
    steps: int = 1500


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Rules that are the drivers' to keep; tests break them one by one."""

    replies_follow_sync: bool = True
    disks_have_names: bool = True
    close_follows_cas: bool = True
    segments_are_never_resumed: bool = True


@dataclass
class Disk:
    """A node: its disk, and the process on it while it is up."""

    world: World
    member: Member
    is_up: bool = True
    frames: list[Frame] = field(default_factory=list[Frame])
    records: dict[SegmentKey, dict[int, bytes]] = field(
        default_factory=dict[SegmentKey, dict[int, bytes]]
    )
    staged: list[tuple[Frame, Callable[[], None]]] = field(
        default_factory=list[tuple[Frame, Callable[[], None]]]
    )
    core: ReplicaCore = field(init=False)

    def __post_init__(self) -> None:
        self.core = ReplicaCore(self.member)

    def stage(self, frame: Frame, then: Callable[[], None]) -> None:
        if not self.world.rules.replies_follow_sync:
            then()
            then = nothing
        self.staged.append((frame, then))

    def sync(self) -> None:
        """What was taken as a group is durable; the rest was staged meanwhile."""
        count = self.world.dice.randint(min(1, len(self.staged)), len(self.staged))
        staged, self.staged = self.staged[:count], self.staged[count:]
        for frame, _ in staged:
            self._persist(frame)
        for _, then in staged:
            then()
        for key in self.core.segment_keys():
            self.world.check_replica(self, key)

    def crash(self) -> None:
        """What was written and not synced survives in part, in order."""
        kept = self.world.dice.randint(0, len(self.staged))
        for frame, _ in self.staged[:kept]:
            self._persist(frame)
        self.staged.clear()
        self.is_up = False

    def start(self) -> None:
        self.core = ReplicaCore(self.member)
        for frame in self.frames:
            crcs = [int.from_bytes(r[-4:], "little") for r in frame.body] if frame[6] else []
            self.core.restore(_header(frame), b"".join(frame.body), crcs)
        self.is_up = True

    def _persist(self, frame: Frame) -> None:
        if frame.type == FrameType.CHECKPOINT:
            self.frames.clear()  # the files before it may be recycled
        self.frames.append(frame)
        if frame.type in (FrameType.STORE, FrameType.REPAIR):
            key = (frame.partition, frame.segment)
            held = self.records.setdefault(key, {})
            for offset, record in enumerate(frame.body, frame.first_offset):
                self.world.check_content(key, offset, record)
                self.world.durable.setdefault((key, offset), set()).add(self.member)
                held[offset] = record

    def holds(self, key: SegmentKey, offset: int) -> bool:
        return offset in self.records.get(key, {})


@dataclass
class Leader:
    """A sequencer in a process that may die."""

    world: World
    params: SegmentParams
    is_up: bool = True
    core: SequencerCore = field(init=False)
    sequenced: dict[int, bytes] = field(default_factory=dict[int, bytes])
    sessions: Counter[NodeId] = field(default_factory=Counter[NodeId])

    def __post_init__(self) -> None:
        self.core = SequencerCore(self.params)

    def propose(self, count: int) -> None:
        for _ in range(count):
            if self.core.next_offset - self.core.committed < OUTSTANDING_MAX:
                self.world.proposed += 1
                payload = self.world.proposed.to_bytes(4, "little")
                self.core.propose(Proposal(kind=1, payload=payload, created_at_ms=0))
        store = self.core.flush(self.world.now)
        if store is not None:
            for offset, record in enumerate(store.records, store.first_offset):
                self.sequenced[offset] = record
            local = self.world.disk_of(self.params.writer.node)
            if local is not None and local.member in self.params.nodeset:
                self.world.take(local, store, self)
        self.send()

    def send(self, *, to_late: bool = False) -> None:
        for node, store in self.core.outgoing(self.world.now, to_late=to_late):
            self.world.send(node, partial(self._store, store))

    def _store(self, store: Store, disk: Disk) -> None:
        self.world.take(disk, store, self)

    def greet(self, node: NodeId) -> None:
        greeted = self.core.greet(node)
        if greeted is None:
            return
        key, session = self.params.key, self.sessions[node]

        def answer(disk: Disk) -> None:
            member, state = disk.core.member, disk.core.state(key)
            self.world.post(lambda: self.on_hello(member, state, greeted, session))

        self.world.send(node, answer)

    def on_hello(
        self, member: Member, state: SegmentState | None, greeted: int, session: int
    ) -> None:
        if self.is_up and session == self.sessions[member.node]:  # answers end with their session
            self.on_event(self.core.on_hello(member, True, state, greeted, self.world.now))

    def hear(self, node: NodeId, reply: StoreAck | Refused) -> None:
        if not self.is_up or self.core.stopped is not None:
            return
        if isinstance(reply, Refused):
            self.on_event(self.core.on_refused(node, reply, self.world.now))
        else:
            self.on_event(self.core.on_ack(node, reply, self.world.now))
        self.send()

    def on_event(self, event: Event | None) -> None:
        if isinstance(event, Committed):
            self.world.acknowledge(self, event.tail_lsn - self.params.base_lsn)
        elif isinstance(event, Stopped):
            self.is_up = False
            self.world.happened["leader stopped"] += 1
        elif event is not None:
            self.world.happened[type(event).__name__] += 1


@dataclass
class Claimant:
    """Somebody who takes over: claims, seals, repairs, extends the chain."""

    world: World
    writer: Writer
    is_up: bool = True
    is_degraded_allowed: bool = False
    mine: Claim | None = None
    segment: SegmentMeta | None = None
    core: RecoveryCore | None = None
    closed: tuple[SegmentKey, int, int] | None = None
    rests_until: float | None = None

    def act(self) -> None:
        if self.mine is None:
            self._claim()
        elif self.core is not None:
            self._recover(self.core)
        elif self.closed is not None:
            key, tail, version = self.closed
            self.world.close(key, tail, version)

    def _claim(self) -> None:
        world = self.world
        value = chain.claim(world.meta, self.writer, "sim")
        world.write(value)
        self.mine = value.claim
        self.segment = chain.open_segment(value)
        if self.segment is None:
            self._extend(Recovered(0))
        else:
            self.core = RecoveryCore(
                self.segment.params(0), is_degraded_allowed=self.is_degraded_allowed
            )

    def _recover(self, core: RecoveryCore) -> None:
        assert self.segment is not None
        params = self.segment.params(0)
        step = core.step()
        match step:
            case Seal():
                member = self.world.dice.choice(params.nodeset)
                self.world.send(member.node, lambda disk: self._seal(disk, params))
            case Copy():
                if not self.world.rules.close_follows_cas:
                    tail = step.repairs[-1].first_offset + step.repairs[-1].count
                    self.world.close(params.key, tail, self.world.version)
                repair = self.world.dice.choice(step.repairs)
                self.world.send(repair.source.node, lambda disk: self._read(disk, params, repair))
            case Recovered():
                if self._rests():
                    return  # a process may stand still at any moment; this is the worst
                self.core = None
                self._extend(step)
            case _ if step.reason == "repair_source":
                require(bool(step.members), "I-8 a tail beyond what anybody holds", params.key)
                self.core = RecoveryCore(params, is_degraded_allowed=self.is_degraded_allowed)
            case _:
                core.retry()

    def _rests(self) -> bool:
        if self.rests_until is None:
            is_slow = self.world.dice.random() < 0.3
            pause = self.world.dice.random() * 40 if is_slow else 0.0
            self.rests_until = self.world.now + pause
        return self.world.now < self.rests_until

    def _seal(self, disk: Disk, params: SegmentParams) -> None:
        assert self.mine is not None
        frame = disk.core.seal(params.ref, self.mine.epoch)
        if isinstance(frame, Refused):
            return

        def sealed() -> None:
            if disk.core.segment(params.key) is None:
                return
            reply = disk.core.seal_reply(params.key)
            self.world.check_sealed(disk, reply)
            self.world.post(lambda: self._sealed(reply))

        disk.stage(frame, sealed)

    def _sealed(self, reply: SealOk) -> None:
        if self.core is not None and self.is_up:
            self.core.on_sealed(reply)

    def _read(self, disk: Disk, params: SegmentParams, repair: Repair) -> None:
        held = disk.records.get(params.key, {})
        offsets = range(repair.first_offset, repair.first_offset + repair.count)
        if self.core is None or not self.is_up or any(o not in held for o in offsets):
            return
        records = tuple(held[offset] for offset in offsets)
        self.core.check(repair.first_offset, [int.from_bytes(r[-4:], "little") for r in records])
        self.world.send(
            repair.target.node, lambda target: self._repair(target, params, repair, records)
        )

    def _repair(
        self, disk: Disk, params: SegmentParams, repair: Repair, records: tuple[bytes, ...]
    ) -> None:
        assert self.mine is not None
        frames = disk.core.repair(params.ref, self.mine.epoch, repair.first_offset, records)
        if isinstance(frames, Refused):
            return

        def repaired() -> None:
            disk.core.on_repaired(params.key, repair.first_offset, repair.count)
            self.world.post(lambda: self._repaired(disk.core.member, repair))

        for frame in frames[:-1]:
            disk.stage(frame, nothing)
        disk.stage(frames[-1], repaired)

    def _repaired(self, member: Member, repair: Repair) -> None:
        if self.core is None or not self.is_up:
            return
        if member == repair.target:
            self.core.on_repaired(repair)
        else:
            self.core.on_absent(repair.target)  # there is another disk now

    def _extend(self, found: Recovered) -> None:
        world = self.world
        assert self.mine is not None
        nodeset = tuple(disk.member for disk in world.disks)
        replication = world.shape.replication
        short = found.is_under_replicated
        value = chain.extend(world.meta, self.mine, found.tail, nodeset, replication, short)
        if value is None:
            world.happened["lost claim"] += 1
            self.is_up = False
            return
        if self.segment is not None:
            world.check_closing(self.segment, found)
        world.write(value)
        if self.segment is not None:
            self.closed = ((0, self.segment.index), found.tail, world.version)
        world.lead(value.chain[-1].params(0))


def nothing() -> None:
    """Nobody waits for it."""


def _header(frame: Frame) -> FrameHeader:
    body = sum(map(len, frame.body))
    return FrameHeader._make((1, frame.type, 0, 0, 0, 0, 0, 0, *frame[1:8], body, 0, 0))
