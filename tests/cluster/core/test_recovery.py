"""Recovering a segment: which tail, which repairs, and that no commit is ever cut off."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.core.recovery import (
    Copy,
    Recovered,
    RecoveryCore,
    Repair,
    Seal,
    Step,
    Wait,
)
from perdure.cluster.core.types import Member, NodeId, SealOk, SegmentParams, Writer
from perdure.core.invariant import InvariantViolation

MEMBERS = tuple(Member(NodeId(n), b"%d" % n) for n in range(1, 6))


def _params(nodes: int, replication: int) -> SegmentParams:
    return SegmentParams(
        partition=0,
        index=0,
        base_lsn=1,
        epoch=1,
        writer=Writer(NodeId(1), 1, 1),
        nodeset=MEMBERS[:nodes],
        replication=replication,
    )


def _sealed(member: Member, kgt: int, held: dict[int, int]) -> SealOk:
    return SealOk(
        member=member,
        partition=0,
        segment=0,
        tail_at_seal=max(held, default=kgt - 1) + 1,
        kgt=kgt,
        held=tuple(sorted(held.items())),
    )


def _fed(nodes: int, replication: int, *replies: SealOk, degraded: bool = False) -> RecoveryCore:
    core = RecoveryCore(_params(nodes, replication), is_degraded_allowed=degraded)
    for reply in replies:
        core.on_sealed(reply)
    return core


def _work(core: RecoveryCore) -> Step:
    """Make the copies it asks for until it asks for something else."""
    while isinstance(step := core.step(), Copy):
        for repair in step.repairs:
            core.on_repaired(repair)
    return step


def test_one_replica_is_its_own_quorum() -> None:
    assert _fed(1, 1, _sealed(MEMBERS[0], 3, {3: 0, 4: 0})).step() == Recovered(5)


def test_an_f_majority_is_awaited_and_strangers_don_t_count() -> None:
    core = RecoveryCore(_params(3, 2))
    assert core.step() == Seal(MEMBERS[:3])
    core.on_sealed(_sealed(MEMBERS[0], 0, {}))
    core.on_sealed(_sealed(MEMBERS[0], 0, {}))
    core.on_sealed(_sealed(MEMBERS[4], 0, {}))
    core.on_sealed(_sealed(Member(NodeId(2), b"another disk"), 0, {}))
    assert core.step() == Seal(MEMBERS[1:3])
    assert core.missing == MEMBERS[1:3]
    core.on_sealed(_sealed(MEMBERS[1], 0, {}))
    assert core.step() == Recovered(0)
    core.on_sealed(_sealed(MEMBERS[2], 9, {}))
    assert core.step() == Recovered(0)


def test_what_is_missing_is_named_while_it_waits() -> None:
    core = _fed(3, 2, _sealed(MEMBERS[0], 0, {}))
    core.on_absent(MEMBERS[1])
    assert core.step() == Seal((MEMBERS[2],))
    core.on_absent(MEMBERS[2])
    assert core.step() == Wait("seal_quorum", MEMBERS[1:3])
    core.retry()
    assert core.step() == Seal(MEMBERS[1:3])


def test_records_are_repaired_until_r_replicas_hold_them() -> None:
    core = _fed(3, 2, _sealed(MEMBERS[0], 2, {2: 7, 3: 8, 4: 9}), _sealed(MEMBERS[1], 2, {2: 7}))
    step = core.step()
    assert step == Copy((Repair(3, 2, MEMBERS[0], MEMBERS[1]),))
    assert isinstance(step, Copy)
    core.on_repaired(step.repairs[0])
    assert core.step() == Recovered(5)


def test_a_hole_ends_the_tail() -> None:
    core = _fed(3, 3, _sealed(MEMBERS[0], 0, {0: 1, 2: 3}))
    assert core.step() == Copy(
        (Repair(0, 1, MEMBERS[0], MEMBERS[1]), Repair(0, 1, MEMBERS[0], MEMBERS[2]))
    )
    assert _work(core) == Recovered(1)


def test_an_absent_target_is_replaced_and_an_absent_source_awaited() -> None:
    replies = (_sealed(MEMBERS[0], 0, {0: 1}), _sealed(MEMBERS[1], 0, {}))
    core = _fed(3, 2, *replies)
    core.on_absent(MEMBERS[1])
    assert core.step() == Copy((Repair(0, 1, MEMBERS[0], MEMBERS[2]),))
    core.on_absent(MEMBERS[2])
    assert core.step() == Wait("repair_copies", MEMBERS[1:3])
    core.on_absent(MEMBERS[0])
    assert core.step() == Wait("repair_source", MEMBERS[:1])
    core.retry()
    assert _work(core) == Recovered(1)


def test_fewer_copies_are_enough_only_where_that_is_allowed() -> None:
    for degraded in (False, True):
        core = _fed(3, 3, _sealed(MEMBERS[0], 0, {0: 1}), degraded=degraded)
        core.on_absent(MEMBERS[2])
        expected = Recovered(1, True) if degraded else Wait("repair_copies", MEMBERS[2:3])
        assert _work(core) == expected
    core = _fed(3, 3, _sealed(MEMBERS[0], 0, {0: 1}), degraded=True)
    for member in MEMBERS:
        core.on_absent(member)
    assert core.step() == Wait("repair_source", MEMBERS[:1])


def test_two_contents_for_one_offset_are_a_bug() -> None:
    core = _fed(3, 2, _sealed(MEMBERS[0], 0, {0: 1}))
    with pytest.raises(InvariantViolation, match="I-2"):
        core.on_sealed(_sealed(MEMBERS[1], 0, {0: 2}))


def test_a_copy_has_the_content_that_was_named() -> None:
    core = _fed(3, 2, _sealed(MEMBERS[0], 0, {0: 1, 1: 2}), _sealed(MEMBERS[1], 0, {}))
    core.check(0, [1, 2])
    with pytest.raises(InvariantViolation, match="I-2"):
        core.check(1, [3])


@dataclass
class _Node:
    held: set[int] = field(default_factory=set[int])
    tail: int = 0
    kgt: int = 0


@given(
    st.sampled_from([(1, 1), (2, 2), (3, 2), (3, 3), (4, 3), (5, 3)]),
    st.integers(0, 12),
    st.randoms(use_true_random=False),
)
@settings(max_examples=300)
def test_no_commit_is_ever_cut_off(
    nodes_and_replication: tuple[int, int], records: int, dice: random.Random
) -> None:
    """Any writes before the seal, any f-majority that answers: the tail covers the commits (I-8)
    and each offset above the known tail ends with R copies (I-9)."""
    count, replication = nodes_and_replication
    nodes = [_Node() for _ in range(count)]
    committed = 0
    for _ in range(records * count):
        node = dice.choice(nodes)
        if dice.random() < 0.2 and node.tail < committed:  # a laggard skips what is committed
            node.tail = node.kgt = dice.randint(node.tail, committed)
        elif node.tail < records:
            node.kgt = max(node.kgt, dice.randint(0, committed))
            node.held.add(node.tail)
            node.tail += 1
        committed = max(
            committed, sorted((each.tail for each in nodes), reverse=True)[replication - 1]
        )
    params = _params(count, replication)
    core = RecoveryCore(params)
    answering = dice.sample(range(count), params.seal_quorum)
    for number in answering:
        held = {offset: offset for offset in nodes[number].held if offset >= nodes[number].kgt}
        core.on_sealed(_sealed(MEMBERS[number], nodes[number].kgt, held))
    copies = {n: {o for o in nodes[n].held if o >= nodes[n].kgt} for n in answering}
    known = max(nodes[n].kgt for n in answering)
    while isinstance(step := core.step(), Copy):
        repair = dice.choice(step.repairs)
        offsets = set(range(repair.first_offset, repair.first_offset + repair.count))
        assert offsets <= copies[int(repair.source.node) - 1]
        copies.setdefault(int(repair.target.node) - 1, set()).update(offsets)
        core.on_repaired(repair)
    assert isinstance(step, Recovered)
    assert step.tail >= committed
    for offset in range(known, step.tail):
        assert sum(offset in held for held in copies.values()) >= replication
