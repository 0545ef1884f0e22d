"""Which seeds a test run lives through: ``SIM_SEEDS``, ``SIM_FIRST_SEED``, or ``SEED`` alone."""

import os
from collections.abc import Generator
from contextlib import contextmanager


def chosen(share: int = 1) -> range:
    """The seeds of this run; ``share``: one of so many, for workloads that are dearer."""
    if (one := os.environ.get("SEED")) is not None:
        return range(int(one), int(one) + 1)
    first = int(os.environ.get("SIM_FIRST_SEED", "0"))
    return range(first, first + int(os.environ.get("SIM_SEEDS", "160")) // share)


def batches(seeds: range, size: int) -> list[range]:
    """Seeds in portions that each make a test."""
    return [seeds[start : start + size] for start in range(0, len(seeds), size)]


@contextmanager
def repeatable(seed: int) -> Generator[None]:
    """Have what fails say how to live through its seed again."""
    try:
        yield
    except BaseException as failure:
        failure.add_note(f"repeat with: SEED={seed} make sim")
        raise
