"""Restoring a node: whole or not at all, whatever is in the way, at whatever step it dies."""

import asyncio
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from perdure.cluster.core.membership import CLUSTER_KEY, ClusterMeta
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.takeover import decode_meta, partition_key
from perdure.core import failpoint
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import (
    DataDirectoryForeign,
    DataDirectoryLocked,
    SnapshotDamaged,
    SnapshotForeign,
    SnapshotNotFound,
)
from perdure.node.identity import establish
from perdure.node.registry import store as registry_store
from perdure.node.restore import Target, find_set, restore, verify_set
from perdure.storage import snapshots
from perdure.storage.data_directory import lock_folder, open_disk, read_marker
from perdure.storage.env import LmdbEnv
from perdure.storage.object_store import DirectoryStore
from perdure.storage.partition_store import PartitionStore
from perdure.storage.snapshot_format import (
    CLUSTER_KEY as OWNER_KEY,
)
from perdure.storage.snapshot_format import (
    SetMember,
    SnapshotSet,
    chunk_key,
    encode,
    manifest_key,
)
from perdure.storage.snapshots import SnapshotOwner
from perdure.storage.table_images import LmdbTables

FINGERPRINT = "0f" * 16
PARTITIONS = 3
OWNER = SnapshotOwner(
    fingerprint=FINGERPRINT, cluster="shop", partition_count=PARTITIONS, software="1"
)


class Crash(BaseException):
    """The process dies here."""


def add_member(store: DirectoryStore, folder: Path, partition: int, rows: int) -> SetMember:
    """A snapshot of a partition with so many rows and records."""
    env = LmdbEnv(folder)
    tables = PartitionStore(env, bytes.fromhex(FINGERPRINT), partition)
    for number in range(rows):
        tables.sequences.put(b"%d" % number, partition)
        tables.applied_lsn += 1
    tables.applied_epoch = 5
    flush = tables.freeze()
    flush.run()
    tables.finish(flush)
    image = LmdbTables(env, folder.with_name("scratch")).copy()
    id = f"{partition:032x}"
    chunks = tuple(
        snapshots.put_chunk(store, chunk_key(partition, rows, id, number), image, place)
        for number, place in enumerate(snapshots.chunk_ranges(image.size))
    )
    manifest = snapshots.make_manifest(image, chunks, OWNER, id, 1)
    image.discard()
    tables.close()
    return SetMember(partition, snapshots.put_manifest(store, manifest))


def make_set(members: list[SetMember], created_ms: int = 7) -> SnapshotSet:
    return SnapshotSet(
        fingerprint=FINGERPRINT,
        id="ab",
        cluster="shop",
        created_ms=created_ms,
        software="1",
        members=tuple(members),
        registry=b"what is registered",
    )


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "bucket")


@pytest.fixture
def document(store: DirectoryStore, tmp_path: Path) -> SnapshotSet:
    snapshots.claim_prefix(store, OWNER)
    members = [
        add_member(store, tmp_path / f"env{partition}", partition, 10 * (partition + 1))
        for partition in range(PARTITIONS)
    ]
    document = make_set(members)
    snapshots.put_set(store, document)
    return document


@pytest.fixture
def target(tmp_path: Path) -> Target:
    return Target(folder=tmp_path / "data" / "n1", cluster="shop", node="n1")


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm_all()


def run_restore(store: DirectoryStore, document: SnapshotSet, target: Target) -> list[int]:
    done: list[int] = []
    restore(store, document, target, SystemEntropy(), lambda member: done.append(member.partition))
    return done


def check_restored(target: Target) -> None:
    """The directory starts, as a new cluster with the old state."""
    disk = open_disk(target.folder)
    metadata = LocalMetadata(disk)
    identity = asyncio.run(establish(disk, metadata, SystemEntropy(), ("shop", "n1"), 99))
    assert identity.partition_count == PARTITIONS
    assert identity.generation == 1
    assert identity.fingerprint.hex() != FINGERPRINT
    cluster = asyncio.run(metadata.get(CLUSTER_KEY))
    assert cluster is not None
    assert msgspec.msgpack.decode(cluster.value, type=ClusterMeta).name == "shop"
    registered = asyncio.run(metadata.get(registry_store.KEY))
    assert registered is not None
    assert registered.value == b"what is registered"
    for partition in range(PARTITIONS):
        env = LmdbEnv(target.folder / "partitions" / str(partition))
        tables = PartitionStore(env, identity.fingerprint, partition)
        lsn = 10 * (partition + 1)
        assert (tables.opened.fingerprint, tables.opened.partition) == (
            identity.fingerprint,
            partition,
        )
        assert (tables.applied_lsn, tables.applied_epoch) == (lsn, 5)
        assert len(tables.sequences.scan(b"", 100)) == lsn
        tables.close()
        meta = decode_meta(asyncio.run(metadata.get(partition_key(partition))))
        assert (meta.epoch, meta.trim_lsn, meta.chain) == (5, lsn + 1, ())


def test_a_restored_directory_starts_with_the_old_state(
    store: DirectoryStore, document: SnapshotSet, target: Target
) -> None:
    assert run_restore(store, document, target) == [0, 1, 2]
    check_restored(target)
    assert [path.name for path in target.folder.parent.iterdir()] == ["n1"]


