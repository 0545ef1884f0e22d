"""Recovering a segment: which tail, which repairs, and that no commit is ever cut off."""

import random
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.core.recovery import Recovered, RecoveryCore, Repair
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


def test_one_replica_is_its_own_quorum() -> None:
    core = RecoveryCore(_params(1, 1))
    assert core.on_sealed(_sealed(MEMBERS[0], 3, {3: 0, 4: 0})) == Recovered(5)


def test_an_f_majority_is_awaited_and_strangers_don_t_count() -> None:
    core = RecoveryCore(_params(3, 2))
    assert core.on_sealed(_sealed(MEMBERS[0], 0, {})) is None
    assert core.on_sealed(_sealed(MEMBERS[0], 0, {})) is None
    assert core.on_sealed(_sealed(MEMBERS[4], 0, {})) is None
    assert core.on_sealed(_sealed(MEMBERS[1], 0, {})) == Recovered(0)
    assert core.on_sealed(_sealed(MEMBERS[2], 9, {})) is None


def test_records_are_repaired_in_order_until_r_replicas_hold_them() -> None:
    core = RecoveryCore(_params(3, 2))
    core.on_sealed(_sealed(MEMBERS[0], 2, {2: 7, 3: 8}))
    repairs = core.on_sealed(_sealed(MEMBERS[1], 2, {2: 7}))
    assert repairs == [Repair(3, MEMBERS[0], MEMBERS[1])]
    assert core.on_repaired(3, MEMBERS[1]) == Recovered(4)


def test_a_hole_ends_the_tail() -> None:
    core = RecoveryCore(_params(3, 3))
    repairs = core.on_sealed(_sealed(MEMBERS[0], 0, {0: 1, 2: 3}))
    assert repairs == [
        Repair(0, MEMBERS[0], MEMBERS[1]),
        Repair(0, MEMBERS[0], MEMBERS[2]),
    ]
    core.on_repaired(0, MEMBERS[1])
    assert core.on_repaired(0, MEMBERS[2]) == Recovered(1)


def test_two_contents_for_one_offset_are_a_bug() -> None:
    core = RecoveryCore(_params(3, 2))
    core.on_sealed(_sealed(MEMBERS[0], 0, {0: 1}))
    with pytest.raises(InvariantViolation, match="I-2"):
        core.on_sealed(_sealed(MEMBERS[1], 0, {0: 2}))


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
    outcome: list[Repair] | Recovered | None = None
    for number in answering:
        held = {offset: offset for offset in nodes[number].held if offset >= nodes[number].kgt}
        outcome = core.on_sealed(_sealed(MEMBERS[number], nodes[number].kgt, held))
    copies = {n: {o for o in nodes[n].held if o >= nodes[n].kgt} for n in answering}
    known = max(nodes[n].kgt for n in answering)
    while not isinstance(outcome, Recovered):
        assert outcome
        repair = outcome[0]
        assert repair.offset in copies[int(repair.source.node) - 1]
        copies.setdefault(int(repair.target.node) - 1, set()).add(repair.offset)
        outcome = core.on_repaired(repair.offset, repair.target)
    assert outcome.tail >= committed
    for offset in range(known, outcome.tail):
        assert sum(offset in held for held in copies.values()) >= replication
