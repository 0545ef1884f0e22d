"""Whole clusters under faults: what a node promises alone, several promise together.

``make sim SIM_SEEDS=4000`` runs more of them; ``SEED=17 make sim`` runs one in all shapes.
"""

import pytest
from tests.sim.cluster_mutations import MUTATIONS, Mutation
from tests.sim.cluster_world import (
    DARK_FAULTS,
    FAULTS,
    FIVE,
    ROUGH_FAULTS,
    THREE,
    ClusterWorld,
    Shape,
)
from tests.sim.loop import SimLoop, run
from tests.sim.seeds import batches, chosen

from perdure.core.invariant import InvariantViolation

# Each broke a promise once: an announcement read back brought a former leader to office (23), the
# log was trimmed before a replica that had been named had read it (32, 35), and a process wrote on
# to its disk while it was ending (22).
ONCE_BROKEN = (22, 23, 32, 35)
# Recovery waited for copies on a disk that had been given up (104).
ONCE_BROKEN_ROUGHLY = (104,)

# A broken promise, or a process that noticed in time and ended.
NOTICED = (Exception, InvariantViolation, SystemExit)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=16), 5), ids=str)
def test_a_cluster_keeps_its_promises(seeds: range) -> None:
    for seed in seeds:
        live(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=20), 4), ids=str)
def test_it_keeps_them_with_disks_that_are_lost_full_or_slow(seeds: range) -> None:
    for seed in seeds:
        live(seed, kinds=ROUGH_FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=40), 2), ids=str)
def test_five_nodes_with_three_copies_keep_them(seeds: range) -> None:
    for seed in seeds:
        live(seed, FIVE, ROUGH_FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=40), 2), ids=str)
def test_it_keeps_them_when_the_power_goes_everywhere(seeds: range) -> None:
    for seed in seeds:
        live(seed, kinds=DARK_FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=4), 20), ids=str)
def test_the_first_leader_may_be_lost_right_after_the_start(seeds: range) -> None:
    for seed in seeds:

        async def main(loop: SimLoop, seed: int = seed) -> None:
            await ClusterWorld(loop, seed).lose_a_leader_for_good()

        run(seed, main)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_what_once_broke_holds(seed: int) -> None:
    live(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ONCE_BROKEN_ROUGHLY)
def test_what_once_broke_roughly_holds(seed: int) -> None:
    live(seed, kinds=ROUGH_FAULTS)


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_promise_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, method, substitute in mutation.patches:
        monkeypatch.setattr(owner, method, substitute)
    for seed in mutation.seeds:
        try:
            live(seed, kinds=mutation.kinds)
        except NOTICED:
            return
    raise AssertionError(f"{mutation.name}: nobody noticed")


def live(seed: int, shape: Shape = THREE, kinds: tuple[str, ...] = FAULTS) -> None:
    async def main(loop: SimLoop) -> None:
        await ClusterWorld(loop, seed, shape, kinds).run(faults=8 if kinds is FAULTS else 10)

    run(seed, main)
