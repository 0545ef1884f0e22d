"""The environment port: LMDB and its simulated twin, one suite."""

import random
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.ports import SimEnv, SimTables

from perdure.core.errors import PartitionUnavailable, StoreUnreadable
from perdure.core.limits import LMDB_COMMITS_PER_RELEASE, LMDB_KEY_BYTES_MAX
from perdure.storage.env import Env, LmdbEnv, MapFull
from perdure.storage.mapped_pages import release_mapped_pages

Opener = Callable[[], Env]
SMALL_MAP_BYTES = 64 * 1024


@pytest.fixture(params=["lmdb", "simulated"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    """Opens the same environment again and again."""
    if request.param == "lmdb":
        return lambda: LmdbEnv(tmp_path)
    tables = SimTables(SimDisk(random.Random(1)))
    return lambda: SimEnv(tables)


@pytest.fixture(params=["lmdb", "simulated"])
def small(request: pytest.FixtureRequest, tmp_path: Path) -> Env:
    """An environment that soon is full."""
    if request.param == "lmdb":
        return LmdbEnv(tmp_path, map_bytes=SMALL_MAP_BYTES)
    return SimEnv(SimTables(SimDisk(random.Random(1)), map_bytes=SMALL_MAP_BYTES))


def _all(env: Env) -> dict[bytes, bytes]:
    return dict(env.scan(b"", b"\xff" * 600))


def test_reads_see_the_state_of_the_last_refresh(opener: Opener) -> None:
    env = opener()
    env.commit([], [], [(b"a", b"1"), (b"b", b"2")])
    assert env.get(b"a") is None
    assert _all(env) == {}
    env.refresh()
    assert env.get(b"a") == b"1"
    env.commit([], [b"a"], [(b"b", b"3")])
    assert _all(env) == {b"a": b"1", b"b": b"2"}
    env.refresh()
    assert _all(env) == {b"b": b"3"}
    env.close()


def _resident_bytes(path: Path) -> int:
    """How much of a file is mapped into this process."""
    found, size = False, 0
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if line.split()[0][-1] != ":":
            found = line.endswith(f" {path}")
        elif found and line.startswith("Rss:"):
            size += int(line.split()[1]) * 1024
    return size


def test_mapped_pages_are_released_and_still_there(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path)
    path = (tmp_path / "data.mdb").resolve()
    rows = [(b"%06d" % number, b"v" * 1000) for number in range(4000)]
    for start in range(0, 4000, 1000):
        env.commit([], [], rows[start : start + 1000])
    env.refresh()
    snapshot = env.snapshot()
    assert _all(env) == dict(rows)
    assert _resident_bytes(path) > 4_000_000
    assert release_mapped_pages(path) >= 4_000_000
    assert _resident_bytes(path) == 0
    assert _all(env) == dict(rows)
    assert snapshot.get(rows[7][0]) == rows[7][1]
    for number in range(LMDB_COMMITS_PER_RELEASE):
        env.commit([], [], [(b"%d" % number, b"")])
    assert _resident_bytes(path) < 1_000_000
    snapshot.close()
    env.close()
    assert release_mapped_pages(path) == 0


def test_commits_survive_closing(opener: Opener) -> None:
    env = opener()
    env.commit([], [], [(b"a", b"1")])
    env.close()
    env = opener()
    assert _all(env) == {b"a": b"1"}
    env.close()


def test_scans_are_half_open_and_ascending(opener: Opener) -> None:
    env = opener()
    env.commit([], [], [(bytes([n]), b"") for n in (5, 1, 3, 2, 9)])
    env.refresh()
    assert [key[0] for key, _ in env.scan(b"\x02", b"\x05")] == [2, 3]
    assert list(env.scan(b"\x06", b"\x09")) == []
    assert list(env.scan(b"\x0a", b"\x0b")) == []
    env.close()


def test_ranges_are_cleared_before_entries_are_written(opener: Opener) -> None:
    env = opener()
    env.commit([], [], [(b"g%d" % n, b"old") for n in range(9)] + [(b"h", b"kept")])
    env.commit([(b"g", b"h")], [b"missing"], [(b"g3", b"new")])
    env.refresh()
    assert _all(env) == {b"g3": b"new", b"h": b"kept"}
    env.commit([(b"", b"\xff")], [], [])
    env.commit([(b"", b"\xff")], [], [])
    env.refresh()
    assert _all(env) == {}
    env.close()


def test_the_longest_key_fits(opener: Opener) -> None:
    env = opener()
    env.commit([], [], [(b"k" * LMDB_KEY_BYTES_MAX, b"v" * 100_000)])
    env.refresh()
    assert env.get(b"k" * LMDB_KEY_BYTES_MAX) == b"v" * 100_000
    env.close()


def test_a_full_map_writes_nothing_and_grows(small: Env) -> None:
    small.commit([], [], [(b"old", b"1")])
    rows = [(b"%04d" % n, b"x" * 500) for n in range(400)]
    grown = 0
    while True:
        try:
            small.commit([], [b"old"], rows)
            break
        except MapFull:
            small.refresh()
            assert _all(small) == {b"old": b"1"}
            small.grow()
            grown += 1
    assert grown > 0
    small.refresh()
    assert _all(small) == dict(rows)
    small.close()


Batch = tuple[list[tuple[bytes, bytes]], list[bytes], dict[bytes, bytes]]
KEYS = st.binary(min_size=1, max_size=3)
BATCHES = st.lists(
    st.tuples(
        st.lists(st.tuples(KEYS, KEYS), max_size=2),
        st.lists(KEYS, max_size=4),
        st.dictionaries(KEYS, st.binary(max_size=5), max_size=6),
    ),
    max_size=8,
)


@given(batches=BATCHES)
@settings(max_examples=60, deadline=None)
def test_lmdb_and_its_twin_agree(
    tmp_path_factory: pytest.TempPathFactory, batches: list[Batch]
) -> None:
    real: Env = LmdbEnv(tmp_path_factory.mktemp("env"), map_bytes=1 << 20)
    twin: Env = SimEnv(SimTables(SimDisk(random.Random(1))))
    for cleared, deleted, written in batches:
        for env in (real, twin):
            env.commit(cleared, deleted, sorted(written.items()))
            env.refresh()
        assert list(real.scan(b"", b"\xff" * 9)) == list(twin.scan(b"", b"\xff" * 9))
    real.close()


def test_a_map_is_opened_large_enough_for_its_content(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path, map_bytes=1 << 22)
    env.commit([], [], [(b"%d" % n, b"x" * 1000) for n in range(2000)])
    env.close()
    env = LmdbEnv(tmp_path, map_bytes=SMALL_MAP_BYTES)
    env.commit([], [], [(b"more", b"x" * 100_000)])
    env.refresh()
    assert len(_all(env)) == 2001
    env.close()


def test_what_is_no_store_is_refused(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_bytes(b"this is not a database" * 1000)
    with pytest.raises(StoreUnreadable, match=str(tmp_path)):
        LmdbEnv(tmp_path)


def test_the_twin_commits_whole_or_not_at_all() -> None:
    outcomes: set[int] = set()
    for step in (1, 2):
        disk = SimDisk(random.Random(1))
        tables = SimTables(disk)
        disk.power_loss_at = disk.steps + step
        with pytest.raises(PowerLoss):
            SimEnv(tables).commit([], [], [(b"a", b"1"), (b"b", b"2")])
        disk.lose_power()
        outcomes.add(len(_all(SimEnv(tables))))
    assert outcomes == {0, 2}


def test_a_snapshot_stays_what_it_was(opener: Opener) -> None:
    env = opener()
    env.commit([], [], [(b"a", b"1"), (b"b", b"2"), (b"c", b"3")])
    snapshot = env.snapshot()
    env.commit([], [b"a"], [(b"b", b"9")])
    env.refresh()
    assert (snapshot.get(b"a"), snapshot.get(b"b"), snapshot.get(b"x")) == (b"1", b"2", None)
    assert snapshot.scan(b"b", b"c", 10, 10) == [(b"b", b"2")]
    assert snapshot.scan(b"", b"z", 2, 100) == [(b"a", b"1"), (b"b", b"2")]
    assert snapshot.scan(b"", b"z", 10, 1) == [(b"a", b"1")]
    assert snapshot.scan(b"d", b"z", 10, 10) == []
    assert snapshot.scan_back(b"b", b"c", 10, 10) == [(b"b", b"2")]
    assert snapshot.scan_back(b"", b"z", 2, 100) == [(b"c", b"3"), (b"b", b"2")]
    assert snapshot.scan_back(b"a", b"c", 10, 1) == [(b"b", b"2")]
    assert snapshot.scan_back(b"", b"a", 10, 10) == snapshot.scan_back(b"d", b"z", 10, 10) == []
    later = env.snapshot()
    assert later.scan(b"", b"z", 10, 10) == [(b"b", b"9"), (b"c", b"3")]
    for each in (snapshot, later):
        each.close()
        each.close()
    env.close()


def test_snapshots_outlive_growing(small: Env) -> None:
    small.commit([], [], [(b"a", b"old")])
    snapshot, closed = small.snapshot(), small.snapshot()
    closed.close()
    small.commit([], [], [(b"a", b"new")])
    large = [(b"x%d" % number, bytes(8192)) for number in range(8)]
    for _ in range(8):
        try:
            small.commit([], [], large)
            break
        except MapFull:
            small.grow()
    assert snapshot.get(b"a") in (b"old", b"new")
    assert len(snapshot.scan(b"x", b"y", 100, 1 << 20)) in (0, 8)
    snapshot.close()
    small.close()


def test_a_closed_environment_has_no_snapshots(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path)
    snapshot = env.snapshot()
    env.close()
    with pytest.raises(PartitionUnavailable):
        snapshot.get(b"a")
    snapshot.close()


def test_snapshots_are_read_on_other_threads_while_the_environment_grows(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path, map_bytes=SMALL_MAP_BYTES)
    env.commit([], [], [(b"k%03d" % number, b"v") for number in range(200)])
    snapshot = env.snapshot()
    sizes: list[int] = []
    is_over = threading.Event()

    def read() -> None:
        while not is_over.is_set():
            sizes.append(len(snapshot.scan(b"k", b"l", 1000, 1 << 20)))

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(6):
        env.grow()
        env.commit([], [], [(b"more", bytes(1000))])
        env.refresh()
    is_over.set()
    reader.join()
    assert set(sizes) == {200}
    snapshot.close()
    env.close()
