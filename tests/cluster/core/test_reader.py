"""Reading across segments and replicas: bounds, holes, gaps, losses, and a chain that is stale."""

from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.log_messages import Records, TailState
from perdure.cluster.core.reader import (
    Fetch,
    Missing,
    ReadChain,
    ReaderCore,
    TrimGap,
    WaitSource,
    WaitTail,
)
from perdure.cluster.core.types import Member, NodeId, Writer
from perdure.core.invariant import InvariantViolation
from perdure.storage.wal_format import Record, encode_record

MEMBERS = tuple(Member(NodeId(n), b"%d" % n) for n in range(1, 4))
WRITER = Writer(NodeId(2), 1, 7)


def _segment(index: int, base: int, tail: int | None, epoch: int | None = None) -> SegmentMeta:
    return SegmentMeta(index, base, tail, epoch or index + 1, WRITER, MEMBERS, 2)


def _meta(*segments: SegmentMeta, trim: int = 1) -> PartitionMeta:
    return PartitionMeta(9, None, trim, segments)


def _record(lsn: int, epoch: int = 1) -> bytes:
    return encode_record(Record(lsn, epoch, 1, 0, 0, 0, 0, 0, b"%d" % lsn))


def _piece(first: int, lsns: Sequence[int], epoch: int = 1) -> Records:
    return Records(first, tuple(_record(lsn, epoch) for lsn in lsns))


def _core(meta: PartitionMeta, next_lsn: int = 1, home: Member | None = MEMBERS[0]) -> ReaderCore:
    core = ReaderCore(0, next_lsn, home)
    assert core.step() == ReadChain()
    core.on_chain(meta, 5)
    return core


def test_the_own_replica_comes_first_then_the_writer_s() -> None:
    closed = _segment(0, 1, 4)
    core = _core(_meta(closed, _segment(1, 4, None)))
    for member in (MEMBERS[0], MEMBERS[1], MEMBERS[2]):
        assert core.step() == Fetch(closed, member, 0, 3)
        core.on_absent(member)
    assert core.step() == WaitSource(1, (MEMBERS[0], MEMBERS[1], MEMBERS[2]))
    core.retry()
    assert core.step() == Fetch(closed, MEMBERS[0], 0, 3)


def test_an_open_segment_is_read_below_what_its_replicas_know_to_be_committed() -> None:
    opened = _segment(0, 1, None)
    core = _core(_meta(opened))
    assert core.step() == WaitTail(opened)
    core.on_tail((0, 0), TailState(2, False, None))
    core.on_tail((0, 0), TailState(1, False, None))
    step = core.step()
    assert step == Fetch(opened, MEMBERS[0], 0, 2)
    assert isinstance(step, Fetch)
    found = core.on_records(step, _piece(0, [1, 2, 3]))
    assert [record.lsn for record in found] == [1, 2]
    assert core.step() == WaitTail(opened)


def test_a_closed_segment_ends_where_the_chain_says() -> None:
    closed, opened = _segment(0, 1, 3), _segment(1, 3, None)
    core = _core(_meta(closed, opened))
    core.on_tail((0, 0), TailState(9, True, None))
    core.on_chain(_meta(closed, opened), 5)
    step = core.step()
    assert step == Fetch(closed, MEMBERS[0], 0, 2)
    assert isinstance(step, Fetch)
    assert [r.lsn for r in core.on_records(step, _piece(0, [1, 2, 3, 4]))] == [1, 2]
    assert core.step() == WaitTail(opened)


def test_where_one_has_a_hole_another_is_asked_up_to_its_end() -> None:
    closed = _segment(0, 1, 11)
    core = _core(_meta(closed, _segment(1, 11, None)))
    step = core.step()
    assert isinstance(step, Fetch)
    assert core.on_records(step, Records(4, ())) == []
    step = core.step()
    assert step == Fetch(closed, MEMBERS[1], 0, 4)
    assert isinstance(step, Fetch)
    core.on_records(step, _piece(0, [1, 2, 3, 4]))
    assert core.step() == Fetch(closed, MEMBERS[0], 4, 10)


def test_a_record_nobody_has_is_lost_and_never_skipped() -> None:
    closed = _segment(0, 1, 4)
    core = _core(_meta(closed, _segment(1, 4, None)))
    for _ in MEMBERS:
        step = core.step()
        assert isinstance(step, Fetch)
        core.on_records(step, Records(3, ()))
    assert core.step() == Missing(1)


