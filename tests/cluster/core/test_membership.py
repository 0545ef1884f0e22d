"""Registers of nodes: starts under every pair of disk and metadata, and changes of state."""

import random
from dataclasses import replace

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core import chain, membership
from perdure.cluster.core.chain import PartitionMeta, Replicas
from perdure.cluster.core.identity import Verdict
from perdure.cluster.core.membership import (
    Addresses,
    Mark,
    MemberState,
    NodeMeta,
    NodeProfile,
    NodeRole,
    StartPlan,
    StorageState,
    WorkerState,
)
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.errors import (
    DataDirectoryForeign,
    MembershipRefused,
    MetadataRegressed,
    PerdureError,
)

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)
UUID = "aa" * 16
FRESH = "ff" * 16


def _profile(name: str = "n1", *, fresh: str = FRESH, incarnation: int = 99) -> NodeProfile:
    return NodeProfile(
        name=name,
        addresses=Addresses("h:5122", "http://h:8080", "http://h:9070"),
        zone="z1",
        roles=tuple(NodeRole),
        software="1.0",
        incarnation=incarnation,
        fresh_uuid=fresh,
    )


def _node(name: str = "n1", generation: int = 5, **fields: object) -> NodeMeta:
    return msgspec.structs.replace(NodeMeta(name, generation, 7, UUID), **fields)


def test_a_single_nodes_value_is_read() -> None:
    old = msgspec.msgpack.encode(
        {"name": "n1", "generation": 3, "incarnation": 8, "storage_uuid": UUID}
    )
    node = msgspec.msgpack.decode(old, type=NodeMeta)
    assert (node.storage, node.worker, node.may_store, node.may_work) == (
        StorageState.READ_WRITE,
        WorkerState.ACTIVE,
        True,
        True,
    )
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(node), type=NodeMeta) == node
    assert node.writer(ONE) == Writer(ONE, 3, 8)
    assert node.member(ONE) == Member(ONE, bytes.fromhex(UUID))


# --- Starting -----------------------------------------------------------------------------------


def test_the_first_nodes_join_with_dense_ids() -> None:
    nodes: dict[NodeId, NodeMeta] = {}
    for number in range(1, 4):
        plan = membership.plan_start(nodes, None, _profile(f"n{number}", fresh=f"{number:032x}"))
        assert (plan.node, plan.verdict, plan.is_new) == (number, Verdict.JOIN, True)
        assert plan.value.storage is StorageState.PROVISIONING
        assert not plan.value.may_store
        nodes[plan.node] = plan.value


def test_an_id_is_not_used_again() -> None:
    nodes = {ONE: _node(), TWO: _node("n2", is_removed=True)}
    assert membership.plan_start(nodes, None, _profile("n2")).node == THREE


@pytest.mark.parametrize(
    ("marker_generation", "published", "verdict"),
    [
        (5, 5, Verdict.START),
        (6, 5, Verdict.START),
        (4, 5, Verdict.DATA_LOSS),
    ],
)
def test_a_start_takes_the_next_generation(
    marker_generation: int, published: int, verdict: Verdict
) -> None:
    nodes = {ONE: _node(generation=published)}
    plan = membership.plan_start(nodes, Mark(ONE, marker_generation, UUID), _profile())
    assert (plan.verdict, plan.node, plan.is_new) == (verdict, ONE, False)
    assert (plan.value.generation, plan.value.incarnation) == (published + 1, 99)
    assert plan.value.zone == "z1"
    is_lost = verdict is Verdict.DATA_LOSS
    assert plan.value.storage is (StorageState.DATA_LOSS if is_lost else StorageState.READ_WRITE)
    assert (UUID in plan.value.lost_uuids) is is_lost


def test_metadata_that_forgot_a_start_is_noticed() -> None:
    with pytest.raises(MetadataRegressed, match="generation 7, metadata knows 5"):
        membership.plan_start({ONE: _node()}, Mark(ONE, 7, UUID), _profile())
    with pytest.raises(MetadataRegressed, match="knows no such node"):
        membership.plan_start({}, Mark(ONE, 7, UUID), _profile())


