"""What becomes of a frame on its way from one place to another: decided here, done by the switch.

Places are names. A link is a pair of them with a direction: what holds from ``a`` to ``b`` says
nothing about the way back.
"""

import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import product

Link = tuple[str, str]


@dataclass(slots=True)
class Links:
    """The faults of all links; without any, everything arrives at once."""

    dice: random.Random
    cut: set[Link] = field(default_factory=set[Link])
    loss: dict[Link, float] = field(default_factory=dict[Link, float])
    delay: dict[Link, float] = field(default_factory=dict[Link, float])

    def judge(self, source: str, target: str) -> float | None:
        """After how many seconds a frame arrives; None if it never does."""
        link = (source, target)
        if link in self.cut or self.dice.random() < self.loss.get(link, 0.0):
            return None
        return self.delay.get(link, 0.0)

    def set_cut(self, links: Iterable[Link]) -> None:
        self.cut.update(links)

    def set_loss(self, links: Iterable[Link], share: float) -> None:
        """Lose this share of the frames, each for itself."""
        self.loss.update(dict.fromkeys(links, share))

    def set_delay(self, links: Iterable[Link], seconds: float) -> None:
        self.delay.update(dict.fromkeys(links, seconds))

    def heal(self) -> None:
        """As if nothing had ever happened."""
        self.cut.clear()
        self.loss.clear()
        self.delay.clear()


def one_way(sources: Iterable[str], targets: Iterable[str]) -> list[Link]:
    """The links from each of these to each of those."""
    return [(source, target) for source, target in product(sources, targets) if source != target]


def both_ways(sources: Iterable[str], targets: Iterable[str]) -> list[Link]:
    """The links between each of these and each of those."""
    there = one_way(sources, targets)
    return list(dict.fromkeys([*there, *((target, source) for source, target in there)]))
