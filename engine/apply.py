"""The engine: a pure function of (tables, record), written as one dispatch.

``Machine.apply`` changes tables through the partition store and returns what the proposer is told
and what the leader is to do. Replicas that apply the same records have the same tables, byte for
byte (I-16).
"""

from dataclasses import dataclass
from typing import assert_never

from perdure.core.ids import PartitionId
from perdure.core.invariant import invariant
from perdure.engine import completions, lifecycle, objects
from perdure.engine.actions import Action, LeaderAnnounced, MessageApplied, Outcome
from perdure.engine.commands import (
    Announce,
    Attach,
    Cancel,
    Command,
    Complete,
    Effects,
    FireTimers,
    Invoke,
    Kill,
    PatchState,
    Pause,
    Purge,
    PurgeJournal,
    Restart,
    Resume,
    Signal,
    TrimOutbox,
)
from perdure.engine.effects import apply_effects
from perdure.engine.invoke import accept
from perdure.engine.restart import restart
from perdure.engine.turn import Turn
from perdure.storage.keys import outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.timers import inbound_counter


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a record came from, besides its own leader: another partition's outbox."""

    partition: int
    sequence: int


class Machine:
    """The state machine of one partition."""

    def __init__(self, store: PartitionStore, partition: PartitionId, partition_count: int) -> None:
        self._store = store
        self._partition = partition
        self._partition_count = partition_count

    def apply(
        self, lsn: int, epoch: int, now_ms: int, command: Command, origin: Origin | None = None
    ) -> tuple[Outcome, list[Action]]:
        """Apply the next record.

        Raises:
            InvariantViolation: tables and record contradict each other; halt the partition.
        """
        store = self._store
        invariant(lsn == store.applied_lsn + 1, "records are applied in order", lsn=lsn)
        invariant(epoch >= store.applied_epoch, "epochs don't fall along a log", epoch=epoch)
        # The leader's clock may step back between two leaders; the partition's time does not.
        now_ms = max(now_ms, store.time_ms)
        turn = Turn(store, self._partition, self._partition_count, lsn, now_ms)
        outcome: Outcome = None
        if origin is None or self._is_next(turn, origin):
            outcome = _dispatch(turn, command)
            for message in turn.local:  # which grows meanwhile
                _dispatch(turn, message)
        store.applied_lsn = lsn
        store.applied_epoch = epoch
        store.time_ms = now_ms
        return outcome, turn.actions

    def _is_next(self, turn: Turn, origin: Origin) -> bool:
        counter = inbound_counter(origin.partition)
        last = self._store.sequences.get(counter) or 0
        turn.actions.append(MessageApplied(origin.partition, max(last, origin.sequence)))
        if origin.sequence <= last:
            return False
        invariant(
            origin.sequence == last + 1,
            "outboxes are dense (I-17)",
            source=origin.partition,
            expected=last + 1,
            found=origin.sequence,
        )
        self._store.sequences.put(counter, origin.sequence)
        return True


def _dispatch(turn: Turn, command: Command) -> Outcome:
    match command:
        case Effects():
            return apply_effects(turn, command)
        case Invoke():
            return accept(turn, command)
        case Complete():
            completions.complete(turn, command)
        case Signal():
            completions.signal(turn, command)
        case FireTimers():
            completions.fire(turn, command.keys)
        case Attach():
            completions.attach(turn, command)
        case TrimOutbox():
            _trim_outbox(turn, command)
        case Cancel():
            return lifecycle.cancel(turn, command.id)
        case Kill():
            return lifecycle.kill(turn, command.id)
        case Purge():
            return lifecycle.purge(turn, command.id)
        case PurgeJournal():
            return lifecycle.purge_journal(turn, command.id)
        case Resume():
            return lifecycle.resume(turn, command.id, command.pin)
        case Pause():
            return lifecycle.pause(turn, command.id)
        case Restart():
            return restart(turn, command)
        case PatchState():
            objects.patch_state(turn, command)
        case Announce():
            turn.actions.append(LeaderAnnounced(command.epoch, command.incarnation))
        case _:
            assert_never(command)
    return None


def _trim_outbox(turn: Turn, command: TrimOutbox) -> None:
    store = turn.store
    sequence = command.sequence
    # Trims are dense from the bottom: the first one already gone ends the walk.
    while sequence > 0 and store.outbox.get(outbox_key(command.partition, sequence)) is not None:
        store.outbox.delete(outbox_key(command.partition, sequence))
        sequence -= 1
