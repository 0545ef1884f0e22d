"""Leading a partition: the one place where applied records have effects on the world.

``act`` turns actions into work for the invoker, the timers, the shuffle, and whoever waits outside
for a result. On taking office everything is found again by scanning tables; actions are only hints.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from perdure.cluster.core.types import Proposal
from perdure.cluster.log import SegmentLog, SegmentLogStatistics
from perdure.core.clock import Clock
from perdure.core.errors import OutcomeUnknown, PartitionUnavailable, PerdureError
from perdure.core.ids import InvocationId, PartitionId, partition_key_of
from perdure.core.limits import EXPIRY_REST_MS
from perdure.core.telemetry import logger
from perdure.engine.actions import (
    AbortAttempt,
    Action,
    InvocationEnded,
    JournalGrew,
    LeaderAnnounced,
    MessageApplied,
    Outcome,
    SendMessage,
    SetTimer,
    StartAttempt,
    WindDown,
)
from perdure.engine.commands import (
    RECORD_KIND_COMMAND,
    Announce,
    Command,
    Effects,
    FireTimers,
    TrimOutbox,
    decode_command,
    encode_command,
)
from perdure.node.invoker.invoker import Invoker, InvokerStatistics
from perdure.node.partition.fence import Fence
from perdure.node.partition.processor import Processor, Proposed
from perdure.node.partition.shuffle import Shuffle
from perdure.node.partition.timers import TimerService
from perdure.node.traces.tracer import Tracer
from perdure.storage.keys import split_timer_key
from perdure.storage.tables.invocations import Result, Status, split_status_key
from perdure.storage.tables.timers import Outgoing, TimerKind, inbound_counter
from perdure.storage.wal_format import ProducerKind

log = logger("partition")

_SCAN_COUNT = 1024
_NO_LOG = SegmentLogStatistics(0, 0, 0, 0, 0)
Waiter = Callable[[Result | PerdureError], None]
"""Told an invocation's result, or why it will not be told."""


@dataclass(frozen=True, slots=True)
class LeaderStatistics:
    """``waiting``: invocations somebody outside waits for. ``timers``: due times held in memory,
    those of retentions included.
    ``outbox_in_flight``: messages sent and not known to be applied; ``outbox_sent``: since the
    start."""

    is_leading: bool
    waiting: int
    timers: int
    outbox_in_flight: int
    outbox_sent: int
    log: SegmentLogStatistics
    invoker: InvokerStatistics


