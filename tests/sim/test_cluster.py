"""Whole clusters under faults: what a node promises alone, several promise together."""

import pytest
from tests.sim.cluster_world import ClusterWorld
from tests.sim.loop import SimLoop, run
from tests.sim.seeds import batches, chosen

SEEDS = chosen(share=8)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 5), ids=str)
def test_a_cluster_keeps_its_promises(seeds: range) -> None:
    for seed in seeds:

        async def main(loop: SimLoop, seed: int = seed) -> None:
            await ClusterWorld(loop, seed).run(faults=8)

        run(seed, main)
