"""Closing a segment without a quorum: what is kept, when it is refused, and who is left behind."""

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, SegmentMeta, UnsafeClose
from perdure.cluster.core.checkpoint import Checkpoint
from perdure.cluster.core.log_messages import TailState
from perdure.cluster.core.membership import NodeMeta
from perdure.cluster.core.reader import Fetch, Forsaken, ReaderCore, TrimGap
from perdure.cluster.core.recovery import Copy, Recovered, RecoveryCore, Remnant, Seal, Wait
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Release,
    SealOk,
    SegmentState,
    Store,
    Writer,
)
from perdure.cluster.core.unsafe_close import Examination, examine, is_given_up
from perdure.core.invariant import InvariantViolation
from perdure.storage.wal_format import (
    Frame,
    Record,
    decode_frame_header,
    encode_frame_header,
    encode_record,
)

ONE, TWO, THREE = (Member(NodeId(n), b"%016d" % n) for n in (1, 2, 3))
WRITER = Writer(NodeId(1), 1, 7)
SEGMENT = SegmentMeta(4, 101, None, 9, WRITER, (ONE, TWO, THREE), 2)


def _state(kgt: int, local_tail: int) -> SegmentState:
    ref = SEGMENT.params(0).ref
    return SegmentState(ref, local_tail, local_tail, kgt, 0, None, None)


def _examine(
    told: dict[Member, SegmentState | None],
    given_up: set[Member],
    tables: dict[NodeId, int] | None = None,
    holes: tuple[tuple[int, int], ...] = (),
) -> Examination:
    return examine(SEGMENT, told, given_up, tables or {}, holes)


# --- Whether it may be ----------------------------------------------------------------------------


def test_what_one_replica_has_is_kept() -> None:
    found = _examine({THREE: _state(5, 8)}, {ONE, TWO}, {NodeId(3): 104})
    assert found.refusal is None
    assert (found.known_lsn, found.tail_lsn, found.begins_lsn) == (106, 109, 0)
    assert found.given_up == (ONE, TWO) and found.silent == ()
    close = found.close("root@here", 5_000)
    assert close == UnsafeClose(4, 9, 106, 0, (THREE,), "root@here", 5_000)


def test_what_tables_have_applied_is_kept_also_without_any_replica() -> None:
    found = _examine({THREE: _state(5, 8)}, {ONE, TWO}, {NodeId(7): 120, NodeId(3): 104})
    assert (found.known_lsn, found.tail_lsn, found.begins_lsn) == (121, 121, 121)
    assert found.refusal is None
    alone = _examine({}, {ONE, TWO, THREE}, {NodeId(7): 120})
    assert (alone.counted, alone.known_lsn, alone.begins_lsn) == ((), 121, 121)
    assert alone.refusal is None


@pytest.mark.parametrize(
    ("told", "given_up", "tables", "holes", "words"),
    [
        ({ONE: _state(1, 1), THREE: None}, {TWO}, {}, (), "by the rules"),
        ({ONE: _state(1, 1), TWO: None, THREE: None}, set[Member](), {}, (), "by the rules"),
        ({THREE: _state(5, 8)}, {ONE}, {NodeId(3): 104}, (), "nodes 2 are away"),
        ({}, {ONE, TWO}, {NodeId(3): 104}, (), "nodes 3 are away"),
        ({THREE: _state(5, 8)}, {ONE, TWO}, {NodeId(3): 60}, ((50, 80),), "no tables have more"),
        ({}, {ONE, TWO, THREE}, {}, ((50, 80),), "no tables have more than record 0"),
    ],
)
def test_it_is_refused_where_rules_could_do_it_or_nobody_could_go_on(
    told: dict[Member, SegmentState | None],
    given_up: set[Member],
    tables: dict[NodeId, int],
    holes: tuple[tuple[int, int], ...],
    words: str,
) -> None:
    found = _examine(told, given_up, tables, holes)
    assert found.refusal is not None and words in found.refusal


def test_a_hole_that_tables_have_passed_is_left_behind() -> None:
    found = _examine({THREE: _state(5, 8)}, {ONE, TWO}, {NodeId(3): 79}, ((50, 80), (20, 22)))
    assert (found.refusal, found.begins_lsn) == (None, 80)


