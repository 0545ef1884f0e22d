"""The sequencer: offsets, batches, the window, and when a record is committed."""

import sys
from collections.abc import Callable
from itertools import accumulate
from types import FrameType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.sequencer import (
    Committed,
    Contested,
    Lost,
    SequencerCore,
    Stalled,
    Stopped,
)
from perdure.cluster.core.types import (
    Member,
    NodeId,
    Proposal,
    Refused,
    SegmentParams,
    SegmentRef,
    SegmentState,
    StoreAck,
    Writer,
)
from perdure.core.invariant import InvariantViolation
from perdure.core.limits import (
    COMMIT_STALL_MS,
    LAGGARD_MS_MAX,
    STORE_RETRY_MS,
    WINDOW_BYTES_MAX,
    WINDOW_RECORDS_MAX,
)
from perdure.core.limits_log import PEER_SLOW_MS
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


# --- Several replicas -----------------------------------------------------------------------------

REF = SegmentRef(2, 5, 7, 99)
TWO, THREE = NodeId(2), NodeId(3)


def _state(tail: int, *, sealed: int | None = None, ref: SegmentRef = REF) -> SegmentState:
    return SegmentState(ref, tail, tail, 0, 0, sealed, None)


def _three(replication: int = 2) -> SequencerCore:
    """A leader on node 1 whose replicas on 2 and 3 have been reached."""
    core = SequencerCore(_params(3, replication))
    for node in (TWO, THREE):
        assert core.greet(node) == 0
        assert core.on_hello(Member(node, b""), True, None, 0, 0.0) is None
    return core


def _sends(
    core: SequencerCore, now: float = 0.0, *, to_late: bool = True
) -> list[tuple[int, int, int, int]]:
    """Node, first offset, records, and kgt of what is to be sent."""
    return [
        (node, store.first_offset, len(store.records), store.kgt)
        for node, store in core.outgoing(now, to_late=to_late)
    ]


def _sent_at_once(core: SequencerCore, now: float = 0.0) -> list[int]:
    """Nodes that get a record that is appended now."""
    _append(core, now=now)
    return sorted({node for node, *_ in _sends(core, now, to_late=False)})


def _append(core: SequencerCore, count: int = 1, now: float = 0.0) -> None:
    for _ in range(count):
        core.propose(_proposal())
    core.flush(now)


def test_every_batch_goes_to_all_live_replicas_once() -> None:
    core = _three()
    _append(core, 2)
    assert _sends(core) == [(2, 0, 2, 0), (3, 0, 2, 0)]
    assert _sends(core) == []
    _append(core)
    assert _sends(core) == [(2, 2, 1, 0), (3, 2, 1, 0)]
    core.on_ack(NodeId(1), _ack(3))
    assert core.on_ack(THREE, _ack(3)) == Committed(103)
    _append(core)
    assert _sends(core) == [(2, 3, 1, 3), (3, 3, 1, 3)]


def test_at_once_is_sent_to_as_many_as_a_commit_needs() -> None:
    core = _three()
    assert _sent_at_once(core) == [TWO]
    assert core.is_late(THREE)
    _append(core)
    assert _sends(core, to_late=False) == [(2, 1, 1, 0)]
    assert _sends(core) == [(3, 0, 1, 0), (3, 1, 1, 0)]
    core.prefer([THREE])
    assert _sent_at_once(core) == [THREE]
    assert _sent_at_once(_three(replication=3)) == [TWO, THREE]


def test_another_takes_the_place_of_one_that_is_gone() -> None:
    core = _three()
    _append(core)
    _sends(core, to_late=False)
    core.on_down(TWO)
    assert _sends(core, to_late=False) == [(3, 0, 1, 0)]
    core.on_hello(Member(TWO, b""), True, _state(1), 0, 0.0)
    assert _sent_at_once(core) == [TWO]
    assert isinstance(core.on_refused(TWO, Refused(2, 5, "stale_epoch", 8)), Contested)
    assert _sent_at_once(core) == [THREE]


@pytest.mark.parametrize("slow", [1, 2])
def test_another_does_for_one_that_is_slow(slow: int) -> None:
    core = _three()
    assert _sent_at_once(core) == [TWO]
    core.on_ack(NodeId(3 - slow), _ack(1))
    late = PEER_SLOW_MS / 1000 + 0.01
    core.on_tick(late - 0.02)
    assert _sends(core, late, to_late=False) == []
    core.on_tick(late)
    assert _sends(core, late, to_late=False) == [(3, 0, 1, 0)]
    assert core.on_ack(THREE, _ack(1), late) == Committed(101)
    assert _sent_at_once(core, late) == [TWO, THREE]
    core.on_ack(NodeId(slow), _ack(2), late)
    core.on_tick(late)
    assert _sent_at_once(core, late) == [TWO]


