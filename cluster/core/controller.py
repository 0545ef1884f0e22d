"""What the controller decides in a round: who is to lead what, which replica sets change, drains.

The controller is the living admin node with the smallest id. Two at once do no harm: everything it
decides is fenced by the epoch it has seen, or written by compare-and-set. Whoever is told to lead
looks for itself whether nobody does (``leadership``), and replicas name themselves when there is no
controller that does anything.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from perdure.cluster.core import chain, membership
from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.failure_detector import (
    FailureDetector,
    NodeState,
    ReplicaReport,
    Role,
)
from perdure.cluster.core.membership import ClusterMeta, NodeMeta, NodeRole, Nodes, Partitions
from perdure.cluster.core.placement import WorkSite, place_leaders, place_replicas
from perdure.cluster.core.types import Member, NodeId
from perdure.core.errors import MembershipRefused
from perdure.core.hashing import hash_parts
from perdure.core.limits import (
    BALANCE_PAUSE_MS,
    BALANCE_SETTLE_MS,
    CLAIM_TIMEOUT_MS,
    DRAIN_MOVES_MAX,
    LEADER_MOVE_REST_MS,
    REPLICA_CHANGES_MAX,
    REPLICA_LAG_RECORDS_MAX,
    REPLICA_REPAIR_MS,
)


@dataclass(frozen=True, slots=True)
class View:
    """What a controller sees: registers as of late, and what nodes say of themselves."""

    cluster: ClusterMeta
    nodes: Nodes
    partitions: Partitions
    detector: FailureDetector


@dataclass(frozen=True, slots=True)
class Nominate:
    """Tell ``node`` to lead, unless it sees that somebody does."""

    partition: int
    node: NodeId
    epoch: int


@dataclass(frozen=True, slots=True)
class MoveLeader:
    """Tell the leader of ``epoch`` to hand over to ``to``; to itself for a new nodeset."""

    partition: int
    leader: NodeId
    to: NodeId
    epoch: int


@dataclass(frozen=True, slots=True)
class SetReplicas:
    """Write ``replicas`` into the partition's register if it still has ``seen``."""

    partition: int
    seen: Replicas
    replicas: Replicas


@dataclass(frozen=True, slots=True)
class SetNode:
    """Write ``value`` into the node's register if it still has ``seen``."""

    node: NodeId
    seen: NodeMeta
    value: NodeMeta


Decision = Nominate | MoveLeader | SetReplicas | SetNode


def controller(view: View) -> NodeId | None:
    """Who is the controller, as this node sees it."""
    for node in view.detector.alive():
        known = view.nodes.get(node)
        if known is not None and not known.is_removed and NodeRole.ADMIN in known.roles:
            return node
    return None


def acting_leader(view: View, partition: int) -> ReplicaReport | None:
    """What the partition's leader says of itself; None when nobody is known to lead."""
    opened = chain.open_segment(view.partitions[partition])
    if opened is None or view.detector.is_gone(opened.writer):
        return None
    report = view.detector.replica_report(opened.writer, partition)
    if report is None or report.epoch < opened.epoch:
        return None
    return report if report.role in (Role.LEADER, Role.CANDIDATE) else None


def choose_successor(view: View, partition: int, besides: NodeId) -> NodeId | None:
    """Who should lead once ``besides`` stops: for a controller, and for a node that ends."""
    led = _count_leaders(view)
    return _best(view, partition, led, {besides})


_Question = tuple[dict[int, tuple[NodeId, ...]], list[WorkSite], int]


