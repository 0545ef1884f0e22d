"""Snapshots of a cluster's partitions in an object store, driven from the event loop.

Every call to the store is a job of its own on a thread, tried again when it can be; others may do
anything between two of them (``cluster/core/snapshot.py`` decides). A process may die between any
two: what it leaves is no snapshot, or a whole one that is published or collected later.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from perdure.cluster.core.snapshot import (
    GaveUp,
    Publication,
    PublicationStep,
    Published,
    Read,
    Superseded,
    Write,
    find_orphans,
)
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import ObjectStoreUnavailable
from perdure.core.failpoint import failpoint
from perdure.core.limits_snapshots import PUBLISH_RETRY_INITIAL_MS, SNAPSHOT_TRANSFERS_MAX
from perdure.core.offload import Offload, run_offloaded
from perdure.core.telemetry import logger
from perdure.storage.object_store import (
    ABSENT,
    ConditionFailed,
    Contended,
    Match,
    ObjectStore,
    self_test,
)
from perdure.storage.snapshot_format import (
    Chunk,
    Latest,
    Retained,
    SnapshotSet,
    chunk_key,
    encode,
    latest_key,
    set_key,
)
from perdure.storage.snapshots import (
    SnapshotOwner,
    chunk_ranges,
    claim_prefix,
    decode_latest,
    delete_snapshot,
    list_sets,
    list_snapshot_objects,
    make_manifest,
    put_chunk,
    put_manifest,
    put_set,
    read_latest,
)
from perdure.storage.table_images import TableImage

log = logger("snapshots")

T = TypeVar("T")
_TRIES_MAX = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class RepositoryPorts:
    """What a repository stands on. ``threads``: jobs beside each other, as many as it likes."""

    store: ObjectStore
    threads: Offload
    clock: Clock
    entropy: Entropy


class SnapshotRepository:
    """The snapshots below one prefix. ``retain``: how many of each partition are kept."""

    def __init__(self, ports: RepositoryPorts, owner: SnapshotOwner, retain: int) -> None:
        self.owner = owner
        self.retain = retain
        self._ports = ports
        self._transfers = asyncio.Semaphore(SNAPSHOT_TRANSFERS_MAX)

    async def claim(self) -> None:
        """Make the prefix this cluster's.

        Raises:
            SnapshotForeign: it is another's.
        """
        await self._insist(partial(claim_prefix, self._ports.store, self.owner))

    async def test(self) -> str | None:
        """What the store doesn't keep of what it should; None: it does."""
        return await self._insist(partial(self_test, self._ports.store, self._ports.entropy))

    async def latest(self, partition: int) -> Latest | None:
        """The snapshots of a partition that count."""
        job = partial(read_latest, self._ports.store, partition, self.owner.fingerprint)
        return await self._insist(job)

    async def upload(self, image: TableImage) -> Retained:
        """Make a whole snapshot of an image; nobody looks at it before it is published."""
        id = f"{self._ports.entropy.bits(128):032x}"
        chunks = await asyncio.gather(
            *(
                self._put_chunk(image, id, number, place)
                for number, place in enumerate(chunk_ranges(image.size))
            )
        )
        now_ms = self._ports.clock.now_ms()
        manifest = make_manifest(image, tuple(chunks), self.owner, id, now_ms)
        return await self._insist(partial(put_manifest, self._ports.store, manifest))

    async def publish(
        self, partition: int, mine: Retained, pinned: frozenset[str] = frozenset()
    ) -> Published | Superseded:
        """Make a whole snapshot the one that counts, unless a newer one does.

        Raises:
            ObjectStoreUnavailable: that could not be told or done; it may count later, or never.
        """
        publication = Publication(
            fingerprint=self.owner.fingerprint,
            partition=partition,
            mine=mine,
            retain=self.retain,
            pinned=pinned,
        )
        step = publication.start()
        while True:
            match step:
                case Read():
                    step = await self._read(publication, step)
                case Write():
                    step = await self._write(publication, step)
                case Superseded():
                    failpoint("snapshot.superseded")
                    await self.delete(partition, mine)
                    return step
                case Published():
                    return step
                case GaveUp():
                    raise ObjectStoreUnavailable(
                        f"the snapshot of partition {partition} at {mine.lsn} could not be "
                        "published: it is tried again with the next one"
                    )

    async def delete(self, partition: int, snapshot: Retained) -> None:
        """Delete a snapshot that ``latest.json`` does not name and never will."""
        job = partial(delete_snapshot, self._ports.store, partition, snapshot.lsn, snapshot.id)
        await self._insist(job)

    async def collect(self, partition: int, pinned: frozenset[str] = frozenset()) -> int:
        """Delete what dead uploads left behind, but what sets name; how many snapshots it was."""
        store = self._ports.store
        listed = await self._insist(partial(list_snapshot_objects, store, partition))
        latest = await self.latest(partition)
        orphans = find_orphans(listed, latest, self._ports.clock.now_ms(), pinned)
        for lsn, id in orphans:
            await self._insist(partial(delete_snapshot, store, partition, lsn, id))
        return len(orphans)

    async def save_set(self, document: SnapshotSet) -> None:
        """Write a set; its snapshots must have been published."""
        await self._insist(partial(put_set, self._ports.store, document))

    async def sets(self) -> list[SnapshotSet]:
        """The sets, newest first."""
        return await self._insist(
            lambda: list(list_sets(self._ports.store, self.owner.fingerprint))
        )

    async def delete_set(self, document: SnapshotSet) -> None:
        """Forget a set; its snapshots stay."""
        await self._insist(partial(self._ports.store.delete, set_key(document.name)))

    # --- Steps ----------------------------------------------------------------------------------

    async def _put_chunk(
        self, image: TableImage, id: str, number: int, place: tuple[int, int]
    ) -> Chunk:
        key = chunk_key(image.meta.partition, image.meta.applied_lsn, id, number)
        async with self._transfers:
            return await self._insist(partial(put_chunk, self._ports.store, key, image, place))

    async def _read(self, publication: Publication, step: Read) -> PublicationStep:
        await self._rest(step.delay_ms)
        key = latest_key(publication.partition)
        try:
            found = await self._run(partial(self._ports.store.get, key))
        except ObjectStoreUnavailable:
            return publication.on_unclear()
        if found is None:
            return publication.on_read(None)
        latest = decode_latest(found.content, publication.partition, self.owner.fingerprint)
        return publication.on_read((latest, found.etag))

    async def _write(self, publication: Publication, step: Write) -> PublicationStep:
        failpoint("snapshot.latest.decided")
        condition = Match(step.etag) if step.etag is not None else ABSENT
        key = latest_key(publication.partition)
        content = encode(step.document)
        try:
            await self._run(partial(self._ports.store.put, key, content, condition))
        except ConditionFailed:
            return publication.on_failed()
        except (Contended, ObjectStoreUnavailable):
            return publication.on_unclear()
        failpoint("snapshot.latest.written")
        return publication.on_written(step.document)

    async def _insist(self, job: Callable[[], T]) -> T:
        """Run a job that may be repeated until it is known to be done, a few times."""
        delay_ms = PUBLISH_RETRY_INITIAL_MS
        for _ in range(_TRIES_MAX):
            try:
                return await self._run(job)
            except (Contended, ObjectStoreUnavailable) as error:
                log.debug("snapshots.store.retry", reason=str(error))
                await self._rest(delay_ms)
                delay_ms *= 3
        try:
            return await self._run(job)
        except Contended as error:
            raise ObjectStoreUnavailable(f"the object store reports a conflict: {error}") from error

    async def _run(self, job: Callable[[], T]) -> T:
        return await run_offloaded(self._ports.threads, job)

    async def _rest(self, delay_ms: int) -> None:
        if delay_ms:
            await asyncio.sleep((delay_ms + self._ports.entropy.jitter(delay_ms)) / 1000)
