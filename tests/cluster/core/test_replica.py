"""One log server's replicas: the acceptance table, seals, and what survives a restart."""

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from perdure.cluster.core.checkpoint import Checkpoint
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Refused,
    SegmentParams,
    SegmentRef,
    Store,
    StoreAck,
    Writer,
)
from perdure.core.invariant import InvariantViolation
from perdure.storage.wal_format import Frame, FrameType, decode_frame_header, encode_frame_header

ME = Member(NodeId(1), b"S")
KEY = (0, 0)
REF = SegmentRef(0, 0, 1, 7)


def _record(offset: int, salt: int = 0) -> bytes:
    return b"record" + (offset * 1000 + salt).to_bytes(4, "little")


def _store(
    first: int, count: int, *, kgt: int = 0, epoch: int = 1, incarnation: int = 7, segment: int = 0
) -> Store:
    records = tuple(_record(offset) for offset in range(first, first + count))
    return Store(0, segment, epoch, incarnation, first, kgt, records)


def _params(epoch: int = 1, index: int = 0, incarnation: int = 7) -> SegmentParams:
    return SegmentParams(
        partition=0,
        index=index,
        base_lsn=1,
        epoch=epoch,
        writer=Writer(NodeId(1), 1, incarnation),
        nodeset=(ME,),
        replication=1,
    )


def _take(core: ReplicaCore, item: Store) -> Frame:
    frame = core.store(item)
    assert isinstance(frame, Frame)
    core.on_durable((item.partition, item.segment), frame.first_offset + frame.record_count)
    return frame


def test_a_first_store_pins_the_writer_and_becomes_a_frame() -> None:
    core = ReplicaCore(ME)
    frame = core.store(_store(0, 3))
    assert isinstance(frame, Frame)
    assert (frame.type, frame.partition, frame.segment) == (FrameType.STORE, 0, 0)
    assert (frame.epoch, frame.incarnation) == (1, 7)
    assert (frame.first_offset, frame.record_count, frame.kgt) == (0, 3, 0)
    assert frame.body == tuple(_record(n) for n in range(3))
    segment = core.segment(KEY)
    assert segment is not None
    assert (segment.local_tail, segment.durable_tail) == (3, 0)
    assert core.on_durable(KEY, 3) == StoreAck(0, 0, 3)


ACCEPTANCE = [
    # what comes, after offsets 0..4 of epoch 5, incarnation 7, kgt 2 are durable, and the answer
    (_store(5, 2, epoch=5), (5, 2)),
    (_store(3, 4, epoch=5), (5, 2)),
    (_store(0, 5, epoch=5), StoreAck(0, 0, 5)),
    (_store(2, 1, epoch=5), StoreAck(0, 0, 5)),
    (_store(6, 1, epoch=5), Refused(0, 0, "gap", 5)),
    (_store(6, 1, epoch=5, kgt=5), Refused(0, 0, "gap", 5)),
    (_store(6, 1, epoch=5, kgt=6), (6, 1)),
    (_store(5, 1, epoch=4), Refused(0, 0, "stale_epoch", 5)),
    (_store(5, 1, epoch=5, incarnation=8), Refused(0, 0, "wrong_writer", 7)),
    (_store(5, 1, epoch=6), Refused(0, 0, "wrong_writer", 7)),
    (_store(0, 1, epoch=4, segment=1), Refused(0, 1, "stale_epoch", 5)),
    (_store(3, 1, epoch=6, segment=1), Refused(0, 1, "gap", 0)),
    (_store(0, 1, epoch=6, segment=1), (0, 1)),
]


@pytest.mark.parametrize(("item", "answer"), ACCEPTANCE)
def test_the_acceptance_table(item: Store, answer: StoreAck | Refused | tuple[int, int]) -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 5, epoch=5, kgt=2))
    found = core.store(item)
    if isinstance(found, Frame):
        assert (found.first_offset, found.record_count) == answer
    else:
        assert found == answer


@pytest.mark.parametrize(("item", "answer"), ACCEPTANCE)
def test_a_sealed_replica_takes_nothing(
    item: Store, answer: StoreAck | Refused | tuple[int, int]
) -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 5, epoch=5, kgt=2))
    core.seal(_params(epoch=5).ref, by_epoch=5)
    found = core.store(item)
    if item.segment == 0:
        assert isinstance(found, Refused)
        assert found.reason in ("sealed", "stale_epoch", "wrong_writer")
        assert found.reason != "sealed" or found.detail == 5