@pytest.mark.parametrize("state", list(StorageState))
def test_an_empty_disk_under_a_known_name(state: StorageState) -> None:
    plan = membership.plan_start({ONE: _node(storage=state)}, None, _profile())
    was_writable = state in (StorageState.READ_WRITE, StorageState.READ_ONLY)
    assert plan.verdict is (Verdict.DATA_LOSS if was_writable else Verdict.JOIN)
    assert (plan.value.generation, plan.value.storage_uuid) == (6, FRESH)
    is_known = state is StorageState.DATA_LOSS  # the new disk takes the place of the lost one
    wanted = StorageState.PROVISIONING if is_known else state
    assert plan.value.storage is (StorageState.DATA_LOSS if was_writable else wanted)
    assert plan.value.lost_uuids == ((UUID,) if was_writable or is_known else ())


def test_a_directory_of_somebody_else_is_refused() -> None:
    for node, text in (
        (_node("other"), "is named 'other'"),
        (_node(is_removed=True), "was removed"),
    ):
        with pytest.raises(DataDirectoryForeign, match=text):
            membership.plan_start({ONE: node}, Mark(ONE, 5, UUID), _profile())


def test_a_first_start_that_died_before_it_was_published_begins_again() -> None:
    mark = Mark(TWO, 1, FRESH)
    for nodes, node in (({ONE: _node("a")}, 2), ({ONE: _node("a"), TWO: _node("b")}, 3)):
        plan = membership.plan_start(nodes, mark, _profile())
        assert (plan.node, plan.is_new, plan.value.storage_uuid) == (node, True, FRESH)


def test_a_name_in_use_is_refused() -> None:
    nodes = {ONE: _node("a"), TWO: _node("n1")}
    with pytest.raises(MembershipRefused, match="belongs to node 2"):
        membership.plan_start(nodes, Mark(THREE, 1, FRESH), _profile())


def test_a_disk_that_was_given_up_never_counts_again() -> None:
    lost = membership.mark_lost(_node())
    plan = membership.plan_start({ONE: lost}, Mark(ONE, 5, UUID), _profile())
    assert plan.verdict is Verdict.DATA_LOSS
    resumed = membership.resume(plan.value)
    with pytest.raises(MembershipRefused, match="given up as lost"):
        membership.serve_storage(resumed)
    wiped = membership.plan_start({ONE: resumed}, None, _profile())
    assert wiped.verdict is Verdict.JOIN
    assert membership.serve_storage(wiped.value).may_store


