"""What an attempt's effects are, taken together: cut into records, counted. Pure.

Called for every step, mostly with one effect or two: plain loops, because a generator costs more
than what it goes over.
"""

from perdure.core.limits import EFFECT_BYTES_PER_RECORD_MAX, EFFECTS_PER_RECORD_MAX
from perdure.engine.commands import Append, CompleteRun, Effect
from perdure.proto.frames import MessageType

_STORED = (Append, CompleteRun)
_RUN_COMMAND = int(MessageType.RUN_COMMAND)


def batches(effects: list[Effect], flags: list[bool]) -> list[tuple[list[Effect], list[bool]]]:
    """Effects and flags cut, in order, into what one record may hold; at least one batch."""
    if len(effects) <= EFFECTS_PER_RECORD_MAX:
        weights = [len(each.payload) for each in effects if isinstance(each, _STORED)]
        if sum(weights) <= EFFECT_BYTES_PER_RECORD_MAX or len(effects) < 2:
            return [(effects, flags)]
    cut: list[tuple[list[Effect], list[bool]]] = [([], [])]
    size = 0
    for effect, flag in zip(effects, flags, strict=True):
        weight = len(effect.payload) if isinstance(effect, Append | CompleteRun) else 0
        batch = cut[-1][0]
        is_full = (
            len(batch) >= EFFECTS_PER_RECORD_MAX or size + weight > EFFECT_BYTES_PER_RECORD_MAX
        )
        if batch and is_full:
            cut.append(([], []))
            size = 0
        cut[-1][0].append(effect)
        cut[-1][1].append(flag)
        size += weight
    return cut


def are_runs(effects: list[Effect]) -> bool:
    """Whether all are commands of runs."""
    for effect in effects:
        if not isinstance(effect, Append) or effect.type_code != _RUN_COMMAND:
            return False
    return True


def count_commands(effects: list[Effect]) -> int:
    """How many commands are among them."""
    count = 0
    for effect in effects:
        if isinstance(effect, Append):
            count += 1
    return count
