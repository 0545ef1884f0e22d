"""Where things go: nodesets of new segments, replica sets of partitions, leaders among replicas.

All three keep what there is as far as they can, spread over zones before they balance, and give the
same answer for the same question on every node. Balance: no node has two more than another where a
move, or a chain of moves of leaders, could change that.
"""

from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from perdure.cluster.core.types import Member, NodeId
from perdure.core.hashing import hash_parts

ReplicaSets = Mapping[int, tuple[NodeId, ...]]


@dataclass(frozen=True, slots=True)
class LogSite:
    """A log server that may take new segments. ``load``: open segments that name it already;
    ``is_here``: it runs now, as far as is known."""

    member: Member
    zone: str = ""
    load: int = 0
    is_here: bool = True


@dataclass(frozen=True, slots=True)
class WorkSite:
    """A node that may hold tables."""

    node: NodeId
    zone: str = ""


# --- Nodesets -------------------------------------------------------------------------------------


def choose_nodeset(
    partition: int,
    me: NodeId,
    sites: Sequence[LogSite],
    former: Collection[NodeId],
    replication: int,
) -> tuple[Member, ...] | None:
    """Replicas of a segment that ``me`` is to write: as many as count, this node first.

    ``former``: members of the segment before, preferred unless they have more than their share.
    Sites that are away fill up what is left: without them a segment that is opened while one node
    of three restarts could not bear the loss of another once that one is back.
    None: fewer sites are here than copies are needed.
    """
    if sum(site.is_here for site in sites) < replication:
        return None
    size = min(2 * replication - 1, len(sites))
    share = sum(site.load for site in sites) / len(sites) + 1
    left = {site.member.node: site for site in sites}
    zones = Counter[str]()
    chosen: list[Member] = []

    def rank(site: LogSite) -> tuple[bool, bool, int, bool, bool, int, int]:
        node = site.member.node
        is_busy = site.load > share
        return (
            node != me,
            not site.is_here,
            zones[site.zone],
            is_busy,
            node not in former,
            site.load,
            hash_parts(partition, node),
        )

    while len(chosen) < size:
        site = min(left.values(), key=rank)
        del left[site.member.node]
        zones[site.zone] += 1
        chosen.append(site.member)
    return tuple(chosen)


# --- Replica sets ---------------------------------------------------------------------------------


def place_replicas(
    current: ReplicaSets, sites: Sequence[WorkSite], copies: int
) -> dict[int, tuple[NodeId, ...]]:
    """Replica sets of ``copies`` nodes (or of all there are), changed as little as possible.

    Members that are no site any more are replaced; those who stay keep their order.
    """
    return _ReplicaPlan(current, sites, copies).place()


class _ReplicaPlan:
    def __init__(self, current: ReplicaSets, sites: Sequence[WorkSite], copies: int) -> None:
        self._zone = {site.node: site.zone for site in sites}
        self._copies = min(copies, len(sites))
        self._load = Counter({site.node: 0 for site in sites})
        self._zones = sorted(set(self._zone.values()))
        self._sets: dict[int, list[NodeId]] = {}
        self._movable: dict[NodeId, dict[str, set[int]]] = {site.node: {} for site in sites}
        self._hosted: dict[NodeId, set[int]] = {site.node: set() for site in sites}
        for partition in sorted(current):
            self._sets[partition] = []
            for node in dict.fromkeys(current[partition]):
                if node in self._zone:
                    self._add(partition, node)

    def place(self) -> dict[int, tuple[NodeId, ...]]:
        for partition, nodes in self._sets.items():
            while len(nodes) > self._copies:
                self._drop(partition, max(nodes, key=lambda node: self._rank_drop(partition, node)))
        for partition, nodes in self._sets.items():
            while len(nodes) < self._copies:
                others = [node for node in self._zone if node not in nodes]
                self._add(partition, min(others, key=lambda node: self._rank_add(partition, node)))
        for partition in self._sets:
            self._note_movable(partition, is_there=True)
        while self._balance_once():
            pass
        return {partition: tuple(nodes) for partition, nodes in self._sets.items()}

    def _add(self, partition: int, node: NodeId) -> None:
        self._sets[partition].append(node)
        self._hosted[node].add(partition)
        self._load[node] += 1

    def _drop(self, partition: int, node: NodeId) -> None:
        self._sets[partition].remove(node)
        self._hosted[node].remove(partition)
        self._load[node] -= 1

    def _crowd(self, partition: int, zone: str) -> int:
        """Replicas of a partition in a zone."""
        return sum(self._zone[node] == zone for node in self._sets[partition])

    def _rank_add(self, partition: int, node: NodeId) -> tuple[int, int, int]:
        crowd = self._crowd(partition, self._zone[node])
        return crowd, self._load[node], hash_parts(partition, node)

    def _rank_drop(self, partition: int, node: NodeId) -> tuple[int, int, int]:
        crowd = self._crowd(partition, self._zone[node])
        return crowd, self._load[node], self._sets[partition].index(node)

    def _balance_once(self) -> bool:
        """Move one replica from a node to one that has two less, without crowding a zone."""
        nodes = sorted(self._zone, key=lambda node: (self._load[node], node))
        for source in reversed(nodes):
            for target in nodes:
                if self._load[source] - self._load[target] < 2:
                    break
                movable = self._movable[source].get(self._zone[target], set())
                if fit := movable - self._hosted[target]:
                    self._move(min(fit), source, target)
                    return True
        return False

    def _move(self, partition: int, source: NodeId, target: NodeId) -> None:
        self._note_movable(partition, is_there=False)
        place = self._sets[partition].index(source)
        self._drop(partition, source)
        self._add(partition, target)
        self._sets[partition].insert(place, self._sets[partition].pop())
        self._note_movable(partition, is_there=True)

    def _note_movable(self, partition: int, *, is_there: bool) -> None:
        """Keep count of the zones that each replica of a partition may move to."""
        crowds = Counter(self._zone[node] for node in self._sets[partition])
        for source in self._sets[partition]:
            own = self._zone[source]
            for zone in self._zones:
                if zone == own or crowds[zone] < crowds[own]:
                    fit = self._movable[source].setdefault(zone, set())
                    if is_there:
                        fit.add(partition)
                    else:
                        fit.discard(partition)


