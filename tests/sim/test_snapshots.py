"""Snapshots under races: whatever happens to answers and processes, ``latest.json`` is right."""

from collections import Counter

import pytest
from tests.sim.loop import run
from tests.sim.seeds import batches, chosen
from tests.sim.snapshot_world import SnapshotWorld, Violation

from perdure.core.errors import PerdureError
from perdure.core.invariant import InvariantViolation


@pytest.mark.parametrize("seeds", batches(chosen(), 40), ids=lambda seeds: f"from {seeds.start}")
def test_latest_only_goes_forward_and_names_what_is_there(seeds: range) -> None:
    for seed in seeds:
        try:
            run(seed, SnapshotWorld(seed).run)
        except BaseException as error:
            raise AssertionError(f"SEED={seed} make sim") from error


def test_the_same_seed_is_the_same_run() -> None:
    first, second = SnapshotWorld(7), SnapshotWorld(7)
    run(7, first.run)
    run(7, second.run)
    assert first.happened == second.happened
    assert first.bucket.objects == second.bucket.objects


@pytest.mark.slow
def test_everything_that_can_happen_happens() -> None:
    happened = Counter[str]()
    for seed in range(60):
        world = SnapshotWorld(seed)
        run(seed, world.run)
        happened += world.happened
    assert {"Published", "Superseded", "failed", "died", "collected"} <= set(happened), happened


@pytest.mark.slow
def test_a_store_that_ignores_conditions_is_caught_by_the_checker() -> None:
    """The checker can fail: without conditions the same races break what must hold."""
    broken = 0
    for seed in range(60):
        try:
            run(seed, SnapshotWorld(seed, ignores_conditions=True).run)
        except (Violation, PerdureError, InvariantViolation):
            broken += 1
    assert broken >= 3