def test_a_seal_by_a_younger_claim_fences_the_partition() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 1))
    core.seal(_params().ref, by_epoch=9)
    assert core.epoch_seen(0) == 9
    assert core.store(_store(0, 1, epoch=8, segment=1)) == Refused(0, 1, "stale_epoch", 9)
    assert isinstance(core.store(_store(0, 1, epoch=9, segment=1)), Frame)


def test_a_segment_nobody_stored_to_is_sealed_too() -> None:
    core = ReplicaCore(ME)
    core.seal(_params().ref, by_epoch=2)
    reply = core.seal_reply(KEY)
    assert (reply.tail_at_seal, reply.kgt, reply.held) == (0, 0, ())
    assert isinstance(core.store(_store(0, 1)), Refused)


def test_a_seal_reply_names_what_recovery_may_need() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    _take(core, _store(3, 2, kgt=2))
    core.seal(_params().ref, by_epoch=2)
    reply = core.seal_reply(KEY)
    assert (reply.member, reply.tail_at_seal, reply.kgt) == (ME, 5, 2)
    assert [offset for offset, _ in reply.held] == [2, 3, 4]
    assert [offset for offset, _ in core.seal_reply(KEY, from_offset=4).held] == [4]


def test_seals_are_repeatable_and_the_tail_stays_frozen() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    first = core.seal(_params().ref, by_epoch=2)
    core.repair(REF, 2, 3, (_record(3),))
    core.on_repaired(KEY, 3, 1)
    again = core.seal(_params().ref, by_epoch=3)
    assert isinstance(first, Frame)
    assert isinstance(again, Frame)
    assert first.first_offset == again.first_offset == 3
    assert core.seal_reply(KEY).tail_at_seal == 3
    assert [offset for offset, _ in core.seal_reply(KEY).held] == [0, 1, 2, 3]


def test_an_offset_never_changes() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    other = replace(_store(2, 2), records=(_record(2, salt=1), _record(3)))
    with pytest.raises(InvariantViolation, match="two contents"):
        core.store(other)
    core.seal(_params().ref, by_epoch=2)
    with pytest.raises(InvariantViolation, match="two contents"):
        core.repair(REF, 2, 2, (_record(2, salt=1),))


def test_a_repair_seals_first() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 1))
    frames = core.repair(REF, 2, 1, (_record(1),))
    assert isinstance(frames, list)
    assert [frame.type for frame in frames] == [FrameType.SEAL, FrameType.REPAIR]
    assert core.seal_reply(KEY).tail_at_seal == 1


def test_no_reply_names_a_repair_that_is_not_synced() -> None:
    core = ReplicaCore(ME)
    core.seal(REF, by_epoch=2)
    core.repair(REF, 2, 0, (_record(0), _record(1)))
    assert core.seal_reply(KEY).held == ()
    core.on_repaired(KEY, 0, 1)
    assert [offset for offset, _ in core.seal_reply(KEY).held] == [0]
    core.repair(REF, 3, 0, (_record(0),))  # known and durable: it stays so
    assert [offset for offset, _ in core.seal_reply(KEY).held] == [0]
    core.on_repaired(KEY, 0, 2)
    assert [offset for offset, _ in core.seal_reply(KEY).held] == [0, 1]


def test_a_disk_that_lost_data_answers_nobody() -> None:
    core = ReplicaCore(ME, is_authoritative=False)
    refused = Refused(0, 0, "no_storage", 0)
    assert core.store(_store(0, 1)) == refused
    assert core.seal(REF, by_epoch=2) == refused
    assert core.repair(REF, 2, 0, (_record(0),)) == refused
    assert not core.probe(REF)


def test_recoverers_of_another_writer_s_segment_are_refused() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 1))
    other = SegmentRef(0, 0, 1, 8)
    assert core.seal(other, by_epoch=2) == Refused(0, 0, "wrong_writer", 7)
    assert core.repair(other, 2, 0, (_record(0),)) == Refused(0, 0, "wrong_writer", 7)
    core.drop(0, below_index=1, version=3)
    assert core.seal(REF, by_epoch=2) == Refused(0, 0, "stale_epoch", 1)


