"""Snapshots of a node that loses its power: sets are whole and of one moment, the node is well."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from tests.sim.node_snapshots import SnapshotNodeWorld
from tests.sim.node_world import Violation
from tests.sim.seeds import batches, chosen, repeatable

SEEDS = chosen(share=2)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 10), ids=str)
def test_sets_are_whole_and_of_one_moment(seeds: range, caplog: pytest.LogCaptureFixture) -> None:
    for seed in seeds:
        with repeatable(seed):
            SnapshotNodeWorld(seed).run(lives=3)
        assert "snapshots.broken" not in caplog.text, f"SEED={seed} make sim"


@pytest.mark.slow
def test_a_seed_replays_exactly() -> None:
    assert SnapshotNodeWorld(3).run(lives=2) == SnapshotNodeWorld(3).run(lives=2)


@pytest.mark.slow
def test_sets_are_taken_and_fail() -> None:
    happened = Counter[str]()
    sets = 0
    for seed in range(2000, 2040):
        world = SnapshotNodeWorld(seed)
        world.run(lives=3)
        happened += world.happened
        sets += len(world.sets)
    assert sets > 50
    for what in ("set taken", "set failed", "power", "kill"):
        assert happened[what] > 0, f"{what} never happened"


Starts = Sequence[Callable[[Callable[[], None]], None]]


async def _one_after_the_other(starts: Starts) -> None:
    for start in starts:
        done = asyncio.Event()
        start(done.set)
        await done.wait()
        await asyncio.sleep(0.005)


@pytest.mark.slow
def test_partitions_frozen_one_after_the_other_are_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The check can fail: sets that are not of one moment lose or repeat messages."""
    monkeypatch.setattr("perdure.node.partition.cut.all_called", _one_after_the_other)
    for seed in range(100):
        try:
            SnapshotNodeWorld(seed).run(lives=3)
        except Violation:
            return
    pytest.fail("no seed noticed")
