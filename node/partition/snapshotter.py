"""Takes snapshots of the partitions led here: when they are due, or when an operator asks.

A node that leads all partitions takes them as a *set*: all at one moment, with the registry, so
that the set alone is enough to bring the node back (node/restore.py). A node that leads some takes
theirs alone, for replicas to start from. Trouble with the object store never troubles the
partitions: it is told, counted, and tried again.

States of the destination: not yet reached, refused or foreign (nothing is taken), unsound (taken,
but nothing may be trimmed on the strength of it), sound.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from perdure.cluster.core.snapshot import Progress, Published, SnapshotPolicy, is_due
from perdure.cluster.snapshot_repository import SnapshotRepository
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    ObjectStoreRefused,
    ObjectStoreUnavailable,
    PerdureError,
    SnapshotForeign,
    SnapshotsUnavailable,
)
from perdure.core.ids import PartitionId
from perdure.core.limits import (
    DISK_FREE_BYTES_MIN,
    OBJECT_STORE_RETRY_MS,
    OBJECT_STORE_TEST_MS,
    SNAPSHOT_GRACE_MS,
    SNAPSHOT_LOOK_MS,
)
from perdure.core.offload import Offload, run_offloaded
from perdure.core.telemetry import logger
from perdure.node.partition.cut import HeldPartition, Hold, cut
from perdure.node.partition.processor import Processor
from perdure.storage.snapshot_format import Latest, Retained, SetMember, SnapshotSet
from perdure.storage.table_images import TableImage

log = logger("snapshots")

NO_DESTINATION = "no destination is set: set snapshots.destination and start the node again"


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotterPorts:
    """``hold``: fixes a partition's tables. ``copy_thread``: copies them, one after the other.

    ``processors``: of the partitions led here now. ``free_bytes``: of the disk that copies go to.
    ``registry``: what is registered, encoded. ``on_archived``: told of a partition's archived LSN.
    """

    repository: SnapshotRepository
    processors: Callable[[], Sequence[Processor]]
    hold: Hold
    copy_thread: Offload
    free_bytes: Callable[[], int]
    registry: Callable[[], bytes]
    clock: Clock
    entropy: Entropy
    on_archived: Callable[[PartitionId, int], None] = lambda _partition, _lsn: None


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotterStatistics:
    """``is_sound``: the store keeps what it should; None while not known. ``newest_ms``: when the
    newest set was taken. ``archived``: by partition, what any retained snapshot has."""

    destination: str
    is_sound: bool | None
    fault: str | None
    is_taking: bool
    sets_taken: int
    failures: int
    last_failure: str | None
    newest_ms: int | None
    stored_bytes: int
    archived: dict[int, int]


class Snapshotter:
    """The snapshots of one node. ``destination``: as the operator wrote it, to be shown."""

    def __init__(self, ports: SnapshotterPorts, policy: SnapshotPolicy, destination: str) -> None:
        self.destination = destination
        self.sets: list[SnapshotSet] = []
        self._ports = ports
        self._policy = policy
        self._latest: dict[int, Latest] = {}
        self._opened: dict[int, int] = {}
        self._known: set[int] = set()
        self._started_at = ports.clock.monotonic()
        self._tested_at: float | None = None
        self._is_sound: bool | None = None
        self._fault: str | None = None
        self._failures = 0
        self._last_failure: str | None = None
        self._taken = 0
        self._turn = asyncio.Lock()
        self._evicted: list[tuple[float, int, Retained]] = []
        self._requests: set[asyncio.Task[SnapshotSet]] = set()

    # --- For others -----------------------------------------------------------------------------

    async def run(self) -> None:
        """Look whether snapshots are due, until cancelled."""
        await asyncio.sleep(self._ports.entropy.jitter(SNAPSHOT_LOOK_MS) / 1000)
        while True:
            rest_ms = SNAPSHOT_LOOK_MS
            try:
                await self._look()
            except PerdureError as error:
                self._note_failure(error)
                rest_ms = OBJECT_STORE_RETRY_MS
            except Exception as error:  # bulkhead: partitions serve whatever snapshots meet
                log.error("snapshots.broken", cause=error)
                self._failures += 1
                self._last_failure = repr(error)
                rest_ms = OBJECT_STORE_RETRY_MS
            await asyncio.sleep(rest_ms / 1000)

    async def create(self) -> SnapshotSet:
        """Take a set now; it is taken to its end even if nobody waits for it any more.

        Raises:
            PerdureError: why there is none.
        """
        task = asyncio.ensure_future(self._create())
        self._requests.add(task)
        task.add_done_callback(self._on_created)
        return await asyncio.shield(task)

    def _on_created(self, task: "asyncio.Task[SnapshotSet]") -> None:
        self._requests.discard(task)
        if not task.cancelled():
            task.exception()  # who asked may be gone; it was noted

    def archived_lsn(self, partition: int) -> int | None:
        """What may be trimmed as far as snapshots go; None: nothing, or the store is unsound."""
        latest = self._latest.get(partition)
        return latest.archived_lsn if latest is not None and self._is_sound else None

    def statistics(self) -> SnapshotterStatistics:
        retained = [item for latest in self._latest.values() for item in latest.retained]
        return SnapshotterStatistics(
            destination=self.destination,
            is_sound=self._is_sound,
            fault=self._fault,
            is_taking=self._turn.locked(),
            sets_taken=self._taken,
            failures=self._failures,
            last_failure=self._last_failure,
            newest_ms=self.sets[0].created_ms if self.sets else None,
            stored_bytes=sum(item.size for item in retained),
            archived={partition: latest.archived_lsn for partition, latest in self._latest.items()},
        )

    async def aclose(self) -> None:
        """Stop what operators asked for; what was uploaded and not published is garbage."""
        for task in list(self._requests):
            task.cancel()
        await asyncio.gather(*self._requests, return_exceptions=True)

    # --- Looking --------------------------------------------------------------------------------

    async def _look(self) -> None:
        async with self._turn:
            await self._prepare()
            await self._delete_evicted()
            await self._learn()
            if any(self._is_due(processor) for processor in self._ports.processors()):
                await self._take("due")

    async def _create(self) -> SnapshotSet:
        async with self._turn:
            try:
                await self._prepare()
                await self._learn()
                return await self._take("asked for")
            except PerdureError as error:
                self._note_failure(error)
                raise

    def _is_due(self, processor: Processor) -> bool:
        partition, applied = processor.partition, processor.store.applied_lsn
        latest = self._latest.get(partition)
        archived = latest.newest_lsn if latest is not None else 0
        # What this process announced is no news; what earlier ones announced can't be told here,
        # so an idle partition has at most one snapshot more per start.
        announced = int(archived < self._opened.get(partition, 0))
        clock = self._ports.clock
        if latest is None:
            since_ms = int((clock.monotonic() - self._started_at) * 1000)
        else:
            since_ms = clock.now_ms() - latest.retained[0].created_ms
        return is_due(self._policy, Progress(applied - archived - announced, since_ms))

    # --- The destination ------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Claim the prefix, learn what it holds, and test the store, once a day."""
        clock, repository = self._ports.clock, self._ports.repository
        now = clock.monotonic()
        if self._tested_at is not None and (now - self._tested_at) * 1000 < OBJECT_STORE_TEST_MS:
            return
        await repository.claim()
        self._known.clear()
        await self._learn()
        self.sets = await repository.sets()
        self._fault = await repository.test()
        self._is_sound = self._fault is None
        self._tested_at = now
        if self._fault is not None:
            log.error("snapshots.store.unsound", destination=self.destination, fault=self._fault)
        else:
            log.info("snapshots.store.ready", destination=self.destination, sets=len(self.sets))
        for processor in self._ports.processors():
            await repository.collect(processor.partition)

    async def _learn(self) -> None:
        """Read what counts for partitions that were not led here before."""
        for processor in self._ports.processors():
            if processor.partition not in self._known:
                latest = await self._ports.repository.latest(processor.partition)
                if latest is not None:
                    self._latest[processor.partition] = latest
                self._opened.setdefault(processor.partition, processor.store.applied_lsn)
                self._known.add(processor.partition)

    def _note_failure(self, error: PerdureError) -> None:
        self._failures += 1
        self._tested_at = None  # what is in the store may be other than what is believed here
        if isinstance(error, ObjectStoreRefused | SnapshotForeign):
            self._is_sound, self._fault = False, error.message
        if str(error) != self._last_failure:
            # An object store that stays away is told once.
            log.error("snapshots.failed", destination=self.destination, reason=str(error))
        self._last_failure = str(error)

    # --- Taking ---------------------------------------------------------------------------------

    async def _take(self, reason: str) -> SnapshotSet:
        ports = self._ports
        began = ports.clock.monotonic()
        registry: list[bytes] = []
        # Names tell the order, also of a clock that was put back.
        newest_ms = self.sets[0].created_ms if self.sets else 0
        created_ms = max(ports.clock.now_ms(), newest_ms + 1)
        held = await cut(ports.processors(), ports.hold, lambda: registry.append(ports.registry()))
        images = await self._copy(held)
        members: list[SetMember] = []
        try:
            await self._retire_sets()
            for item in held:
                image = images.pop(item.partition, None)
                members.append(SetMember(item.partition, await self._store(item, image)))
        finally:
            for image in images.values():
                image.discard()
        document = SnapshotSet(
            fingerprint=ports.repository.owner.fingerprint,
            id=f"{ports.entropy.bits(64):016x}",
            cluster=ports.repository.owner.cluster,
            created_ms=created_ms,
            software=ports.repository.owner.software,
            members=tuple(members),
            registry=registry[0],
        )
        await self._finish(document)
        took_ms = round((ports.clock.monotonic() - began) * 1000)
        log.info("snapshots.taken", set=document.name, reason=reason, took_ms=took_ms)
        return document

    async def _copy(self, held: list[HeldPartition]) -> dict[int, TableImage]:
        """Images of what has changed since its last snapshot; the rest is let go."""
        images: dict[int, TableImage] = {}
        waiting = list(held)
        try:
            while waiting:
                item = waiting[0]
                latest = self._latest.get(item.partition)
                if latest is not None and latest.newest_lsn == item.lsn:
                    item.tables.release()
                else:
                    images[item.partition] = await self._copy_one(item)
                waiting.pop(0)
        except BaseException:  # bulkhead: let go of what is held, and raise it again
            for item in waiting:
                item.tables.release()
            for image in images.values():
                image.discard()
            raise
        return images

    async def _copy_one(self, item: HeldPartition) -> TableImage:
        # A copy under way can't be stopped, and its tables not be let go before it ends.
        copying = asyncio.ensure_future(run_offloaded(self._ports.copy_thread, item.tables.copy))
        try:
            image = await asyncio.shield(copying)
        except asyncio.CancelledError:
            copying.add_done_callback(_discard_copy)
            raise
        except OSError as error:
            raise SnapshotsUnavailable(
                f"the tables of partition {item.partition} can't be copied: {error}"
            ) from error
        if self._ports.free_bytes() < DISK_FREE_BYTES_MIN:
            image.discard()
            raise SnapshotsUnavailable(
                "there is no room for copies of the tables in the data directory: free some space"
            )
        return image

    async def _store(self, item: HeldPartition, image: TableImage | None) -> Retained:
        """The snapshot that stands for a partition in the set; uploaded, if it is new."""
        if image is None:
            return self._latest[item.partition].retained[0]
        try:
            mine = await self._ports.repository.upload(image)
        finally:
            image.discard()
        pinned = frozenset(
            member.snapshot.id for document in self.sets for member in document.members
        )
        outcome = await self._ports.repository.publish(item.partition, mine, pinned)
        self._latest[item.partition] = outcome.latest
        self._ports.on_archived(item.partition, outcome.latest.archived_lsn)
        if not isinstance(outcome, Published):
            if not self._leads_all():
                return outcome.latest.retained[0]  # of the leader before or after this one
            raise SnapshotForeign(
                f"somebody else has published a snapshot of partition {item.partition} at "
                f"{outcome.latest.newest_lsn}, this node is at {mine.lsn}: does a copy of it run?"
            )
        due = self._ports.clock.monotonic() + SNAPSHOT_GRACE_MS / 1000
        self._evicted += [(due, item.partition, evicted) for evicted in outcome.evicted]
        return mine

    async def _retire_sets(self) -> None:
        """Forget the sets that the next one replaces, but always keep one: it may fail."""
        kept = max(1, self._ports.repository.retain - 1)
        while len(self.sets) > kept:
            await self._ports.repository.delete_set(self.sets[-1])
            self.sets.pop()

    async def _finish(self, document: SnapshotSet) -> None:
        if len(document.members) == self._ports.repository.owner.partition_count:
            await self._ports.repository.save_set(document)
            self.sets.insert(0, document)
        self._taken += 1
        self._last_failure = None

    def _leads_all(self) -> bool:
        return len(self._ports.processors()) == self._ports.repository.owner.partition_count

    async def _delete_evicted(self) -> None:
        now = self._ports.clock.monotonic()
        while self._evicted and self._evicted[0][0] <= now:
            _, partition, evicted = self._evicted[0]
            try:
                await self._ports.repository.delete(partition, evicted)
            except ObjectStoreUnavailable:
                return  # later, or collected once it is old
            self._evicted.pop(0)


def _discard_copy(copying: "asyncio.Future[TableImage]") -> None:
    if not copying.cancelled() and copying.exception() is None:
        copying.result().discard()
