"""Who is alive, as far as this node can tell: gossip of heartbeats, counted in one's own ticks.

Every node counts its ticks and tells some others per tick (two, and more in large clusters, so that
news reach everybody in a few ticks) the highest counts it knows of everybody; a count that doesn't
grow for ``FD_DEAD_TICKS`` is a dead node. Counts only grow, so a message that was delayed revives
nobody. Silence is measured in ticks of the listener: while its own loop stands still nobody grows
older, so a node that was paused deposes no one when it wakes up.

What comes out is a hint. It decides who tries what when, never what is safe.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, IntEnum

import msgspec

from perdure.cluster.core.messages import Message
from perdure.cluster.core.types import NodeId, Writer
from perdure.core.limits import (
    FD_DEAD_TICKS,
    FD_LONELY_TICKS,
    FD_PEERS_PER_TICK,
    FD_REPORT_TICKS,
    FD_RESET_TICKS,
    FD_SUSPECT_TICKS,
    FD_VACANT_TICKS,
)


class Mood(IntEnum):
    """What a node says of itself. ``FAILING_OVER``: take over what I lead. ``GONE``: I have ended
    in good order; final for this run of the process."""

    WELL = 0
    STOPPING = 1
    FAILING_OVER = 2
    GONE = 3


class NodeState(Enum):
    """What this node thinks of another. Suspect: neither to be deposed nor to be given work."""

    DEAD = "dead"
    SUSPECT = "suspect"
    ALIVE = "alive"
    STOPPING = "stopping"
    FAILING_OVER = "failing_over"

    @property
    def is_gone(self) -> bool:
        """Whether others may take over what it leads."""
        return self in (NodeState.DEAD, NodeState.FAILING_OVER)


class Role(IntEnum):
    """What a node is to a partition. A follower's epoch is the last one it led and gave up."""

    FOLLOWER = 0
    CANDIDATE = 1
    LEADER = 2
    ABSENT = 3  # in the replica set, but without usable tables


class ReplicaReport(msgspec.Struct, frozen=True, array_like=True):
    """One partition of a node, as that node tells it."""

    partition: int
    role: Role
    epoch: int
    applied_lsn: int
    durable_lsn: int


class Report(msgspec.Struct, frozen=True, array_like=True):
    """What a node tells of itself now and then, beyond being alive."""

    loop_lag_ms: int = 0
    is_disk_full: bool = False
    replicas: tuple[ReplicaReport, ...] = ()


class Beat(msgspec.Struct, frozen=True, array_like=True):
    """The highest count known of one run of a node."""

    writer: Writer
    count: int
    mood: Mood


class Gossip(Message, frozen=True, tag=0x0201):
    """The sender's beat first, then what it knows of others."""

    beats: tuple[Beat, ...]
    report: Report | None = None


@dataclass(frozen=True, slots=True)
class SendGossip:
    """Send it, once, if there is a way."""

    to: NodeId
    gossip: Gossip


@dataclass(frozen=True, slots=True)
class NodeChanged:
    """Another state, or another run of the process."""

    node: NodeId
    writer: Writer | None
    state: NodeState


@dataclass(frozen=True, slots=True)
class Replaced:
    """A later run of this very node exists: this process must end."""

    by: Writer


@dataclass(frozen=True, slots=True)
class UnknownNode:
    """Someone gossips who is no member as far as we know: look at the registers again."""

    node: NodeId


Effect = SendGossip | NodeChanged | Replaced | UnknownNode


class _Peer:
    """What is known of one other node. Invariant: (generation, count) only grows."""

    __slots__ = (
        "count",
        "is_cut",
        "is_heard",
        "is_vacant",
        "mood",
        "replicas",
        "report",
        "silent",
        "state",
        "suspect_left",
        "writer",
    )

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.count = 0
        self.mood = Mood.WELL
        self.silent = 0
        self.state = NodeState.SUSPECT
        self.suspect_left = 0
        self.is_cut = False
        self.is_vacant = False
        self.is_heard = False
        self.set_report(Report())

    def set_report(self, report: Report) -> None:
        self.report = report
        self.replicas = {replica.partition: replica for replica in report.replicas}