def test_only_the_writer_s_word_on_commits_counts() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    assert not core.release(SegmentRef(0, 0, 1, 8), 3)
    assert not core.release(SegmentRef(0, 5, 1, 7), 3)
    assert core.release(REF, 2)
    assert not core.release(REF, 1)
    state = core.state(KEY)
    assert state is not None
    assert (state.kgt, state.local_tail, state.durable_tail) == (2, 3, 3)


def test_a_probe_is_confirmed_until_the_seal() -> None:
    core = ReplicaCore(ME)
    assert not core.probe(REF)
    _take(core, _store(0, 1))
    assert core.probe(REF)
    assert not core.probe(SegmentRef(0, 0, 2, 9))
    core.seal(REF, by_epoch=2)
    assert not core.probe(REF)


def test_a_chain_older_than_one_acted_on_closes_and_drops_nothing() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    _take(core, _store(0, 1, epoch=2, segment=1))
    assert core.close(KEY, 3, 8) is not None
    assert core.close((0, 1), 1, 7) is None
    core.drop(0, below_index=1, version=7)
    assert core.segment(KEY) is not None
    core.drop(0, below_index=1, version=8)
    assert core.segment(KEY) is None
    back = ReplicaCore(ME)
    _restore(back, core.checkpoint())
    assert back.version_seen(0) == 8


def test_what_lies_beyond_a_closed_tail_is_not_held() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 5))
    core.close(KEY, 3, 1)
    assert core.seal_reply(KEY).held == ()
    assert core.repair(REF, 9, 3, (_record(3),)) == Refused(0, 0, "closed", 3)
    with pytest.raises(InvariantViolation, match="I-11"):
        core.close(KEY, 4, 2)
    with pytest.raises(InvariantViolation, match="I-8"):
        core.release(REF, 4)


def test_repair_doesn_t_move_the_known_global_tail() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3, kgt=0))
    core.seal(_params().ref, by_epoch=2)
    frames = core.repair(REF, 2, 3, (_record(3),))
    assert isinstance(frames, list)
    (frame,) = frames
    assert (frame.type, frame.kgt) == (FrameType.REPAIR, 0)
    assert core.seal_reply(KEY).kgt == 0


def test_closing_fixes_the_tail_once() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3, kgt=2))
    frame = core.close(KEY, 3, 1)
    assert frame is not None
    assert (frame.type, frame.first_offset) == (FrameType.CLOSE, 3)
    assert core.close(KEY, 3, 1) is None
    assert core.close((0, 9), 3, 1) is None
    assert isinstance(core.store(_store(3, 1)), Refused)


def test_a_tail_below_commits_is_a_bug() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3, kgt=0))
    core.release(REF, 3)
    with pytest.raises(InvariantViolation, match="I-8"):
        core.close(KEY, 2, 1)


def test_trimming_needs_a_commit_and_happens_once() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    with pytest.raises(InvariantViolation, match="only committed"):
        core.trim(KEY, 3)
    core.release(REF, 3)
    frame = core.trim(KEY, 3)
    assert frame is not None
    assert (frame.type, frame.first_offset, frame.kgt) == (FrameType.TRIM, 3, 3)
    assert core.trim(KEY, 3) is None


def test_dropped_segments_never_come_back() -> None:
    core = ReplicaCore(ME)
    _take(core, _store(0, 3))
    core.drop(0, below_index=2, version=1)
    assert core.segment(KEY) is None
    assert core.store(_store(0, 1, epoch=9, segment=1)) == Refused(0, 1, "stale_epoch", 1)
    assert isinstance(core.store(_store(0, 1, epoch=9, segment=2)), Frame)


# --- Restarts -------------------------------------------------------------------------------------

Operation = tuple[str, int, int]
OPERATIONS = st.lists(
    st.tuples(
        st.sampled_from(["store", "skip", "seal", "repair", "release", "close", "trim"]),
        st.integers(0, 1),
        st.integers(1, 4),
    )
    | st.tuples(st.sampled_from(["checkpoint", "drop"]), st.just(0), st.just(1)),
    max_size=25,
)