class ControllerCore:
    """Remembers between rounds what it has asked for, and how long ago."""

    def __init__(self, me: NodeId) -> None:
        self.me = me
        self._active_since: int | None = None
        self._failover_at: int | None = None
        self._dead_since: dict[NodeId, int] = {}
        self._moved_at: dict[NodeId, int] = {}
        self._nominated: dict[int, _Nomination] = {}
        self._placed: tuple[_Question, dict[int, tuple[NodeId, ...]]] | None = None

    @property
    def is_active(self) -> bool:
        """Whether this node was the controller in its latest round."""
        return self._active_since is not None

    def decide(self, now: int, view: View) -> list[Decision]:
        """One round. Call it every ``CONTROLLER_TICK_MS``, and when a node has changed."""
        self._note_dead(now, view)
        if controller(view) != self.me:
            self._active_since = None
            self._nominated.clear()
            return []
        if self._active_since is None:
            self._active_since = now
        decisions = self._set_replicas(now, view)
        vacant = self._nominate(now, view, decisions)
        if not vacant:
            self._move_leaders(now, view, decisions)
        decisions.extend(_drains(view))
        return decisions

    def _note_dead(self, now: int, view: View) -> None:
        for node in view.nodes:
            if view.detector.state(node) is NodeState.DEAD:
                self._dead_since.setdefault(node, now)
            else:
                self._dead_since.pop(node, None)

    def _is_lost(self, now: int, node: NodeId) -> bool:
        since = self._dead_since.get(node)
        return since is not None and now - since >= REPLICA_REPAIR_MS

    # --- Replica sets ---------------------------------------------------------------------------

    def _set_replicas(self, now: int, view: View) -> list[Decision]:
        sites = [
            WorkSite(node, value.zone)
            for node, value in sorted(view.nodes.items())
            if value.may_work and not self._is_lost(now, node)
        ]
        if not any(view.detector.state(site.node) is NodeState.ALIVE for site in sites):
            return []
        held = {p: _held(view.partitions[p]) for p in view.partitions}
        wanted = self._place(held, sites, view.cluster.partition_replicas)
        changing = sum(1 for meta in view.partitions.values() if meta.replicas.following)
        decisions: list[Decision] = []
        for partition, meta in sorted(view.partitions.items()):
            sets = meta.replicas
            following = self._following(now, view, partition, wanted[partition])
            if not sets.current:
                # Whoever has led it alone has its data; others follow from there.
                first = _held(meta) or wanted[partition]
                decisions.append(SetReplicas(partition, sets, Replicas(first)))
            elif following is not None:
                if following != sets:
                    decisions.append(SetReplicas(partition, sets, following))
            elif set(wanted[partition]) != set(sets.current) and changing < REPLICA_CHANGES_MAX:
                changing += 1
                change = Replicas(sets.current, wanted[partition])
                decisions.append(SetReplicas(partition, sets, change))
        return decisions

    def _place(
        self, held: dict[int, tuple[NodeId, ...]], sites: list[WorkSite], copies: int
    ) -> dict[int, tuple[NodeId, ...]]:
        """The placement, thought over again only when something has changed."""
        question = (held, sites, copies)
        if self._placed is None or self._placed[0] != question:
            self._placed = (question, place_replicas(held, sites, copies))
        return self._placed[1]

    def _following(
        self, now: int, view: View, partition: int, wanted: tuple[NodeId, ...]
    ) -> Replicas | None:
        """What becomes of a change that is under way; None when there is none."""
        sets = view.partitions[partition].replicas
        if sets.following is None:
            return None
        new = [node for node in sets.following if node not in sets.current]
        if any(self._is_lost(now, node) or not _is_worker(view, node) for node in new):
            return Replicas(sets.current, wanted if set(wanted) != set(sets.current) else None)
        if all(_is_caught_up(view, node, partition) for node in new):
            return Replicas(sets.following, None)
        return sets

    # --- Leaders --------------------------------------------------------------------------------

    def _nominate(self, now: int, view: View, decisions: list[Decision]) -> bool:
        """Find leaders for partitions without; whether there are any."""
        led = _count_leaders(view)
        is_vacant = False
        for partition, meta in sorted(view.partitions.items()):
            if not meta.replicas.current or acting_leader(view, partition) is not None:
                self._nominated.pop(partition, None)
                continue
            is_vacant = True
            opened = chain.open_segment(meta)
            if opened is not None and view.detector.is_gone(opened.writer):
                self._failover_at = now
            nomination = self._nominated.get(partition)
            if nomination is None or nomination.epoch != meta.epoch:
                nomination = self._nominated[partition] = _Nomination(meta.epoch)
            is_late = now - nomination.since >= CLAIM_TIMEOUT_MS
            if nomination.node is None or is_late or not _may_lead(view, nomination.node):
                node = _best(view, partition, led, nomination.tried)
                nomination.name(node, now)
            if nomination.node is not None:
                led[nomination.node] += 1
                decisions.append(Nominate(partition, nomination.node, meta.epoch))
        return is_vacant

    def _move_leaders(self, now: int, view: View, decisions: list[Decision]) -> None:
        reports = {p: acting_leader(view, p) for p in view.partitions}
        leaders: dict[int, NodeId] = {}
        for partition, report in reports.items():
            opened = chain.open_segment(view.partitions[partition])
            if report is not None and report.role is Role.LEADER and opened is not None:
                leaders[partition] = opened.writer.node
        self._move_from_leaving(view, leaders, decisions)
        self._widen(view, leaders, decisions)
        moving = {d.partition for d in decisions if isinstance(d, MoveLeader)}
        if moving or not self._may_balance(now):
            return
        for partition, leader in sorted(leaders.items()):
            if self._needs_nodeset(now, view, partition) and self._may_move(now, leader):
                self._move(now, view, decisions, (partition, leader, leader))
                moving.add(partition)
        wanted = self._balanced(view, leaders)
        for partition, node in sorted(wanted.items()):
            leader = leaders.get(partition, node)
            is_free = self._may_move(now, node) and self._may_move(now, leader)
            if leader != node and partition not in moving and is_free:
                self._move(now, view, decisions, (partition, leader, node))

    def _move_from_leaving(
        self, view: View, leaders: Mapping[int, NodeId], decisions: list[Decision]
    ) -> None:
        """What must move at once: leaders outside their replica set, on nodes that drain or on
        such with a full disk."""
        moved = Counter[NodeId]()
        led = _count_leaders(view)
        for partition, leader in sorted(leaders.items()):
            is_leaving = leader not in view.partitions[partition].replicas.named
            if not is_leaving and _may_work(view, leader):
                continue
            to = _best(view, partition, led, {leader})
            if to is not None and _may_work(view, to) and moved[leader] < DRAIN_MOVES_MAX:
                moved[leader] += 1
                led[to] += 1
                epoch = view.partitions[partition].chain[-1].epoch
                decisions.append(MoveLeader(partition, leader, to, epoch))

    @staticmethod
    def _widen(view: View, leaders: Mapping[int, NodeId], decisions: list[Decision]) -> None:
        """Give segments all their replicas, at once, where some were missing when they were opened,
        or take no more: until then the loss of one node may be one too many."""
        there, copies = len(_storing(view)), view.cluster.replication
        left = dict.fromkeys(leaders.values(), DRAIN_MOVES_MAX if there >= copies else 0)
        moving = {d.partition for d in decisions if not isinstance(d, SetNode)}
        for partition, leader in sorted(leaders.items()):
            opened = view.partitions[partition].chain[-1]
            usable = sum(_takes_more(view, member) for member in opened.nodeset)
            is_short = usable < max(min(2 * copies - 1, there), len(opened.nodeset))
            if is_short and partition not in moving and left[leader]:
                left[leader] -= 1
                decisions.append(MoveLeader(partition, leader, leader, opened.epoch))

    def _may_balance(self, now: int) -> bool:
        assert self._active_since is not None
        is_settled = now - self._active_since >= BALANCE_SETTLE_MS
        return is_settled and (
            self._failover_at is None or now - self._failover_at >= BALANCE_PAUSE_MS
        )

    def _may_move(self, now: int, node: NodeId) -> bool:
        return now - self._moved_at.get(node, -LEADER_MOVE_REST_MS) >= LEADER_MOVE_REST_MS

    def _move(
        self, now: int, view: View, decisions: list[Decision], move: tuple[int, NodeId, NodeId]
    ) -> None:
        partition, leader, to = move
        self._moved_at[leader] = self._moved_at[to] = now
        decisions.append(MoveLeader(*move, view.partitions[partition].chain[-1].epoch))

    def _needs_nodeset(self, now: int, view: View, partition: int) -> bool:
        """Whether a new segment would have other copies, or replicas that aren't lost."""
        opened = view.partitions[partition].chain[-1]
        usable = _storing(view)
        if len(usable) < view.cluster.replication:
            return False
        others = usable - {member.node for member in opened.nodeset}
        return opened.replication != view.cluster.replication or (
            bool(others) and any(self._is_lost(now, member.node) for member in opened.nodeset)
        )

    @staticmethod
    def _balanced(view: View, leaders: Mapping[int, NodeId]) -> dict[int, NodeId]:
        candidates: dict[int, tuple[NodeId, ...]] = {}
        fixed: set[int] = set()
        for partition, meta in view.partitions.items():
            candidates[partition] = tuple(
                node
                for node in meta.replicas.current
                if leaders.get(partition) == node
                or (
                    _may_lead(view, node)
                    and _may_work(view, node)
                    and _is_caught_up(view, node, partition)
                )
            )
            pinned = meta.policy.pinned
            if pinned is not None and pinned in candidates[partition]:
                candidates[partition] = (pinned,)
            elif meta.policy.is_frozen or partition not in leaders:
                fixed.add(partition)
        return place_leaders(candidates, leaders, fixed)


