"""What goes wrong in a simulated cluster: a plan drawn from the seed before anything runs.

A fault is a value, so that a plan can be told, repeated, and made smaller. Faults follow each other
or overlap; what they may do together stays within what the cluster promises to survive.
"""

import random
from dataclasses import dataclass

PLAIN = (
    *("kill", "kill", "kill", "power", "power", "stop", "isolate", "one way", "unknown"),
    *("freeze", "clock", "rolling", "reset"),
)
ROUGH = (*PLAIN, "wipe", "wipe", "full", "slow", "slow", "sync", "lag", "lost hints", "no metadata")
# Processes that stand still at the worst moment, and others that are taken over beside them.
STALE = (*("zombie",) * 6, "kill", "power", "isolate", "reset", "reset", "freeze", "unknown")
DARK = (*PLAIN, "slow", "blackout", "blackout", "blackout", "blackout", "blackout")

# How long each lasts, in virtual seconds: mostly as short as it may be and still be noticed, now
# and then longer than any patience of the product.
_LENGTHS: dict[str, tuple[float, ...]] = {
    "kill": (0.02, 0.05, 0.5, 1.0, 2.5, 3.0, 12.0),
    "power": (0.02, 0.05, 0.5, 1.0, 2.5, 3.0, 12.0),
    "stop": (0.02, 0.5, 2.0),
    "isolate": (0.5, 2.5, 5.0, 6.0, 8.0, 20.0),
    "one way": (0.5, 2.5, 5.0, 6.0, 8.0, 20.0),
    "unknown": (1.0, 3.0),
    "freeze": (0.3, 2.5, 4.0, 6.0, 8.0, 20.0),
    "zombie": (0.9, 2.5, 4.0, 6.0, 8.0, 20.0, 30.0),
    "rolling": (0.02, 0.3, 1.0),
    "wipe": (0.05, 1.0, 8.0),
    "full": (0.5, 4.0),
    "slow": (0.5, 3.0),
    "sync": (0.5,),
    "lag": (1.0, 4.0),
    "lost hints": (2.0, 5.0),
    "no metadata": (0.5, 5.0),
    "blackout": (0.02, 0.5),
}
_GAPS = (0.02, 0.1, 0.3, 0.8, 2.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """``gap``: how long after the one before it begins, or after its end if ``is_after``.

    ``node`` and ``other``: indices of machines. ``length``: how long it lasts. ``level``: from 0
    to 1, how bad it is.
    """

    kind: str
    node: int
    other: int
    gap: float
    length: float
    level: float
    is_after: bool

    def __str__(self) -> str:
        when = "after" if self.is_after else "beside"
        return (
            f"{when} the last +{self.gap} s: {self.kind} {self.node + 1} ({self.other + 1}) for "
            f"{self.length} s, {self.level:.2f}"
        )


def draw_plan(
    dice: random.Random, nodes: int, kinds: tuple[str, ...], count: int
) -> tuple[Fault, ...]:
    """``count`` faults among ``nodes`` machines."""
    plan: list[Fault] = []
    for _ in range(count):
        kind = dice.choice(kinds)
        if kind == "wipe" and any(fault.kind == "wipe" for fault in plan):
            kind = "power"  # no record survives the loss of all disks that it is on
        node = dice.randrange(nodes)
        other = (node + dice.randrange(1, nodes)) % nodes
        fault = Fault(
            kind=kind,
            node=node,
            other=other,
            gap=dice.choice(_GAPS),
            length=dice.choice(_LENGTHS.get(kind, (0.0,))),
            level=dice.random(),
            is_after=dice.random() < 0.6,
        )
        plan.append(fault)
    return tuple(plan)


def seconds_of(plan: tuple[Fault, ...]) -> float:
    """About how long a plan takes."""
    return sum(fault.gap + (fault.length if fault.is_after else 0.0) for fault in plan)
