"""Trimming: the floor of every mode by table, and what must hold however things change."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.trim import (
    Durability,
    DurabilityMode,
    ReplicaDurability,
    TrimCore,
    TrimPolicy,
    trim_floor,
)
from perdure.core.invariant import InvariantViolation
from perdure.core.limits_snapshots import (
    DEAD_REPLICA_LAG_BYTES_MAX,
    DEAD_REPLICA_LAG_MS_MAX,
    TRIM_DELAY_MS,
)

NONE, REPLICAS, SNAPSHOT = DurabilityMode.NONE, DurabilityMode.REPLICAS, DurabilityMode.SNAPSHOT
BALANCED, BOTH = DurabilityMode.BALANCED, DurabilityMode.BOTH

ALIVE = (ReplicaDurability(node=1, durable_lsn=90), ReplicaDurability(node=2, durable_lsn=70))
DEAD = ReplicaDurability(node=3, durable_lsn=20, dead_ms=1_000, lag_bytes=1_000)
LONG_DEAD = replace(DEAD, dead_ms=DEAD_REPLICA_LAG_MS_MAX + 1)
FAR_BEHIND = replace(DEAD, lag_bytes=DEAD_REPLICA_LAG_BYTES_MAX + 1)


@pytest.mark.parametrize(
    ("mode", "archived", "replicas", "floor"),
    [
        (NONE, 80, ALIVE, 0),
        (REPLICAS, None, ALIVE, 70),
        (REPLICAS, 10, ALIVE, 70),
        (REPLICAS, 80, (*ALIVE, LONG_DEAD), 20),
        (REPLICAS, 80, (), 0),
        (SNAPSHOT, 80, ALIVE, 80),
        (SNAPSHOT, 80, (*ALIVE, DEAD), 80),
        (SNAPSHOT, None, ALIVE, 0),
        (BOTH, 80, ALIVE, 70),
        (BOTH, 60, ALIVE, 60),
        (BOTH, None, ALIVE, 0),
        (BOTH, 80, (*ALIVE, LONG_DEAD), 20),
        (BOTH, 80, (), 0),
        (BALANCED, 80, ALIVE, 70),
        (BALANCED, 60, ALIVE, 60),
        (BALANCED, None, ALIVE, 0),
        (BALANCED, 80, (*ALIVE, DEAD), 20),
        (BALANCED, 80, (*ALIVE, LONG_DEAD), 70),
        (BALANCED, 80, (*ALIVE, FAR_BEHIND), 70),
        (BALANCED, 80, (LONG_DEAD,), 80),
        (BALANCED, None, (LONG_DEAD,), 0),
        (SNAPSHOT, 200, ALIVE, 100),
    ],
)
def test_the_floor_of_each_mode(
    mode: DurabilityMode,
    archived: int | None,
    replicas: tuple[ReplicaDurability, ...],
    floor: int,
) -> None:
    known = Durability(committed_lsn=100, archived_lsn=archived, replicas=replicas)
    assert trim_floor(TrimPolicy(mode=mode), known) == floor


@pytest.mark.parametrize(
    ("replicas", "floor"),
    [
        (ALIVE, 70),
        ((*ALIVE, DEAD), 20),
        ((*ALIVE, LONG_DEAD), 70),
        ((*ALIVE, FAR_BEHIND), 70),
        ((ALIVE[0], LONG_DEAD), 20),  # two must have it, living or not
        ((ALIVE[0],), 0),
        ((), 0),
    ],
)
def test_without_snapshots_the_long_dead_are_not_awaited_where_enough_have_it(
    replicas: tuple[ReplicaDurability, ...], floor: int
) -> None:
    known = Durability(committed_lsn=100, archived_lsn=None, replicas=replicas)
    assert trim_floor(TrimPolicy(mode=REPLICAS, copies_min=2), known) == floor


def _at(floor: int) -> Durability:
    return Durability(committed_lsn=1_000, archived_lsn=floor, replicas=())


def test_a_floor_must_stand_for_the_delay() -> None:
    core = TrimCore(TrimPolicy(mode=SNAPSHOT), trimmed_lsn=0)
    assert core.step(0, _at(10)) is None
    assert core.step(TRIM_DELAY_MS // 2, _at(20)) is None
    assert core.step(TRIM_DELAY_MS - 1, _at(20)) is None
    assert core.step(TRIM_DELAY_MS, _at(30)) == 10
    assert core.step(TRIM_DELAY_MS, _at(30)) is None
    assert core.step(TRIM_DELAY_MS * 3 // 2, _at(30)) == 20
    assert core.step(TRIM_DELAY_MS * 9, _at(30)) == 30
    assert core.step(TRIM_DELAY_MS * 20, _at(30)) is None
    assert core.floor_age_ms == TRIM_DELAY_MS * 19


def test_a_floor_that_falls_takes_back_what_was_not_done() -> None:
    core = TrimCore(TrimPolicy(mode=SNAPSHOT), trimmed_lsn=5)
    core.step(0, _at(30))
    assert core.step(TRIM_DELAY_MS - 1, _at(20)) is None
    assert core.step(TRIM_DELAY_MS, _at(30)) == 20
    assert core.step(2 * TRIM_DELAY_MS, _at(10)) is None
    assert core.step(3 * TRIM_DELAY_MS, _at(0)) is None
    assert core.trimmed_lsn == 20


def test_a_store_that_breaks_its_promises_stops_trimming_by_snapshots() -> None:
    core = TrimCore(TrimPolicy(mode=BALANCED), trimmed_lsn=0)
    good = Durability(committed_lsn=100, archived_lsn=50, replicas=ALIVE)
    bad = replace(good, archived_lsn=None)
    core.step(0, good)
    assert core.step(TRIM_DELAY_MS, bad) is None
    assert core.step(9 * TRIM_DELAY_MS, bad) is None
    assert core.step(9 * TRIM_DELAY_MS + 1, good) is None
    assert core.step(10 * TRIM_DELAY_MS + 1, good) == 50


def test_without_delay_the_floor_is_followed_at_once() -> None:
    core = TrimCore(TrimPolicy(mode=REPLICAS, delay_ms=0), trimmed_lsn=0)
    known = Durability(committed_lsn=100, archived_lsn=None, replicas=ALIVE)
    assert core.step(0, known) == 70


def test_a_clock_that_goes_back_is_a_bug() -> None:
    core = TrimCore(TrimPolicy(mode=NONE), trimmed_lsn=0)
    core.step(5, _at(1))
    with pytest.raises(InvariantViolation):
        core.step(4, _at(1))


REPLICA = st.builds(
    ReplicaDurability,
    node=st.integers(1, 5),
    durable_lsn=st.integers(0, 120),
    dead_ms=st.none() | st.sampled_from([0, 1_000, DEAD_REPLICA_LAG_MS_MAX + 1]),
    lag_bytes=st.sampled_from([0, DEAD_REPLICA_LAG_BYTES_MAX + 1]),
)
KNOWN = st.builds(
    Durability,
    committed_lsn=st.integers(100, 130),
    archived_lsn=st.none() | st.integers(0, 120),
    replicas=st.lists(REPLICA, max_size=4),
)


@given(mode=st.sampled_from(DurabilityMode), known=KNOWN)
def test_what_goes_can_be_had_elsewhere(mode: DurabilityMode, known: Durability) -> None:
    floor = trim_floor(TrimPolicy(mode=mode), known)
    assert 0 <= floor <= known.committed_lsn
    if floor == 0:
        return
    live = [item for item in known.replicas if item.dead_ms is None]
    archived = known.archived_lsn or 0
    if mode in (SNAPSHOT, BALANCED, BOTH):
        assert floor <= archived
    if mode in (REPLICAS, BOTH):
        assert all(floor <= item.durable_lsn for item in known.replicas)
    if mode is BALANCED:
        assert all(floor <= item.durable_lsn for item in live)
    assert mode is not NONE


@given(known=KNOWN, copies=st.integers(1, 4))
def test_what_goes_without_snapshots_is_in_enough_tables(known: Durability, copies: int) -> None:
    floor = trim_floor(TrimPolicy(mode=REPLICAS, copies_min=copies), known)
    if floor:
        assert sum(item.durable_lsn >= floor for item in known.replicas) >= copies
        assert all(floor <= item.durable_lsn for item in known.replicas if item.dead_ms is None)


@given(mode=st.sampled_from(DurabilityMode), known=KNOWN)
def test_modes_are_ordered_by_care(mode: DurabilityMode, known: Durability) -> None:
    floors = {each: trim_floor(TrimPolicy(mode=each), known) for each in DurabilityMode}
    assert floors[NONE] <= floors[BOTH] <= floors[BALANCED] <= floors[SNAPSHOT]
    assert floors[BOTH] <= floors[REPLICAS]


@given(
    mode=st.sampled_from(DurabilityMode),
    steps=st.lists(st.tuples(st.integers(0, 40), KNOWN), max_size=30),
)
def test_trim_points_only_grow_and_stood_for_the_delay(
    mode: DurabilityMode, steps: list[tuple[int, Durability]]
) -> None:
    policy = TrimPolicy(mode=mode, delay_ms=50)
    core = TrimCore(policy, trimmed_lsn=3)
    now, trimmed = 0, 3
    history: list[tuple[int, int]] = []
    for passed, known in steps:
        now += passed
        floor = trim_floor(policy, known)
        history.append((now, floor))
        point = core.step(now, known)
        # The dumb twin: the lowest floor since the look that is at least the delay ago.
        old = [index for index, (seen, _) in enumerate(history) if now - seen >= 50]
        stood = min(floor for _, floor in history[old[-1] :]) if old else 0
        assert point == (stood if stood > trimmed else None)
        if point is not None:
            assert point > trimmed
            trimmed = point
        assert core.trimmed_lsn == trimmed
