"""Whole clusters under faults: what a node promises alone, several promise together."""

import pytest
from tests.sim.cluster_world import ClusterWorld
from tests.sim.loop import SimLoop, run
from tests.sim.seeds import batches, chosen

SEEDS = chosen(share=8)

# Each broke a promise once: an announcement read back brought a former leader to office (23), the
# log was trimmed before a replica that had been named had read it (32, 35), and a process wrote on
# to its disk while it was ending (22).
ONCE_BROKEN = (22, 23, 32, 35)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 5), ids=str)
def test_a_cluster_keeps_its_promises(seeds: range) -> None:
    for seed in seeds:
        live(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", ONCE_BROKEN)
def test_what_once_broke_holds(seed: int) -> None:
    live(seed)


def live(seed: int) -> None:
    async def main(loop: SimLoop) -> None:
        await ClusterWorld(loop, seed).run(faults=8)

    run(seed, main)
