"""What perdure aims at beside its peers, and whether a run shows it. Pure.

"Added" latency of a step is what is left of it when the same service, driven by a peer that answers
at once, is taken away: with Python most of a step's time is the SDK's own.
"""

import math
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

from bench.results import FLOORS, Results

_EACH_STEP = "latency: each further step, ms"
_SDK_STEP = "floor: SDK alone, each further step, ms"
_SYNC, _TRIP = "floor: fdatasync of 512 bytes, ms", "floor: HTTP/2 round trip, ms"
_MANY = "throughput: 3 steps, 200 clients, /s"


class Target(NamedTuple):
    """A figure that shall be at most, or at least, ``bound``; its value is nan if not measured."""

    what: str
    value: float
    bound: float
    is_most: bool
    unit: str

    @property
    def verdict(self) -> str:
        is_met = self.value <= self.bound if self.is_most else self.value >= self.bound
        return "met" if is_met else "not met"


def targets(results: Results) -> list[Target]:
    """All of them, in the order of the page."""
    found = [*_costs(results), *_latencies(results), *_rates(results), *_others(results)]
    return [*found, *_footprint(results)]


def added_ms(results: Results, system: str) -> list[float]:
    """Per round: the latency that a system adds to a step of its SDK; nan where not measured."""
    floor = FLOORS["typescript" if system.endswith("-ts") else "python"]
    return _each(
        results, (system, _EACH_STEP), (floor, _SDK_STEP), lambda whole, alone: whole - alone
    )


def hops_ms(results: Results, system: str) -> list[float]:
    """Per round: one sync and one round trip of the machine."""
    floor = FLOORS["typescript" if system.endswith("-ts") else "python"]
    return _each(results, (floor, _SYNC), (floor, _TRIP), lambda sync, trip: sync + trip)


def middle_ratio(ours: list[float], theirs: list[float]) -> float:
    """The median of the ratios within each round."""
    pairs = zip(ours, theirs, strict=False)
    ratios = [mine / its for mine, its in pairs if its > 0 and not math.isnan(mine)]
    return median(ratios) if ratios else math.nan


def _each(
    results: Results,
    first: tuple[str, str],
    second: tuple[str, str],
    combine: Callable[[float, float], float],
) -> list[float]:
    rounds = zip(results.runs.get(first[0], []), results.runs.get(second[0], []), strict=False)
    return [
        combine(one[first[1]], other[second[1]])
        if one and other and first[1] in one and second[1] in other
        else math.nan
        for one, other in rounds
    ]


def _costs(results: Results) -> list[Target]:
    found: list[Target] = []
    for steps, bound_ms in ((0, 0.6), (3, 1.5)):
        key = f"cpu: {steps} steps, system, ms"
        for ours, build in (("perdure", ""), ("perdure-compiled", ", compiled")):
            what = f"CPU of a {steps}-step invocation{build}"
            ratio = results.ratio(key, ours, "reference")
            found.append(Target(f"{what}, to the reference's", ratio, 0.25, True, "x"))
            found.append(Target(what, results.middle(ours, key), bound_ms, True, "ms"))
    return found


def _latencies(results: Results) -> list[Target]:
    found: list[Target] = []
    for ours, theirs, name in _PAIRS:
        ratio = middle_ratio(added_ms(results, ours), added_ms(results, theirs))
        what = f"added latency of a step, {name}, to the reference's"
        found.append(Target(what, ratio, 0.35, True, "x"))
    for (ours, theirs, name), bounds in zip(_PAIRS, ((0.75, 0.75), (0.5, 0.6)), strict=True):
        for steps in (1, 10):
            for share, bound in zip(("p50", "p99"), bounds, strict=True):
                ratio = results.ratio(f"latency: {steps} steps {share}, ms", ours, theirs)
                what = f"{share} of {steps} steps, {name}, to the reference's"
                found.append(Target(what, ratio, bound, True, "x"))
    hops = middle_ratio(added_ms(results, "perdure"), hops_ms(results, "perdure"))
    what = "added latency of a step, to a sync and a round trip"
    return [*found, Target(what, hops, 2.0, True, "x")]


def _rates(results: Results) -> list[Target]:
    found: list[Target] = []
    for (ours, theirs, name), bound in zip(_PAIRS, (1.5, 2.0), strict=True):
        ratio = results.ratio(_MANY, ours, theirs)
        what = f"3-step invocations a second of 200 clients, {name}, to the reference's"
        found.append(Target(what, ratio, bound, False, "x"))
    share = results.ratio(_MANY, "perdure", FLOORS["python"])
    what = "the same with Python, to those that the SDK alone can take"
    return [*found, Target(what, share, 0.85, False, "x")]


def _others(results: Results) -> list[Target]:
    found: list[Target] = []
    for other, clients in (("dbos-postgres", 200), ("temporal", 10)):
        key = f"throughput: 3 steps, {clients} clients, /s"
        rate = results.ratio(key, "perdure", other)
        what = f"3-step invocations a second of {clients} clients, to {other}'s"
        found.append(Target(what, rate, 4.0, False, "x"))
        # One client: what an invocation takes is what is left of a second.
        time = results.ratio("throughput: 3 steps, 1 clients, /s", other, "perdure")
        what = f"latency of a 3-step invocation, to {other}'s"
        found.append(Target(what, time, 0.3, True, "x"))
    return found


def _footprint(results: Results) -> list[Target]:
    crowd = results.middle("perdure", "sleep: crowd")
    each = results.middle("perdure", "sleep: memory each, bytes")
    idle = results.middle("perdure", "start: memory idle, MB")
    healthy = results.middle("perdure", "start: process to healthy, s")
    what = "memory of 10,000 suspended invocations"
    sleeping = each * 10_000 / 1e6 if crowd >= 1_000 else math.nan
    return [
        Target("memory idle", idle, 80.0, True, "MB"),
        Target("start to healthy", healthy, 0.5, True, "s"),
        Target(what, sleeping, 10.0, True, "MB"),
    ]


_PAIRS = (("perdure", "reference", "Python"), ("perdure-ts", "reference-ts", "TypeScript"))