def test_who_is_late_gets_what_has_become_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.core.sequencer.LATE_BYTES_MAX", 500)
    core = _three()
    number = 0
    while (sent := _sent_at_once(core)) == [TWO]:
        number += 1
        core.on_ack(NodeId(1), _ack(number))
        assert core.on_ack(TWO, _ack(number)) == Committed(100 + number)
    assert sent == [TWO, THREE] and number > 3
    core.on_ack(THREE, _ack(number))
    assert core.retained_bytes < 500


def test_who_takes_a_place_late_skips_what_was_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.core.sequencer.LAGGARD_BYTES_MAX", 0)
    core = _three()
    assert _sent_at_once(core) == [TWO]
    core.on_ack(NodeId(1), _ack(1))
    assert core.on_ack(TWO, _ack(1)) == Committed(101)
    assert core.retained_bytes == 0
    core.on_down(TWO)
    _append(core, now=5.0)
    assert _sends(core, 5.0, to_late=False) == [(3, 1, 1, 1)]
    core.on_tick(5.0 + PEER_SLOW_MS / 2000)
    assert _sends(core, 5.0) == []


def test_nothing_is_sent_before_a_replica_has_said_what_it_has() -> None:
    core = SequencerCore(_params(3, 2))
    _append(core)
    assert _sends(core) == []
    core.on_hello(Member(TWO, b""), True, _state(0), 0, 0.0)
    assert _sends(core) == [(2, 0, 1, 0)]
    core.on_down(TWO)
    _append(core)
    assert _sends(core) == []
    core.on_hello(Member(TWO, b""), True, _state(1), 0, 0.0)
    assert _sends(core) == [(2, 1, 1, 0)]


def test_hello_counts_as_an_ack() -> None:
    core = _three()
    _append(core, 3)
    _sends(core)
    core.on_ack(NodeId(1), _ack(3))
    core.on_down(TWO)
    assert core.on_hello(Member(TWO, b""), True, _state(2), 0, 0.0) == Committed(102)


def test_a_gap_is_filled_once() -> None:
    core = _three()
    for _ in range(3):
        _append(core)
    _sends(core)
    for _ in range(2):
        assert core.on_refused(TWO, Refused(2, 5, "gap", 1), 0.0) is None
    assert [send for send in _sends(core) if send[0] == 2] == [(2, 1, 1, 0), (2, 2, 1, 0)]
    core.on_refused(TWO, Refused(2, 5, "gap", 1), 0.0)
    assert _sends(core) == []
    core.on_ack(TWO, _ack(3))
    core.on_refused(TWO, Refused(2, 5, "gap", 1), 0.0)  # of long ago
    assert _sends(core) == []


def test_what_gets_no_answer_is_sent_again() -> None:
    core = _three()
    _append(core)
    _sends(core)
    core.on_ack(THREE, _ack(1))
    late = STORE_RETRY_MS / 1000 + 0.1
    assert core.on_tick(late / 2) is None
    assert _sends(core) == []
    core.on_tick(late)
    assert _sends(core, late) == [(2, 0, 1, 0)]


def test_laggards_skip_what_is_committed_and_only_that() -> None:
    core = _three()
    _append(core, 2)
    core.on_ack(NodeId(1), _ack(2))
    core.on_down(TWO)
    _sends(core)
    assert core.on_ack(THREE, _ack(2)) == Committed(102)
    assert core.retained_bytes > 0
    core.on_tick(LAGGARD_MS_MAX / 1000 + 1)
    assert core.retained_bytes == 0
    _append(core)
    core.on_hello(Member(TWO, b""), True, None, 0, 20.0)
    assert _sends(core, 20.0) == [(2, 2, 1, 2), (3, 2, 1, 2)]


def test_memory_for_laggards_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.core.sequencer.LAGGARD_BYTES_MAX", 1000)
    core = _three()
    core.on_down(TWO)
    for number in range(40):
        _append(core)
        _sends(core)
        core.on_ack(NodeId(1), _ack(number + 1))
        core.on_ack(THREE, _ack(number + 1))
        assert core.retained_bytes < 1200


