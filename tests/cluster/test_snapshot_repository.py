"""The repository on real threads and files: it may die at every step, and the next one goes on."""

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from tests.sim.ports import SimEntropy
from tests.sim.table_images import SimImage, image_of, rows_of

from perdure.cluster.core.snapshot import Published, Superseded
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core import failpoint
from perdure.core.errors import SnapshotDamaged, SnapshotForeign
from perdure.core.limits_snapshots import SNAPSHOT_CHUNK_BYTES_MIN, SNAPSHOT_ORPHAN_MS
from perdure.core.offload import PoolOffload
from perdure.storage import snapshots
from perdure.storage.object_store import DirectoryStore
from perdure.storage.partition_store import META_KEY, STORE_FORMAT_VERSION, Meta
from perdure.storage.snapshot_format import latest_key, parse_snapshot_key
from perdure.storage.snapshots import SnapshotOwner

pytestmark = pytest.mark.slow

FINGERPRINT = "0f" * 16
OWNER = SnapshotOwner(fingerprint=FINGERPRINT, cluster="c", partition_count=4, software="1")
STEPS = (
    "snapshot.chunk.written",
    "snapshot.manifest.written",
    "snapshot.latest.decided",
    "snapshot.latest.written",
)


THREADS: list[PoolOffload] = []
"""Of all processes; ended after each test."""


class Crash(BaseException):
    """The process dies here."""


class FarFuture:
    """A clock at which everything in the directory is old."""

    def now_ms(self) -> int:
        return 4_000_000_000_000 + SNAPSHOT_ORPHAN_MS

    def monotonic(self) -> float:
        return 0.0


@pytest.fixture(autouse=True)
def disarmed() -> Iterator[None]:
    yield
    failpoint.disarm_all()
    while THREADS:
        THREADS.pop().close()


def die() -> None:
    raise Crash


def image(lsn: int, filling: bytes = b"") -> SimImage:
    meta = Meta(STORE_FORMAT_VERSION, bytes.fromhex(FINGERPRINT), 2, lsn, 1, 0)
    return image_of({META_KEY: msgspec.msgpack.encode(meta), b"\x01k": filling})


class Rig:
    """One process."""

    def __init__(self, store: DirectoryStore) -> None:
        threads = PoolOffload("test", 3)
        THREADS.append(threads)
        entropy = SimEntropy(random.Random())
        ports = RepositoryPorts(store=store, threads=threads, clock=FarFuture(), entropy=entropy)
        self.repository = SnapshotRepository(ports, OWNER, retain=2)

    async def take(self, taken: SimImage) -> Published | Superseded:
        mine = await self.repository.upload(taken)
        return await self.repository.publish(2, mine)


def check_named(store: DirectoryStore) -> list[int]:
    """LSNs of the snapshots that count; each is whole."""
    latest = snapshots.read_latest(store, 2, FINGERPRINT)
    for retained in latest.retained if latest is not None else ():
        manifest = snapshots.read_manifest(store, 2, retained, FINGERPRINT)
        rows = rows_of(b"".join(snapshots.get_image(store, manifest)))
        assert msgspec.msgpack.decode(rows[META_KEY], type=Meta).applied_lsn == retained.lsn
    return [item.lsn for item in latest.retained] if latest is not None else []


@pytest.mark.parametrize("before", [[], [10], [10, 20]])
@pytest.mark.parametrize("step", STEPS)
def test_dying_at_any_step_harms_nothing(tmp_path: Path, step: str, before: list[int]) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        for lsn in before:
            await Rig(store).take(image(lsn))
        failpoint.arm(step, die)
        with pytest.raises(Crash):
            await Rig(store).take(image(30))
        failpoint.disarm_all()
        counted = step == "snapshot.latest.written"
        kept = sorted([*before, *([30] if counted else [])], reverse=True)[:2]
        assert check_named(store) == kept
        again = await Rig(store).take(image(40))
        assert isinstance(again, Published)
        assert check_named(store) == [40, *kept[:1]]
        await Rig(store).repository.collect(2)
        named = {item.id for item in again.latest.retained}
        left = {found[1] for item in store.list("p/") if (found := parse_snapshot_key(item.key))}
        assert left == named

    asyncio.run(main())


def test_a_superseded_snapshot_that_is_not_deleted_is_collected(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        await Rig(store).take(image(30))
        for step in ("snapshot.superseded", "snapshot.manifest.deleted"):
            failpoint.arm(step, die)
            with pytest.raises(Crash):
                await Rig(store).take(image(20))
            failpoint.disarm_all()
        assert isinstance(await Rig(store).take(image(30)), Superseded)
        assert check_named(store) == [30]
        assert await Rig(store).repository.collect(2) == 2
        assert await Rig(store).repository.collect(2) == 0
        assert check_named(store) == [30]

    asyncio.run(main())


def test_large_images_go_in_chunks(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        filling = random.Random(1).randbytes(SNAPSHOT_CHUNK_BYTES_MIN) * 2
        outcome = await Rig(store).take(image(7, filling))
        assert isinstance(outcome, Published)
        retained = outcome.latest.retained[0]
        manifest = snapshots.read_manifest(store, 2, retained, FINGERPRINT)
        assert len(manifest.chunks) == 3
        rows = rows_of(b"".join(snapshots.get_image(store, manifest)))
        assert rows[b"\x01k"] == filling

    asyncio.run(main())


def test_what_is_in_latest_decides_whether_to_go_on(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        store.put(latest_key(2), b"not json")
        with pytest.raises(SnapshotDamaged, match="latest"):
            await Rig(store).take(image(3))
        store.put(latest_key(2), b'{"format": 99, "fingerprint": "x"}')
        with pytest.raises(SnapshotForeign, match="format 99"):
            await Rig(store).take(image(3))
        found = store.get(latest_key(2))
        assert found is not None
        assert found.content.startswith(b'{"format": 99')

    asyncio.run(main())


def test_uploaders_at_once_leave_the_newest(tmp_path: Path) -> None:
    async def main() -> None:
        store = DirectoryStore(tmp_path)
        outcomes = await asyncio.gather(*(Rig(store).take(image(lsn)) for lsn in range(1, 9)))
        assert check_named(store)[0] == 8
        assert any(isinstance(outcome, Published) for outcome in outcomes)

    asyncio.run(main())
