"""Workload of the log: partitions append through takeovers, full and failing disks, and crashes.

One seed is one history of one machine: a few lives, each of which opens the log as a node does,
reads everything back, takes over, appends, flushes, recycles, and ends by a clean stop, a kill, or
the loss of power at any disk operation. The last life has no faults and must get everything done.
"""

import asyncio
import hashlib
import random
from collections import Counter
from dataclasses import dataclass

from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.log_model import PartitionModel, Seen
from tests.sim.loop import SimLoop
from tests.sim.ports import SimClock, SimEntropy, SimEnv, SimOffload, SimTables

from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.types import Member, NodeId, Proposal, Writer
from perdure.cluster.log import CommittedRecord, LogBatcher, SegmentLog
from perdure.cluster.log_reader import IsDead, ReplayIndex, liveness
from perdure.cluster.log_server import LogServer
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.takeover import Takeover, decode_meta, partition_key, take_over
from perdure.cluster.wal_writer import WalWriter
from perdure.core.errors import DiskFull
from perdure.core.offload import run_offloaded
from perdure.storage.wal import Wal, WalIdentity, WalSizes
from perdure.storage.wal_recovery import open_wal

PARTITIONS = 3
OUTSTANDING_MAX = 8
IDENTITY = WalIdentity(fingerprint=b"F" * 16, storage_uuid=b"S" * 16)
MEMBER = Member(NodeId(1), b"S" * 16)
SIZES = WalSizes(first_file=16 * 1024, file=48 * 1024, free_min=4096, reserve=8192)
CAPACITY = 1 << 30
_APPLIED = b"applied"


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What may go wrong in one life. Times are in virtual seconds."""

    seconds: float
    power_loss_after_steps: int | None
    sync_failure_after: int | None
    is_slow: bool
    full_at: float | None
    ending: str  # "stop", "kill" or "power"

    @staticmethod
    def draw(dice: random.Random) -> "Faults":
        return Faults(
            seconds=dice.choice((0.02, 0.2, 0.6)),
            power_loss_after_steps=dice.randint(1, 600) if dice.random() < 0.5 else None,
            sync_failure_after=dice.randint(0, 60) if dice.random() < 0.15 else None,
            is_slow=dice.random() < 0.4,
            full_at=dice.random() * 0.2 if dice.random() < 0.2 else None,
            ending=dice.choice(("stop", "kill", "power")),
        )


HEALED = Faults(
    seconds=0.3,
    power_loss_after_steps=None,
    sync_failure_after=None,
    is_slow=False,
    full_at=None,
    ending="stop",
)


class History:
    """What one seed led to: a hash over everything that happened, and what was seen to happen."""

    def __init__(self) -> None:
        self.happened = Counter[str]()
        self._trace = hashlib.sha256()

    def note(self, *event: object) -> None:
        self._trace.update(repr(event).encode())

    def digest(self) -> str:
        return self._trace.hexdigest()


class World:
    """The machine of one seed, and what is known of it."""

    def __init__(self, seed: int) -> None:
        self.history = History()
        self.dice = random.Random(seed)
        self.disk = SimDisk(random.Random(self.dice.getrandbits(64)), CAPACITY)
        self.tables = [SimTables(self.disk) for _ in range(PARTITIONS)]
        self.models = [PartitionModel(number) for number in range(PARTITIONS)]

    def run(self, lives: int) -> History:
        """Live ``lives`` times under faults, and once more without."""
        for number in range(lives):
            self._live(number, Faults.draw(self.dice))
        self._live(lives, HEALED)
        return self.history

    def _live(self, number: int, faults: Faults) -> None:
        loop = SimLoop(self.dice.getrandbits(64))
        self.disk.capacity = CAPACITY
        ending = faults.ending
        try:
            life = Life(self, number, faults, loop)
            if not loop.run_until_complete(life.run()):
                ending = self.dice.choice(("kill", "power"))  # it stopped on a failed sync
            if loop.failures:
                raise loop.failures[0]
        except PowerLoss:
            ending = "power"
        finally:
            loop.discard()
        if ending == "power":
            self.disk.lose_power()
        else:
            self.disk.kill()
        self.history.happened[ending] += 1
        self.history.note("end", number, ending, self.disk.steps)


class _Partition:
    """A partition in one life: its records in memory and in the tables."""

    def __init__(self, life: "Life", number: int) -> None:
        self.life = life
        self.number = number
        self.model = life.world.models[number]
        self.env = SimEnv(life.world.tables[number])
        self.durable_lsn = int.from_bytes(self.env.get(_APPLIED) or b"")
        self.unflushed: list[tuple[int, Seen]] = []
        self.outstanding = 0
        self.proposed = 0
        self.takeover: Takeover
        self.log: SegmentLog[bytes]

    def read_back(self, index: ReplayIndex, wal: Wal) -> None:
        durable: dict[int, Seen] = {}
        for key, value in self.env.scan(b"r", b"s"):
            durable[int.from_bytes(key[1:])] = Seen(int.from_bytes(value[:8]), value[8:])
        assert max(durable, default=0) == self.durable_lsn
        replayed = list(index.records(wal, self.number, self.takeover.meta, self.durable_lsn))
        found = self.model.reopen(durable, replayed)
        self.unflushed = [(record.lsn, found[record.lsn]) for record in replayed]
        self.life.world.history.happened["replayed"] += len(replayed)

    def on_committed(self, records: list[CommittedRecord[bytes]]) -> None:
        epoch = self.takeover.opened.epoch
        for record in records:
            assert record.proposal.payload == record.context
            self.model.acknowledge(record.lsn, epoch, record.context)
            self.unflushed.append((record.lsn, Seen(epoch, record.context)))
            self.life.world.history.note("ack", self.number, record.lsn, record.context[:24])
        self.outstanding -= len(records)
        self.life.wake.set()

    async def propose(self, dice: random.Random) -> None:
        happened = self.life.world.history.happened
        while self.life.is_open():
            for _ in range(dice.randint(1, 4)):
                if self.outstanding < OUTSTANDING_MAX:
                    self.propose_one(dice, happened)
            await asyncio.sleep(dice.choice((0, 0.0005, 0.004, 0.02)))

    def propose_one(self, dice: random.Random, happened: Counter[str]) -> None:
        self.proposed += 1
        name = f"{self.number}/{self.life.number}/{self.proposed}/".encode()
        payload = name + b"x" * dice.choice((0, 10, 100, 1000))
        try:
            self.log.append(Proposal(kind=1, payload=payload, created_at_ms=0), payload)
        except DiskFull:
            happened["refused"] += 1
        else:
            self.outstanding += 1

    async def flush(self) -> None:
        batch, self.unflushed = self.unflushed, []
        if not batch:
            return
        rows = [(b"r" + lsn.to_bytes(8), s.epoch.to_bytes(8) + s.payload) for lsn, s in batch]
        rows.append((_APPLIED, batch[-1][0].to_bytes(8)))
        await run_offloaded(self.life.storage, lambda: self.env.commit([], [], rows))
        self.env.refresh()
        self.durable_lsn = batch[-1][0]
        self.life.on_durable(self)


class Life:
    """One run of one process on the machine."""

    def __init__(self, world: World, number: int, faults: Faults, loop: SimLoop) -> None:
        self.world = world
        self.number = number
        self.faults = faults
        self.loop = loop
        self.dice = random.Random(world.dice.getrandbits(64))
        self.clock = SimClock(loop)
        self.wake = asyncio.Event()
        self.failure: BaseException | None = None
        self.failed = asyncio.Event()
        self.partitions: list[_Partition] = []
        self.durable: dict[int, int] = {}
        self.is_dead: IsDead = lambda _segment, _end: False
        self.storage: SimOffload
        self.writer: WalWriter
        self.server: LogServer
        self.wal: Wal

    def is_open(self) -> bool:
        return self.failure is None and self.loop.time() < self.faults.seconds

    async def run(self) -> bool:
        """Boot, work, stop; False when a failed sync ended it."""
        disk = self.world.disk
        if self.faults.power_loss_after_steps is not None:
            disk.power_loss_at = disk.steps + self.faults.power_loss_after_steps
        disk.sync_failure_at = self.faults.sync_failure_after
        disk.on_sync = self._spend
        try:
            await self._boot()
        except OSError:
            assert self.faults.sync_failure_after is not None
            self.world.history.happened["boot failed"] += 1
            return False
        if self.failure is None:
            await self._work()
        if self.failure is not None:
            self.world.history.happened["sync failed"] += 1
            return False
        if self.faults.ending == "stop":
            await self._stop()
        self._count()
        return True

    async def _boot(self) -> None:
        metadata = LocalMetadata(self.world.disk)
        replicas = ReplicaCore(MEMBER)
        self.partitions = [_Partition(self, number) for number in range(PARTITIONS)]
        self.durable = {each.number: each.durable_lsn for each in self.partitions}
        chains = {
            number: decode_meta(await metadata.get(partition_key(number)))
            for number in range(PARTITIONS)
        }
        self.is_dead = liveness(chains, self.durable)
        index = ReplayIndex(replicas, self.is_dead)
        entropy = SimEntropy(self.dice)
        found = open_wal(self.world.disk, IDENTITY, entropy, index.visit, self.is_dead, SIZES)
        self.world.history.happened["torn"] += found.torn_at is not None
        self.wal = found.wal
        self.storage = self._offload()
        self.writer = WalWriter(
            found.wal,
            self.clock,
            self._offload(),
            self._offload(),
            self._on_failure,
            replicas.checkpoint,
        )
        self.server = LogServer(replicas, self.writer)
        await self._lead(metadata, replicas, index)

    async def _lead(
        self, metadata: LocalMetadata, replicas: ReplicaCore, index: ReplayIndex
    ) -> None:
        writer = Writer(NodeId(1), self.number + 1, self.dice.getrandbits(64))
        batcher = LogBatcher(self.writer)
        taking = asyncio.gather(
            *(
                take_over(
                    each.number,
                    metadata,
                    self.server,
                    replicas,
                    (writer, MEMBER),
                    each.durable_lsn,
                )
                for each in self.partitions
            )
        )
        await self._unless_failed(taking)
        if self.failure is not None:
            return
        for each, takeover in zip(self.partitions, taking.result(), strict=True):
            each.takeover = takeover
            each.model.extend(takeover.meta)
            each.read_back(index, self.wal)
            each.log = SegmentLog(
                takeover.opened,
                MEMBER,
                self.server,
                batcher,
                each.on_committed,
                lambda reason: self._on_failure(AssertionError(f"stopped: {reason}")),
            )
        self.is_dead = liveness(
            {each.number: each.takeover.meta for each in self.partitions}, self.durable
        )

    async def _unless_failed(self, work: "asyncio.Future[list[Takeover]]") -> None:
        failing = asyncio.ensure_future(self.failed.wait())
        await asyncio.wait((work, failing), return_when=asyncio.FIRST_COMPLETED)
        failing.cancel()
        if not work.done():
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
        else:
            work.result()

    async def _work(self) -> None:
        async with asyncio.TaskGroup() as group:
            for each in self.partitions:
                group.create_task(each.propose(random.Random(self.dice.getrandbits(64))))
                group.create_task(self._flush_now_and_then(each))
            if self.faults.full_at is not None:
                group.create_task(self._fill_disk(self.faults.full_at))

    async def _flush_now_and_then(self, each: _Partition) -> None:
        dice = random.Random(self.dice.getrandbits(64))
        while self.is_open():
            await asyncio.sleep(dice.choice((0.001, 0.02, 0.1)))
            await each.flush()

    async def _fill_disk(self, at: float) -> None:
        await asyncio.sleep(at)
        disk = self.world.disk
        disk.capacity -= disk.free_bytes()
        await asyncio.sleep(0.15)
        disk.capacity = CAPACITY

    async def _stop(self) -> None:
        """Everything outstanding commits, also when the disk was full a moment ago."""
        async with asyncio.timeout(10):
            while any(each.outstanding for each in self.partitions) and self.failure is None:
                self.wake.clear()
                await self.wake.wait()
        for each in self.partitions:
            await each.flush()

    def _count(self) -> None:
        happened, writer = self.world.history.happened, self.writer.statistics()
        happened["inline groups"] += writer.inline_groups
        happened["offloaded groups"] += writer.groups - writer.inline_groups
        self.writer.close()
        log = self.wal.statistics()
        assert log.files <= 8, "the log is recycled"

    def on_durable(self, each: _Partition) -> None:
        """The tables are durable so far: the log may let go of what they hold."""
        self.durable[each.number] = each.durable_lsn
        opened = each.takeover.opened
        if each.durable_lsn >= opened.base_lsn:
            self.server.trim(opened.key, each.durable_lsn + 1 - opened.base_lsn)
        files = self.wal.statistics().files
        self.world.history.happened["rolled"] += files > 1
        self.writer.recycle(self.is_dead)

    def _spend(self) -> None:
        self.clock.spent += self.dice.random() * (0.004 if self.faults.is_slow else 0.0004)

    def _offload(self) -> SimOffload:
        return SimOffload(random.Random(self.dice.getrandbits(64)), delay_ms_max=2)

    def _on_failure(self, failure: BaseException) -> None:
        if self.faults.sync_failure_after is None:
            raise failure
        self.failure = failure
        self.failed.set()
        self.wake.set()