class _Nomination:
    """Who was told to lead a partition in an epoch, since when, and who failed to before."""

    __slots__ = ("epoch", "node", "since", "tried")

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch
        self.node: NodeId | None = None
        self.since = 0
        self.tried: set[NodeId] = set()

    def name(self, node: NodeId | None, now: int) -> None:
        if node is None:
            self.tried.clear()
        else:
            self.tried.add(node)
        self.node, self.since = node, now


# --- Looking at the view ------------------------------------------------------------------------


def _held(meta: PartitionMeta) -> tuple[NodeId, ...]:
    """Where the tables are, or are going to be."""
    sets = meta.replicas
    if sets.following:
        return sets.following
    if not sets.current and meta.chain:
        return (meta.chain[-1].writer.node,)  # led by a single node before it had a set
    return sets.current


def _report(view: View, node: NodeId, partition: int) -> ReplicaReport | None:
    writer = view.detector.writer(node)
    return view.detector.replica_report(writer, partition) if writer is not None else None


def _may_work(view: View, node: NodeId) -> bool:
    """Whether a node may be given work; not while its disk is full."""
    return _is_worker(view, node) and not view.detector.report_of(node).is_disk_full


def _is_worker(view: View, node: NodeId) -> bool:
    known = view.nodes.get(node)
    return known is not None and known.may_work


