"""All partitions of a node and who leads them: drives one ``LeadershipCore`` each."""

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from typing import Protocol, assert_never

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.failure_detector import FailureDetector, Report
from perdure.cluster.core.leadership import (
    Abandon,
    Announce,
    Bootstrap,
    Claim,
    Drain,
    Effect,
    Follow,
    HandOver,
    Lead,
    LeadershipCore,
    Nominated,
    Offer,
    Offered,
    PauseDispatch,
    ReplicaState,
    ResumeDispatch,
    Retire,
    StepDown,
)
from perdure.cluster.core.messages import Message, Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Answer, Transport
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    MetadataConflict,
    MetadataRegressed,
    PerdureError,
    StoreAheadOfLog,
)
from perdure.core.loss_errors import HistoryForsaken
from perdure.core.tasks import Supervisor
from perdure.core.telemetry import logger

log = logger("leadership")

_DRAW_BITS = 30


@dataclass(frozen=True, slots=True)
class Positions:
    """How far a replica is. ``stalled_ms``: since when proposals wait without any commit, or 0."""

    applied_lsn: int
    durable_lsn: int
    stalled_ms: int = 0


class Replica(Protocol):
    """One partition of this node, as its leadership makes use of it."""

    def bootstrap(self) -> None:
        """Get tables, then call ``Leaderships.on_bootstrapped``."""
        ...

    def follow(self) -> None:
        """Read the log and apply it from now on."""
        ...

    def retire(self) -> None:
        """This node is no replica any more: end everything, and call nothing back."""
        ...

    async def take_over(
        self, seen_epoch: int, reason: str, on_claimed: Callable[[int], None]
    ) -> int:
        """Claim, seal, repair, extend the chain; returns the epoch of the opened segment.

        ``on_claimed(epoch)`` as soon as the register shows the claim. Cancelled when it is futile.

        Raises:
            PerdureError: somebody else was faster (the register no longer shows ``seen_epoch``, or
                our claim), or it can't be done now. Of these, StoreAheadOfLog and HistoryForsaken
                break the replica, MetadataRegressed ends the process.
        """
        ...

    def announce(self, epoch: int) -> None:
        """Append the announcement; call ``Leaderships.on_announced`` when it is applied."""
        ...

    def lead(self, epoch: int) -> None:
        """Act: timers, attempts, outbox, answers."""
        ...

    def pause(self, is_paused: bool) -> None:
        """Start no new attempts, or do so again."""
        ...

    async def drain(self) -> None:
        """Take nothing more, let what was taken commit and be applied, seal our segment.

        Raises:
            PerdureError: it can't be done; our leadership ends all the same.
        """
        ...

    def step_down(self, epoch: int, reason: str) -> None:
        """Stop acting and writing; the outcome of what waits is unknown. Follow the log again."""
        ...

    def positions(self) -> Positions:
        """How far it is."""
        ...


@dataclass(frozen=True, slots=True)
class LeadershipStatistics:
    """One partition of this node. ``epoch``: that it leads or takes over, or did last."""

    partition: int
    state: ReplicaState
    epoch: int
    broken_because: str | None


@dataclass(slots=True)
class _Slot:
    core: LeadershipCore
    replica: Replica
    work: asyncio.Task[None] | None = None


