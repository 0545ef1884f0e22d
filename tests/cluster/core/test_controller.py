"""The controller: who is it, and what it decides in which order and how often."""

import msgspec
import pytest

from perdure.cluster.core import chain
from perdure.cluster.core.chain import LeaderPolicy, PartitionMeta, Replicas
from perdure.cluster.core.controller import (
    ControllerCore,
    Decision,
    MoveLeader,
    Nominate,
    SetNode,
    SetReplicas,
    View,
    acting_leader,
    choose_successor,
    controller,
    freeze,
    pin,
    set_replicas,
)
from perdure.cluster.core.failure_detector import (
    Beat,
    FailureDetector,
    Gossip,
    Mood,
    ReplicaReport,
    Report,
    Role,
)
from perdure.cluster.core.membership import (
    ClusterMeta,
    NodeMeta,
    NodeRole,
    StorageState,
    WorkerState,
)
from perdure.cluster.core.types import NodeId, Writer
from perdure.core.errors import MembershipRefused
from perdure.core.limits import (
    BALANCE_PAUSE_MS,
    BALANCE_SETTLE_MS,
    CLAIM_TIMEOUT_MS,
    LEADER_MOVE_REST_MS,
    REPLICA_CHANGES_MAX,
    REPLICA_LAG_RECORDS_MAX,
    REPLICA_REPAIR_MS,
)

ME = NodeId(1)


def _writer(node: int) -> Writer:
    return Writer(NodeId(node), 1, 10 * node)


def _ids(*nodes: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(node) for node in nodes)


class Rig:
    """A cluster of ``size`` nodes as node 1 sees it; partitions are led as ``lead`` says."""

    def __init__(self, size: int = 3, partitions: int = 0) -> None:
        self.now = 1_000_000
        ids = _ids(*range(1, size + 1))
        self.nodes = {n: NodeMeta(f"n{n}", 1, 10 * n, f"{n:032x}") for n in ids}
        self.cluster = ClusterMeta(1, "c", "f", partitions, 2, 3)
        self.detector = FailureDetector(_writer(1), ids)
        self.core = ControllerCore(ME)
        self.partitions: dict[int, PartitionMeta] = {p: chain.empty() for p in range(partitions)}
        self.reports: dict[int, dict[int, ReplicaReport]] = {int(n): {} for n in ids}
        self.is_full: set[int] = set()
        self.counts = dict.fromkeys(range(2, size + 1), 0)
        for node in self.counts:
            self.hear(node)

    def hear(self, node: int, mood: Mood = Mood.WELL) -> None:
        replicas = tuple(self.reports[node].values())
        report = Report(is_disk_full=node in self.is_full, replicas=replicas)
        if node == ME:
            self.detector.set_report(report)
            return
        self.counts[node] += 1
        beats = (Beat(_writer(node), self.counts[node], mood), Beat(_writer(1), 10**9, Mood.WELL))
        self.detector.on_gossip(Gossip(beats, report))

    def place(self, partition: int, *replicas: int, following: tuple[int, ...] = ()) -> None:
        sets = Replicas(_ids(*replicas), _ids(*following) or None)
        self.partitions[partition] = msgspec.structs.replace(
            self.partitions.get(partition, chain.empty()), replicas=sets
        )
        for node in replicas:
            self.tell(node, ReplicaReport(partition, Role.FOLLOWER, 0, 100, 100))

    def tell(self, node: int, report: ReplicaReport) -> None:
        self.reports[node][report.partition] = report
        self.hear(node)

    def lead(self, partition: int, node: int, nodeset: tuple[int, ...] = (1, 2, 3)) -> None:
        claimed = chain.claim(self.partitions[partition], _writer(node), "test")
        assert claimed.claim is not None
        members = tuple(self.nodes[n].member(n) for n in _ids(*nodeset))
        meta = chain.extend(claimed, claimed.claim, 0, members, self.cluster.replication)
        assert meta is not None
        self.partitions[partition] = meta
        self.tell(node, ReplicaReport(partition, Role.LEADER, meta.epoch, 100, 100))

    def decide(self, after_ms: int = 0) -> list[Decision]:
        self.now += after_ms
        return self.core.decide(self.now, self.view())

    def view(self) -> View:
        return View(self.cluster, self.nodes, self.partitions, self.detector)

    def edit(self, node: int, **fields: object) -> None:
        self.nodes[NodeId(node)] = msgspec.structs.replace(self.nodes[NodeId(node)], **fields)


def _balanced(partitions: int = 3) -> Rig:
    rig = Rig(3, partitions)
    for partition in range(partitions):
        rig.place(partition, 1, 2, 3)
        rig.lead(partition, 1 + partition % 3)
    return rig


