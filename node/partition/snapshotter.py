"""Takes snapshots of the partitions: when they are due, or when an operator asks.

They are taken as a *set*: of all partitions at one moment, with the registry, so that the set alone
is enough to bring everything back. A node that leads all partitions does that alone; among several
(``Together``) one of them has the others do their part, and where no set comes about for long, each
leader takes its partitions' alone, for replicas to start from. Trouble with the object store never
troubles the partitions: it is told, counted, and tried again.

States of the destination: not yet reached, refused or foreign (nothing is taken), unsound (taken,
but nothing may be trimmed on the strength of it), sound.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.cluster.core.snapshot import Progress, SnapshotPolicy, is_due
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    ObjectStoreRefused,
    PerdureError,
    SnapshotForeign,
    SnapshotsUnavailable,
)
from perdure.core.invariant import invariant
from perdure.core.limits_snapshots import (
    OBJECT_STORE_RETRY_MS,
    OBJECT_STORE_TEST_MS,
    SNAPSHOT_ALONE_FACTOR,
    SNAPSHOT_LOOK_MS,
    SNAPSHOT_SETS_READ_MS,
)
from perdure.core.telemetry import logger
from perdure.node.partition.cut import cut
from perdure.node.partition.processor import Processor
from perdure.node.partition.taker import Taker, discard, pinned_by
from perdure.storage.snapshot_format import SetMember, SnapshotSet

log = logger("snapshots")

NO_DESTINATION = "no destination is set: set snapshots.destination and start the node again"


class Together(Protocol):
    """The other nodes' part in taking a set."""

    @property
    def is_our_turn(self) -> bool:
        """Whether this is the node that takes sets when they are due."""
        ...

    def applied(self) -> Mapping[int, int]:
        """How far partitions are, as far as their leaders have told."""
        ...

    async def take(self, pinned: frozenset[str]) -> tuple[list[SetMember], bytes]:
        """Snapshots of all partitions at one moment, all of which count, and the registry.

        Raises:
            PerdureError: why there are none.
        """
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotterPorts:
    """``processors``: of the partitions led here now. ``registry``: what is registered, encoded.
    ``together``: None where this node leads all there is."""

    taker: Taker
    processors: Callable[[], Sequence[Processor]]
    registry: Callable[[], bytes]
    clock: Clock
    entropy: Entropy
    together: Together | None = None


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
        self._taker = ports.taker
        self._repository = ports.taker.ports.repository
        self._policy = policy
        self._opened: dict[int, int] = {}
        self._started_at = ports.clock.monotonic()
        self._tested_at: float | None = None
        self._sets_read_at = self._started_at
        self._is_sound: bool | None = None
        self._fault: str | None = None
        self._failures = 0
        self._last_failure: str | None = None
        self._taken = 0
        self._turn = asyncio.Lock()
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
        """What may be trimmed as far as snapshots go; None: nothing, or the store is unsound.

        What all snapshots have that count, or all sets that are kept: of a partition in which
        nothing happens any more, an older snapshot counts for ever, and no set names it.
        """
        latest = self._taker.latest.get(partition)
        if latest is None or not self._is_sound:
            return None
        if len(self.sets) < self._repository.retain:
            return latest.archived_lsn
        named = [
            member.snapshot.lsn
            for document in self.sets
            for member in document.members
            if member.partition == partition
        ]
        return max(latest.archived_lsn, min(named))

    def statistics(self) -> SnapshotterStatistics:
        known = self._taker.latest
        retained = [item for latest in known.values() for item in latest.retained]
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
            archived={partition: self.archived_lsn(partition) or 0 for partition in known},
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
            await self._taker.delete_evicted()
            await self._learn()
            together = self._ports.together
            if together is None:
                if any(map(self._is_due, self._ports.processors())):
                    await self._take("due")
                return
            if together.is_our_turn and self._is_set_due(together):
                await self._read_sets()  # the one before this one may have taken it
                if self._is_set_due(together):
                    await self._take("due")
            elif self._age_ms(self._sets_read_at) >= SNAPSHOT_SETS_READ_MS:
                await self._read_sets()
            await self._take_alone()

    async def _create(self) -> SnapshotSet:
        async with self._turn:
            try:
                await self._prepare()
                await self._learn()
                if self._ports.together is not None:
                    await self._read_sets()
                return await self._take("asked for")
            except PerdureError as error:
                self._note_failure(error)
                raise

    def _is_due(self, processor: Processor, policy: SnapshotPolicy | None = None) -> bool:
        partition, applied = processor.partition, processor.store.applied_lsn
        latest = self._taker.latest.get(partition)
        archived = latest.newest_lsn if latest is not None else 0
        # What this process announced is no news; what earlier ones announced can't be told here,
        # so an idle partition has at most one snapshot more per start.
        announced = int(archived < self._opened.get(partition, 0))
        if latest is None:
            since_ms = self._age_ms(self._started_at)
        else:
            since_ms = self._ports.clock.now_ms() - latest.retained[0].created_ms
        return is_due(policy or self._policy, Progress(applied - archived - announced, since_ms))

    def _is_set_due(self, together: Together) -> bool:
        """Whether some partition has done enough since the newest set."""
        since_ms, had = self._age_ms(self._started_at), dict[int, int]()
        if self.sets:
            since_ms = self._ports.clock.now_ms() - self.sets[0].created_ms
            had = {member.partition: member.snapshot.lsn for member in self.sets[0].members}
        return any(
            is_due(self._policy, Progress(lsn - had.get(partition, 0), since_ms))
            for partition, lsn in together.applied().items()
        )

    def _age_ms(self, since: float) -> int:
        return int((self._ports.clock.monotonic() - since) * 1000)

    # --- The destination ------------------------------------------------------------------------

    async def _prepare(self) -> None:
        """Claim the prefix, learn what it holds, and test the store, once a day."""
        repository = self._repository
        if self._tested_at is not None and self._age_ms(self._tested_at) < OBJECT_STORE_TEST_MS:
            return
        now = self._ports.clock.monotonic()
        await repository.claim()
        self._taker.forget()
        await self._learn()
        await self._read_sets()
        self._fault = await repository.test()
        self._is_sound = self._fault is None
        self._tested_at = now
        if self._fault is not None:
            log.error("snapshots.store.unsound", destination=self.destination, fault=self._fault)
        else:
            log.info("snapshots.store.ready", destination=self.destination, sets=len(self.sets))
        for processor in self._ports.processors():
            await repository.collect(processor.partition, pinned_by(self.sets))

    async def _learn(self) -> None:
        """Read what counts for partitions that were not led here before."""
        for processor in await self._taker.learn(self._ports.processors()):
            self._opened.setdefault(processor.partition, processor.store.applied_lsn)

    async def _read_sets(self) -> None:
        self.sets = await self._repository.sets()
        self._sets_read_at = self._ports.clock.monotonic()

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
        ports, owner = self._ports, self._repository.owner
        began = ports.clock.monotonic()
        # Names tell the order, also of a clock that was put back.
        newest_ms = self.sets[0].created_ms if self.sets else 0
        created_ms = max(ports.clock.now_ms(), newest_ms + 1)
        if ports.together is None:
            members, registry = await self._take_here()
        else:
            await self._retire_sets()
            members, registry = await ports.together.take(pinned_by(self.sets))
            await self._check_named(members)
        document = SnapshotSet(
            fingerprint=owner.fingerprint,
            id=f"{ports.entropy.bits(64):016x}",
            cluster=owner.cluster,
            created_ms=created_ms,
            software=owner.software,
            members=tuple(members),
            registry=registry,
        )
        await self._finish(document)
        took_ms = round((ports.clock.monotonic() - began) * 1000)
        log.info("snapshots.taken", set=document.name, reason=reason, took_ms=took_ms)
        return document

    async def _take_here(self) -> tuple[list[SetMember], bytes]:
        """Of the partitions led here, at one moment."""
        registry: list[bytes] = []
        held = await cut(
            self._ports.processors(),
            self._taker.ports.hold,
            lambda: registry.append(self._ports.registry()),
        )
        images = await self._taker.copy(held)
        try:
            await self._retire_sets()
        except BaseException:  # bulkhead: let go of what was copied, and raise it again
            discard(images)
            raise
        return await self._taker.store(held, images, pinned_by(self.sets)), registry[0]

    async def _check_named(self, members: Sequence[SetMember]) -> None:
        """What counts now is kept for a while, and then the set that names it is seen."""
        for member in members:
            latest = await self._repository.latest(member.partition)
            kept = latest.retained if latest is not None else ()
            if all(item.id != member.snapshot.id for item in kept):
                raise SnapshotsUnavailable(
                    f"the snapshot of partition {member.partition} was replaced before all others "
                    "were there: it is tried again"
                )

    async def _take_alone(self) -> None:
        """Snapshots of partitions led here that no set has come to for long."""
        interval_ms, records = self._policy.interval_ms, self._policy.records
        patient = SnapshotPolicy(
            interval_ms=interval_ms * SNAPSHOT_ALONE_FACTOR if interval_ms is not None else None,
            records=records * SNAPSHOT_ALONE_FACTOR if records is not None else None,
        )
        late = [item for item in self._ports.processors() if self._is_due(item, patient)]
        for processor in late:
            if self._taker.is_busy:
                return
            self._taker.is_busy = True
            try:
                await self._take_one(processor)
            finally:
                self._taker.is_busy = False

    async def _take_one(self, processor: Processor) -> None:
        await self._read_sets()
        held = await cut([processor], self._taker.ports.hold, lambda: None)
        images = await self._taker.copy(held)
        await self._taker.store(held, images, pinned_by(self.sets))
        log.info("snapshots.taken.alone", partition=processor.partition, lsn=held[0].lsn)

    async def _retire_sets(self) -> None:
        """Forget the sets that the next one replaces, but always keep one: it may fail."""
        kept = max(1, self._repository.retain - 1)
        while len(self.sets) > kept:
            await self._repository.delete_set(self.sets[-1])
            self.sets.pop()

    async def _finish(self, document: SnapshotSet) -> None:
        invariant(
            [member.partition for member in document.members]
            == list(range(self._repository.owner.partition_count)),
            "a set has all partitions",
            set=document.name,
        )
        await self._repository.save_set(document)
        self.sets.insert(0, document)
        self._taken += 1
        self._last_failure = None
