"""The whole node under power loss, kills, failing syncs, full disks and a flaky service."""

import os
from collections import Counter

import pytest
from tests.sim.node_world import NodeWorld

SEEDS = int(os.environ.get("SIM_SEEDS", "160")) // 2
FIRST_SEED = int(os.environ.get("SIM_FIRST_SEED", "0"))
ONE_SEED = os.environ.get("SEED")
BATCH = 10


def _live(seed: int) -> NodeWorld:
    world = NodeWorld(seed)
    try:
        world.run(lives=4)
    except BaseException as failure:
        failure.add_note(f"repeat with: SEED={seed} make sim")
        raise
    return world


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FIRST_SEED, FIRST_SEED + SEEDS, BATCH))
def test_every_acknowledged_invocation_ends_once_and_right(first: int) -> None:
    seeds = range(first, min(first + BATCH, FIRST_SEED + SEEDS))
    for seed in [int(ONE_SEED)] if ONE_SEED is not None else seeds:
        _live(seed)


@pytest.mark.slow
def test_a_seed_replays_exactly() -> None:
    seed = int(ONE_SEED or FIRST_SEED)
    assert NodeWorld(seed).run(lives=3) == NodeWorld(seed).run(lives=3)
    assert NodeWorld(seed).run(lives=3) != NodeWorld(seed + 1).run(lives=3)


@pytest.mark.slow
def test_the_faults_happen() -> None:
    happened = Counter[str]()
    for seed in range(1000, 1025):
        world = _live(seed)
        happened += world.happened + world.ledger.happened
        happened["executed again"] += sum(n > 1 for n in world.ledger.executions.values())
    for what in (
        "stop",
        "kill",
        "power",
        "full",
        "replayed",
        "ended",
        "suspended",
        "lost",
        "failed",
        "executed again",
    ):
        assert happened[what] > 0, f"{what} never happened"