class Leader:
    """Holds office from its own announcement until ``resign``; a new term begins with ``stand``.

    ``make_invoker`` is called for each term: attempts of an earlier one are never carried on.
    """

    def __init__(
        self,
        processor: Processor,
        clock: Clock,
        route_message: Callable[[PartitionId, int, int, Outgoing], None],
        route_applied: Callable[[PartitionId, int, int], None],
        make_invoker: Callable[["Leader"], Invoker],
    ) -> None:
        self._processor = processor
        self._clock = clock
        self._route_message = route_message
        self._route_applied = route_applied
        self._make_invoker = make_invoker
        self._log: SegmentLog[Proposed] | None = None
        self._announcement: Announce | None = None
        self._waiters: dict[InvocationId, dict[object, Waiter]] = {}
        self._received: dict[int, int] = {}  # by source: the last message appended in this term
        self._loop = asyncio.get_running_loop()
        self._is_leading = False
        self._is_taking = True
        self._on_decided: Callable[[], None] | None = None
        self.tracer: Tracer | None = None
        self.fence: Fence | None = None
        self._prepare()

    def _prepare(self) -> None:
        processor, store = self._processor, self._processor.store
        self._received.clear()
        self._is_taking = True
        self.shuffle = Shuffle(
            store,
            lambda target, sequence, message: self._route_message(
                processor.partition, target, sequence, message
            ),
            lambda target, sequence: self._propose_own(TrimOutbox(target, sequence)),
        )
        self.timers = TimerService(
            lambda lower, limit: [key for key, _ in store.timers.scan(lower, limit)],
            self._clock,
            self._fire,
        )
        self.expiries = TimerService(
            lambda lower, limit: [key for key, _ in store.expiries.scan(lower, limit)],
            self._clock,
            self._fire,
            rest_ms=EXPIRY_REST_MS,
        )
        self.invoker = self._make_invoker(self)

    @property
    def is_leading(self) -> bool:
        return self._is_leading

    def stand(
        self,
        segment_log: SegmentLog[Proposed],
        announcement: Announce,
        on_decided: Callable[[], None],
        fence: Fence | None = None,
    ) -> None:
        """Begin a term: propose our announcement to the segment we opened.

        ``fence``: where other nodes could take over.

        ``on_decided`` is called once it was read back and office is taken, or when that can't
        happen any more because the partition was halted.
        """
        if self._log is not None:
            self._prepare()
        self._log = segment_log
        self.fence = fence
        self._announcement = announcement
        self._on_decided = on_decided
        if self._processor.halted is None:
            self._propose_own(announcement)
        else:
            self._decide()

    def propose(
        self,
        command: Command,
        partition_key: int,
        on_applied: Callable[[Outcome], None],
        on_lost: Callable[[PerdureError], None] | None = None,
    ) -> None:
        """Append a command of this partition; ``on_applied`` gets its outcome once applied.

        ``on_lost`` is called instead when the outcome will never be known here.

        Raises:
            PartitionUnavailable: not leading, or halted.
            DiskFull, Overloaded, RecordTooLarge: the log doesn't take it now, or ever.
        """
        self._processor.check_available()
        if not self._is_leading or not self._is_taking:
            raise PartitionUnavailable(
                f"partition {self._processor.partition} has no leader here yet: try again shortly"
            )
        self._append(encode_command(command), Proposed(command, on_applied, on_lost), partition_key)

    def propose_effects(self, effects: Effects, on_applied: Callable[[Outcome], None]) -> None:
        """``propose`` for the invoker."""
        self.propose(effects, partition_key_of(effects.id), on_applied)

    def receive(self, source: int, sequence: int, message: Outgoing) -> None:
        """Append a message of another partition's outbox; the next one, or one that came before.

        Raises:
            PerdureError: as ``propose``, or messages before this one are missing; the source sends
                again all that is not acknowledged.
        """
        if not self._is_leading or not self._is_taking:
            raise PartitionUnavailable("not leading yet, or not any more")
        self._processor.check_available()
        applied = self._processor.store.sequences.get(inbound_counter(source)) or 0
        received = max(applied, self._received.get(source, 0))
        if sequence <= received:
            if sequence <= applied:
                partition = self._processor.partition
                self._loop.call_soon(self._route_applied, partition, source, applied)
            return
        if sequence != received + 1:
            raise PartitionUnavailable(f"messages of partition {source} are missing before this")
        assert self._log is not None
        proposal = Proposal(
            kind=RECORD_KIND_COMMAND,
            payload=message.payload,
            created_at_ms=self._clock.now_ms(),
            key_hash=message.partition_key,
            producer_kind=ProducerKind.PARTITION,
            producer_id=source,
            producer_seq=sequence,
        )
        self._log.append(proposal, Proposed(decode_command(message.payload), None))
        self._received[source] = sequence

    def wait(self, invocation: InvocationId, waiter: Waiter) -> Callable[[], None]:
        """Call ``waiter`` with the result when the invocation ends; returns how to stop waiting.

        Raises:
            PartitionUnavailable: not leading, or halted: nobody would ever be told.
        """
        if not self._is_leading:
            self._processor.check_available()
            raise PartitionUnavailable(
                f"partition {self._processor.partition} has no leader here: try again shortly"
            )
        waiters = self._waiters.setdefault(invocation, {})
        ticket = object()
        waiters[ticket] = waiter

        def forget() -> None:
            waiters.pop(ticket, None)
            if not waiters and self._waiters.get(invocation) is waiters:
                del self._waiters[invocation]

        return forget

    async def confirm(self) -> None:
        """Make sure that nobody led after us when this was called: who was away for a while thinks
        that it leads, and its tables lack what was promised meanwhile.

        Raises:
            PartitionUnavailable: somebody may have.
        """
        segment_log = self._log
        is_ours = self._is_leading and segment_log is not None and await segment_log.confirm()
        if not is_ours or not self._is_leading:
            raise PartitionUnavailable(
                f"partition {self._processor.partition} may have another leader: try again shortly"
            )

    def act(self, actions: list[Action]) -> None:
        """Do what applied records ask for."""
        if not self._is_leading:
            for action in actions:
                if isinstance(action, LeaderAnnounced):
                    self._take_office(action)
            return
        for action in actions:
            match action:
                case StartAttempt():
                    self.invoker.start(action.id, action.session)
                case WindDown():
                    self.invoker.wind_down(action.id, action.session)
                case JournalGrew():
                    self.invoker.journal_grew(action.id, action.journal_length)
                case InvocationEnded():
                    if self.tracer is not None and action.spec is not None:
                        store = self._processor.store
                        self.tracer.ended(action.id, action.spec, store, action.result)
                    for waiter in tuple(self._waiters.pop(action.id, {}).values()):
                        waiter(action.result)
                case SetTimer():
                    is_expiry = split_timer_key(action.key)[1] >= TimerKind.EXPIRE_COMPLETION
                    (self.expiries if is_expiry else self.timers).add(action.key)
                case SendMessage():
                    self.shuffle.stored(action.partition, action.sequence)
                case MessageApplied():
                    self._route_applied(
                        self._processor.partition, action.partition, action.sequence
                    )
                case AbortAttempt():
                    self.invoker.abort(action.id)
                case LeaderAnnounced():
                    pass  # our own, repeated: office is held already

    def stop_taking(self) -> None:
        """Append nothing more: who proposes is sent to the next leader. What is under way ends."""
        self._is_taking = False

    def resign(self) -> None:
        """Stop every effect; proposals still under way have an unknown outcome."""
        self._leave(OutcomeUnknown("this node stops leading: ask again under the same id"))

    def on_halted(self, error: PerdureError) -> None:
        """The partition can't go on: everybody who waits is told."""
        self._leave(error)
        self._decide()

    def _leave(self, error: PerdureError) -> None:
        self._is_leading = False
        self._announcement = None  # read back later, as a follower, it must not bring us to office
        self.invoker.stop()
        if self.fence is not None:
            self.fence.stop()
        self.timers.stop()
        self.expiries.stop()
        self.shuffle.stop()
        for proposed in self._log.abandon() if self._log is not None else ():
            if proposed.on_lost is not None:
                proposed.on_lost(error)
        waiting, self._waiters = self._waiters, {}
        for waiters in waiting.values():
            for waiter in tuple(waiters.values()):
                waiter(error)

    def statistics(self) -> LeaderStatistics:
        return LeaderStatistics(
            self._is_leading,
            self.waiting(),
            len(self.timers) + len(self.expiries),
            self.shuffle.in_flight(),
            self.shuffle.sent_count,
            self._log.statistics() if self._log is not None else _NO_LOG,
            self.invoker.statistics(),
        )

    def waiting(self) -> int:
        """How many invocations somebody outside waits for."""
        return len(self._waiters)

    def _take_office(self, announced: LeaderAnnounced) -> None:
        mine = self._announcement
        if mine is None or (announced.epoch, announced.incarnation) != (
            mine.epoch,
            mine.incarnation,
        ):
            return
        self._is_leading = True
        store = self._processor.store
        lower = b""
        resumed = 0
        while found := store.of_statuses(Status.INVOKED, Status.INVOKED, lower, _SCAN_COUNT):
            for key, session in found:
                self.invoker.start(split_status_key(key)[2], session)
            resumed += len(found)
            lower = found[-1][0] + b"\0"
        self.timers.start()
        self.expiries.start()
        self.shuffle.start()
        log.debug(
            "partition.leader.started",
            partition=self._processor.partition,
            epoch=announced.epoch,
            resumed=resumed,
        )
        self._decide()

    def _decide(self) -> None:
        on_decided, self._on_decided = self._on_decided, None
        if on_decided is not None:
            on_decided()

    def _fire(self, keys: list[bytes], fired: Callable[[], None]) -> None:
        self._propose_own(FireTimers(keys), lambda _: fired())

    def _propose_own(
        self, command: Command, on_applied: Callable[[Outcome], None] | None = None
    ) -> None:
        if not isinstance(command, Announce):
            self._processor.check_available()
            if not self._is_taking:
                raise PartitionUnavailable("this leader hands over")
        self._append(encode_command(command), Proposed(command, on_applied), 0)

    def _append(self, payload: bytes, proposed: Proposed, partition_key: int) -> None:
        assert self._log is not None
        if self._log.is_stopped:
            raise OutcomeUnknown("the log was taken over by another leader")
        proposal = Proposal(
            kind=RECORD_KIND_COMMAND,
            payload=payload,
            created_at_ms=self._clock.now_ms(),
            key_hash=partition_key,
        )
        if self.fence is not None:
            self.fence.on_append()
        # A leader takes office also while the disk is full: readers and waiters are served.
        vital = isinstance(proposed.command, Announce)
        self._log.append(proposal, proposed, waits_for_room=vital)
