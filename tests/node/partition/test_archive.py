"""Tables for replicas out of an object store: the newest that will do, whole, then ours."""

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

import msgspec
import pytest
from tests.cluster.fabric_rig import DEADLINE_S, until
from tests.storage.test_snapshots import FINGERPRINT, fill, take

from perdure.core.errors import PerdureError, SnapshotDamaged, SnapshotForeign, SnapshotNotFound
from perdure.core.offload import PoolOffload, run_offloaded
from perdure.node.partition.archive import Archive, Row, Source
from perdure.node.partition.table_copy import replace_tables
from perdure.storage.env import LmdbEnv
from perdure.storage.object_store import DirectoryStore
from perdure.storage.partition_store import META_KEY, Meta, PartitionStore
from perdure.storage.snapshot_format import (
    Latest,
    Retained,
    SetMember,
    SnapshotSet,
    chunk_key,
    encode,
    latest_key,
    manifest_key,
    sha256,
)
from perdure.storage.table_images import LmdbTables, UnpackedTables

OURS = bytes.fromhex("ab" * 16)
ROWS = 6_000  # more than a piece


@pytest.fixture
def store(tmp_path: Path) -> DirectoryStore:
    return DirectoryStore(tmp_path / "bucket")


@pytest.fixture
def published(tmp_path: Path, store: DirectoryStore) -> Latest:
    """Three snapshots of one partition, the newest first."""
    env = LmdbEnv(tmp_path / "env")
    retained: list[Retained] = []
    for number in range(3):
        fill(env, ROWS if number == 2 else 10)
        retained.insert(0, take(store, LmdbTables(env, tmp_path / "scratch"), id=f"{number:032x}"))
    env.close()
    latest = Latest(fingerprint=FINGERPRINT, partition=2, version=3, retained=tuple(retained))
    store.put(latest_key(2), encode(latest))
    return latest


def document(*members: SetMember) -> SnapshotSet:
    return SnapshotSet(
        fingerprint=FINGERPRINT,
        id="i",
        cluster="old",
        created_ms=5,
        software="1",
        members=members,
        registry=b"",
    )


def play(
    tmp_path: Path, sources: list[Source], body: Callable[[Archive], Coroutine[None, None, None]]
) -> None:
    async def main() -> None:
        def unpack(partition: int, chunks: Iterator[bytes]) -> UnpackedTables:
            return UnpackedTables(chunks, tmp_path / "copies" / str(partition))

        threads = PoolOffload("test", 1)
        await body(Archive(sources, threads, unpack, OURS))
        await run_offloaded(threads, lambda: None)  # what was there to tidy up is done before
        threads.close()

    asyncio.run(main())
    assert not list((tmp_path / "copies").glob("*"))


async def read(archive: Archive, partition: int, lsn_min: int) -> list[Row]:
    return [row async for rows in archive.rows(partition, lsn_min) for row in rows]


def lsn_of(rows: list[Row]) -> int:
    meta = msgspec.msgpack.decode(dict(rows)[META_KEY], type=Meta)
    assert meta.fingerprint == OURS
    return meta.applied_lsn