def test_two_restores_are_two_clusters(
    store: DirectoryStore, document: SnapshotSet, target: Target, tmp_path: Path
) -> None:
    other = Target(folder=tmp_path / "other", cluster="shop", node="n1")
    for each in (target, other):
        run_restore(store, document, each)
    markers = [read_marker(open_disk(each.folder)) for each in (target, other)]
    assert len({marker.fingerprint for marker in markers if marker is not None}) == 2


@pytest.mark.parametrize(("point", "passes"), [("restore.partition.done", 2), ("restore.ready", 1)])
def test_a_restore_that_dies_leaves_no_directory_and_can_be_repeated(
    store: DirectoryStore, document: SnapshotSet, target: Target, point: str, passes: int
) -> None:
    left = passes

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Crash

    failpoint.arm(point, die)
    with pytest.raises(Crash):
        run_restore(store, document, target)
    assert not target.folder.exists()
    failpoint.disarm_all()
    run_restore(store, document, target)
    check_restored(target)


def test_data_in_the_way_is_never_touched(
    store: DirectoryStore, document: SnapshotSet, target: Target
) -> None:
    target.folder.mkdir(parents=True)
    (target.folder / "LOCK").write_bytes(b"")
    run_restore(store, document, target)  # only a lock of old
    check_restored(target)
    before = sorted(target.folder.rglob("*"))
    with pytest.raises(DataDirectoryForeign, match="empty directory"):
        run_restore(store, document, target)
    assert sorted(target.folder.rglob("*")) == before


def test_two_restores_at_once_are_refused(
    store: DirectoryStore, document: SnapshotSet, target: Target
) -> None:
    lock = lock_folder(target.folder.with_name("n1.restoring"))
    with pytest.raises(DataDirectoryLocked):
        run_restore(store, document, target)
    lock.release()
    run_restore(store, document, target)


@pytest.mark.parametrize("partitions", [[], [0, 2], [1, 2], [0, 0, 1]])
def test_a_set_that_lacks_partitions_is_refused(
    store: DirectoryStore, document: SnapshotSet, target: Target, partitions: list[int]
) -> None:
    lacking = make_set([SetMember(number, document.members[0].snapshot) for number in partitions])
    with pytest.raises(SnapshotDamaged, match="lacks partitions"):
        run_restore(store, lacking, target)
    with pytest.raises(SnapshotDamaged, match="lacks partitions"):
        verify_set(store, lacking, lambda _: None)
    assert not target.folder.exists()


@pytest.mark.parametrize("part", ["manifest", "chunk"])
def test_a_damaged_set_is_noticed_and_leaves_nothing(
    store: DirectoryStore, document: SnapshotSet, target: Target, part: str
) -> None:
    verify_set(store, document, lambda _: None)
    retained = document.members[2].snapshot
    key = (
        manifest_key(2, retained.lsn, retained.id)
        if part == "manifest"
        else chunk_key(2, retained.lsn, retained.id, 0)
    )
    found = store.get(key)
    assert found is not None
    store.put(key, found.content[:-1])
    with pytest.raises(SnapshotDamaged, match=r"p/2/"):
        verify_set(store, document, lambda _: None)
    with pytest.raises(SnapshotDamaged, match=r"p/2/"):
        run_restore(store, document, target)
    assert not target.folder.exists()


def test_tables_that_are_not_what_their_manifest_says_are_refused(
    store: DirectoryStore, document: SnapshotSet, target: Target
) -> None:
    retained = document.members[1].snapshot
    manifest = snapshots.read_manifest(store, 1, retained, FINGERPRINT)
    other = snapshots.read_manifest(store, 2, document.members[2].snapshot, FINGERPRINT)
    lying = msgspec.structs.replace(manifest, chunks=other.chunks, size=other.size, id="11" * 16)
    for number in range(len(other.chunks)):
        found = store.get(chunk_key(2, other.lsn, other.id, number))
        assert found is not None
        store.put(chunk_key(1, lying.lsn, lying.id, number), found.content)
    forged = snapshots.put_manifest(store, lying)
    members = [document.members[0], SetMember(1, forged), document.members[2]]
    with pytest.raises(SnapshotDamaged, match="those of partition 2"):
        run_restore(store, make_set(members), target)
    assert not target.folder.exists()


def test_sets_are_found_by_name_and_newest_first(
    store: DirectoryStore, document: SnapshotSet
) -> None:
    later = make_set(list(document.members), created_ms=1_000)
    snapshots.put_set(store, later)
    assert find_set(store, None) == later
    assert find_set(store, document.name) == document
    with pytest.raises(SnapshotNotFound, match=later.name):
        find_set(store, "nope")


def test_an_empty_or_foreign_destination_is_told(store: DirectoryStore) -> None:
    with pytest.raises(SnapshotNotFound, match="right"):
        find_set(store, None)
    snapshots.claim_prefix(store, OWNER)
    with pytest.raises(SnapshotNotFound, match="yet"):
        find_set(store, None)
    foreign = msgspec.structs.replace(make_set([]), fingerprint="ee" * 16)
    snapshots.put_set(store, foreign)
    with pytest.raises(SnapshotForeign):
        find_set(store, None)
    found = store.get(OWNER_KEY)
    assert found is not None
    store.put(OWNER_KEY, encode(msgspec.structs.replace(make_set([]), format=9)))
    with pytest.raises(SnapshotForeign, match="format 9"):
        find_set(store, None)