# --- Who ----------------------------------------------------------------------------------------


def test_the_living_admin_node_with_the_smallest_id_controls() -> None:
    rig = Rig()
    assert controller(rig.view()) == 1
    rig.edit(1, roles=(NodeRole.WORKER,))
    assert controller(rig.view()) == 2
    rig.hear(2, Mood.GONE)
    assert controller(rig.view()) == 3
    rig.edit(3, is_removed=True)
    assert controller(rig.view()) is None


def test_who_does_not_control_decides_nothing() -> None:
    rig = Rig(partitions=4)
    rig.edit(1, roles=(NodeRole.WORKER,))
    assert rig.decide() == []
    assert not rig.core.is_active
    rig.edit(1, roles=tuple(NodeRole))
    assert rig.decide() != []
    assert rig.core.is_active


# --- Replica sets -------------------------------------------------------------------------------


def test_new_partitions_are_placed_all_at_once() -> None:
    rig = Rig(4, partitions=24)
    decisions = [d for d in rig.decide() if isinstance(d, SetReplicas)]
    assert len(decisions) == 24
    for decision in decisions:
        assert len(decision.replicas.current) == 3
        assert decision.replicas.following is None
        meta = set_replicas(rig.partitions[decision.partition], decision)
        assert meta is not None
        assert set_replicas(meta, decision) is None


def test_a_partition_led_by_one_node_before_keeps_its_data_there() -> None:
    rig = Rig(3, partitions=1)
    rig.lead(0, 2, nodeset=(2,))
    (decision,) = rig.decide()
    assert decision == SetReplicas(0, Replicas(), Replicas(_ids(2)))
    rig.place(0, 2)
    (grow, *_) = rig.decide()
    assert isinstance(grow, SetReplicas)
    assert grow.replicas.current == (2,)
    assert set(grow.replicas.following or ()) == {1, 2, 3}


def test_few_sets_change_at_once() -> None:
    rig = Rig(3, partitions=24)
    for partition in range(24):
        rig.place(partition, 1)
        rig.lead(partition, 1)
    changes = [d for d in rig.decide() if isinstance(d, SetReplicas)]
    assert len(changes) == REPLICA_CHANGES_MAX
    for change in changes:
        rig.place(change.partition, 1, following=tuple(change.replicas.following or ()))
        rig.lead(change.partition, 1)
    assert not [d for d in rig.decide() if isinstance(d, SetReplicas)]


def test_the_next_set_becomes_current_once_its_members_have_caught_up() -> None:
    rig = _balanced(1)
    rig.place(0, 1, 2, following=(1, 2, 3))
    rig.tell(1, ReplicaReport(0, Role.LEADER, 1, 5_000, 5_000))
    rig.tell(3, ReplicaReport(0, Role.ABSENT, 0, 0, 0))
    assert rig.decide() == []
    rig.tell(3, ReplicaReport(0, Role.FOLLOWER, 0, 5_000 - REPLICA_LAG_RECORDS_MAX, 0))
    assert rig.decide() == []
    rig.tell(3, ReplicaReport(0, Role.FOLLOWER, 0, 5_001 - REPLICA_LAG_RECORDS_MAX, 0))
    seen = Replicas(_ids(1, 2), _ids(1, 2, 3))
    assert rig.decide() == [SetReplicas(0, seen, Replicas(_ids(1, 2, 3)))]


def test_a_node_dead_for_long_is_replaced_and_not_before() -> None:
    rig = Rig(4, 1)
    rig.place(0, 1, 2, 3)
    rig.lead(0, 1)
    rig.hear(3, Mood.GONE)
    rig.decide()
    assert rig.decide(REPLICA_REPAIR_MS - 1) == []
    changes = [d for d in rig.decide(1) if isinstance(d, SetReplicas)]
    assert changes == [
        SetReplicas(0, Replicas(_ids(1, 2, 3)), Replicas(_ids(1, 2, 3), _ids(1, 2, 4)))
    ]


def test_a_change_to_a_node_that_died_is_changed_again() -> None:
    rig = Rig(5, 1)
    rig.place(0, 1, 2, following=(1, 2, 4))
    rig.lead(0, 1)
    rig.hear(4, Mood.GONE)
    rig.decide()
    (change,) = [d for d in rig.decide(REPLICA_REPAIR_MS) if isinstance(d, SetReplicas)]
    assert change.replicas.current == (1, 2)
    assert set(change.replicas.following or ()) in ({1, 2, 3}, {1, 2, 5})


# --- Leaders ------------------------------------------------------------------------------------


