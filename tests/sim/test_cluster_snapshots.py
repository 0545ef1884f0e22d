"""Sets of snapshots of whole clusters under faults, and clusters that are made of them."""

# pyright: reportPrivateUsage=false

import asyncio
from collections import Counter
from collections.abc import Sequence

import pytest
from tests.sim.cluster_faults import PLAIN, ROUGH
from tests.sim.cluster_snapshots import SnapshotClusterWorld
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import Violation
from tests.sim.seeds import batches, chosen, repeatable

from perdure.core.invariant import InvariantViolation
from perdure.node.partition.cluster_cut import CutDesk, _Cut
from perdure.node.partition.cut import Counters


def live(seed: int) -> Counter[str]:
    """A cluster, and what was made of one of its sets."""
    happened = Counter[str]()

    async def main(loop: SimLoop) -> None:
        world = SnapshotClusterWorld(loop, seed, ROUGH if seed % 2 else PLAIN)
        try:
            await world.run()
        finally:
            happened.update(world.happened)

    run(seed, main)
    return happened


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=8), 5), ids=str)
def test_sets_of_a_cluster_are_of_one_moment_and_make_another(seeds: range) -> None:
    for seed in seeds:
        with repeatable(seed):
            live(seed)


@pytest.mark.slow
def test_sets_are_taken_refused_and_restored() -> None:
    happened = Counter[str]()
    for seed in range(6):
        happened += live(seed)
    for what in ("set", "no set: SNAP0004", "restored", "tables from a snapshot", "kill"):
        assert happened[what] > 0, f"{what} never happened: {happened}"


_freeze = CutDesk._freeze


def _go_on(self: CutDesk, cut: _Cut) -> tuple[Counters, ...]:
    """Stand still for nobody."""
    cut.is_paused = True
    return ()


async def _freeze_when_it_suits(self: CutDesk, cut: _Cut) -> tuple[Counters, ...]:
    await asyncio.sleep(0.3 * min(item.processor.partition for item in cut.led))
    return await _freeze(self, cut)


def _believe(_: Sequence[Counters]) -> None:
    """Whatever they are."""


@pytest.mark.slow
def test_leaders_that_do_not_stand_still_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The watch can fail: without a common moment messages are lost or come twice."""
    monkeypatch.setattr(CutDesk, "_pause", _go_on)
    monkeypatch.setattr(CutDesk, "_freeze", _freeze_when_it_suits)
    monkeypatch.setattr("perdure.node.partition.cluster_sets.check_cut", _believe)
    for seed in range(40):
        try:
            live(seed)
        except (Violation, InvariantViolation):
            return
    pytest.fail("no seed noticed")
