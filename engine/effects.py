"""Applying an attempt's effects: fenced by its session, in order, in one record."""

from perdure.engine.actions import NoOutput, Recorded, Stale
from perdure.engine.commands import (
    Append,
    AttemptFailed,
    CompleteRun,
    Effects,
    End,
    Fail,
    PauseAttempt,
    Suspend,
    Yield,
)
from perdure.engine.futures import settle
from perdure.engine.journal import Journaling, append_command
from perdure.engine.lifecycle import end_with_output, finish, stop
from perdure.engine.tape import Tape, lookup_of, move, run
from perdure.engine.turn import Turn
from perdure.proto.frames import MessageType
from perdure.storage.tables.invocations import Invoked, Status, Suspended
from perdure.storage.tables.journal import EventKind

_STORED = (Append, CompleteRun)
_RUN_COMPLETION = int(MessageType.RUN_COMPLETION)


def apply_effects(turn: Turn, command: Effects) -> Recorded | Stale | NoOutput:
    """Record what the attempt did, if it is still the current one."""
    row = turn.store.invocations.get(command.id)
    if not isinstance(row, Invoked) or row.session != command.session:
        return Stale()
    tape = Tape(turn, command.id, row.progress)
    target = row.spec.target
    group = b""
    if target.key is not None:
        group = turn.object(target.service, target.key)
    journaling = Journaling(turn, command.id, row.spec, tape, group)
    indices: list[int] = []
    completions: list[int] = []
    for effect in command.effects:
        if isinstance(effect, _STORED):
            if tape.pin is None:
                tape.set_pin(command.pin)
            if isinstance(effect, Append):
                index, following = append_command(journaling, effect)
            else:
                following = 0
                index = tape.complete(
                    _RUN_COMPLETION, effect.completion_id, effect.payload, effect.failed
                )
            indices.append(index)
            completions.append(following)
            continue
        match effect:
            case AttemptFailed():
                tape.event(EventKind.TRANSIENT_ERROR, effect.event)
            case Yield() if not row.is_pausing:
                if effect.event is not None:
                    tape.event(EventKind.TRANSIENT_ERROR, effect.event)
            case _:
                recorded = Recorded(tuple(indices), tuple(completions), tape.length, False)
                return _terminate(turn, command, row, tape, effect, recorded)
    running = Invoked(row.spec, tape.progress(), row.session, row.is_pausing)
    turn.store.invocations.put(command.id, running)
    return Recorded(tuple(indices), tuple(completions), tape.length, True)


def _terminate(
    turn: Turn,
    command: Effects,
    row: Invoked,
    tape: Tape,
    effect: Suspend | End | Fail | PauseAttempt | Yield,
    recorded: Recorded,
) -> Recorded | NoOutput:
    target, spec = command.id, row.spec
    match effect:
        case End():
            progress = tape.progress()
            if not end_with_output(turn, target, spec, progress):
                running = Invoked(spec, progress, row.session, row.is_pausing)
                turn.store.invocations.put(target, running)
                return NoOutput(recorded)
        case Fail():
            if effect.event is not None:
                tape.event(EventKind.TRANSIENT_ERROR, effect.event)
            finish(turn, target, spec, tape.progress(), effect.failure)
        case PauseAttempt() | Yield():
            stop(turn, target, spec, tape, effect.event)
        case Suspend() if row.is_pausing:
            stop(turn, target, spec, tape, None)
        case Suspend():
            tape.modified_at_ms = turn.now_ms
            lookup = lookup_of(turn.store, target, effect.delivered)
            rest = settle(effect.awaiting, lookup)
            if rest is None:
                running = Invoked(spec, tape.progress(), turn.lsn)
                run(turn, target, running, Status.INVOKED)
            else:
                tape.event(EventKind.SUSPENDED, None, rest)
                suspended = Suspended(spec, tape.progress(), rest, effect.delivered)
                turn.store.invocations.put(target, suspended)
                move(turn.store, target, spec, Status.INVOKED, Status.SUSPENDED)
    return recorded