def test_partitions_without_leader_get_one_each_evenly() -> None:
    rig = Rig(3, 6)
    for partition in range(6):
        rig.place(partition, 1, 2, 3)
    named = [d.node for d in rig.decide() if isinstance(d, Nominate)]
    assert sorted(named) == [1, 1, 2, 2, 3, 3]
    again = [d.node for d in rig.decide(2_000) if isinstance(d, Nominate)]
    assert again == named


def test_the_most_advanced_replica_leads_next() -> None:
    rig = _balanced()
    rig.tell(1, ReplicaReport(1, Role.FOLLOWER, 0, 50_000, 0))
    rig.tell(3, ReplicaReport(1, Role.FOLLOWER, 0, 100, 0))
    rig.hear(2, Mood.GONE)
    assert rig.decide() == [Nominate(1, ME, 1)]
    rig.partitions[1] = msgspec.structs.replace(
        rig.partitions[1], policy=LeaderPolicy(pinned=NodeId(3))
    )
    rig.core = ControllerCore(ME)
    assert rig.decide() == [Nominate(1, NodeId(3), 1)]


def test_who_does_not_take_the_lead_is_passed_over() -> None:
    rig = _balanced()
    rig.hear(2, Mood.GONE)
    (first,) = rig.decide()
    assert isinstance(first, Nominate)
    assert rig.decide(CLAIM_TIMEOUT_MS - 1) == [first]
    (second,) = rig.decide(1)
    assert isinstance(second, Nominate)
    assert {first.node, second.node} == {1, 3}
    assert rig.decide(CLAIM_TIMEOUT_MS) == []
    assert rig.decide() == [first]


def test_a_leader_that_has_not_told_of_it_yet_is_not_counted_on() -> None:
    rig = _balanced()
    view = rig.view()
    report = acting_leader(view, 1)
    assert report is not None
    assert (report.role, report.epoch) == (Role.LEADER, 1)
    rig.tell(2, ReplicaReport(1, Role.FOLLOWER, 1, 100, 100))
    assert acting_leader(view, 1) is None


def test_leaders_are_evened_out_slowly_and_only_in_quiet_times() -> None:
    rig = _balanced(9)
    for partition in range(9):
        rig.lead(partition, 1)
    assert rig.decide() == []
    moves = rig.decide(BALANCE_SETTLE_MS)
    assert len(moves) == 1
    (move,) = moves
    assert isinstance(move, MoveLeader)
    assert (move.leader, move.epoch) == (1, 2)
    assert rig.decide(LEADER_MOVE_REST_MS - 1) == []
    rig.lead(move.partition, move.to)
    assert len(rig.decide(1)) == 1


def test_nothing_is_balanced_soon_after_a_failover() -> None:
    rig = _balanced(9)
    rig.decide()
    rig.hear(2, Mood.GONE)
    assert any(isinstance(d, Nominate) for d in rig.decide(BALANCE_SETTLE_MS))
    for partition in range(9):
        rig.lead(partition, 1)
    assert rig.decide() == []
    assert rig.decide(BALANCE_PAUSE_MS - 1) == []
    assert rig.decide(1) != []


def test_only_replicas_can_be_pinned() -> None:
    meta = _balanced().partitions[0]
    with pytest.raises(MembershipRefused, match="no replica: the replicas are 1, 2, 3"):
        pin(meta, NodeId(4))
    pinned = freeze(pin(meta, NodeId(3)), True)
    assert pinned.policy == LeaderPolicy(NodeId(3), True)
    assert freeze(pin(pinned, None), False) == meta


def test_pinned_and_frozen_partitions_are_left_alone() -> None:
    rig = _balanced(9)
    for partition in range(9):
        rig.lead(partition, 1)
        policy = LeaderPolicy(
            is_frozen=partition != 4, pinned=NodeId(3) if partition == 4 else None
        )
        rig.partitions[partition] = msgspec.structs.replace(
            rig.partitions[partition], policy=policy
        )
    rig.decide()
    assert rig.decide(BALANCE_SETTLE_MS) == [MoveLeader(4, ME, NodeId(3), 2)]


@pytest.mark.parametrize("state", [StorageState.READ_ONLY, StorageState.DATA_LOSS])
def test_segments_leave_log_servers_that_may_not_store_at_once(state: StorageState) -> None:
    rig = Rig(3, 5)
    for partition in range(5):
        rig.place(partition, 1, 2, 3)
        rig.lead(partition, 1)
    rig.decide()
    rig.edit(3, storage=state)
    assert rig.decide() == [MoveLeader(partition, ME, ME, 1) for partition in range(4)]
    for partition in range(4):
        rig.lead(partition, 1, nodeset=(1, 2))
    assert rig.decide() == [MoveLeader(4, ME, ME, 1)]
    rig.lead(4, 1, nodeset=(1, 2))
    assert rig.decide() == []