class _Machine:
    """A disk that keeps its marker, and a process that may die between any two steps."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.mark: Mark | None = None
        self.backups: list[Mark | None] = [None]


def test_no_run_is_published_twice_and_no_lost_disk_is_writable() -> None:
    for seed in range(300):
        dice = random.Random(seed)
        nodes: dict[NodeId, NodeMeta] = {}
        machines = [_Machine(name) for name in ("a", "b", "c")]
        runs: set[tuple[int, int]] = set()
        for step in range(40):
            machine = dice.choice(machines)
            fault = dice.random()
            if fault < 0.06:
                machine.mark = None
            elif fault < 0.12:
                machine.mark = dice.choice(machine.backups)
            machine.backups.append(machine.mark)
            seen = dict(nodes)  # may be stale by the time of the compare-and-set
            try:
                plan = membership.plan_start(
                    seen, machine.mark, _profile(machine.name, fresh=f"{step:032x}")
                )
            except PerdureError:
                machine.mark = None  # wiped by its operator
                continue
            machine.mark = Mark(plan.node, plan.value.generation, plan.value.storage_uuid)
            if dice.random() < 0.3:
                continue  # died before it was published
            run = (int(plan.node), plan.value.generation)
            assert run not in runs
            runs.add(run)
            _publish(nodes, plan, dice)
        assert sorted(nodes) == list(range(1, len(nodes) + 1))
        names = [node.name for node in nodes.values() if not node.is_removed]
        assert len(names) == len(set(names))


def _publish(nodes: dict[NodeId, NodeMeta], plan: StartPlan, dice: random.Random) -> None:
    value = plan.value
    before = nodes.get(plan.node)
    assert (before is None) is plan.is_new
    assert before is None or value.generation == before.generation + 1
    if value.storage is StorageState.DATA_LOSS and dice.random() < 0.5:
        value = membership.resume(value)
    if value.storage is StorageState.PROVISIONING:
        try:
            value = membership.serve_storage(value)
        except MembershipRefused:
            assert value.storage_uuid in value.lost_uuids
    assert not value.may_store or value.storage_uuid not in value.lost_uuids
    nodes[plan.node] = value


# --- Changing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("before", list(StorageState))
def test_storage_states_follow_the_table(before: StorageState) -> None:
    allowed = {
        membership.serve_storage: {StorageState.PROVISIONING, StorageState.READ_ONLY},
        membership.resume: {StorageState.DATA_LOSS, StorageState.DISABLED},
        membership.mark_lost: {StorageState.READ_WRITE, StorageState.READ_ONLY},
    }
    for edit, sources in allowed.items():
        node = _node(storage=before)
        if before in sources:
            assert edit(node).storage is not before
        else:
            with pytest.raises(MembershipRefused, match="may become"):
                edit(node)
        with pytest.raises(MembershipRefused, match="was removed"):
            edit(_node(storage=before, is_removed=True))


def _partition(
    replicas: tuple[int, ...],
    *,
    leader: int = 1,
    nodeset: tuple[int, ...] = (1, 2, 3),
    following: tuple[int, ...] | None = None,
) -> PartitionMeta:
    writer = Writer(NodeId(leader), 1, 1)
    claimed = chain.claim(chain.empty(), writer, "test")
    assert claimed.claim is not None
    members = tuple(Member(NodeId(node), b"S") for node in nodeset)
    meta = chain.extend(claimed, claimed.claim, 0, members, 2)
    assert meta is not None
    ids = tuple(NodeId(node) for node in replicas)
    next_ids = tuple(NodeId(node) for node in following) if following is not None else None
    return msgspec.structs.replace(meta, replicas=Replicas(ids, next_ids))


def test_nodes_that_are_leaving_do_not_count_for_a_drain() -> None:
    nodes = {node: _node(f"n{node}") for node in (ONE, TWO, THREE)}
    nodes[ONE] = membership.drain(nodes, ONE, 2)
    assert nodes[ONE].may_store  # for a while
    with pytest.raises(MembershipRefused, match="add a node first"):
        membership.drain(nodes, TWO, 2)


def test_a_start_says_whether_it_holds_metadata() -> None:
    profile = replace(_profile(), metadata=MemberState.VOTER)
    joined = membership.plan_start({}, None, profile)
    assert joined.value.metadata is MemberState.VOTER
    again = membership.plan_start(
        {joined.node: joined.value}, Mark(joined.node, 1, joined.value.storage_uuid), _profile()
    )
    assert again.value.metadata is MemberState.STANDBY


def test_a_drain_takes_its_steps_as_they_become_possible() -> None:
    nodes = {node: _node(f"n{node}") for node in (ONE, TWO, THREE, NodeId(4))}
    nodes[ONE] = membership.drain(nodes, ONE, 2)
    for partitions, worker, storage in (
        ({0: _partition((1, 2, 3))}, WorkerState.DRAINING, StorageState.READ_WRITE),
        ({0: _partition((1, 2, 3), leader=2)}, WorkerState.DRAINING, StorageState.READ_WRITE),
        ({0: _partition((2, 3, 4))}, WorkerState.DRAINING, StorageState.READ_WRITE),
        ({0: _partition((2, 3), following=(1, 2))}, WorkerState.DRAINING, StorageState.READ_WRITE),
        ({0: _partition((2, 3, 4), leader=2)}, WorkerState.DISABLED, StorageState.READ_WRITE),
        ({0: _partition((2, 3, 4), leader=2)}, WorkerState.DISABLED, StorageState.READ_ONLY),
        ({0: _partition((2, 3, 4), leader=2)}, WorkerState.DISABLED, StorageState.READ_ONLY),
        (
            {0: _partition((2, 3, 4), leader=2, nodeset=(2, 3, 4))},
            WorkerState.DISABLED,
            StorageState.DISABLED,
        ),
    ):
        nodes[ONE] = membership.advance_drain(nodes, ONE, partitions) or nodes[ONE]
        assert (nodes[ONE].worker, nodes[ONE].storage) == (worker, storage)
    partitions = {0: _partition((2, 3, 4), leader=2, nodeset=(2, 3, 4))}
    assert membership.advance_drain(nodes, ONE, partitions) is None
    assert membership.holds(nodes, ONE, partitions) == []
    nodes[ONE] = membership.remove(nodes, ONE, partitions)
    assert membership.next_id(nodes) == 5
    with pytest.raises(MembershipRefused, match="no node 1"):
        membership.holds(nodes, ONE, partitions)


def test_what_holds_a_node_is_listed() -> None:
    nodes = {ONE: _node(metadata=MemberState.VOTER), TWO: _node("n2")}
    partitions = {3: _partition((1, 2)), 4: _partition((2,), leader=2, nodeset=(2,))}
    assert membership.holds(nodes, ONE, partitions) == [
        "it takes part in the work (worker state active): drain it",
        "it holds tables of partition 3",
        "it leads partition 3",
        "its storage is read_write, not disabled",
        "segment 0 of partition 3 names its log",
        "it holds metadata: name others with `perdure cluster voters`",
    ]
    with pytest.raises(MembershipRefused, match="can't be removed: it takes part"):
        membership.remove(nodes, ONE, partitions)


def test_a_drain_that_leaves_too_few_is_refused() -> None:
    nodes = {ONE: _node(), TWO: _node("n2")}
    with pytest.raises(MembershipRefused, match="there are 1 nodes with writable storage"):
        membership.drain(nodes, ONE, 2)
    assert membership.drain(nodes, ONE, 1).worker is WorkerState.DRAINING
    nodes[TWO] = _node("n2", worker=WorkerState.DRAINING)
    with pytest.raises(MembershipRefused, match="only one that takes partitions"):
        membership.drain(nodes, ONE, 1)
    with pytest.raises(MembershipRefused, match="no node 9"):
        membership.drain(nodes, NodeId(9), 1)


def test_undraining_gives_back_what_a_drain_took() -> None:
    for worker in (WorkerState.DRAINING, WorkerState.DISABLED):
        for storage in (StorageState.READ_WRITE, StorageState.READ_ONLY):
            node = membership.undrain(_node(worker=worker, storage=storage))
            assert node.may_work
            assert node.may_store


_EDITS = ("drain", "undrain", "advance", "lost", "resume", "serve", "remove", "start", "wipe")


@given(st.lists(st.tuples(st.sampled_from(_EDITS), st.integers(1, 3)), max_size=60))
def test_whatever_is_asked_states_stay_sound(edits: list[tuple[str, int]]) -> None:
    nodes = {NodeId(n): _node(f"n{n}", storage_uuid=f"{n:032x}") for n in (1, 2, 3)}
    partitions = {0: _partition((), leader=9, nodeset=(9,))}
    for step, (edit, number) in enumerate(edits):
        node = NodeId(number)
        before = nodes[node]
        try:
            nodes[node] = _edit(edit, nodes, node, step, partitions=partitions) or before
        except PerdureError:
            continue
        after = nodes[node]
        assert not before.is_removed or after == before
        assert after.generation >= before.generation
        assert set(before.lost_uuids) <= set(after.lost_uuids)
        assert not after.may_store or after.storage_uuid not in after.lost_uuids
        assert not after.is_removed or after.storage is StorageState.DISABLED


def _edit(
    edit: str,
    nodes: dict[NodeId, NodeMeta],
    node: NodeId,
    step: int,
    *,
    partitions: dict[int, PartitionMeta],
) -> NodeMeta | None:
    value = nodes[node]
    mark = Mark(node, value.generation, value.storage_uuid)
    profile = replace(_profile(value.name), fresh_uuid=f"{100 + step:032x}")
    match edit:
        case "drain":
            return membership.drain(nodes, node, 1)
        case "undrain":
            return membership.undrain(value)
        case "advance":
            return membership.advance_drain(nodes, node, partitions)
        case "lost":
            return membership.mark_lost(value)
        case "resume":
            return membership.resume(value)
        case "serve":
            return membership.serve_storage(value)
        case "remove":
            return membership.remove(nodes, node, partitions)
        case "start":
            return membership.plan_start(nodes, mark, profile).value
        case _:
            plan = membership.plan_start(nodes, None, profile)
            return plan.value if plan.node == node else None
