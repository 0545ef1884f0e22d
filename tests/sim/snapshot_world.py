"""Workload of snapshots: uploaders at once over an object store that has bad days.

Several processes believe they lead a partition and take snapshots of it at ever later LSNs, publish
them, and collect what others left; any of them may die between two calls. What must hold at every
write to the bucket: ``latest.json`` only goes forward, names only whole snapshots, and nothing it
names is deleted (I-25). When all is calm again a snapshot can be taken, read back row by row, and
collecting leaves nothing but what is named.
"""

import asyncio
import random
from collections import Counter
from dataclasses import dataclass, field

import msgspec
from tests.sim.loop import SimLoop
from tests.sim.object_store import BucketFaults, SimBucket, SimObjectStore
from tests.sim.ports import SimClock, SimEntropy, SimOffload
from tests.sim.table_images import SimImage, image_of, rows_of

from perdure.cluster.core.snapshot import Published
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.errors import PerdureError
from perdure.core.limits_snapshots import SNAPSHOT_ORPHAN_MS
from perdure.storage import snapshots
from perdure.storage.partition_store import META_KEY, STORE_FORMAT_VERSION, Meta
from perdure.storage.snapshot_format import Latest, latest_key, parse_snapshot_key
from perdure.storage.snapshots import SnapshotOwner

PARTITION = 3
OWNER = SnapshotOwner(fingerprint="f" * 32, cluster="sim", partition_count=8, software="sim")
KEY = latest_key(PARTITION)


class Violation(AssertionError):
    """The bucket says something that is not so."""


@dataclass
class SnapshotWorld:
    """One seed."""

    seed: int
    ignores_conditions: bool = False
    happened: Counter[str] = field(default_factory=Counter[str])
    lsn: int = 0

    async def run(self, loop: SimLoop) -> None:
        self.dice = random.Random(self.seed)
        self.clock = SimClock(loop)
        self.bucket = SimBucket(
            ignores_conditions=self.ignores_conditions,
            now_ms=self.clock.now_ms,
            on_change=self._check,
        )
        self.latest: Latest | None = None
        retain = self.dice.choice((1, 2, 3))
        uploaders = [
            asyncio.ensure_future(self._upload_often(self._repository(retain)))
            for _ in range(self.dice.randint(2, 4))
        ]
        for uploader in uploaders:
            if self.dice.random() < 0.4:
                await asyncio.sleep(self.dice.random() * 3)
                uploader.cancel()
                self.happened["died"] += 1
        await asyncio.gather(*uploaders, return_exceptions=True)
        for uploader in uploaders:
            if not uploader.cancelled() and (failure := uploader.exception()) is not None:
                raise failure
        await self._heal(retain)

    def _repository(self, retain: int, *, is_calm: bool = False) -> SnapshotRepository:
        dice = random.Random(self.dice.getrandbits(64))
        faults = BucketFaults() if is_calm else BucketFaults.draw(dice)
        ports = RepositoryPorts(
            store=SimObjectStore(self.bucket, dice, faults),
            threads=SimOffload(dice, delay_ms_max=self.dice.choice((1, 50, 800))),
            clock=self.clock,
            entropy=SimEntropy(dice),
        )
        return SnapshotRepository(ports, OWNER, retain)

    def _image(self) -> SimImage:
        if self.dice.random() < 0.8:
            self.lsn += self.dice.randint(1, 5)
        lsn = max(self.lsn - self.dice.choice((0, 0, 3)), 1)  # some are behind
        meta = Meta(
            STORE_FORMAT_VERSION, bytes.fromhex(OWNER.fingerprint), PARTITION, lsn, lsn // 7, 0
        )
        rows = {b"\x01%d" % number: b"%d" % lsn for number in range(self.dice.randint(0, 40))}
        return image_of({META_KEY: msgspec.msgpack.encode(meta), **rows})

    async def _upload_often(self, repository: SnapshotRepository) -> None:
        for _ in range(self.dice.randint(1, 5)):
            await asyncio.sleep(self.dice.random())
            try:
                await self._upload(repository)
                if self.dice.random() < 0.3:
                    await asyncio.sleep(self.dice.choice((0, 2 * SNAPSHOT_ORPHAN_MS / 1000)))
                    self.happened["collected"] += await repository.collect(PARTITION)
            except PerdureError:
                self.happened["failed"] += 1

    async def _upload(self, repository: SnapshotRepository) -> None:
        mine = await repository.upload(self._image())
        outcome = await repository.publish(PARTITION, mine)
        self.happened[type(outcome).__name__] += 1
        if isinstance(outcome, Published):
            await asyncio.sleep(self.dice.choice((0, 1)))
            for evicted in outcome.evicted:
                await repository.delete(PARTITION, evicted)

    async def _heal(self, retain: int) -> None:
        await asyncio.sleep(5)  # jobs outlive their uploader
        self._land_writes()
        repository = self._repository(retain, is_calm=True)
        self.lsn += 10
        image = self._image()
        mine = await repository.upload(image)
        outcome = await repository.publish(PARTITION, mine)
        latest = await repository.latest(PARTITION)
        if latest is None or latest.newest_lsn < image.meta.applied_lsn:
            raise Violation(f"all is calm and {mine.lsn} was not published: {outcome}")
        store = SimObjectStore(self.bucket, random.Random(1))
        for retained in latest.retained:
            manifest = snapshots.read_manifest(store, PARTITION, retained, OWNER.fingerprint)
            rows = rows_of(b"".join(snapshots.get_image(store, manifest)))
            if msgspec.msgpack.decode(rows[META_KEY], type=Meta).applied_lsn != retained.lsn:
                raise Violation(f"the snapshot at {retained.lsn} is of another LSN")
        await asyncio.sleep(2 * SNAPSHOT_ORPHAN_MS / 1000)
        self.happened["collected"] += await repository.collect(PARTITION)
        named = {item.id for item in latest.retained}
        for key in self.bucket.objects:
            found = parse_snapshot_key(key)
            if found is not None and found[1] not in named:
                raise Violation(f"{key} is left behind")

    def _land_writes(self) -> None:
        while self.bucket.waiting:
            self.bucket.waiting.pop(0)()

    def _check(self, key: str) -> None:
        if key == KEY:
            self._check_latest()
        elif (found := parse_snapshot_key(key)) is not None and key not in self.bucket.objects:
            named = self.latest.retained if self.latest is not None else ()
            if any(item.id == found[1] for item in named):
                raise Violation(f"{key} is named and was deleted")

    def _check_latest(self) -> None:
        before = self.latest
        latest = snapshots.decode_latest(self.bucket.objects[KEY][0], PARTITION, OWNER.fingerprint)
        if before is not None and (
            latest.version != before.version + 1 or latest.newest_lsn <= before.newest_lsn
        ):
            raise Violation(f"latest.json went from {before} to {latest}")
        store = SimObjectStore(self.bucket, random.Random(1))
        for retained in latest.retained:
            manifest = snapshots.read_manifest(store, PARTITION, retained, OWNER.fingerprint)
            for _ in snapshots.get_image(store, manifest):
                pass
        self.latest = latest