class Leaderships:
    """The partitions that this node is a replica of."""

    def __init__(
        self,
        detector: FailureDetector,
        transport: Transport,
        clock: Clock,
        entropy: Entropy,
        supervisor: Supervisor,
        open_replica: Callable[[int], Replica],
    ) -> None:
        self._detector = detector
        self._transport = transport
        self._clock = clock
        self._entropy = entropy
        self._supervisor = supervisor
        self._open_replica = open_replica
        self._slots: dict[int, _Slot] = {}
        self._is_settled = asyncio.Event()
        self.claims_lost = 0  # somebody else was faster
        transport.serve(Nominated, self._hear)
        transport.serve(HandOver, self._hear)
        transport.serve(Offered, self._hear)

    # --- What happens ---------------------------------------------------------------------------

    def on_partition(self, partition: int, meta: PartitionMeta) -> None:
        """A newer value of the partition's register."""
        slot = self._slots.get(partition)
        if slot is None:
            sets = meta.replicas
            if self._detector.me.node not in sets.named:
                return
            core = LeadershipCore(partition, self._detector.me, self._detector)
            slot = self._slots[partition] = _Slot(core, self._open_replica(partition))
        self._perform(slot, slot.core.on_meta(self._now(), meta))

    def on_bootstrapped(self, partition: int) -> None:
        """The replica has tables."""
        if (slot := self._slots.get(partition)) is not None:
            self._perform(slot, slot.core.on_bootstrapped())

    def on_announced(self, partition: int, epoch: int) -> None:
        """The replica has applied an announcement of this process."""
        if (slot := self._slots.get(partition)) is not None:
            self._perform(slot, slot.core.on_announced(epoch))

    def on_log_stopped(self, partition: int, reason: str) -> None:
        """The segment that we write takes nothing more."""
        if (slot := self._slots.get(partition)) is not None:
            self._perform(slot, slot.core.on_log_stopped(reason))

    def on_broken(self, partition: int, reason: str) -> None:
        """Nothing can be done with the replica until ``on_repaired``."""
        if (slot := self._slots.get(partition)) is not None:
            log.error("leadership.replica.broken", partition=partition, reason=reason)
            self._perform(slot, slot.core.on_broken(reason))

    def on_gap(self, partition: int) -> None:
        """The log begins later than the replica's tables end: it needs others."""
        if (slot := self._slots.get(partition)) is not None:
            self._perform(slot, slot.core.on_gap())

    def on_repaired(self, partition: int) -> None:
        """It was put right."""
        if (slot := self._slots.get(partition)) is not None:
            self._perform(slot, slot.core.on_repaired())

    def take(self, message: Message) -> None:
        """A message to this node, from a controller or a leader."""
        match message:
            case Nominated(partition, epoch):
                if (slot := self._slots.get(partition)) is not None:
                    self._perform(slot, slot.core.on_nominated(self._now(), epoch))
            case HandOver(partition, to, epoch):
                if (slot := self._slots.get(partition)) is not None:
                    self._perform(slot, slot.core.on_hand_over(self._now(), to, epoch))
            case Offered(partition, epoch):
                if (slot := self._slots.get(partition)) is not None:
                    self._perform(slot, slot.core.on_offer(epoch))
            case _:
                pass

    def tick(self, loop_lag_ms: int = 0, is_disk_full: bool = False) -> None:
        """Call it each tick of the failure detector."""
        now = self._now()
        for slot in [*self._slots.values()]:
            slot.core.on_progress(slot.replica.positions().stalled_ms)
            draw = self._entropy.bits(_DRAW_BITS) / (1 << _DRAW_BITS)
            self._perform(slot, slot.core.tick(now, draw))
        self._report(loop_lag_ms, is_disk_full)

    # --- What it says ---------------------------------------------------------------------------

    def state(self, partition: int) -> ReplicaState:
        """What this node is to the partition."""
        slot = self._slots.get(partition)
        return slot.core.state if slot is not None else ReplicaState.IDLE

    def led(self) -> list[tuple[int, int]]:
        """Partitions that this node leads, with their epochs."""
        return [
            (partition, slot.core.epoch)
            for partition, slot in sorted(self._slots.items())
            if slot.core.state is ReplicaState.LEADER
        ]

    def statistics(self) -> tuple[LeadershipStatistics, ...]:
        """All partitions that this node is a replica of."""
        return tuple(
            LeadershipStatistics(
                partition, slot.core.state, slot.core.epoch, slot.core.broken_because
            )
            for partition, slot in sorted(self._slots.items())
        )

    async def give_away(self, successor: Callable[[int], NodeId | None]) -> None:
        """Hand over all that this node leads to whom ``successor`` names; returns when it is done.

        Partitions without a successor are given up. It ends within ``HAND_OVER_MS`` per partition,
        all at once.
        """
        for partition, epoch in self.led():
            slot = self._slots[partition]
            to = successor(partition)
            if to is None:
                self._perform(slot, slot.core.on_log_stopped("this node stops"))
            else:
                self._perform(slot, slot.core.on_hand_over(self._now(), to, epoch))
        while any(slot.core.state is ReplicaState.DRAINING for slot in self._slots.values()):
            self._is_settled.clear()
            await self._is_settled.wait()

    async def aclose(self) -> None:
        """End take-overs and hand-overs that are under way."""
        tasks = [slot.work for slot in self._slots.values() if slot.work is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- How ------------------------------------------------------------------------------------

    def _hear(self, peer: Peer, message: Message, answer: Answer) -> None:
        self.take(message)

    def _now(self) -> int:
        return round(self._clock.monotonic() * 1000)

    def _report(self, loop_lag_ms: int, is_disk_full: bool) -> None:
        before = [(r.partition, r.role, r.epoch) for r in self._detector.report.replicas]
        replicas = tuple(
            slot.core.report(positions.applied_lsn, positions.durable_lsn)
            for _, slot in sorted(self._slots.items())
            for positions in (slot.replica.positions(),)
        )
        self._detector.set_report(Report(loop_lag_ms, is_disk_full, replicas))
        if [(r.partition, r.role, r.epoch) for r in replicas] != before:
            self._detector.hurry_report()

    def _perform(self, slot: _Slot, effects: list[Effect]) -> None:
        for effect in effects:
            self._perform_one(slot, effect)
        if effects:
            self._is_settled.set()

    def _perform_one(self, slot: _Slot, effect: Effect) -> None:
        replica, partition = slot.replica, slot.core.partition
        match effect:
            case Bootstrap():
                replica.bootstrap()
            case Follow():
                replica.follow()
            case Retire():
                replica.retire()
                # Should it become one again, then from the beginning.
                self._slots.pop(partition, None)
            case Claim(seen_epoch, reason):
                log.info("leadership.claiming", partition=partition, reason=reason)
                self._work(slot, self._take_over(slot, seen_epoch, reason))
            case Abandon():
                self._stop_work(slot)
            case Announce(epoch):
                replica.announce(epoch)
            case Lead(epoch):
                log.info("leadership.started", partition=partition, epoch=epoch)
                replica.lead(epoch)
            case PauseDispatch() | ResumeDispatch():
                replica.pause(isinstance(effect, PauseDispatch))
            case Drain():
                self._work(slot, self._drain(slot))
            case Offer(to, epoch):
                self._transport.send(to, Offered(partition, epoch))
            case StepDown(epoch, reason):
                log.info("leadership.ended", partition=partition, epoch=epoch, reason=reason)
                self._stop_work(slot)
                replica.step_down(epoch, reason)
            case _:
                assert_never(effect)

    def _work(self, slot: _Slot, work: Coroutine[None, None, None]) -> None:
        self._stop_work(slot)
        task = self._supervisor.start(f"leadership.{slot.core.partition}", work)
        slot.work = task
        task.add_done_callback(partial(self._forget_work, slot))

    @staticmethod
    def _forget_work(slot: _Slot, task: asyncio.Task[None]) -> None:
        if slot.work is task:
            slot.work = None

    @staticmethod
    def _stop_work(slot: _Slot) -> None:
        """What is under way has become futile; but the one that says so ends by itself."""
        work, slot.work = slot.work, None
        if work is not None and work is not asyncio.current_task():
            work.cancel()

    async def _take_over(self, slot: _Slot, seen_epoch: int, reason: str) -> None:
        def on_claimed(epoch: int) -> None:
            self._perform(slot, slot.core.on_claimed(epoch))

        try:
            epoch = await slot.replica.take_over(seen_epoch, reason, on_claimed)
        except (HistoryForsaken, StoreAheadOfLog) as failure:
            self.on_broken(slot.core.partition, str(failure))
        except MetadataRegressed:
            raise  # nothing that this node would do is safe (I-19)
        except PerdureError as failure:
            self.claims_lost += isinstance(failure, MetadataConflict)
            log.info("leadership.claim.failed", partition=slot.core.partition, failure=str(failure))
            draw = self._entropy.bits(_DRAW_BITS) / (1 << _DRAW_BITS)
            self._perform(slot, slot.core.on_takeover_failed(self._now(), draw))
        else:
            self._perform(slot, slot.core.on_opened(epoch))

    async def _drain(self, slot: _Slot) -> None:
        try:
            await slot.replica.drain()
        except PerdureError as failure:
            self._perform(slot, slot.core.on_log_stopped(str(failure)))
        else:
            self._perform(slot, slot.core.on_drained(self._now()))