def _operate(core: ReplicaCore, operation: Operation) -> Frame | None:
    """One step that the rules allow; the frame to persist, if there is one."""
    kind, index, amount = operation
    if kind == "checkpoint":
        return core.checkpoint()
    if kind == "drop":
        core.drop(0, 1, 1)
        return core.checkpoint()
    key = (0, index)
    segment = core.segment(key)
    if kind in ("store", "skip"):
        tail = segment.local_tail if segment is not None else 0
        first = tail + (2 if kind == "skip" else 0)
        kgt = first if kind == "skip" else (segment.kgt if segment is not None else 0)
        found = core.store(
            _store(first, amount, kgt=kgt, epoch=1 + index, incarnation=7 + index, segment=index)
        )
        return found if isinstance(found, Frame) else None
    params = _params(epoch=1 + index, index=index, incarnation=7 + index)
    if kind == "seal" and index >= 1:
        sealed = core.seal(params.ref, by_epoch=amount)
        assert isinstance(sealed, Frame)
        return sealed
    if segment is None:
        return None
    if kind == "repair" and segment.tail_at_seal is not None and segment.closed_tail is None:
        first = max(segment.local_tail, segment.kgt)
        frames = core.repair(params.ref, amount, first, (_record(99),))
        assert isinstance(frames, list)
        core.on_repaired(key, first, 1)
        return frames[0]
    if kind == "close":
        return core.close(key, max(segment.kgt, segment.local_tail), 1)
    if segment.closed_tail is None:
        core.release(params.ref, segment.local_tail)
    return core.trim(key, segment.kgt) if kind == "trim" else None


def _restore(core: ReplicaCore, frame: Frame) -> None:
    encoded, _ = encode_frame_header(frame, flags=0, frame_seq=1, prev_crc=0, group=(1, 1), nonce=1)
    header = decode_frame_header(encoded)
    assert header is not None
    crcs = [int.from_bytes(record[-4:], "little") for record in frame.body]
    core.restore(header, b"".join(frame.body), crcs if frame.record_count else [])


def _image(core: ReplicaCore) -> Checkpoint:
    return msgspec.msgpack.decode(core.checkpoint().body[0], type=Checkpoint)


@given(OPERATIONS)
@settings(max_examples=300)
def test_a_restart_from_the_frames_is_where_it_was(
    operations: list[Operation],
) -> None:
    """Everything that decides a later answer comes back; kgt, a lower bound, may be behind."""
    live, back = ReplicaCore(ME), ReplicaCore(ME)
    for operation in operations:
        frame = _operate(live, operation)
        if frame is None:
            continue
        if frame.type == FrameType.STORE:
            key = (frame.partition, frame.segment)
            live.on_durable(key, frame.first_offset + frame.record_count)
        _restore(back, frame)
    expected, found = (_image(core) for core in (live, back))
    assert found.epochs == expected.epochs
    assert found.floors == expected.floors
    assert len(found.segments) == len(expected.segments)
    for one, other in zip(found.segments, expected.segments, strict=True):
        assert one.kgt <= other.kgt
        held = {offset: crc for offset, crc in one.crcs if offset >= other.kgt}
        assert held == dict(other.crcs)
        assert msgspec.structs.replace(one, kgt=0, crcs=[]) == msgspec.structs.replace(
            other, kgt=0, crcs=[]
        )


def test_a_checkpoint_alone_is_enough() -> None:
    live, back = ReplicaCore(ME), ReplicaCore(ME)
    _take(live, _store(0, 5, kgt=0))
    _take(live, _store(5, 2, kgt=3))
    live.seal(_params().ref, by_epoch=6)
    _restore(back, live.checkpoint())
    assert back.seal_reply(KEY) == live.seal_reply(KEY)
    assert back.epoch_seen(0) == 6
    assert back.store(_store(7, 1)) == live.store(_store(7, 1))


def test_a_checkpoint_forgets_what_it_doesn_t_list() -> None:
    live, back = ReplicaCore(ME), ReplicaCore(ME)
    _restore(back, _take(live, _store(0, 5)))
    live.drop(0, below_index=1, version=1)
    _restore(back, live.checkpoint())
    assert back.segment(KEY) is None