# --- Leaders --------------------------------------------------------------------------------------


def place_leaders(
    candidates: ReplicaSets,
    current: Mapping[int, NodeId],
    fixed: Collection[int] = (),
) -> dict[int, NodeId]:
    """A leader for each partition that has candidates, as even as the candidates allow.

    Leaders stay where they are unless the busier of two nodes has at least two more than the other;
    ``fixed`` partitions stay in any case. Candidates are in order of preference.
    """
    return _LeaderPlan(candidates, current, fixed).place()


class _LeaderPlan:
    def __init__(
        self, candidates: ReplicaSets, current: Mapping[int, NodeId], fixed: Collection[int]
    ) -> None:
        self._candidates = {p: nodes for p, nodes in sorted(candidates.items()) if nodes}
        self._current = current
        self._fixed = frozenset(fixed)
        self._leaders: dict[int, NodeId] = {}
        self._led: dict[NodeId, set[int]] = {}
        for nodes in self._candidates.values():
            for node in nodes:
                self._led.setdefault(node, set())

    def place(self) -> dict[int, NodeId]:
        for partition, nodes in self._candidates.items():
            if (leader := self._current.get(partition)) in nodes:
                assert leader is not None
                self._set(partition, leader)
        for partition, nodes in self._candidates.items():
            if partition not in self._leaders:
                self._set(partition, min(nodes, key=lambda n: (len(self._led[n]), nodes.index(n))))
        while self._improve():
            pass
        return self._leaders

    def _set(self, partition: int, node: NodeId) -> None:
        before = self._leaders.get(partition)
        if before is not None:
            self._led[before].remove(partition)
        self._leaders[partition] = node
        self._led[node].add(partition)

    def _improve(self) -> bool:
        """Shift leaders along a chain of nodes whose last has at least two less than the first."""
        least = min((len(led) for led in self._led.values()), default=0)
        for source in sorted(self._led, key=lambda node: (-len(self._led[node]), node)):
            if len(self._led[source]) - least < 2:
                return False
            if self._shift_from(source):
                return True
        return False

    def _shift_from(self, source: NodeId) -> bool:
        came_by: dict[NodeId, tuple[int, NodeId]] = {}
        queue = deque([source])
        while queue:
            node = queue.popleft()
            for partition in sorted(self._led[node]):
                if partition in self._fixed:
                    continue
                for target in self._candidates[partition]:
                    if target == source or target in came_by:
                        continue
                    came_by[target] = (partition, node)
                    if len(self._led[source]) - len(self._led[target]) >= 2:
                        self._shift_along(came_by, target)
                        return True
                    queue.append(target)
        return False

    def _shift_along(self, came_by: Mapping[NodeId, tuple[int, NodeId]], target: NodeId) -> None:
        node = target
        while node in came_by:
            partition, source = came_by[node]
            self._set(partition, node)
            node = source