def test_what_was_trimmed_is_a_gap() -> None:
    core = _core(_meta(_segment(2, 20, None), trim=20), next_lsn=5)
    assert core.step() == TrimGap(20)
    opened = _segment(0, 1, None)
    core = _core(_meta(opened))
    core.on_tail((0, 0), TailState(9, False, None))
    step = core.step()
    assert isinstance(step, Fetch)
    core.on_records(step, Records(6, (), True))
    assert core.step() == TrimGap(7)


def test_a_log_may_begin_in_the_midst_of_a_segment() -> None:
    closed = _segment(0, 1, 20)
    meta = _meta(closed, _segment(1, 20, None), trim=12)
    assert _core(meta).step() == TrimGap(12)
    assert _core(meta, next_lsn=12).step() == Fetch(closed, MEMBERS[0], 11, 19)


def test_a_sealed_segment_without_a_successor_means_a_stale_chain() -> None:
    opened = _segment(0, 1, None)
    core = _core(_meta(opened))
    core.on_tail((0, 0), TailState(0, True, None))
    assert core.step() == ReadChain()
    core.on_chain(_meta(opened), 5)
    assert core.step() == WaitTail(opened)
    core.on_chain(_meta(_segment(0, 1, 1), _segment(1, 1, None)), 6)
    assert core.step() == WaitTail(_segment(1, 1, None))
    core.on_chain(_meta(opened), 5)
    assert core.version == 6


def test_a_chain_is_read_again_while_a_sealed_segment_has_no_successor() -> None:
    opened = _segment(0, 1, None)
    core = _core(_meta(opened))
    core.on_no_news(opened)
    assert core.step() == ReadChain()  # nobody has ever told of it
    core.on_chain(_meta(opened), 5)
    core.on_tail((0, 0), TailState(0, False, None))
    core.on_no_news(opened)
    assert core.step() == WaitTail(opened)
    core.on_tail((0, 0), TailState(0, True, None))
    assert core.step() == ReadChain()
    core.on_chain(_meta(opened), 5)  # read before who sealed it has written the next one
    assert core.step() == WaitTail(opened)
    core.on_no_news(opened)  # and the hint of that is lost
    assert core.step() == ReadChain()


def test_records_carry_their_place_and_epoch() -> None:
    core = _core(_meta(_segment(0, 1, 4), _segment(1, 4, None)))
    step = core.step()
    assert isinstance(step, Fetch)
    with pytest.raises(InvariantViolation, match="their place"):
        core.on_records(step, _piece(0, [2]))
    with pytest.raises(InvariantViolation, match="I-13"):
        core.on_records(step, _piece(0, [1], epoch=3))


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=4),
    st.lists(st.sets(st.integers(1, 20)), min_size=3, max_size=3),
    st.integers(1, 3),
)
@settings(max_examples=300)
def test_whatever_replicas_lack_records_come_dense_or_are_told_missing(
    sizes: list[int], lacking: list[set[int]], chunk: int
) -> None:
    """A dumb twin: the reader gets exactly the records up to the first that nobody has."""
    segments: list[SegmentMeta] = []
    base = 1
    for index, size in enumerate(sizes):
        segments.append(_segment(index, base, base + size))
        base += size
    core = _core(_meta(*segments, _segment(len(sizes), base, None)))
    delivered: list[int] = []
    for _ in range(500):
        step = core.step()
        if not isinstance(step, Fetch):
            break
        first = step.segment.base_lsn
        lacks = lacking[MEMBERS.index(step.source)]
        held = [lsn for lsn in range(first + step.lower, first + step.upper) if lsn not in lacks]
        if held and held[0] == first + step.lower:
            run = [lsn for n, lsn in enumerate(held) if lsn == held[0] + n][:chunk]
            piece = _piece(step.lower, run, step.segment.epoch)
        else:
            following = held[0] - first if held else step.upper
            piece = Records(following, ())
        delivered.extend(record.lsn for record in core.on_records(step, piece))
    lost = [lsn for lsn in range(1, base) if all(lsn in lacks for lacks in lacking)]
    end = lost[0] if lost else base
    assert delivered == list(range(1, end))
    assert isinstance(core.step(), Missing if lost else WaitTail)