def test_a_replica_gets_the_newest_tables_and_they_are_its_clusters(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    async def body(archive: Archive) -> None:
        env = LmdbEnv(tmp_path / "ours")
        tables = PartitionStore(env, OURS, 2)
        thread = PoolOffload("storage", 1)
        await replace_tables(tables, thread, archive.rows(2, 5), 5)
        thread.close()
        assert tables.applied_lsn == tables.durable_lsn == published.newest_lsn
        assert len(tables.sequences.scan(b"", 2 * ROWS)) == ROWS
        env.close()
        again = LmdbEnv(tmp_path / "ours")
        assert PartitionStore(again, OURS, 2).opened.fingerprint == OURS
        again.close()

    play(tmp_path, [Source(store=store, fingerprint=FINGERPRINT)], body)


def test_damaged_ones_are_passed_over_as_long_as_older_ones_will_do(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    newest, middle, oldest = published.retained
    store.put(chunk_key(2, newest.lsn, newest.id, 0), b"rotten")

    async def body(archive: Archive) -> None:
        assert lsn_of(await read(archive, 2, oldest.lsn)) == middle.lsn
        with pytest.raises(SnapshotDamaged, match="checksum"):
            await read(archive, 2, newest.lsn)

    play(tmp_path, [Source(store=store, fingerprint=FINGERPRINT)], body)


def test_tables_that_are_not_those_of_the_manifest_are_refused(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    newest = published.retained[0]
    key = manifest_key(2, newest.lsn, newest.id)
    found = store.get(key)
    assert found is not None
    other = found.content.replace(b'"epoch": 0', b'"epoch": 9')
    assert other != found.content
    store.put(key, other)

    claimed = msgspec.structs.replace(newest, epoch=9, manifest_sha256=sha256(other))
    source = Source(store=store, fingerprint=FINGERPRINT, document=document(SetMember(2, claimed)))

    async def body(archive: Archive) -> None:
        with pytest.raises(SnapshotDamaged, match="manifest says"):
            await read(archive, 2, 1)

    play(tmp_path, [source], body)


def test_snapshots_that_are_too_old_or_not_ours_are_of_no_use(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    newest = published.newest_lsn

    async def body(archive: Archive) -> None:
        with pytest.raises(SnapshotNotFound, match=f"{newest + 1} or later, the newest is"):
            await read(archive, 2, newest + 1)
        with pytest.raises(SnapshotNotFound, match="none"):
            await read(archive, 3, 0)

    async def foreign(archive: Archive) -> None:
        with pytest.raises(SnapshotForeign):
            await read(archive, 2, 0)

    play(tmp_path, [Source(store=store, fingerprint=FINGERPRINT)], body)
    play(tmp_path, [Source(store=store, fingerprint="ee" * 16)], foreign)


def test_what_the_first_source_lacks_comes_from_the_next(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    middle = published.retained[1]
    ours = Source(store=DirectoryStore(tmp_path / "ours-bucket"), fingerprint=OURS.hex())
    origin = Source(store=store, fingerprint=FINGERPRINT, document=document(SetMember(2, middle)))

    async def body(archive: Archive) -> None:
        assert lsn_of(await read(archive, 2, middle.lsn)) == middle.lsn  # not the newest: the set's
        with pytest.raises(PerdureError):
            await read(archive, 2, middle.lsn + 1)

    play(tmp_path, [ours, origin], body)


def test_who_stops_halfway_leaves_nothing_behind(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    async def body(archive: Archive) -> None:
        rows = archive.rows(2, 1)
        async for piece in rows:
            assert piece[0][0] == META_KEY
            break
        await rows.aclose()

    play(tmp_path, [Source(store=store, fingerprint=FINGERPRINT)], body)


def test_what_is_fetched_for_nobody_goes_when_it_is_here(
    store: DirectoryStore, published: Latest, tmp_path: Path
) -> None:
    began, may_go_on = threading.Event(), threading.Event()
    folder = tmp_path / "copies"
    unpacked: list[UnpackedTables] = []

    def unpack(partition: int, chunks: Iterator[bytes]) -> UnpackedTables:
        began.set()
        may_go_on.wait(DEADLINE_S)
        unpacked.append(UnpackedTables(chunks, folder / "1"))
        return unpacked[0]

    async def main() -> None:
        threads = PoolOffload("test", 1)
        source = Source(store=store, fingerprint=FINGERPRINT)
        rows = Archive([source], threads, unpack, OURS).rows(2, 1)
        getting = asyncio.ensure_future(anext(rows))
        await until(began.is_set)
        getting.cancel()
        await asyncio.gather(getting, return_exceptions=True)
        may_go_on.set()
        await until(lambda: unpacked and not list(folder.glob("*")))
        threads.close()

    asyncio.run(main())
