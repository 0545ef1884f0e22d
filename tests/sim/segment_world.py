"""One partition's replicated log on the real machines: replicas, sequencers, recoverers, readers.

One seed is one schedule of messages that are lost, repeated and reordered, of crashes that lose
what was not synced, of disks that are lost for good, of leaders that die or live on as zombies, and
of several claimants at once. Everything is checked while it happens: I-1 to I-12 by name.

The register of the partition is ideal here; what drives the machines is this module.
"""

import random
from collections import Counter
from collections.abc import Callable

from tests.sim.segment_actors import (
    Claimant,
    Disk,
    Leader,
    Rules,
    Shape,
    Violation,
    nothing,
    require,
)

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.recovery import Recovered
from perdure.cluster.core.types import (
    Member,
    NodeId,
    SealOk,
    SegmentKey,
    SegmentParams,
    SegmentRef,
    Store,
    Writer,
)
from perdure.storage.wal_format import Frame

CLAIMANTS_MAX = 4


class World:
    """Everything of one seed."""

    def __init__(self, seed: int, shape: Shape, rules: Rules | None = None) -> None:
        self.dice = random.Random(seed)
        self.shape = shape
        self.rules = rules or Rules()
        self.now = 0.0
        self.proposed = 0
        self.wiped = 0
        self.happened = Counter[str]()
        self.disks = [Disk(self, Member(NodeId(n + 1), b"%d.0" % n)) for n in range(shape.nodes)]
        self.net: list[Callable[[], object]] = []
        self.meta: PartitionMeta = chain.empty()
        self.version = 0
        self.leaders: list[Leader] = []
        self.claimants: list[Claimant] = []
        self.contents: dict[tuple[SegmentKey, int], bytes] = {}
        self.durable: dict[tuple[SegmentKey, int], set[Member]] = {}
        self.acked: dict[tuple[SegmentKey, int], bytes] = {}
        self.shown: dict[tuple[SegmentKey, int], bytes] = {}
        self.tails: dict[SegmentKey, int] = {}
        self.commits: dict[SegmentKey, int] = {}

    # --- Network and register -------------------------------------------------------------------

    def send(self, node: NodeId, deliver: Callable[[Disk], None]) -> None:
        """To the process at a node, on the disk it has now."""
        sent_to = self.disk_of(node)

        def arrive() -> None:
            disk = self.disk_of(node)
            if disk is not None and disk is sent_to and disk.is_up:
                deliver(disk)

        self.net.append(arrive)

    def post(self, deliver: Callable[[], object]) -> None:
        """To somebody who isn't a disk."""
        self.net.append(deliver)

    def disk_of(self, node: NodeId) -> Disk | None:
        return self.disks[node - 1] if 1 <= node <= len(self.disks) else None

    def take(self, disk: Disk, store: Store, leader: Leader) -> None:
        """A replica hears a sequencer."""
        node = disk.member.node
        answer = disk.core.store(store)
        if not isinstance(answer, Frame):
            self.post(lambda: leader.hear(node, answer))
            return
        end = answer.first_offset + answer.record_count

        def stored() -> None:
            ack = disk.core.on_durable((store.partition, store.segment), end)
            self.post(lambda: leader.hear(node, ack))

        disk.stage(answer, stored)

    def close(self, key: SegmentKey, tail: int, version: int) -> None:
        def deliver(disk: Disk) -> None:
            frame = disk.core.close(key, tail, version)
            if frame is not None:
                disk.stage(frame, nothing)

        self.send(self.dice.choice(self.disks).member.node, deliver)

    def write(self, value: PartitionMeta) -> None:
        before, self.meta = self.meta, value
        self.version += 1
        require(value.epoch >= before.epoch, "I-11 epochs grow", value.epoch)
        closed = {s.index: s for s in before.chain if s.tail_lsn is not None}
        for one, following in zip(value.chain, value.chain[1:], strict=False):
            require(one.tail_lsn == following.base_lsn, "I-11 segments adjoin", one.index)
        for segment in value.chain:
            if segment.index in closed:
                require(segment == closed[segment.index], "I-11 closed is closed", segment.index)
            if segment.tail_lsn is not None:
                self.tails.setdefault((0, segment.index), segment.tail_lsn - segment.base_lsn)

    def lead(self, params: SegmentParams) -> None:
        leader = Leader(self, params)
        self.leaders.append(leader)
        self.happened["segments"] += 1
        for member in params.nodeset:
            leader.greet(member.node)

    # --- Checks ---------------------------------------------------------------------------------

    def check_content(self, key: SegmentKey, offset: int, record: bytes) -> None:
        known = self.contents.setdefault((key, offset), record)
        require(known == record, "I-2 one content per offset", key, offset)

    def acknowledge(self, leader: Leader, tail: int) -> None:
        key = leader.params.key
        for offset in range(self.commits.get(key, 0), tail):
            record = leader.sequenced[offset]
            self.check_content(key, offset, record)
            copies = self.durable.get((key, offset), set()) & set(leader.params.nodeset)
            require(len(copies) >= leader.params.replication, "I-4 R durable copies", key, offset)
            self.acked[key, offset] = record
            closed = self.tails.get(key)
            require(closed is None or offset < closed, "I-8 a commit beyond the tail", key, offset)
        self.commits[key] = max(tail, self.commits.get(key, 0))

    def check_replica(self, disk: Disk, key: SegmentKey) -> None:
        segment = disk.core.segment(key)
        assert segment is not None
        known = max(self.commits.get(key, 0), self.tails.get(key, 0))
        require(segment.kgt <= known, "I-7 kgt is never a guess", key, segment.kgt, known)
        held = disk.records.get(key, {})
        for offset in range(segment.kgt, segment.durable_tail):
            require(offset in held, "I-5 holes only below kgt", key, offset)

    def check_sealed(self, disk: Disk, reply: SealOk) -> None:
        key = (0, reply.segment)
        for offset, _ in reply.held:
            require(disk.holds(key, offset), "I-3 replies name durable records", key, offset)

    def check_closing(self, segment: SegmentMeta, found: Recovered) -> None:
        """The register is about to say that the segment ends at this tail."""
        key, tail = (0, segment.index), found.tail
        for (at, offset), _ in self.acked.items():
            require(at != key or offset < tail, "I-8 the tail covers commits", key, offset)
        for (at, offset), _ in self.shown.items():
            require(at != key or offset < tail, "I-10 shown, yet not in the log", key, offset)
        for offset in range(tail):
            alive = {disk.member for disk in self.disks if disk.holds(key, offset)}
            require(bool(alive), "I-12 no copy is left", key, offset)
            ever = self.durable.get((key, offset), set()) & set(segment.nodeset)
            copies = 1 if found.is_under_replicated else segment.replication
            require(len(ever) >= copies, "I-9 repaired before closed", key, offset)

    def read(self, disk: Disk) -> None:
        """A reader at a disk sees all that it may."""
        for segment in self.meta.chain:
            key = (0, segment.index)
            bound = disk.core.readable_tail(key)
            if segment.tail_lsn is not None:
                bound = min(bound, segment.tail_lsn - segment.base_lsn)
            for offset, record in sorted(disk.records.get(key, {}).items()):
                if offset >= bound:
                    break
                known = self.shown.setdefault((key, offset), record)
                require(known == record, "I-10 readers agree", key, offset)
                self.check_content(key, offset, record)

    # --- The schedule ---------------------------------------------------------------------------

    def run(self) -> Counter[str]:
        """Live through the schedule, then heal and see that everything comes to rest."""
        self._claim()
        for _ in range(self.shape.steps):
            self.now += self.dice.random() * 0.2
            self._step(self.dice.random())
        self._heal()
        return self.happened

    def _step(self, x: float) -> None:
        dice = self.dice
        leading = [leader for leader in self.leaders if leader.is_up]
        disk = dice.choice(self.disks)
        if x < 0.14 and leading:
            dice.choice(leading).propose(dice.choice((1, 1, 3)))
        elif x < 0.20 and leading:
            self._tick(dice.choice(leading))
        elif x < 0.52:
            self._deliver(loss=0.05, repeat=0.1)
        elif x < 0.70:
            if disk.is_up:
                disk.sync()
        elif x < 0.715:
            if dice.random() < 0.6:
                self._crash(disk)
        elif x < 0.78:
            if not disk.is_up:
                disk.start()
                for leader in leading:
                    leader.greet(disk.member.node)
        elif x < 0.785 and leading and dice.random() < 0.3:
            self._kill(dice.choice(leading))
        elif x < 0.80 and dice.random() < 0.2:
            self._claim()
        elif x < 0.94 and self.claimants:
            self._act(dice.choice(self.claimants))
        elif x < 0.95 and disk.is_up:
            disk.stage(disk.core.checkpoint(), nothing)
        elif disk.is_up:
            self.read(disk)

    def _tick(self, leader: Leader) -> None:
        if self.dice.random() < 0.6:
            leader.greet(self.dice.choice(leader.params.nodeset).node)
        leader.core.prefer(self.dice.sample([m.node for m in leader.params.nodeset], 1))
        leader.on_event(leader.core.on_tick(self.now))
        leader.send(to_late=self.dice.random() < 0.5)
        for member in leader.params.nodeset:
            if self.dice.random() < 0.3:
                self._release(member.node, leader.params.ref, leader.core.committed)

    def _release(self, node: NodeId, ref: SegmentRef, kgt: int) -> None:
        def deliver(disk: Disk) -> None:
            disk.core.release(ref, kgt)

        self.send(node, deliver)

    def _deliver(self, loss: float, repeat: float) -> None:
        if not self.net:
            return
        place = self.dice.randrange(len(self.net))
        message = self.net[place] if self.dice.random() < repeat else self.net.pop(place)
        if self.dice.random() >= loss:
            message()

    def _crash(self, disk: Disk) -> None:
        if not disk.is_up:
            return
        self.happened["crash"] += 1
        disk.crash()
        for leader in list(self.leaders):
            if leader.params.writer.node == disk.member.node:
                self._kill(leader)
            else:
                leader.sessions[disk.member.node] += 1
                leader.core.on_down(disk.member.node)
        for claimant in self.claimants:
            if claimant.writer.node == disk.member.node:
                claimant.is_up = False
        if self.wiped < self.shape.wipes and self.dice.random() < 0.3:
            self.wiped += 1
            self.happened["wipe"] += 1
            node = disk.member.node
            named = self.rules.disks_have_names
            name = b"%d.%d" % (node - 1, self.wiped) if named else disk.member.storage_uuid
            self.disks[node - 1] = Disk(self, Member(node, name), is_up=False)

    def _kill(self, leader: Leader) -> None:
        if leader.is_up:
            leader.is_up = False
            self.happened["leader died"] += 1
            if not self.rules.segments_are_never_resumed:
                resumed = Leader(self, leader.params)
                resumed.core.next_offset = resumed.core.committed = leader.core.committed
                self.leaders.append(resumed)
                for member in leader.params.nodeset:
                    resumed.greet(member.node)

    def _claim(self) -> None:
        acting = [claimant for claimant in self.claimants if claimant.is_up]
        if len(acting) < CLAIMANTS_MAX:
            node = NodeId(self.dice.randint(1, self.shape.nodes * 2))  # also one without a disk
            disk = self.disk_of(node)
            if disk is not None and not disk.is_up:
                return
            writer = Writer(node, 1, self.dice.getrandbits(32))
            self.claimants.append(Claimant(self, writer))

    def _act(self, claimant: Claimant) -> None:
        if not claimant.is_up:
            return
        if self.dice.random() < 0.01:
            claimant.is_up = False
            self.happened["claimant died"] += 1
            return
        claimant.act()

    # --- The end --------------------------------------------------------------------------------

    def _heal(self) -> None:
        """No faults any more: one takes over, appends, and everybody can read everything."""
        for claimant in self.claimants:
            claimant.is_up = False
        for disk in self.disks:
            if not disk.is_up:
                disk.start()
        writer = Writer(NodeId(1), 2, self.dice.getrandbits(32))
        last = Claimant(self, writer, is_degraded_allowed=self.wiped > 0, rests_until=0.0)
        count = len(self.leaders)
        self._until(lambda: len(self.leaders) > count, lambda: last.act())
        leader = self.leaders[-1]
        leader.propose(3)
        self._until(lambda: leader.core.committed == 3, lambda: self._tick(leader))
        require(self.wiped > 0 or not self.happened["Lost"], "only disks that went are given up")
        require(leader.is_up, "a healed partition is led", leader.params.key)
        for segment in self.meta.chain[:-1]:
            assert segment.tail_lsn is not None
            for offset in range(segment.tail_lsn - segment.base_lsn):
                key = (0, segment.index)
                require(
                    any(disk.holds(key, offset) for disk in self.disks),
                    "I-12 missing below the tail",
                    key,
                    offset,
                )
        for key, tail in self.commits.items():
            closed = self.tails.get(key)
            require(closed is None or tail <= closed, "I-8 commits are in the log", key)

    def _until(self, is_done: Callable[[], bool], nudge: Callable[[], None]) -> None:
        for _ in range(200):
            if is_done():
                return
            self.now += 0.05
            nudge()
            for _ in range(len(self.net)):
                self._deliver(loss=0.0, repeat=0.0)
            for disk in self.disks:
                disk.sync()
        raise Violation(f"no rest after healing: {self.happened}")
