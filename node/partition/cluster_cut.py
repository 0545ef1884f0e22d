"""All partitions of a cluster at one moment: whoever wants a set has their leaders stand still.

Four steps, each done by every leader before the next begins anywhere:

1. *hold*: begin no flush, and wait until none is under way;
2. *pause*: apply nothing more;
3. *freeze*: make sure that nobody leads in our place, then freeze what is applied, go on applying,
   and flush what was frozen;
4. *store*: copy, upload, publish.

Between the last pause and the first freeze all stand still, and each was the only leader: that is
the moment. What a partition's tables hold then has happened by then, everywhere; what they don't
hold has had no effect anywhere, because effects follow what is applied. So it is as on a single
node: what was received was sent, what was acknowledged was received, and what anybody was told
before the set was asked for is in it. It costs three round trips during which nothing is applied.

Nobody waits for one who asks no more: who stands still goes on by itself after a moment, and then
the cut has come to nothing. Against: marks in the logs, which need no standing still, but would be
one more thing that every record and message carries. And what comes of it is not believed: the
numbers of the messages tell (``check_cut``).
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from perdure.cluster.answers import LateAnswers
from perdure.cluster.core.messages import Peer
from perdure.cluster.transport import Answer, Transport
from perdure.core.errors import PartitionUnavailable, SnapshotsUnavailable
from perdure.core.limits_snapshots import SNAPSHOT_CUT_MS, SNAPSHOT_KEEP_MS, SNAPSHOT_PAUSE_MS
from perdure.node.partition.cut import (
    Counters,
    HeldPartition,
    hold_all,
    read_counters,
    start_all,
)
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.messages import CutDone, CutStep, CutStored, ReleaseCut, StoreCut
from perdure.node.partition.processor import Processor
from perdure.node.partition.taker import Taker
from perdure.storage.snapshot_format import SetMember

HOLD, PAUSE, FREEZE = "hold", "pause", "freeze"


@dataclass(slots=True, eq=False)
class _Cut:
    """A cut that this node takes part in. ``timer``: when nobody is waited for any more."""

    token: int
    led: list[LedPartition]
    is_holding: bool = True
    is_paused: bool = False
    is_over: bool = False
    held: list[HeldPartition] = field(default_factory=list[HeldPartition])
    timer: asyncio.TimerHandle | None = None

    @property
    def processors(self) -> list[Processor]:
        return [item.processor for item in self.led]


class CutDesk:
    """One node's part in cuts: one at a time."""

    def __init__(
        self,
        partitions: Sequence[LedPartition],
        transport: Transport,
        taker: Taker,
        partition_count: int,
    ) -> None:
        self._here = {int(led.processor.partition): led for led in partitions}
        self._taker = taker
        self._partition_count = partition_count
        self._loop = asyncio.get_running_loop()
        self._cut: _Cut | None = None
        self._answers = LateAnswers()
        transport.serve(CutStep, self._serve_step)
        transport.serve(StoreCut, self._serve_store)
        transport.serve(ReleaseCut, lambda _peer, message, _answer: self.release(message.token))

    async def step(self, token: int, step: str, partitions: Sequence[int]) -> tuple[Counters, ...]:
        """Do a step.

        Raises:
            PerdureError: it can't be done; nothing comes of the cut.
        """
        try:
            if step == HOLD:
                return await self._hold(token, partitions)
            cut = self._current(token)
            if step == PAUSE:
                return self._pause(cut)
            return await self._freeze(cut)
        except BaseException:  # bulkhead: go on as if there had been no cut, and raise it again
            self.release(token)
            raise

    async def store(self, token: int, pinned: frozenset[str]) -> list[SetMember]:
        """Have snapshots of what was frozen count.

        Raises:
            PerdureError: not all of them do.
        """
        cut = self._current(token)
        if len(cut.held) != len(cut.led):
            raise SnapshotsUnavailable("nothing was frozen here for this cut")
        held, cut.held = cut.held, []
        self._end(cut)
        self._taker.is_busy = True
        try:
            images = await self._taker.copy(held)
            return await self._taker.store(held, images, pinned)
        finally:
            self._taker.is_busy = False

    def release(self, token: int) -> None:
        """Nothing comes of the cut."""
        if self._cut is not None and self._cut.token == token:
            self._end(self._cut)

    def close(self) -> None:
        """Take part in nothing more."""
        if self._cut is not None:
            self._end(self._cut)
        self._answers.close()

    # --- Steps ----------------------------------------------------------------------------------

    async def _hold(self, token: int, partitions: Sequence[int]) -> tuple[Counters, ...]:
        if self._taker.is_busy:
            raise SnapshotsUnavailable("snapshots are being taken already: it is tried again")
        led = [self._led(partition) for partition in partitions]
        cut = self._cut = _Cut(token, led)
        self._taker.is_busy = True
        self._expire(cut, SNAPSHOT_CUT_MS)
        await self._until(cut, start_all([item.hold_flushes for item in cut.processors]))
        await self._taker.learn(cut.processors)
        self._check(cut)
        return ()

    def _pause(self, cut: _Cut) -> tuple[Counters, ...]:
        cut.is_paused = True
        for processor in cut.processors:
            processor.pause()
        self._expire(cut, SNAPSHOT_PAUSE_MS)
        return ()

    async def _freeze(self, cut: _Cut) -> tuple[Counters, ...]:
        if not cut.is_paused:
            raise SnapshotsUnavailable("this node didn't stand still")
        await asyncio.gather(*(item.leader.confirm() for item in cut.led))
        self._check(cut)
        if not cut.is_paused:
            raise SnapshotsUnavailable("this node stood still for too long")
        flushed = start_all([processor.flush_held for processor in cut.processors])
        self._resume(cut)
        self._expire(cut, SNAPSHOT_KEEP_MS)
        await self._until(cut, flushed)
        cut.held = hold_all(cut.processors, self._taker.ports.hold)
        counters: list[Counters] = []
        for processor in cut.processors:
            counters.append(self._count(processor))
            await asyncio.sleep(0)  # each looks at a few rows per partition that there is
        self._check(cut)
        self._release_flushes(cut)
        return tuple(counters)

    def _count(self, processor: Processor) -> Counters:
        tables = processor.store.env.snapshot()
        try:
            lsn = processor.store.durable_lsn
            return read_counters(processor.partition, lsn, tables, self._partition_count)
        finally:
            tables.close()

    # --- Inside ---------------------------------------------------------------------------------

    def _led(self, partition: int) -> LedPartition:
        led = self._here.get(partition)
        if led is None or not led.leader.is_leading:
            raise PartitionUnavailable(f"partition {partition} is not led by this node")
        led.processor.check_available()
        return led

    def _current(self, token: int) -> _Cut:
        if self._cut is None or self._cut.token != token:
            raise SnapshotsUnavailable("this node has waited for too long, and gone on")
        self._check(self._cut)
        return self._cut

    def _check(self, cut: _Cut) -> None:
        if cut.is_over:
            raise SnapshotsUnavailable("this node has waited for too long, and gone on")
        for item in cut.led:
            item.processor.check_available()

    async def _until(self, cut: _Cut, done: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(SNAPSHOT_CUT_MS / 1000):
                await done.wait()
        except TimeoutError as error:
            raise SnapshotsUnavailable(
                "the partitions' tables can't be flushed: see partition.flush.failed in the log"
            ) from error
        self._check(cut)

    def _expire(self, cut: _Cut, delay_ms: int) -> None:
        if cut.timer is not None:
            cut.timer.cancel()
        cut.timer = self._loop.call_later(delay_ms / 1000, self._end, cut)

    def _resume(self, cut: _Cut) -> None:
        if cut.is_paused:
            cut.is_paused = False
            for processor in cut.processors:
                processor.resume()

    def _end(self, cut: _Cut) -> None:
        if cut.is_over:
            return
        cut.is_over = True
        if self._cut is cut:
            self._cut = None
        if cut.timer is not None:
            cut.timer.cancel()
        for item in cut.held:
            item.tables.release()
        cut.held = []
        self._taker.is_busy = False
        self._release_flushes(cut)
        self._resume(cut)

    @staticmethod
    def _release_flushes(cut: _Cut) -> None:
        if cut.is_holding:
            cut.is_holding = False
            for processor in cut.processors:
                processor.release_flushes()

    # --- For other nodes ------------------------------------------------------------------------

    def _serve_step(self, _: Peer, request: CutStep, answer: Answer) -> None:
        async def work() -> CutDone:
            return CutDone(await self.step(request.token, request.step, request.partitions))

        self._answers.start(work(), answer)

    def _serve_store(self, _: Peer, request: StoreCut, answer: Answer) -> None:
        async def work() -> CutStored:
            return CutStored(tuple(await self.store(request.token, frozenset(request.pinned))))

        self._answers.start(work(), answer)
