"""Snapshots of real tables: copied while they change, written, checked, damaged, put back."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from tests.sim.disk import SimDisk
from tests.sim.object_store import SimBucket, SimObjectStore
from tests.sim.ports import SimEnv, SimTables
from tests.sim.table_images import SimHeldTables, rows_of

from perdure.core.errors import SnapshotDamaged, SnapshotForeign
from perdure.core.invariant import InvariantViolation
from perdure.core.limits_snapshots import (
    SNAPSHOT_CHUNK_BYTES_MAX,
    SNAPSHOT_CHUNK_BYTES_MIN,
    SNAPSHOT_CHUNKS_WANTED,
)
from perdure.storage import snapshots
from perdure.storage.env import LmdbEnv, MapFull
from perdure.storage.object_store import DirectoryStore
from perdure.storage.partition_store import META_KEY, PartitionStore
from perdure.storage.snapshot_format import (
    CLUSTER_KEY,
    Latest,
    Manifest,
    Retained,
    SnapshotSet,
    chunk_key,
    decode,
    encode,
    latest_key,
    manifest_key,
    set_key,
)
from perdure.storage.snapshots import SnapshotOwner
from perdure.storage.table_images import LmdbTables, install_tables, read_meta

FINGERPRINT = "0f" * 16
OWNER = SnapshotOwner(fingerprint=FINGERPRINT, cluster="c", partition_count=4, software="1")


def fill(env: LmdbEnv, rows: int) -> PartitionStore:
    """Tables with some rows, flushed."""
    store = PartitionStore(env, bytes.fromhex(FINGERPRINT), 2)
    for number in range(rows):
        store.sequences.put(b"%08d" % number, number)
        store.applied_lsn += 1
    flush = store.freeze()
    flush.run()
    store.finish(flush)
    return store


def take(store: DirectoryStore, held: LmdbTables, id: str = "a" * 32) -> Retained:
    """A whole snapshot, as the repository makes one."""
    image = held.copy()
    chunks = tuple(
        snapshots.put_chunk(
            store, chunk_key(image.meta.partition, image.meta.applied_lsn, id, number), image, place
        )
        for number, place in enumerate(snapshots.chunk_ranges(image.size))
    )
    manifest = snapshots.make_manifest(image, chunks, OWNER, id, 1_000)
    image.discard()
    return snapshots.put_manifest(store, manifest)


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "bucket")


def test_tables_come_back_as_they_were_when_they_were_held(
    tmp_path: Path, store: DirectoryStore
) -> None:
    env = LmdbEnv(tmp_path / "env")
    tables = fill(env, 1_000)
    held = LmdbTables(env, tmp_path / "scratch")
    for number in range(500, 2_000):
        tables.sequences.put(b"%08d" % number, -1)
        tables.applied_lsn += 1
    flush = tables.freeze()
    flush.run()
    tables.finish(flush)
    retained = take(store, held)
    assert retained.lsn == 1_000
    assert not (tmp_path / "scratch").exists()
    env.close()

    manifest = snapshots.read_manifest(store, 2, retained, FINGERPRINT)
    assert (manifest.lsn, manifest.partition, manifest.partition_count) == (1_000, 2, 4)
    meta = install_tables(snapshots.get_image(store, manifest), tmp_path / "restored")
    assert (meta.applied_lsn, meta.partition) == (1_000, 2)
    again = LmdbEnv(tmp_path / "restored")
    restored = PartitionStore(again, bytes.fromhex(FINGERPRINT), 2)
    rows = restored.sequences.scan(b"", 5_000)
    assert rows == [(b"%08d" % number, number) for number in range(1_000)]
    again.close()


def test_a_held_environment_takes_commits_but_doesnt_grow(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path / "env", map_bytes=1 << 20)
    tables = fill(env, 10)
    held = LmdbTables(env, tmp_path / "scratch")
    assert not env.grow()
    # Holding has made room first: what is written meanwhile fits.
    env.commit([], [], [(b"\x7f%04d" % number, bytes(4_000)) for number in range(2_000)])
    image = held.copy()
    assert env.grow()
    assert image.meta.applied_lsn == 10
    image.discard()
    held.release()
    tables.close()


def test_an_environment_closed_while_held_closes_behind_the_copy(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path / "env")
    tables = fill(env, 10)
    held = LmdbTables(env, tmp_path / "scratch")
    tables.close()
    image = held.copy()
    assert image.meta.applied_lsn == 10
    image.discard()
    LmdbEnv(tmp_path / "env").close()  # the library refuses what is still open


def test_tables_that_cant_be_copied_are_let_go_of(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path / "env")
    tables = fill(env, 10)
    (tmp_path / "file").write_bytes(b"no folder")
    held = LmdbTables(env, tmp_path / "file" / "scratch")
    with pytest.raises(OSError, match="directory"):
        held.copy()
    assert env.grow()
    tables.close()


def test_two_may_hold_one_environment(tmp_path: Path) -> None:
    env = LmdbEnv(tmp_path / "env")
    tables = fill(env, 10)
    first, second = LmdbTables(env, tmp_path / "1"), LmdbTables(env, tmp_path / "2")
    first.release()
    first.release()
    assert not env.grow()
    second.copy().discard()
    assert env.grow()
    tables.close()


def test_the_twin_holds_what_the_real_one_holds() -> None:
    tables = SimTables(SimDisk(random.Random(1)))
    with pytest.raises(SnapshotDamaged):
        SimHeldTables(tables).copy()
    partition = PartitionStore(SimEnv(tables), bytes.fromhex(FINGERPRINT), 2)
    partition.sequences.put(b"k", 1)
    partition.applied_lsn = 7
    flush = partition.freeze()
    flush.run()
    held = SimHeldTables(tables)
    before = dict(tables.committed)
    tables.committed = {}
    image = held.copy()
    assert image.meta.applied_lsn == 7
    assert rows_of(image.read(image.size, 0)) == before


# --- Chunks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("size", "first", "count"),
    [
        (0, None, 0),
        (1, 1, 1),
        (SNAPSHOT_CHUNK_BYTES_MIN, SNAPSHOT_CHUNK_BYTES_MIN, 1),
        (SNAPSHOT_CHUNK_BYTES_MIN + 1, SNAPSHOT_CHUNK_BYTES_MIN, 2),
        (
            2 * SNAPSHOT_CHUNKS_WANTED * SNAPSHOT_CHUNK_BYTES_MIN,
            2 * SNAPSHOT_CHUNK_BYTES_MIN,
            SNAPSHOT_CHUNKS_WANTED,
        ),
        (10**12, SNAPSHOT_CHUNK_BYTES_MAX, 14_902),
    ],
)
def test_chunks_cover_an_image(size: int, first: int | None, count: int) -> None:
    ranges = snapshots.chunk_ranges(size)
    assert len(ranges) == count
    assert sum(length for _, length in ranges) == size
    assert [start for start, _ in ranges] == [
        sum(length for _, length in ranges[:number]) for number in range(min(count, 50))
    ] + [start for start, _ in ranges[50:]]
    if first is not None:
        assert ranges[0] == (0, first)


@pytest.mark.parametrize("content", [bytes(100_000), random.Random(1).randbytes(100_000)])
def test_chunks_are_compressed_where_it_pays(content: bytes) -> None:
    class Image:
        size = len(content)
        meta = None

        def read(self, size: int, offset: int) -> bytes:
            return content[offset : offset + size]

        def discard(self) -> None: ...

    store = SimObjectStore(SimBucket(), random.Random(1))
    key = chunk_key(2, 9, "i", 0)
    chunk = snapshots.put_chunk(store, key, Image(), (0, len(content)))  # type: ignore[arg-type]
    assert chunk.encoding == ("none" if any(content) else "zlib")
    manifest = Manifest(
        fingerprint=FINGERPRINT,
        id="i",
        cluster="c",
        partition=2,
        partition_count=4,
        lsn=9,
        epoch=1,
        created_ms=1,
        software="1",
        tables_format=1,
        size=len(content),
        chunks=(chunk,),
    )
    assert snapshots.get_chunk(store, manifest, 0) == content
    later = msgspec.structs.replace(
        manifest, chunks=(msgspec.structs.replace(chunk, encoding="zstd"),)
    )
    with pytest.raises(SnapshotForeign, match="zstd"):
        snapshots.get_chunk(store, later, 0)


# --- Damage and strangers -------------------------------------------------------------------------


@pytest.fixture
def taken(tmp_path: Path, store: DirectoryStore) -> Retained:
    env = LmdbEnv(tmp_path / "env")
    tables = fill(env, 300)
    retained = take(store, LmdbTables(env, tmp_path / "scratch"))
    tables.close()
    return retained


def read_back(store: DirectoryStore, retained: Retained) -> bytes:
    manifest = snapshots.read_manifest(store, 2, retained, FINGERPRINT)
    return b"".join(snapshots.get_image(store, manifest))


def shorten(content: bytes) -> bytes | None:
    return content[:-1]


def flip(content: bytes) -> bytes | None:
    return bytes([content[0] ^ 1]) + content[1:]


def remove(content: bytes) -> bytes | None:
    return None


Edit = Callable[[bytes], bytes | None]


@pytest.mark.parametrize(
    ("part", "edit", "words"),
    [
        ("manifest", shorten, "checksum"),
        ("manifest", remove, "isn't there"),
        ("chunk", shorten, "checksum"),
        ("chunk", flip, "checksum"),
        ("chunk", remove, "missing"),
    ],
)
def test_damage_is_noticed(
    store: DirectoryStore, taken: Retained, part: str, edit: Edit, words: str
) -> None:
    assert read_back(store, taken)
    key = (
        manifest_key(2, taken.lsn, taken.id)
        if part == "manifest"
        else chunk_key(2, taken.lsn, taken.id, 0)
    )
    found = store.get(key)
    assert found is not None
    content = edit(found.content)
    if content is None:
        store.delete(key)
    else:
        store.put(key, content)
    with pytest.raises(SnapshotDamaged, match=words):
        read_back(store, taken)


def test_a_manifest_must_come_back_as_it_was_written(
    store: DirectoryStore, taken: Retained
) -> None:
    manifest = snapshots.read_manifest(store, 2, taken, FINGERPRINT)
    assert snapshots.put_manifest(store, manifest) == taken  # a repeated try
    with pytest.raises(SnapshotDamaged, match="come back"):
        snapshots.put_manifest(store, msgspec.structs.replace(manifest, created_ms=5))


def test_another_clusters_snapshots_are_refused(store: DirectoryStore, taken: Retained) -> None:
    with pytest.raises(SnapshotForeign, match="fingerprint"):
        snapshots.read_manifest(store, 2, taken, "ee" * 16)
    latest = Latest(fingerprint="ee" * 16, partition=2, version=1, retained=(taken,))
    store.put(latest_key(2), encode(latest))
    with pytest.raises(SnapshotForeign, match="fingerprint"):
        snapshots.read_latest(store, 2, FINGERPRINT)
    found = snapshots.read_latest(store, 2, "ee" * 16)
    assert found == latest


def test_another_partitions_manifest_is_refused(store: DirectoryStore, taken: Retained) -> None:
    content = store.get(manifest_key(2, taken.lsn, taken.id))
    assert content is not None
    store.put(manifest_key(3, taken.lsn, taken.id), content.content)
    with pytest.raises(SnapshotForeign, match="another snapshot"):
        snapshots.read_manifest(store, 3, taken, FINGERPRINT)


def test_tables_of_another_cluster_are_never_uploaded(
    tmp_path: Path, store: DirectoryStore
) -> None:
    env = LmdbEnv(tmp_path / "env")
    tables = fill(env, 3)
    image = LmdbTables(env, tmp_path / "scratch").copy()
    with pytest.raises(InvariantViolation, match="taken in"):
        snapshots.make_manifest(image, (), replace(OWNER, fingerprint="ee" * 16), "i", 1)
    image.discard()
    tables.close()


def test_a_prefix_belongs_to_one_cluster(store: DirectoryStore) -> None:
    assert snapshots.read_owner(store) is None
    for _ in range(2):
        snapshots.claim_prefix(store, OWNER)
    owner = snapshots.read_owner(store)
    assert owner is not None
    assert (owner.fingerprint, owner.name) == (FINGERPRINT, "c")
    with pytest.raises(SnapshotForeign, match="destination of its own"):
        snapshots.claim_prefix(store, replace(OWNER, fingerprint="ee" * 16))
    store.put(CLUSTER_KEY, b"{]")
    with pytest.raises(SnapshotDamaged, match=r"cluster\.json"):
        snapshots.claim_prefix(store, OWNER)


def test_documents_of_a_later_format_are_refused_and_unknown_fields_skipped() -> None:
    document = SnapshotSet(
        fingerprint=FINGERPRINT,
        id="i",
        cluster="c",
        created_ms=5,
        software="1",
        members=(),
        registry=b"\xff\x00",
    )
    content = encode(document)
    assert decode(content, SnapshotSet, "k") == document
    more = content.replace(b'"cluster"', b'"unheard_of": 1, "cluster"')
    assert decode(more, SnapshotSet, "k") == document
    with pytest.raises(SnapshotForeign, match="format 2"):
        decode(content.replace(b'"format": 1', b'"format": 2'), SnapshotSet, "k")


def test_a_snapshot_is_deleted_manifest_first(store: DirectoryStore, taken: Retained) -> None:
    snapshots.delete_snapshot(store, 2, taken.lsn, taken.id)
    assert list(store.list("p/")) == []
    snapshots.delete_snapshot(store, 2, taken.lsn, taken.id)


# --- Putting back ---------------------------------------------------------------------------------


def test_what_is_no_table_file_is_not_put_in_place(tmp_path: Path) -> None:
    with pytest.raises(SnapshotDamaged):
        install_tables(iter([b"this is not a database" * 1_000]), tmp_path / "p")
    assert not (tmp_path / "p").exists()
    env = LmdbEnv(tmp_path / "other")
    env.commit([], [], [(b"k", b"v")])
    env.close()
    with pytest.raises(SnapshotDamaged, match="how far"):
        read_meta(tmp_path / "other")
    env = LmdbEnv(tmp_path / "odd")
    env.commit([], [], [(META_KEY, b"\xc1")])
    env.close()
    with pytest.raises(SnapshotDamaged, match="can't be read"):
        read_meta(tmp_path / "odd")


def test_a_full_map_is_no_reason_to_lose_a_copy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.storage.env._PIN_ROOM_BYTES", 0)
    env = LmdbEnv(tmp_path / "env", map_bytes=1 << 20)
    tables = fill(env, 10)
    held = LmdbTables(env, tmp_path / "scratch")
    large = [(b"\x7f%07d" % number, bytes(1 << 20)) for number in range(4)]
    with pytest.raises(MapFull):
        env.commit([], [], large)
    assert not env.grow()
    held.copy().discard()
    assert env.grow()
    tables.close()


def test_tables_of_another_format_are_refused_before_they_are_fetched(
    store: DirectoryStore, taken: Retained, tmp_path: Path
) -> None:
    manifest = snapshots.read_manifest(store, 2, taken, FINGERPRINT)
    older = snapshots.put_manifest(
        store, msgspec.structs.replace(manifest, tables_format=1, id="01" * 16)
    )
    with pytest.raises(SnapshotForeign, match="format 1"):
        snapshots.install_snapshot(store, 2, older, FINGERPRINT, tmp_path / "p")
    assert not (tmp_path / "p").exists()


def test_a_set_that_cant_be_read_is_left_out(store: DirectoryStore) -> None:
    document = SnapshotSet(
        fingerprint=FINGERPRINT,
        id="i",
        cluster="c",
        created_ms=5,
        software="1",
        members=(),
        registry=b"",
    )
    snapshots.put_set(store, document)
    store.put(set_key("zzz"), b"{")
    assert list(snapshots.list_sets(store, FINGERPRINT)) == [document]
    assert snapshots.read_set(store, document.name, FINGERPRINT) == document
    assert snapshots.read_set(store, "other", FINGERPRINT) is None
    with pytest.raises(SnapshotDamaged):
        snapshots.read_set(store, "zzz", FINGERPRINT)