def test_disks_that_never_count_again() -> None:
    one, lost = "01" * 16, "02" * 16
    nodes = {
        NodeId(1): NodeMeta("one", 1, 1, one),
        NodeId(2): NodeMeta("two", 1, 1, lost, lost_uuids=(lost,)),
        NodeId(3): NodeMeta("three", 1, 1, one, is_removed=True),
    }

    def is_lost(node: int, uuid: str) -> bool:
        return is_given_up(nodes, Member(NodeId(node), bytes.fromhex(uuid)))

    assert not is_lost(1, one)
    assert is_lost(1, lost)  # it has another disk by now
    assert is_lost(2, lost)
    assert is_lost(3, one)
    assert is_lost(4, one)


# --- Where it ends --------------------------------------------------------------------------------


def _sealed(member: Member, kgt: int, held: set[int]) -> SealOk:
    return SealOk(
        member=member,
        partition=0,
        segment=4,
        tail_at_seal=max(held, default=kgt - 1) + 1,
        kgt=kgt,
        held=tuple((offset, offset) for offset in sorted(held)),
    )


def test_all_that_are_left_must_answer() -> None:
    core = RecoveryCore(SEGMENT.params(0), remnant=Remnant((THREE,), 0))
    assert core.step() == Seal((THREE,))
    core.on_sealed(_sealed(ONE, 9, set()))  # it was given up
    core.on_absent(THREE)
    assert core.step() == Wait("seal_quorum", (THREE,))
    core.retry()
    core.on_sealed(_sealed(THREE, 2, {2, 3, 5}))
    assert core.step() == Recovered(4, True)


def test_a_tail_that_tables_know_of_is_kept_and_the_gap_before_it_told() -> None:
    core = RecoveryCore(SEGMENT.params(0), remnant=Remnant((THREE,), 5))
    core.on_sealed(_sealed(THREE, 2, {2, 3, 5, 6}))
    assert core.step() == Recovered(7, True, lacking_below=5)
    nobody = RecoveryCore(SEGMENT.params(0), remnant=Remnant((), 1 << 30))
    assert nobody.step() == Recovered(1 << 30, True, lacking_below=1 << 30)


_HELD = st.sets(st.integers(0, 12), max_size=8)


@given(st.lists(st.tuples(st.integers(0, 6), _HELD), min_size=1, max_size=2), st.integers(0, 12))
def test_nothing_is_cut_off_that_is_known_or_held_without_a_gap(
    replies: list[tuple[int, set[int]]], tail_min: int
) -> None:
    members = (ONE, TWO, THREE)[: len(replies)]
    segment = msgspec.structs.replace(SEGMENT, replication=3)
    core = RecoveryCore(segment.params(0), remnant=Remnant(members, tail_min))
    for member, (kgt, held) in zip(members, replies, strict=True):
        core.on_sealed(_sealed(member, kgt, {offset for offset in held if offset >= kgt}))
    while isinstance(step := core.step(), Copy):
        for repair in step.repairs:
            assert repair.target in members
            core.on_repaired(repair)
    assert isinstance(step, Recovered) and step.is_under_replicated
    kgt = max(kgt for kgt, _ in replies)
    held = {o for low, have in replies for o in have if o >= low}
    assert step.tail >= max(kgt, tail_min) and step.tail not in held
    assert set(range(max(kgt, tail_min), step.tail)) <= held
    assert set(range(max(kgt, step.lacking_below), step.tail)) <= held
    assert step.lacking_below == 0 or step.lacking_below - 1 not in held


# --- The chain ------------------------------------------------------------------------------------


def _closed(close: UnsafeClose, tail: int, lacking_below: int = 0) -> PartitionMeta:
    """Segment 4 was closed unsafely, segment 5 is open."""
    meta = PartitionMeta(9, None, 90, (SEGMENT,))
    allowed = chain.allow_unsafe(meta, close)
    assert allowed is not None and allowed.allowed == close
    claimed = chain.claim(allowed, WRITER, "test")
    assert claimed.claim is not None
    extended = chain.extend(claimed, claimed.claim, tail, (THREE,), 1, True)
    assert extended is not None and extended.allowed is None
    return chain.note_unsafe(extended, close, lacking_below)


CLOSE = UnsafeClose(4, 9, 104, 0, (THREE,), "root", 7)