def _calls_of(work: Callable[[], object]) -> int:
    count = 0

    def note(frame: FrameType, event: str, argument: object) -> None:
        nonlocal count
        count += event == "call"

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return count


def test_what_a_dead_replica_lacks_costs_the_others_nothing() -> None:
    core = _three()
    core.on_down(TWO)

    def write() -> None:
        _append(core)
        _sends(core)
        core.on_ack(NodeId(1), _ack(core.next_offset))
        core.on_ack(THREE, _ack(core.next_offset))

    write()
    few = _calls_of(write)
    for _ in range(500):
        write()
    assert core.committed == core.next_offset
    assert _calls_of(write) <= 2 * few


def test_one_sealed_replica_is_a_hint_and_an_f_majority_the_end() -> None:
    core = _three()
    assert core.on_refused(TWO, Refused(2, 5, "stale_epoch", 8)) == Contested(TWO, "stale_epoch")
    assert core.on_refused(TWO, Refused(2, 5, "sealed", 0)) is None
    _append(core)
    assert _sends(core) == [(3, 0, 1, 0)]
    core.on_ack(NodeId(1), _ack(1))
    assert core.on_ack(THREE, _ack(1)) == Committed(101)
    assert core.on_refused(THREE, Refused(2, 5, "sealed", 1)) == Stopped("sealed")


def test_a_sealed_replica_says_so_in_its_hello() -> None:
    core = SequencerCore(_params(3, 2))
    found = core.on_hello(Member(TWO, b""), True, _state(0, sealed=0), 0, 0.0)
    assert found == Contested(TWO, "sealed")


@pytest.mark.parametrize(
    ("member", "is_authoritative", "state", "outcome"),
    [
        (Member(TWO, b"new"), True, None, Lost(TWO, "another disk")),
        (Member(TWO, b""), False, None, Lost(TWO, "no storage")),
        (Member(TWO, b""), True, None, Lost(TWO, "regressed")),
        (Member(TWO, b""), True, _state(1), Lost(TWO, "regressed")),
        (Member(TWO, b""), True, _state(2), None),
        (
            Member(TWO, b""),
            True,
            _state(2, ref=SegmentRef(2, 5, 7, 98)),
            Stopped("wrong_writer"),
        ),
    ],
)
def test_who_comes_back_with_less_doesn_t_count(
    member: Member, is_authoritative: bool, state: SegmentState | None, outcome: object
) -> None:
    core = _three()
    _append(core, 2)
    _sends(core)
    core.on_ack(TWO, _ack(2))
    core.on_down(TWO)
    greeted = core.greet(TWO)
    assert greeted == 2
    assert core.on_hello(member, is_authoritative, state, greeted, 0.0) == outcome
    expected = Committed(102) if outcome is None else None
    assert core.on_ack(NodeId(1), _ack(2)) == expected


def test_an_ack_may_overtake_the_answer_to_a_hello() -> None:
    core = _three()
    _append(core, 2)
    _sends(core)
    greeted = core.greet(TWO)
    assert greeted == 0
    core.on_ack(TWO, _ack(2))
    assert core.on_hello(Member(TWO, b""), True, _state(1), greeted, 0.0) is None
    assert core.on_ack(NodeId(1), _ack(2)) == Committed(102)


def test_a_standstill_is_told_with_those_who_are_missing() -> None:
    core = _three()
    core.on_down(TWO)
    core.on_down(THREE)
    late = COMMIT_STALL_MS / 1000 + 0.1
    assert core.on_tick(late) is None  # nothing waits
    _append(core, now=late)
    core.on_ack(NodeId(1), _ack(1), late)
    assert core.on_tick(late + 1) is None
    assert core.on_tick(late * 2 + 0.1) == Stalled((TWO, THREE))


def test_a_writer_without_a_replica_of_its_own_needs_the_others() -> None:
    params = _params(3, 2)
    core = SequencerCore(
        SegmentParams(
            partition=params.partition,
            index=params.index,
            base_lsn=params.base_lsn,
            epoch=params.epoch,
            writer=Writer(NodeId(9), 3, 99),
            nodeset=params.nodeset,
            replication=2,
        )
    )
    for node in (1, 2, 3):
        core.on_hello(Member(NodeId(node), b""), True, None, 0, 0.0)
    _append(core)
    assert sorted(node for node, *_ in _sends(core)) == [1, 2, 3]
    core.on_ack(NodeId(1), _ack(1))
    assert core.on_ack(THREE, _ack(1)) == Committed(101)
