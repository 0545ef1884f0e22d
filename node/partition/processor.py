"""Applies a partition's log to its tables, in LSN order, and keeps the tables flushed.

Replay and leadership use the same path; a leader hears outcomes and actions besides. When memory
is full, applying waits for the flush. A broken invariant halts the partition: nothing of the record
at hand is ever flushed, and the node says so.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from perdure.cluster.core.types import Proposal
from perdure.cluster.log import CommittedRecord
from perdure.core.errors import DiskFull, PartitionUnavailable, PerdureError
from perdure.core.ids import PartitionId
from perdure.core.invariant import InvariantViolation, invariant
from perdure.core.limits import (
    MEMTABLE_BYTES_MAX,
    MEMTABLE_FLUSH_BYTES,
    MEMTABLE_FLUSH_INTERVAL_MS,
)
from perdure.core.offload import Offload
from perdure.core.telemetry import logger
from perdure.engine.actions import Action, Outcome
from perdure.engine.apply import Machine, Origin
from perdure.engine.commands import Command, decode_command
from perdure.storage.env import MapFull
from perdure.storage.partition_store import Flush, PartitionStore
from perdure.storage.wal_format import ProducerKind, Record

log = logger("partition")

_FLUSH_RETRY_SECONDS = 1.0


class Proposed(NamedTuple):
    """What the leader remembers of a proposal: the decoded command, and who waits for it."""

    command: Command
    on_applied: Callable[[Outcome], None] | None
    on_lost: Callable[[PerdureError], None] | None = None


@dataclass(frozen=True, slots=True)
class ProcessorStatistics:
    """``applied_count``: records since the start, replayed ones included. ``backlog``: committed
    and not yet applied. ``applied_lsn`` and ``durable_lsn`` are inclusive."""

    applied_count: int
    backlog: int
    applied_lsn: int
    durable_lsn: int
    memtable_bytes: int
    flushing_bytes: int
    is_halted: bool


class LeaderDuties(Protocol):
    """What happens for applied records on the leader only."""

    def act(self, actions: list[Action]) -> None: ...

    def on_halted(self, error: PerdureError) -> None: ...


class Processor:
    """One partition replica."""

    def __init__(
        self,
        partition: PartitionId,
        partition_count: int,
        store: PartitionStore,
        storage: Offload,
        on_durable: Callable[[PartitionId, int], None],
        on_failure: Callable[[BaseException], None],
    ) -> None:
        self.partition = partition
        self.store = store
        self.leader: LeaderDuties | None = None
        self.halted: InvariantViolation | None = None
        self._machine = Machine(store, partition, partition_count)
        self._storage = storage
        self._on_durable = on_durable
        self._on_failure = on_failure
        self._loop = asyncio.get_running_loop()
        self._committed: deque[tuple[int, CommittedRecord[Proposed]]] = deque()  # with epochs
        self._is_applying = False
        self._applied_count = 0
        self._flush_timer: asyncio.TimerHandle | None = None
        self._flush_error: OSError | None = None
        self._is_closed = False
        self._flushed: list[tuple[int, Callable[[], None]]] = []
        self._applied: list[Callable[[], None]] = []
        self._is_held = False
        self._is_paused = False
        self._on_rest: Callable[[], None] | None = None

    # --- Applying -------------------------------------------------------------------------------

    def replay(self, records: Iterable[Record]) -> int:
        """Apply records read back from the log; returns how many. Flushes where memory asks.

        A broken invariant halts the partition, as it did or would have done when it was led.
        """
        count = 0
        for record in records:
            try:
                self._apply(
                    record.lsn,
                    record.epoch,
                    record.created_at_ms,
                    decode_command(record.payload),
                    _origin(record.producer_kind, record.producer_id, record.producer_seq),
                )
            except InvariantViolation as violation:
                self._halt(violation)
                break
            count += 1
            if self.store.active.bytes > MEMTABLE_FLUSH_BYTES:
                flush = self.store.freeze()
                self._run_flush_inline(flush)
        return count

    def on_committed(self, epoch: int, records: list[CommittedRecord[Proposed]]) -> None:
        """Records of our own segment are committed: apply them from memory."""
        self._committed.extend([(epoch, record) for record in records])
        self._drain()

    def feed(self, records: Iterable[Record]) -> None:
        """Records that another node's leader had committed, from ``next_lsn`` on.

        Raises:
            msgspec.DecodeError: a later release wrote a command that this one doesn't know.
        """
        self._committed.extend([(record.epoch, _committed(record)) for record in records])
        self._drain()

    def when_applied(self, applied: Callable[[], None]) -> None:
        """Call ``applied`` once nothing committed waits to be applied, or never will be."""
        if self._committed:
            self._applied.append(applied)
        else:
            applied()

    @property
    def next_lsn(self) -> int:
        """The LSN of the record that comes next."""
        return self.store.applied_lsn + len(self._committed) + 1

    @property
    def backlog(self) -> int:
        """Committed records not yet applied."""
        return len(self._committed)

    def statistics(self) -> ProcessorStatistics:
        store = self.store.statistics()
        return ProcessorStatistics(
            self._applied_count,
            self.backlog,
            store.applied_lsn,
            store.durable_lsn,
            store.active_bytes,
            store.frozen_bytes,
            self.halted is not None,
        )

    @property
    def is_unwritable(self) -> bool:
        """Whether the disk refuses the tables."""
        return self._flush_error is not None

    def check_available(self) -> None:
        """Refuse when the partition was halted, or its tables can't be written.

        Raises:
            PartitionUnavailable: with the reason.
            DiskFull: the tables can't be written, so what is applied would pile up in memory.
        """
        if self.halted is not None:
            raise self._halted_error(self.halted)
        if self._flush_error is not None:
            raise DiskFull(
                f"the tables of partition {self.partition} can't be written ({self._flush_error}): "
                "free some space and ask again; nothing is lost"
            )

    def pause(self) -> None:
        """Apply nothing until ``resume``: what is committed waits, and so do all who asked for it.

        Only for a moment: who leads goes on taking proposals.
        """
        self._is_paused = True

    def resume(self) -> None:
        """Apply what has waited, and go on."""
        self._is_paused = False
        self._drain()

    def _drain(self) -> None:
        if self._is_paused:
            return
        if self._is_applying:
            return  # a callback proposed and it committed inline: the outer loop goes on
        self._is_applying = True
        try:
            while self._committed and self.halted is None and not self._is_paused:
                is_waiting = self._is_held or self.store.frozen is not None
                if is_waiting and self.store.active.bytes > MEMTABLE_BYTES_MAX:
                    return  # the flush that is under way, or the end of the hold, calls again
                self._apply_committed(*self._committed.popleft())
        finally:
            self._is_applying = False
        self._consider_flush()
        if self._applied and not self._committed:
            self._report_applied()

    def _report_applied(self) -> None:
        applied, self._applied = self._applied, []
        for tell in applied:
            tell()

    def _apply_committed(self, epoch: int, item: CommittedRecord[Proposed]) -> None:
        proposal: Proposal = item.proposal
        origin = _origin(proposal.producer_kind, proposal.producer_id, proposal.producer_seq)
        try:
            outcome, actions = self._apply(
                item.lsn, epoch, proposal.created_at_ms, item.context.command, origin
            )
        except InvariantViolation as violation:
            self._committed.appendleft((epoch, item))  # its proposer is told, too
            self._halt(violation)
            return
        if item.context.on_applied is not None:
            item.context.on_applied(outcome)
        if actions and self.leader is not None:
            self.leader.act(actions)

    def _apply(
        self, lsn: int, epoch: int, now_ms: int, command: Command, origin: Origin | None
    ) -> tuple[Outcome, list[Action]]:
        self._applied_count += 1
        return self._machine.apply(lsn, epoch, now_ms, command, origin)

    def _halt(self, violation: InvariantViolation) -> None:
        self.halted = violation
        lost, self._committed = self._committed, deque()
        if self._flush_timer is not None:
            self._flush_timer.cancel()
        log.error("partition.halted", cause=violation, partition=self.partition)
        error = self._halted_error(violation)
        for _, item in lost:
            if item.context.on_lost is not None:
                item.context.on_lost(error)
        if self.leader is not None:
            self.leader.on_halted(error)
        self._report_applied()

    def _halted_error(self, violation: InvariantViolation) -> PartitionUnavailable:
        return PartitionUnavailable(
            f"partition {self.partition} was halted: {violation}. Restart the node; if it halts "
            "again, keep the data directory and report it"
        )

    # --- Flushing -------------------------------------------------------------------------------

    def flush(self, flushed: Callable[[], None]) -> None:
        """Make everything applied so far durable in the tables; then call ``flushed``."""
        self._flushed.append((self.store.applied_lsn, flushed))
        self._start_flush()

    def is_flushed(self) -> bool:
        """Whether everything applied is in the tables."""
        return self.store.durable_lsn == self.store.applied_lsn

    def hold_flushes(self, rested: Callable[[], None]) -> None:
        """Begin no flush until ``release_flushes``; call ``rested`` once none is under way.

        Who holds all partitions and then flushes each in one turn has them all at one moment.
        """
        self._is_held = True
        self._when_rested(rested)

    def flush_held(self, rested: Callable[[], None]) -> None:
        """Flush what is applied now, although flushes are held; then call ``rested``."""
        invariant(
            self._is_held and self.store.frozen is None,
            "flushes are held and rest",
            partition=self.partition,
        )
        if self.halted is None and self.store.is_dirty():
            self._submit_flush(self.store.freeze())
        self._when_rested(rested)

    def release_flushes(self) -> None:
        """Go on flushing; nobody is told of a rest any more."""
        self._is_held = False
        self._on_rest = None
        if self._flushed:
            self._start_flush()
        self._drain()

    def _when_rested(self, rested: Callable[[], None]) -> None:
        if self.store.frozen is None:
            rested()
        else:
            self._on_rest = rested

    def close(self) -> None:
        """Stop timers and flushes; what was not flushed is in the log."""
        self._is_closed = True
        if self._flush_timer is not None:
            self._flush_timer.cancel()

    def _consider_flush(self) -> None:
        if self.store.active.bytes > MEMTABLE_FLUSH_BYTES:
            self._start_flush()
        elif self._flush_timer is None and self.store.is_dirty():
            self._flush_timer = self._loop.call_later(
                MEMTABLE_FLUSH_INTERVAL_MS / 1000, self._on_flush_timer
            )

    def _on_flush_timer(self) -> None:
        self._flush_timer = None
        self._start_flush()

    def _start_flush(self) -> None:
        if self.halted is not None or self.store.frozen is not None:
            return
        if not self.store.is_dirty():
            self._report_flushed()
        elif not self._is_held:
            self._submit_flush(self.store.freeze())

    def _submit_flush(self, flush: Flush) -> None:
        if self._is_closed:
            return
        self._storage.submit(
            flush.run,
            lambda _: self._flush_done(flush),
            lambda error: self._flush_failed(flush, error),
        )

    def _flush_done(self, flush: Flush) -> None:
        if self._is_closed:
            return  # committed, but there are no tables left to read through
        if self._flush_error is not None:
            self._flush_error = None
            log.info("partition.flush.recovered", partition=self.partition)
        self.store.finish(flush)
        self._on_durable(self.partition, self.store.durable_lsn)
        self._report_flushed()
        rested, self._on_rest = self._on_rest, None
        if rested is not None:
            rested()
        if self._flushed:
            self._start_flush()
        self._drain()

    def _report_flushed(self) -> None:
        # Under load there is always more to flush: who waits, waits for what was applied then.
        durable = self.store.durable_lsn
        due = [flushed for lsn, flushed in self._flushed if lsn <= durable]
        self._flushed = [waiting for waiting in self._flushed if waiting[0] > durable]
        for flushed in due:
            flushed()

    def _flush_failed(self, flush: Flush, error: BaseException) -> None:
        if self._is_closed:
            return
        if isinstance(error, MapFull):
            if self.store.env.grow():
                self._submit_flush(flush)
            else:  # a snapshot is being copied
                self._loop.call_later(_FLUSH_RETRY_SECONDS, self._submit_flush, flush)
        elif isinstance(error, OSError):
            # Nothing is lost: the log keeps what the tables don't have yet.
            if self._flush_error is None:
                log.error("partition.flush.failed", partition=self.partition, reason=error)
            self._flush_error = error
            self._loop.call_later(_FLUSH_RETRY_SECONDS, self._submit_flush, flush)
        else:
            self._on_failure(error)

    def _run_flush_inline(self, flush: Flush) -> None:
        while True:
            try:
                flush.run()
                break
            except MapFull:
                self.store.env.grow()
            except OSError as error:
                raise DiskFull(
                    f"the tables of partition {self.partition} can't be written ({error}): free "
                    "some space, then start again; nothing is lost, the log has it"
                ) from error
        self.store.finish(flush)


def _committed(record: Record) -> CommittedRecord[Proposed]:
    proposal = Proposal(
        kind=record.kind,
        payload=record.payload,
        created_at_ms=record.created_at_ms,
        key_hash=record.key_hash,
        producer_kind=record.producer_kind,
        producer_id=record.producer_id,
        producer_seq=record.producer_seq,
    )
    return CommittedRecord(record.lsn, proposal, Proposed(decode_command(record.payload), None))


def _origin(producer_kind: int, producer_id: int, producer_seq: int) -> Origin | None:
    if producer_kind == ProducerKind.PARTITION:
        return Origin(producer_id, producer_seq)
    return None
