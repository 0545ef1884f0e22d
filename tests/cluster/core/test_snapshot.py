"""Snapshots, decided: when one is due, every way of publishing one, what may be deleted."""

import msgspec
import pytest

from perdure.cluster.core.snapshot import (
    GaveUp,
    Progress,
    Publication,
    Published,
    Read,
    SnapshotPolicy,
    Superseded,
    Write,
    check_successor,
    find_orphans,
    is_due,
)
from perdure.core.invariant import InvariantViolation
from perdure.core.limits_snapshots import (
    PUBLISH_RETRY_MS_MAX,
    PUBLISH_ROUNDS_MAX,
    SNAPSHOT_ORPHAN_MS,
)
from perdure.storage.object_store import ListedObject
from perdure.storage.snapshot_format import Latest, Retained, chunk_key, manifest_key

FINGERPRINT = "ab" * 16


def snapshot(lsn: int, id: str | None = None) -> Retained:
    return Retained(
        id=id or f"id{lsn}", lsn=lsn, epoch=1, created_ms=lsn, size=1, manifest_sha256="00"
    )


def latest(version: int, *lsns: int) -> Latest:
    return Latest(
        fingerprint=FINGERPRINT,
        partition=2,
        version=version,
        retained=tuple(snapshot(lsn) for lsn in lsns),
    )


def publication(lsn: int, retain: int = 2, pinned: tuple[int, ...] = ()) -> Publication:
    return Publication(
        fingerprint=FINGERPRINT,
        partition=2,
        mine=snapshot(lsn),
        retain=retain,
        pinned=frozenset(f"id{lsn}" for lsn in pinned),
    )


@pytest.mark.parametrize(
    ("interval", "records", "new", "since", "due"),
    [
        (1_000, 100, 0, 10_000, False),
        (1_000, 100, -1, 10_000, False),
        (1_000, 100, 1, 999, False),
        (1_000, 100, 1, 1_000, True),
        (1_000, 100, 99, 0, False),
        (1_000, 100, 100, 0, True),
        (None, 100, 99, 10**9, False),
        (None, 100, 100, 0, True),
        (1_000, None, 10**9, 999, False),
        (1_000, None, 1, 1_000, True),
        (None, None, 10**9, 10**9, False),
    ],
)
def test_when_a_snapshot_is_due(
    interval: int | None, records: int | None, new: int, since: int, due: bool
) -> None:
    policy = SnapshotPolicy(interval_ms=interval, records=records)
    assert is_due(policy, Progress(new, since)) is due


# --- Publishing -----------------------------------------------------------------------------------


def test_the_first_snapshot_creates() -> None:
    machine = publication(10)
    assert machine.start() == Read()
    write = machine.on_read(None)
    assert write == Write(latest(1, 10), None)
    assert machine.on_written(latest(1, 10)) == Published(latest(1, 10), ())


def test_a_later_one_replaces_the_oldest() -> None:
    machine = publication(30)
    machine.start()
    assert machine.on_read((latest(7, 20, 10), "tag")) == Write(latest(8, 30, 20), "tag")
    done = machine.on_written(latest(8, 30, 20))
    assert done == Published(latest(8, 30, 20), (snapshot(10),))


def test_what_a_set_names_is_kept_besides() -> None:
    machine = publication(40, retain=1, pinned=(10,))
    machine.start()
    assert machine.on_read((latest(7, 30, 20, 10), "t")) == Write(latest(8, 40, 10), "t")
    done = machine.on_written(latest(8, 40, 10))
    assert isinstance(done, Published)
    assert done.evicted == (snapshot(30), snapshot(20))
    assert done.latest.archived_lsn == 10


@pytest.mark.parametrize("found", [(30,), (31, 5), (99,)])
def test_one_at_least_as_new_supersedes(found: tuple[int, ...]) -> None:
    machine = publication(30)
    machine.mine = snapshot(30, "mine")
    machine.start()
    assert machine.on_read((latest(7, *found), "tag")) == Superseded(latest(7, *found))