class FailureDetector:
    """One node's view of the others. ``tick`` every ``FD_TICK_MS``, never twice to catch up."""

    def __init__(self, me: Writer, members: Iterable[NodeId]) -> None:
        self.me = me
        self.mood = Mood.WELL
        self.conflicts = 0
        self.set_report(Report())
        self._count = 0
        self._echoed = 0
        self._unheard = 0
        self._peers: dict[NodeId, _Peer] = {}
        self._reported_at: dict[NodeId, int] = {}
        self.set_members(members)

    # --- What it thinks -------------------------------------------------------------------------

    @property
    def is_isolated(self) -> bool:
        """Whether nobody is heard, or nobody hears us, for long. Of two nodes neither can tell."""
        if len(self._peers) < 2:
            return False
        return max(self._unheard, self._count - self._echoed) > FD_LONELY_TICKS

    def state(self, node: NodeId) -> NodeState:
        """A node that is no member is dead."""
        if node == self.me.node:
            return _STATES[self._own_mood()]
        peer = self._peers.get(node)
        return peer.state if peer is not None else NodeState.DEAD

    def writer(self, node: NodeId) -> Writer | None:
        """The latest run of a node's process that was heard of."""
        if node == self.me.node:
            return self.me
        peer = self._peers.get(node)
        return peer.writer if peer is not None else None

    def is_gone(self, writer: Writer) -> bool:
        """Whether this run of a process has ended, or its node is to be replaced."""
        if writer.node == self.me.node:
            return writer != self.me
        latest = self.writer(writer.node)
        if latest is not None and latest.generation > writer.generation:
            return True
        return self.state(writer.node).is_gone

    def alive(self) -> list[NodeId]:
        """Members that may be given work, in order of their ids; also this node when it is well."""
        nodes = [node for node, peer in self._peers.items() if peer.state is NodeState.ALIVE]
        if self._own_mood() is Mood.WELL:
            nodes.append(self.me.node)
        return sorted(nodes)

    def report_of(self, node: NodeId) -> Report:
        """The latest report of a node; an empty one when there was none."""
        if node == self.me.node:
            return self.report
        peer = self._peers.get(node)
        return peer.report if peer is not None else Report()

    def set_report(self, report: Report) -> None:
        """What the others are told of this node from now on."""
        self.report = report
        self._own_replicas = {replica.partition: replica for replica in report.replicas}

    def replica_report(self, writer: Writer, partition: int) -> ReplicaReport | None:
        """What a run of a node says of its replica; None: nothing, or it is not its latest run."""
        if self.writer(writer.node) != writer:
            return None
        if writer == self.me:
            return self._own_replicas.get(partition)
        return self._peers[writer.node].replicas.get(partition)

    # --- What happens ---------------------------------------------------------------------------

    def set_members(self, nodes: Iterable[NodeId]) -> list[Effect]:
        """The nodes there are, as the registers say."""
        wanted = {node for node in nodes if node != self.me.node}
        effects: list[Effect] = []
        for node in sorted(set(self._peers) - wanted):
            del self._peers[node]
            self._reported_at.pop(node, None)
            effects.append(NodeChanged(node, None, NodeState.DEAD))
        for node in sorted(wanted - set(self._peers)):
            self._peers[node] = _Peer()
        return effects

    def tick(self, draw: int) -> list[Effect]:
        """A tick has passed. ``draw``: 64 random bits."""
        self._count += 1
        self._unheard += 1
        effects: list[Effect] = []
        for node, peer in self._peers.items():
            peer.silent += 1
            peer.suspect_left = max(0, peer.suspect_left - 1)
            self._judge(node, peer, effects)
        effects.extend(SendGossip(to, self._gossip(to)) for to in self._choose(draw))
        return effects

    def on_gossip(self, gossip: Gossip) -> list[Effect]:
        """A message came in."""
        sender = gossip.beats[0].writer.node
        if sender not in self._peers:
            return [UnknownNode(sender)] if sender != self.me.node else []
        self._unheard = 0
        effects: list[Effect] = []
        peer = self._peers[sender]
        is_news = self._learn(gossip.beats[0], is_direct=True, effects=effects)
        if is_news and gossip.report is not None:
            peer.set_report(gossip.report)
        for beat in gossip.beats[1:]:
            self._learn(beat, is_direct=False, effects=effects)
        return effects

    def on_link(self, node: NodeId, is_up: bool) -> list[Effect]:
        """The connection to a node was made or lost: a lost one shortens its respite."""
        peer = self._peers.get(node)
        if peer is None:
            return []
        peer.is_cut = not is_up
        peer.is_vacant = peer.is_vacant and not is_up
        effects: list[Effect] = []
        self._judge(node, peer, effects)
        return effects

    def on_vacant(self, node: NodeId) -> list[Effect]:
        """The node's machine says that no process listens there: it ended, or is about to. A node
        that is still heard of, through others, was only reached at the wrong place."""
        peer = self._peers.get(node)
        if peer is None:
            return []
        peer.is_cut = peer.is_vacant = True
        effects: list[Effect] = []
        self._judge(node, peer, effects)
        return effects

    def hurry_report(self) -> None:
        """The report has changed in a way that others wait for: put it into the next messages."""
        self._reported_at.clear()

    def farewell(self) -> list[Effect]:
        """This process ends in good order: what to send to everybody, last of all."""
        self.mood = Mood.GONE
        self._count += 1
        return [SendGossip(node, Gossip((self._own_beat(),))) for node in sorted(self._peers)]

    # --- How ------------------------------------------------------------------------------------

    def _learn(self, beat: Beat, *, is_direct: bool, effects: list[Effect]) -> bool:
        """Whether it is as new as what is known."""
        node = beat.writer.node
        if node == self.me.node:
            self._learn_of_myself(beat, effects)
            return False
        peer = self._peers.get(node)
        if peer is None:
            return False
        known = peer.writer
        if known is not None:
            if beat.writer.generation == known.generation and beat.writer != known:
                self.conflicts += 1
                return False
            news = (beat.writer.generation, beat.count)
            if news < (known.generation, peer.count):
                return False
            if news == (known.generation, peer.count) and (peer.is_heard or not is_direct):
                return is_direct  # others were faster to tell
        peer.writer, peer.count, peer.mood = beat.writer, beat.count, beat.mood
        is_new_run = known is not None and known != beat.writer
        if known is None and not is_direct:
            # Who knows how old this is: only what grows from here on is a sign of life.
            effects.append(NodeChanged(node, beat.writer, peer.state))
            return True
        peer.silent = 0
        peer.is_heard = True
        if is_direct:
            peer.is_cut = peer.is_vacant = False
        if is_new_run:
            peer.suspect_left = 0
            peer.set_report(Report())
        elif peer.state.is_gone:
            peer.suspect_left = FD_SUSPECT_TICKS
        self._judge(node, peer, effects, is_changed=is_new_run or known is None)
        return True

    def _learn_of_myself(self, beat: Beat, effects: list[Effect]) -> None:
        if beat.writer == self.me:
            self._echoed = max(self._echoed, beat.count)
        elif beat.writer.generation >= self.me.generation:
            effects.append(Replaced(beat.writer))

    def _judge(
        self, node: NodeId, peer: _Peer, effects: list[Effect], *, is_changed: bool = False
    ) -> None:
        respite = FD_RESET_TICKS if peer.is_cut else FD_DEAD_TICKS
        if peer.is_vacant:
            respite = FD_VACANT_TICKS
        if not peer.is_heard:
            respite = FD_LONELY_TICKS  # it may take so long until we know each other
        if peer.mood is Mood.GONE or peer.silent >= respite:
            state = NodeState.DEAD
        elif peer.mood is Mood.FAILING_OVER:
            state = NodeState.FAILING_OVER
        elif peer.suspect_left > 0 or not peer.is_heard:
            state = NodeState.SUSPECT
        else:
            state = _STATES[peer.mood]
        if state is not peer.state or is_changed:
            peer.state = state
            effects.append(NodeChanged(node, peer.writer, state))

    def _own_mood(self) -> Mood:
        if self.mood is Mood.WELL and self.is_isolated:
            return Mood.FAILING_OVER
        return self.mood

    def _own_beat(self) -> Beat:
        return Beat(self.me, self._count, self._own_mood())

    def _gossip(self, to: NodeId) -> Gossip:
        beats = [self._own_beat()]
        for node in sorted(self._peers):
            peer = self._peers[node]
            if peer.writer is not None:
                beats.append(Beat(peer.writer, peer.count, peer.mood))
        last = self._reported_at.get(to)
        if last is not None and self._count - last < FD_REPORT_TICKS:
            return Gossip(tuple(beats))
        self._reported_at[to] = self._count
        return Gossip(tuple(beats), self.report)

    def _choose(self, draw: int) -> list[NodeId]:
        """Some of the living, and one of the dead: it may have come back behind a healed link."""
        living = sorted(n for n, peer in self._peers.items() if peer.state is not NodeState.DEAD)
        dead = sorted(n for n, peer in self._peers.items() if peer.state is NodeState.DEAD)
        chosen: list[NodeId] = []
        fan_out = max(FD_PEERS_PER_TICK, len(living).bit_length() + 1)
        for nodes, count in ((living, fan_out), (dead, 1)):
            for _ in range(min(count, len(nodes))):
                draw, place = divmod(draw, len(nodes))
                chosen.append(nodes.pop(place))
        return chosen


_STATES = {
    Mood.WELL: NodeState.ALIVE,
    Mood.STOPPING: NodeState.STOPPING,
    Mood.FAILING_OVER: NodeState.FAILING_OVER,
    Mood.GONE: NodeState.DEAD,
}
