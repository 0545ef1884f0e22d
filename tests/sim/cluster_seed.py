"""One seed of a whole cluster: how large it is, what may happen to it, how limits are set.

Each seed draws all of that (and of the kinds of faults often only some, so that few kinds meet each
other all the time), then lives. A seed may be lived through with less than it draws, or on another
schedule: that is how a failure is made smaller (tests/sim/cluster_run.py).
"""

import random
from collections import Counter
from contextlib import nullcontext
from dataclasses import dataclass
from typing import cast

from tests.sim import knobs
from tests.sim.cluster_faults import DARK, PLAIN, ROUGH, STALE, Fault, draw_plan
from tests.sim.cluster_world import (
    FIVE,
    SPREAD,
    THREE,
    ClusterWorld,
    Less,
    Shape,
    StandsStill,
)
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import Violation

from perdure.core.errors import PerdureError
from perdure.core.invariant import InvariantViolation

_SHAPES = (*(THREE,) * 16, *(FIVE,) * 2, *(SPREAD,) * 2)
_FAULTS_COUNT = 8
_WITH_LIES = ("kill", "power", "stop", "isolate", "rolling", "freeze")


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """What a seed lives through."""

    seed: int
    shape: Shape
    kinds: tuple[str, ...]
    has_knobs: bool
    faults: int = _FAULTS_COUNT


@dataclass(frozen=True, slots=True)
class Lived:
    """What came of it: of interest are those that happened, and how long it was."""

    happened: Counter[str]
    seconds: float
    requests: int


def setting_of(seed: int) -> Setting:
    """Drawn from the seed."""
    dice = random.Random(f"setting {seed}")
    kinds: tuple[str, ...] = dice.choice((PLAIN, ROUGH, ROUGH, DARK, STALE))
    if dice.random() < 0.5:
        distinct = sorted(set(kinds))
        chosen = dice.sample(distinct, dice.randint(2, min(5, len(distinct))))
        kinds = tuple(kind for kind in kinds if kind in chosen)
    return Setting(
        seed=seed, shape=dice.choice(_SHAPES), kinds=kinds, has_knobs=dice.random() < 0.3
    )


def plan_of(setting: Setting) -> tuple[Fault, ...]:
    """The faults that are drawn first of all."""
    dice = random.Random(setting.seed)
    return draw_plan(dice, setting.shape.nodes, setting.kinds, setting.faults)


def live_with_lies(seed: int) -> str | None:
    """Registers break their promise: readings are old, writes that were told to be made are undone.

    The cluster may end of it, or stand still, and says why; what it has promised stays kept.
    Returns what it ended of.
    """

    async def main(loop: SimLoop) -> int:
        world = ClusterWorld(loop, seed, kinds=_WITH_LIES)
        world.monitor.is_register_honest = False
        dice = random.Random(f"lies {seed}")
        world.registers.stale_chance = dice.choice((0.0, 0.02, 0.2))
        world.registers.lost_chance = dice.choice((0.02, 0.1, 0.4))
        await world.run()
        return world.registers.lies

    try:
        run(seed, main)
    except BaseException as failure:
        while isinstance(failure, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", failure)
            failure = group.exceptions[0]
        if isinstance(failure, Violation) and not isinstance(failure, StandsStill):
            raise failure
        if not isinstance(failure, Violation | InvariantViolation | PerdureError):
            raise failure
        return f"{type(failure).__name__}: {failure}"
    return None


def live(setting: Setting, less: Less | None = None, schedule: int = 0) -> Lived:
    """Live through it; a promise that is broken is raised."""
    found: list[Lived] = []

    async def main(loop: SimLoop) -> None:
        world = ClusterWorld(loop, setting.seed, setting.shape, setting.kinds, setting.faults, less)
        try:
            await world.run()
        finally:
            found.append(Lived(world.happened, loop.time(), len(world.work.requests)))

    dice = random.Random(f"knobs {setting.seed}")
    with knobs.drawn(dice) if setting.has_knobs else nullcontext():
        run(setting.seed + (schedule << 40), main)
    return found[0]