def test_a_close_stays_in_the_register() -> None:
    meta = _closed(CLOSE, 5)
    (done,) = meta.unsafe
    assert (done.tail_lsn, done.begins_lsn, done.by) == (106, 0, "root")
    assert chain.closed_unsafely(meta, 4) == done
    assert chain.closed_unsafely(meta, 5) is None
    assert meta.trim_lsn == 90
    assert chain.trim_prefix(meta, 1_000).unsafe == (done,)
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(meta), type=PartitionMeta)
    assert read == meta


def test_a_log_with_a_gap_begins_behind_it() -> None:
    assert _closed(CLOSE, 9, lacking_below=6).trim_lsn == 107
    holes = msgspec.structs.replace(CLOSE, begins_lsn=104)
    assert _closed(holes, 9).trim_lsn == 104


def test_only_the_open_segment_is_closed_so() -> None:
    meta = _closed(CLOSE, 5)
    assert chain.allow_unsafe(meta, CLOSE) is None
    later = msgspec.structs.replace(CLOSE, segment=5, epoch=9)
    assert chain.allow_unsafe(meta, later) is None
    assert chain.allow_unsafe(chain.empty(), CLOSE) is None


def test_tables_that_have_what_was_cut_off_can_t_go_on() -> None:
    meta = _closed(CLOSE, 5)  # before 106
    assert chain.forsaken(meta, 105, 9) is None
    assert chain.forsaken(meta, 106, 9) == meta.unsafe[0]
    assert chain.forsaken(meta, 200, 3) == meta.unsafe[0]
    assert chain.forsaken(meta, 106, 10) is None  # of the segment that followed
    assert chain.forsaken(chain.empty(), 106, 9) is None


def test_a_reader_goes_no_further_from_what_was_cut_off() -> None:
    meta = _closed(CLOSE, 5)
    core = ReaderCore(0, 108, THREE, 9)
    core.on_chain(meta, 3)
    assert core.step() == Forsaken(107, 9)
    core = ReaderCore(0, 107, THREE, 10)
    core.on_chain(meta, 3)
    core.on_tail((0, 5), TailState(9, False, None))
    assert isinstance(core.step(), Fetch)
    core = ReaderCore(0, 105, THREE, 9)
    core.on_chain(_closed(CLOSE, 9, lacking_below=6), 3)
    assert core.step() == TrimGap(107)


# --- A disk that comes back -----------------------------------------------------------------------


def _stored(count: int) -> ReplicaCore:
    """Writes ``count`` records and knows all of them to be committed."""
    core = ReplicaCore(ONE)
    records = tuple(
        encode_record(Record(101 + n, 9, 1, 0, 0, 0, 0, 0, b"%d" % n)) for n in range(count)
    )
    assert isinstance(core.store(Store(0, 4, 9, 7, 0, 0, records)), Frame)
    core.on_durable((0, 4), count)
    assert core.release(SEGMENT.params(0).ref, count)
    return core


def test_a_replica_that_knows_more_commits_is_cut_and_remembers_it() -> None:
    core = _stored(8)
    with pytest.raises(InvariantViolation, match="I-8"):
        _stored(8).close((0, 4), 5, 3)
    frame = core.close((0, 4), 5, 3, is_unsafe=True)
    assert frame is not None
    assert core.readable_tail((0, 4)) == 5
    for known in (core, _again(core, frame), _again(core, core.checkpoint())):
        state = known.state((0, 4))
        assert state is not None and (state.kgt, state.closed_tail) == (5, 5)
        # Whoever wrote it may still live somewhere, and tell of commits beyond.
        assert not known.release(Release(SEGMENT.params(0).ref, 8).ref, 8)
        assert known.close((0, 4), 5, 4, is_unsafe=True) is None


def _again(core: ReplicaCore, frame: Frame) -> ReplicaCore:
    """After a restart on a log that ends with this frame."""
    found = ReplicaCore(ONE)
    image = _stored(8).checkpoint()
    for each in (image, frame):
        encoded, _ = encode_frame_header(
            each, flags=0, frame_seq=1, prev_crc=0, group=(1, 1), nonce=1
        )
        header = decode_frame_header(encoded)
        assert header is not None
        found.restore(header, b"".join(each.body), [])
    return found


def test_checkpoints_of_before_are_read() -> None:
    body = msgspec.msgpack.decode(_stored(2).checkpoint().body[0])
    body[0] = [summary[:-1] for summary in body[0]]
    read = msgspec.msgpack.decode(msgspec.msgpack.encode(body), type=Checkpoint)
    assert read.segments[0].is_unsafe is False