def test_losing_a_race_means_deciding_again() -> None:
    machine = publication(30)
    machine.start()
    machine.on_read((latest(7, 20), "old"))
    assert machine.on_failed() == Read()
    assert machine.on_read((latest(8, 25, 20), "new")) == Write(latest(9, 30, 25), "new")
    assert machine.on_failed() == Read()
    assert machine.on_read((latest(9, 35, 25), "newer")) == Superseded(latest(9, 35, 25))


def test_a_lost_answer_of_a_write_that_happened_is_found_by_reading() -> None:
    machine = publication(30)
    machine.start()
    machine.on_read((latest(7, 20, 10), "old"))
    assert machine.on_unclear() == Read(100)
    found = latest(8, 30, 20)
    assert machine.on_read((found, "new")) == Published(found, (snapshot(10),))


def test_mine_counts_even_if_a_newer_one_was_published_after_it() -> None:
    machine = publication(30)
    machine.start()
    machine.on_read((latest(7, 20, 10), "old"))
    machine.on_unclear()
    found = latest(9, 40, 30)
    outcome = machine.on_read((found, "new"))
    assert isinstance(outcome, Published)
    assert outcome.evicted == (snapshot(10),)


def test_a_lost_answer_of_a_write_that_did_not_happen_is_written_again() -> None:
    machine = publication(30)
    machine.start()
    first = machine.on_read((latest(7, 20), "old"))
    machine.on_unclear()
    assert machine.on_read((latest(7, 20), "old")) == first


def test_waits_grow_and_rounds_end() -> None:
    machine = publication(30)
    machine.start()
    delays: list[int] = []
    step = machine.on_unclear()
    while isinstance(step, Read):
        delays.append(step.delay_ms)
        step = machine.on_unclear()
    assert isinstance(step, GaveUp)
    assert len(delays) == PUBLISH_ROUNDS_MAX - 1
    assert delays == sorted(delays)
    assert delays[-1] == PUBLISH_RETRY_MS_MAX


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (latest(7, 20), latest(8, 20)),
        (latest(7, 20), latest(8, 19)),
        (latest(7, 20), latest(9, 30)),
        (latest(7, 20), latest(8)),
        (latest(7, 20), latest(8, 30, 40)),
        (latest(7, 20, 15), latest(8, 30, 10)),
        (None, latest(2, 30)),
        (latest(7, 20), msgspec.structs.replace(latest(8, 30), partition=1)),
        (latest(7, 20), msgspec.structs.replace(latest(8, 30), fingerprint="cd" * 16)),
    ],
)
def test_latest_can_not_go_back(before: Latest | None, after: Latest) -> None:
    with pytest.raises(InvariantViolation):
        check_successor(before, after)


# --- Deleting -------------------------------------------------------------------------------------

NOW = 10 * SNAPSHOT_ORPHAN_MS
OLD = NOW - SNAPSHOT_ORPHAN_MS


def listed(lsn: int, id: str, modified_ms: int = OLD) -> list[ListedObject]:
    return [
        ListedObject(chunk_key(2, lsn, id, 0), 5, OLD),
        ListedObject(manifest_key(2, lsn, id), 5, modified_ms),
    ]


def test_only_what_can_not_be_published_any_more_is_an_orphan() -> None:
    objects = [
        *listed(30, "id30"),  # named
        *listed(20, "id20"),  # named
        *listed(25, "between"),
        *listed(10, "evicted"),
        *listed(30, "same"),
        *listed(31, "ahead"),  # may still be published
        *listed(12, "fresh", OLD + 1),  # somebody is at work
        ListedObject("p/2/s/what.is-this", 1, 0),
        ListedObject("p/2/s/x-y/manifest.json", 1, 0),
    ]
    found = find_orphans(objects, latest(3, 30, 20), NOW)
    assert found == [(10, "evicted"), (25, "between"), (30, "same")]


def test_without_latest_nothing_is_an_orphan() -> None:
    assert find_orphans(listed(10, "a"), None, NOW) == []
