"""All that was measured, and what wasn't: what report.py and targets.py read."""

import math
from dataclasses import dataclass, field
from statistics import median

from bench.sizes import Sizes
from bench.workloads import Figures

Taken = dict[str, list[Figures | None]]
"""System to its runs in order; None where a run gave nothing. Index i of all is one round."""
FLOORS = {"python": "floor", "typescript": "floor-ts"}
"""Under which name each language's floor is kept."""


@dataclass(slots=True)
class Results:
    """All that was measured, and what wasn't."""

    about: dict[str, str]
    sizes: Sizes
    systems: list[str]
    runs: Taken = field(default_factory=dict[str, "list[Figures | None]"])
    samples: dict[str, dict[str, list[list[float]]]] = field(
        default_factory=dict[str, "dict[str, list[list[float]]]"]
    )
    missing: dict[str, str] = field(default_factory=dict[str, str])
    failures: list[str] = field(default_factory=list[str])

    def add(self, system: str, run: int, figures: Figures) -> None:
        rows = self.runs.setdefault(system, [])
        while len(rows) <= run:
            rows.append(None)
        rows[run] = {**(rows[run] or {}), **figures}

    def values(self, system: str, key: str) -> list[float]:
        return [row[key] for row in self.runs.get(system, []) if row and key in row]

    def middle(self, system: str, key: str) -> float:
        values = self.values(system, key)
        return median(values) if values else math.nan

    def keys(self) -> list[str]:
        seen: dict[str, None] = {}
        for rows in self.runs.values():
            for row in rows:
                seen.update(dict.fromkeys(row or {}))
        return list(seen)

    def ratio(self, key: str, ours: str, theirs: str) -> float:
        """The median of the ratios within each round: drift between rounds cancels out."""
        pairs = zip(self.runs.get(ours, []), self.runs.get(theirs, []), strict=False)
        ratios = [
            mine[key] / its[key]
            for mine, its in pairs
            if mine and its and key in mine and its.get(key)
        ]
        return median(ratios) if ratios else math.nan
