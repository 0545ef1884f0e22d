"""Makes snapshots of partitions led here out of their held tables, and has them count.

Tables are copied beside the work, one partition after the other; the copies are uploaded and
published, and what they replace is deleted after a while. What has not changed since its last
snapshot is not copied. Who decides what is taken when: ``snapshotter.py``.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perdure.cluster.core.snapshot import Published
from perdure.cluster.snapshot_repository import SnapshotRepository
from perdure.core.clock import Clock
from perdure.core.errors import ObjectStoreUnavailable, SnapshotForeign, SnapshotsUnavailable
from perdure.core.ids import PartitionId
from perdure.core.limits import DISK_FREE_BYTES_MIN
from perdure.core.limits_snapshots import SNAPSHOT_GRACE_MS
from perdure.core.offload import Offload, offloaded
from perdure.node.partition.cut import HeldPartition, Hold
from perdure.node.partition.processor import Processor
from perdure.storage.snapshot_format import Latest, Retained, SetMember, SnapshotSet
from perdure.storage.table_images import TableImage


@dataclass(frozen=True, slots=True, kw_only=True)
class TakerPorts:
    """``hold``: fixes a partition's tables. ``copy_thread``: copies them, one after the other.

    ``free_bytes``: of the disk that copies go to. ``on_archived``: told of a partition's archived
    LSN. ``is_alone``: no other node publishes snapshots of the same cluster.
    """

    repository: SnapshotRepository
    hold: Hold
    copy_thread: Offload
    free_bytes: Callable[[], int]
    clock: Clock
    on_archived: Callable[[PartitionId, int], None] = lambda _partition, _lsn: None
    is_alone: bool = True


def pinned_by(sets: Sequence[SnapshotSet]) -> frozenset[str]:
    """Ids of the snapshots that sets name."""
    return frozenset(member.snapshot.id for document in sets for member in document.members)


class Taker:
    """Of one node; ``latest`` is what counts, of partitions that were led here."""

    def __init__(self, ports: TakerPorts) -> None:
        self.ports = ports
        self.latest: dict[int, Latest] = {}
        self.is_busy = False  # with snapshots that are not all of this node's alone
        self._terms: dict[int, int] = {}
        self._evicted: list[tuple[float, int, Retained]] = []

    async def learn(self, led: Sequence[Processor]) -> list[Processor]:
        """Read what counts for partitions that were not led here before, or by others since."""
        fresh = [item for item in led if self._terms.get(item.partition) != _term(item)]
        for processor in fresh:
            partition, term = processor.partition, _term(processor)
            latest = await self.ports.repository.latest(partition)
            if latest is not None:
                self.latest[partition] = latest
                self.ports.on_archived(partition, latest.archived_lsn)
            self._terms[partition] = term
        return fresh

    def forget(self) -> None:
        """What is in the store may be other than what was read."""
        self._terms.clear()

    async def copy(self, held: Sequence[HeldPartition]) -> dict[int, TableImage]:
        """Images of what has changed since its last snapshot; all is let go, whatever happens."""
        images: dict[int, TableImage] = {}
        waiting = list(held)
        try:
            while waiting:
                item = waiting.pop(0)  # from here on it is let go of by whoever copies it
                latest = self.latest.get(item.partition)
                if latest is not None and latest.newest_lsn == item.lsn:
                    item.tables.release()
                else:
                    images[item.partition] = await self._copy_one(item)
        except BaseException:  # bulkhead: let go of what is held, and raise it again
            for item in waiting:
                item.tables.release()
            discard(images)
            raise
        return images

    async def store(
        self,
        held: Sequence[HeldPartition],
        images: dict[int, TableImage],
        pinned: frozenset[str],
    ) -> list[SetMember]:
        """Snapshots of what was held, all of which count; the images are gone, whatever happens.

        Raises:
            PerdureError: not all of them count.
        """
        members: list[SetMember] = []
        try:
            for item in held:
                image = images.pop(item.partition, None)
                members.append(
                    SetMember(item.partition, await self._store_one(item, image, pinned))
                )
        finally:
            discard(images)
        return members

    async def delete_evicted(self) -> None:
        """Delete what has not counted for a while."""
        now = self.ports.clock.monotonic()
        named: frozenset[str] | None = None
        while self._evicted and self._evicted[0][0] <= now:
            _, partition, evicted = self._evicted[0]
            try:
                if named is None:  # by a set that another node has written, maybe
                    named = pinned_by(await self.ports.repository.sets())
                if evicted.id not in named:
                    await self.ports.repository.delete(partition, evicted)
            except ObjectStoreUnavailable:
                return  # later, or collected once it is old
            self._evicted.pop(0)

    # --- Steps ----------------------------------------------------------------------------------

    async def _copy_one(self, item: HeldPartition) -> TableImage:
        # A copy under way can't be stopped, and its tables not be let go of before it ends: its
        # thread reads them.
        copying = offloaded(self.ports.copy_thread, item.tables.copy)
        try:
            image = await asyncio.shield(copying)
        except asyncio.CancelledError:
            copying.add_done_callback(_discard_copy)
            raise
        except OSError as error:
            raise SnapshotsUnavailable(
                f"the tables of partition {item.partition} can't be copied: {error}"
            ) from error
        if self.ports.free_bytes() < DISK_FREE_BYTES_MIN:
            image.discard()
            raise SnapshotsUnavailable(
                "there is no room for copies of the tables in the data directory: free some space"
            )
        return image

    async def _store_one(
        self, item: HeldPartition, image: TableImage | None, pinned: frozenset[str]
    ) -> Retained:
        """The snapshot that stands for a partition; uploaded, if it is new."""
        if image is None:
            return self.latest[item.partition].retained[0]
        try:
            mine = await self.ports.repository.upload(image)
        finally:
            image.discard()
        outcome = await self.ports.repository.publish(item.partition, mine, pinned)
        self.latest[item.partition] = outcome.latest
        self.ports.on_archived(item.partition, outcome.latest.archived_lsn)
        if not isinstance(outcome, Published):
            return self._agree(item, outcome.latest)
        due = self.ports.clock.monotonic() + SNAPSHOT_GRACE_MS / 1000
        self._evicted += [(due, item.partition, evicted) for evicted in outcome.evicted]
        return mine

    def _agree(self, item: HeldPartition, latest: Latest) -> Retained:
        """Somebody else's snapshot counts instead: as good as ours if it is of the same record."""
        newest = latest.retained[0]
        if self.ports.is_alone:
            raise SnapshotForeign(
                f"somebody else has published a snapshot of partition {item.partition} at "
                f"{newest.lsn}, this node is at {item.lsn}: does a copy of it run?"
            )
        if newest.lsn != item.lsn:
            raise SnapshotsUnavailable(
                f"a later leader of partition {item.partition} has published its snapshot at "
                f"{newest.lsn}, this one is at {item.lsn}"
            )
        return newest


def _term(processor: Processor) -> int:
    return processor.store.applied_epoch


def discard(images: dict[int, TableImage]) -> None:
    """Images that nobody needs any more."""
    while images:
        images.popitem()[1].discard()


def _discard_copy(copying: "asyncio.Future[TableImage]") -> None:
    if not copying.cancelled() and copying.exception() is None:
        copying.result().discard()