def _may_lead(view: View, node: NodeId) -> bool:
    return view.detector.state(node) is NodeState.ALIVE


def _is_caught_up(view: View, node: NodeId, partition: int) -> bool:
    """Whether a replica has tables that lack little of what the leader's have."""
    report = _report(view, node, partition)
    leader = acting_leader(view, partition)
    if report is None or report.role is Role.ABSENT or leader is None:
        return False
    return leader.applied_lsn - report.applied_lsn < REPLICA_LAG_RECORDS_MAX


def _storing(view: View) -> set[NodeId]:
    """Log servers that live."""
    state = view.detector.state
    return {n for n, value in view.nodes.items() if value.may_store and state(n) is NodeState.ALIVE}


def _takes_more(view: View, member: Member) -> bool:
    """Whether the very disk is one that new segments may use."""
    known = view.nodes.get(member.node)
    return known is not None and known.may_store and known.member(member.node) == member


def _count_leaders(view: View) -> Counter[NodeId]:
    led = Counter[NodeId]()
    for partition, meta in view.partitions.items():
        if acting_leader(view, partition) is not None:
            led[meta.chain[-1].writer.node] += 1
    return led


def _best(
    view: View, partition: int, led: Mapping[NodeId, int], besides: Iterable[NodeId]
) -> NodeId | None:
    """The replica that should lead: pinned, caught up, in the nodeset, with little to do."""
    meta = view.partitions[partition]
    excluded = set(besides)
    sets = meta.replicas
    # As replicas see it themselves: those that are still to be named come after all others.
    is_lost = all(view.detector.state(node).is_gone for node in sets.current)
    reports = {
        node: report
        for node in (sets.named if is_lost else sets.current)
        if node not in excluded
        and _may_lead(view, node)
        and (report := _report(view, node, partition)) is not None
        and report.role is not Role.ABSENT
    }
    if not reports:
        return None
    newest = max(report.applied_lsn for report in reports.values())
    opened = chain.open_segment(meta)
    storing = {member.node for member in opened.nodeset} if opened is not None else set[NodeId]()

    def rank(node: NodeId) -> tuple[bool, bool, bool, bool, int, int]:
        return (
            not _may_work(view, node),
            node != meta.policy.pinned,
            newest - reports[node].applied_lsn >= REPLICA_LAG_RECORDS_MAX,
            node not in storing,
            led[node],
            hash_parts(partition, node),
        )

    return min(reports, key=rank)


def _drains(view: View) -> list[Decision]:
    decisions: list[Decision] = []
    for node, value in sorted(view.nodes.items()):
        step = membership.advance_drain(view.nodes, node, view.partitions)
        if step is not None and step != value:
            decisions.append(SetNode(node, value, step))
    return decisions


def pin(meta: PartitionMeta, node: NodeId | None) -> PartitionMeta:
    """Want ``node`` to lead whenever it can; None: nobody in particular.

    Raises:
        MembershipRefused: it is no replica of the partition.
    """
    if node is not None and node not in meta.replicas.current:
        raise MembershipRefused(f"node {node} is no replica: the replicas are {_listed(meta)}")
    policy = msgspec.structs.replace(meta.policy, pinned=node)
    return msgspec.structs.replace(meta, policy=policy)


def freeze(meta: PartitionMeta, is_frozen: bool) -> PartitionMeta:
    """Let the leader stay where it is, or move it for balance again."""
    policy = msgspec.structs.replace(meta.policy, is_frozen=is_frozen)
    return msgspec.structs.replace(meta, policy=policy)


def _listed(meta: PartitionMeta) -> str:
    return ", ".join(str(node) for node in meta.replicas.current) or "none yet"


def set_replicas(meta: PartitionMeta, decision: SetReplicas) -> PartitionMeta | None:
    """The edit that a decision asks for; None: the register has changed since."""
    if meta.replicas != decision.seen:
        return None
    return msgspec.structs.replace(meta, replicas=decision.replicas)
