"""The replicated log's machines under everything that may happen to them, one seed after another.

``make sim SEEDS=20000`` runs more of them; ``SEED=17 make sim`` runs one in all shapes.
"""

from collections import Counter

import pytest
from tests.sim.seeds import batches, chosen
from tests.sim.segment_actors import Rules, Shape, Violation
from tests.sim.segment_mutants import MUTANTS, Mutant
from tests.sim.segment_world import World

from perdure.core.invariant import InvariantViolation

SEEDS = chosen()
SHAPES = ((3, 2), (5, 3), (3, 3), (2, 2), (1, 1))


def _live(seed: int, rules: Rules | None = None, *, wipes: bool = False) -> Counter[str]:
    happened = Counter[str]()
    for nodes, replication in SHAPES:
        lost = replication - 1 if wipes or seed % 3 == 0 else 0
        world = World(seed, Shape(nodes=nodes, replication=replication, wipes=lost), rules)
        try:
            happened += world.run()
        except BaseException as failure:
            failure.add_note(f"{nodes} nodes, {replication} copies; SEED={seed} make sim")
            raise
        happened["acknowledged"] += len(world.acked)
        happened["closed"] += len(world.tails)
        happened["shown"] += len(world.shown)
    return happened


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 20), ids=str)
def test_no_rule_is_ever_broken(seeds: range) -> None:
    for seed in seeds:
        _live(seed)


def test_a_seed_replays_exactly() -> None:
    assert _live(SEEDS[0]) == _live(SEEDS[0])
    assert _live(SEEDS[0]) != _live(SEEDS[0] + 1)


@pytest.mark.slow
def test_what_may_happen_happens() -> None:
    happened = Counter[str]()
    for seed in range(1000, 1040):
        happened += _live(seed)
    for what in (
        "acknowledged",
        "closed",
        "shown",
        "crash",
        "wipe",
        "leader died",
        "leader stopped",
        "claimant died",
        "lost claim",
        "Contested",
        "Lost",
        "Stalled",
    ):
        assert happened[what] > 0, f"{what} never happened"


@pytest.mark.slow
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_broken_rule_is_noticed(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    for target, replacement in mutant.patches:
        monkeypatch.setattr(target, replacement)
    for seed in range(mutant.first_seed, mutant.first_seed + mutant.seeds):
        try:
            _live(seed, mutant.rules, wipes=mutant.wipes)
        except (Violation, InvariantViolation):
            return
    pytest.fail(f"no seed noticed: {mutant.name}")
