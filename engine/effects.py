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
)
from perdure.engine.futures import settle
from perdure.engine.journal import Journaling, append_command
from perdure.engine.lifecycle import end_with_output, finish
from perdure.engine.tape import Tape, lookup_of, run, stop_running
from perdure.engine.turn import Turn
from perdure.proto.frames import MessageType
from perdure.storage.tables.invocations import Invoked, Paused, Suspended
from perdure.storage.tables.journal import EventKind


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
        match effect:
            case Append() | CompleteRun():
                if tape.pin is None:
                    tape.set_pin(command.pin)
                if isinstance(effect, Append):
                    index, following = append_command(journaling, effect)
                else:
                    following = 0
                    index = tape.complete(
                        MessageType.RUN_COMPLETION,
                        effect.completion_id,
                        effect.payload,
                        effect.failed,
                    )
                indices.append(index)
                completions.append(following)
            case AttemptFailed():
                tape.event(EventKind.TRANSIENT_ERROR, effect.event)
            case _:
                recorded = Recorded(tuple(indices), tuple(completions), tape.length, False)
                return _terminate(turn, command, row, tape, effect, recorded)
    turn.store.invocations.put(command.id, Invoked(row.spec, tape.progress(), row.session))
    return Recorded(tuple(indices), tuple(completions), tape.length, True)


def _terminate(
    turn: Turn,
    command: Effects,
    row: Invoked,
    tape: Tape,
    effect: Suspend | End | Fail | PauseAttempt,
    recorded: Recorded,
) -> Recorded | NoOutput:
    target, spec = command.id, row.spec
    match effect:
        case End():
            progress = tape.progress()
            if not end_with_output(turn, target, spec, progress):
                turn.store.invocations.put(target, Invoked(spec, progress, row.session))
                return NoOutput(recorded)
        case Fail():
            if effect.event is not None:
                tape.event(EventKind.TRANSIENT_ERROR, effect.event)
            finish(turn, target, spec, tape.progress(), effect.failure)
        case PauseAttempt():
            tape.event(EventKind.PAUSED, effect.event)
            turn.store.invocations.put(target, Paused(spec, tape.progress()))
            stop_running(turn, target)
        case Suspend():
            tape.modified_at_ms = turn.now_ms
            progress = tape.progress()
            lookup = lookup_of(turn.store, target, effect.delivered)
            rest = settle(effect.awaiting, lookup)
            if rest is None:
                run(turn, target, Invoked(spec, progress, turn.lsn))
            else:
                suspended = Suspended(spec, progress, rest, effect.delivered)
                turn.store.invocations.put(target, suspended)
                stop_running(turn, target)
    return recorded
