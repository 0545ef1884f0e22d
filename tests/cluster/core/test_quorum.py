"""Quorum arithmetic against brute force over subsets."""

from itertools import combinations, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.quorum import (
    Confirmations,
    check_property,
    committed_tail,
    recovered_tail,
)
from perdure.cluster.core.types import Member, NodeId, SegmentParams, Writer
from perdure.core.invariant import InvariantViolation

ALLOWED = {
    (1, 1),
    (2, 2),
    (3, 2),
    (3, 3),
    (4, 3),
    (4, 4),
    (5, 3),
    (5, 4),
    (5, 5),
    (6, 4),
    (6, 5),
    (6, 6),
    (7, 4),
    (7, 5),
    (7, 6),
    (7, 7),
}


@pytest.mark.parametrize("nodes", range(8))
@pytest.mark.parametrize("replication", range(9))
def test_which_nodesets_are_allowed(nodes: int, replication: int) -> None:
    if (nodes, replication) in ALLOWED:
        check_property(nodes, replication)
    else:
        with pytest.raises(InvariantViolation):
            check_property(nodes, replication)


@pytest.mark.parametrize(("nodes", "replication"), sorted(ALLOWED))
def test_every_f_majority_meets_every_write_quorum(nodes: int, replication: int) -> None:
    members = tuple(Member(NodeId(n + 1), b"") for n in range(nodes))
    params = SegmentParams(
        partition=0,
        index=0,
        base_lsn=1,
        epoch=1,
        writer=Writer(NodeId(1), 1, 1),
        nodeset=members,
        replication=replication,
    )
    writes = [set(quorum) for quorum in combinations(members, replication)]
    for seal in combinations(members, params.seal_quorum):
        assert all(write & set(seal) for write in writes)
    if params.seal_quorum > 1:
        smaller = [set(each) for each in combinations(members, params.seal_quorum - 1)]
        assert any(not write & seal for write in writes for seal in smaller)
    # Two writers can't both commit, whatever metadata says (I-20).
    assert all(one & other for one in writes for other in writes)


@given(st.lists(st.integers(0, 20), max_size=7), st.integers(1, 7))
def test_the_committed_tail_is_what_r_replicas_have(tails: list[int], replication: int) -> None:
    expected = 0
    for tail in range(21):
        if sum(acked >= tail for acked in tails) >= replication:
            expected = tail
    assert committed_tail(tails, replication) == expected


@given(st.integers(0, 10), st.sets(st.integers(0, 20)))
def test_the_recovered_tail_is_the_first_offset_nobody_holds(kgt: int, held: set[int]) -> None:
    tail = recovered_tail(kgt, held)
    assert tail >= kgt
    assert tail not in held
    assert all(offset in held for offset in range(kgt, tail))


# --- Who is asked, and who holds a segment --------------------------------------------------------


def _members(count: int) -> tuple[Member, ...]:
    return tuple(Member(NodeId(n + 1), b"%d" % n) for n in range(count))


@pytest.mark.parametrize(("nodes", "replication"), sorted(ALLOWED))
def test_confirmations_against_all_answers(nodes: int, replication: int) -> None:
    """Confirmed when R say yes; refuted as soon as R yeses can't come any more."""
    members = _members(nodes)
    for answers in product((True, False, None), repeat=nodes):
        tally = Confirmations(members, replication)
        tally.answer(NodeId(99), True)
        for member, answer in zip(members, answers, strict=True):
            if answer is not None:
                tally.answer(member.node, answer)
        assert tally.is_confirmed == (sum(a is True for a in answers) >= replication)
        assert tally.is_refuted == (sum(a is not False for a in answers) < replication)
