"""The sequencer: offsets, batches, the window, and when a record is committed."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.sequencer import Committed, Proposal, SequencerCore, Stopped
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Refused,
    SegmentParams,
    StoreAck,
    Writer,
)
from perdure.core.invariant import InvariantViolation
from perdure.core.limits import WINDOW_BYTES_MAX, WINDOW_RECORDS_MAX
from perdure.storage.wal_format import decode_record


def _params(nodes: int = 1, replication: int = 1) -> SegmentParams:
    return SegmentParams(
        partition=2,
        index=5,
        base_lsn=100,
        epoch=7,
        writer=Writer(NodeId(1), 3, 99),
        nodeset=tuple(Member(NodeId(n + 1), b"") for n in range(nodes)),
        replication=replication,
    )


def _proposal(payload: bytes = b"x") -> Proposal:
    return Proposal(kind=1, payload=payload, created_at_ms=5, key_hash=6)


def _ack(tail: int) -> StoreAck:
    return StoreAck(2, 5, tail)


def test_records_get_lsn_and_epoch_and_go_out_as_one_batch() -> None:
    core = SequencerCore(_params())
    assert [core.propose(_proposal(b"%d" % n)) for n in range(3)] == [100, 101, 102]
    store = core.flush()
    assert store is not None
    assert (store.partition, store.segment, store.epoch, store.incarnation) == (2, 5, 7, 99)
    assert (store.first_offset, store.kgt) == (0, 0)
    records = [decode_record(record, 0)[0] for record in store.records]
    assert [(r.lsn, r.epoch, r.payload) for r in records] == [
        (100, 7, b"0"),
        (101, 7, b"1"),
        (102, 7, b"2"),
    ]
    assert core.flush() is None


def test_an_acknowledged_batch_is_committed_and_the_next_one_says_so() -> None:
    core = SequencerCore(_params())
    core.propose(_proposal())
    core.propose(_proposal())
    core.flush()
    core.propose(_proposal())
    assert core.on_ack(NodeId(1), _ack(2)) == Committed(102)
    assert core.on_ack(NodeId(1), _ack(2)) is None
    assert core.on_ack(NodeId(1), _ack(1)) is None
    store = core.flush()
    assert store is not None
    assert (store.first_offset, store.kgt) == (2, 2)


def test_the_window_bounds_records() -> None:
    core = SequencerCore(_params())
    for _ in range(WINDOW_RECORDS_MAX):
        assert core.has_room()
        core.propose(_proposal(b""))
    assert not core.has_room()
    core.flush()
    core.on_ack(NodeId(1), _ack(1))
    assert core.has_room()


def test_the_window_bounds_bytes_but_takes_one_record_of_any_size() -> None:
    core = SequencerCore(_params())
    assert core.has_room()
    core.propose(_proposal(b"x" * (WINDOW_BYTES_MAX + 1)))
    assert not core.has_room()
    core.flush()
    core.on_ack(NodeId(1), _ack(1))
    assert core.has_room()
    assert core.window_bytes == 0


def test_an_ack_for_what_was_not_handed_out_is_a_bug() -> None:
    core = SequencerCore(_params())
    with pytest.raises(InvariantViolation):
        core.on_ack(NodeId(1), _ack(1))


def test_a_refusal_stops_it_for_good() -> None:
    core = SequencerCore(_params())
    assert core.on_refused(NodeId(1), Refused(2, 5, "sealed", 0)) == Stopped("sealed")
    with pytest.raises(InvariantViolation, match="a stopped sequencer"):
        core.propose(_proposal())


@given(
    nodes_and_replication=st.sampled_from([(1, 1), (2, 2), (3, 2), (4, 3), (5, 3)]),
    batches=st.lists(st.integers(1, 4), min_size=1, max_size=6),
    acks=st.lists(st.tuples(st.integers(1, 5), st.integers(0, 24)), max_size=40),
)
def test_commits_are_the_prefix_on_a_write_quorum(
    nodes_and_replication: tuple[int, int],
    batches: list[int],
    acks: list[tuple[int, int]],
) -> None:
    nodes, replication = nodes_and_replication
    core = SequencerCore(_params(nodes, replication))
    for size in batches:
        for _ in range(size):
            core.propose(_proposal())
        core.flush()
    total = list(accumulate(batches))[-1]
    acked = dict.fromkeys(range(1, nodes + 1), 0)
    committed = 0
    for node, ack in acks:
        if node > nodes or ack > total:
            continue
        acked[node] = max(acked[node], ack)
        outcome = core.on_ack(NodeId(node), _ack(ack))
        durable = [
            t for t in range(total + 1) if sum(a >= t for a in acked.values()) >= replication
        ]
        expected = max(durable)
        assert outcome == (Committed(100 + expected) if expected > committed else None)
        committed = expected
        assert core.committed == committed <= core.next_offset
    assert (core.window_bytes == 0) == (committed == total)
