"""The chain: claims, extensions and trims, and what never changes."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.invariant import InvariantViolation

NODESET = (Member(NodeId(1), b"S"),)


def _writer(incarnation: int) -> Writer:
    return Writer(NodeId(1), incarnation, incarnation)


def _take(meta: PartitionMeta, tail: int, incarnation: int = 1) -> PartitionMeta:
    claimed = chain.claim(meta, _writer(incarnation), "test")
    assert claimed.claim is not None
    extended = chain.extend(claimed, claimed.claim, tail, NODESET, 1)
    assert extended is not None
    return extended


def test_the_first_segment_starts_at_lsn_one() -> None:
    meta = _take(chain.empty(), 0)
    (segment,) = meta.chain
    assert (segment.index, segment.base_lsn, segment.tail_lsn, segment.epoch) == (0, 1, None, 1)
    assert chain.open_segment(meta) == segment
    assert chain.open_segment(chain.empty()) is None


def test_taking_over_closes_the_open_segment_at_its_tail() -> None:
    meta = _take(_take(chain.empty(), 0), 10, incarnation=2)
    first, second = meta.chain
    assert (first.base_lsn, first.tail_lsn) == (1, 11)
    assert (second.index, second.base_lsn, second.tail_lsn, second.epoch) == (1, 11, None, 2)
    assert second.writer == _writer(2)


def test_an_overtaken_claim_extends_nothing() -> None:
    mine = chain.claim(chain.empty(), _writer(1), "first")
    theirs = chain.claim(mine, _writer(2), "second")
    assert mine.claim is not None
    assert chain.extend(theirs, mine.claim, 0, NODESET, 1) is None


def test_a_claim_without_a_segment_leaves_a_gap_in_the_epochs() -> None:
    meta = chain.claim(_take(chain.empty(), 0), _writer(2), "died")
    assert [segment.epoch for segment in _take(meta, 5).chain] == [1, 3]


def test_values_written_before_there_were_replica_sets_are_read() -> None:
    meta = _take(chain.empty(), 0)
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(meta))
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(fields[:4]), type=PartitionMeta)
    assert read == meta
    assert (read.replicas.current, read.replicas.following, read.policy.pinned) == ((), None, None)


def test_a_chain_is_extended_under_a_younger_epoch_only() -> None:
    meta = _take(chain.empty(), 0)
    assert meta.claim is not None
    with pytest.raises(InvariantViolation, match="epochs grow"):
        chain.extend(meta, meta.claim, 0, NODESET, 1)


def test_trimming_drops_what_is_wholly_below() -> None:
    meta = chain.empty()
    for tail in (0, 10, 5, 0, 7):
        meta = _take(meta, tail)
    assert [segment.base_lsn for segment in meta.chain] == [1, 11, 16, 16, 23]
    for below, kept, trim in (
        (1, [0, 1, 2, 3, 4], 1),
        (10, [0, 1, 2, 3, 4], 1),
        (11, [1, 2, 3, 4], 11),
        (15, [1, 2, 3, 4], 11),
        (16, [3, 4], 16),
        (22, [3, 4], 16),
        (23, [4], 23),
        (1000, [4], 23),
    ):
        trimmed = chain.trim_prefix(meta, below)
        assert [segment.index for segment in trimmed.chain] == kept, below
        assert trimmed.trim_lsn == trim, below


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 80)), max_size=12))
def test_the_chain_only_grows(steps: list[tuple[int, int]]) -> None:
    meta = chain.empty()
    closed: dict[int, object] = {}
    for tail, trim in steps:
        before = meta
        meta = _take(chain.trim_prefix(meta, trim), tail)
        assert meta.epoch > before.epoch
        assert meta.trim_lsn >= before.trim_lsn
        assert meta.chain[0].base_lsn >= meta.trim_lsn
        for one, following in zip(meta.chain, meta.chain[1:], strict=False):
            assert one.tail_lsn == following.base_lsn
            assert one.epoch < following.epoch
            assert one.index + 1 == following.index
            assert closed.setdefault(one.index, one) == one