def test_segments_leave_a_disk_that_was_replaced() -> None:
    rig = _balanced(3)
    rig.decide()
    rig.edit(3, storage_uuid="cc" * 16)
    moved = [decision.partition for decision in rig.decide() if isinstance(decision, MoveLeader)]
    assert moved == [0, 1, 2]


def test_a_new_log_server_changes_nothing() -> None:
    rig = Rig(4, 1)
    rig.place(0, 1, 2, 3)
    rig.lead(0, 1)
    rig.decide()
    assert rig.decide(BALANCE_SETTLE_MS) == []


def test_segments_of_too_few_replicas_are_replaced_at_once_when_there_are_more() -> None:
    rig = _balanced(3)
    for partition, leader in enumerate((1, 2, 2)):
        rig.lead(partition, leader, nodeset=(1, 2))
    assert rig.decide() == [
        MoveLeader(0, ME, ME, 2),
        MoveLeader(1, NodeId(2), NodeId(2), 2),
        MoveLeader(2, NodeId(2), NodeId(2), 2),
    ]
    for partition, leader in enumerate((1, 2, 2)):
        rig.lead(partition, leader, nodeset=(1, 2, 3))
    assert rig.decide() == []


def test_a_node_that_drains_gives_leaders_and_replicas_at_once() -> None:
    rig = Rig(4, 2)
    for partition in range(2):
        rig.place(partition, 1, 2, 3)
        rig.lead(partition, 2)
    rig.edit(2, worker=WorkerState.DRAINING)
    decisions = rig.decide()
    moves = [d for d in decisions if isinstance(d, MoveLeader)]
    changes = [d for d in decisions if isinstance(d, SetReplicas)]
    assert {move.partition for move in moves} == {0, 1}
    assert {move.to for move in moves} == {1, 3}
    assert {change.replicas.following for change in changes} == {_ids(1, 3, 4)}


def test_leaders_leave_a_node_whose_disk_is_full() -> None:
    rig = _balanced()
    rig.is_full = {2}
    rig.hear(2)
    (move,) = rig.decide()
    assert isinstance(move, MoveLeader)
    assert (move.partition, move.leader) == (1, 2)
    rig.is_full = {1, 2, 3}
    for node in (1, 2, 3):
        rig.hear(node)
    assert rig.decide() == []


def test_a_drain_goes_on_step_by_step() -> None:
    rig = Rig(4, 1)
    rig.place(0, 1, 2, 3)
    rig.lead(0, 1)
    rig.edit(4, worker=WorkerState.DRAINING)
    (step,) = rig.decide()
    assert isinstance(step, SetNode)
    assert (step.node, step.seen, step.value.worker) == (
        4,
        rig.nodes[NodeId(4)],
        WorkerState.DISABLED,
    )


def test_a_leader_outside_its_replica_set_hands_over() -> None:
    rig = Rig(4, 1)
    rig.place(0, 2, 3, 4)
    rig.lead(0, 1)
    moves = [d for d in rig.decide() if isinstance(d, MoveLeader)]
    assert len(moves) == 1
    assert moves[0].to in (2, 3, 4)


def test_a_node_that_ends_finds_its_successor_itself() -> None:
    rig = _balanced()
    assert choose_successor(rig.view(), 0, ME) in (2, 3)
    rig.hear(2, Mood.GONE)
    rig.hear(3, Mood.GONE)
    assert choose_successor(rig.view(), 0, ME) is None


@pytest.mark.parametrize("partitions", [24, 1000])
def test_a_quiet_round_decides_nothing(partitions: int) -> None:
    rig = Rig(3, 0)
    for partition in range(partitions):
        sets = Replicas(_ids(1, 2, 3))
        rig.partitions[partition] = msgspec.structs.replace(chain.empty(), replicas=sets)
        for node in (1, 2, 3):
            rig.reports[node][partition] = ReplicaReport(partition, Role.FOLLOWER, 0, 1, 1)
        claimed = chain.claim(rig.partitions[partition], _writer(1 + partition % 3), "test")
        assert claimed.claim is not None
        members = tuple(rig.nodes[n].member(n) for n in _ids(1, 2, 3))
        meta = chain.extend(claimed, claimed.claim, 0, members, 2)
        assert meta is not None
        rig.partitions[partition] = meta
        leader = ReplicaReport(partition, Role.LEADER, 1, 1, 1)
        rig.reports[1 + partition % 3][partition] = leader
    for node in (1, 2, 3):
        rig.hear(node)
    assert rig.decide() == []
    assert rig.decide(BALANCE_SETTLE_MS) == []
