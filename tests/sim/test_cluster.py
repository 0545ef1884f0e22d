"""Whole clusters under faults: what a node promises alone, several promise together.

``make sim-cluster SEEDS=20000`` lives through more of them, in several processes, and tells how to
repeat those that fail; ``SEED=17 make sim`` lives through one.
"""

from collections import Counter

import pytest
from tests.sim import cluster_run
from tests.sim.cluster_faults import DARK, PLAIN, ROUGH, STALE
from tests.sim.cluster_mutations import MUTATIONS, Mutation
from tests.sim.cluster_seed import Setting, live, live_with_lies, plan_of, setting_of
from tests.sim.cluster_world import SPREAD, THREE, ClusterWorld, Less
from tests.sim.cost_curve import measure
from tests.sim.loop import SimLoop, run
from tests.sim.seeds import batches, chosen

from perdure.core.invariant import InvariantViolation
from perdure.node.partition.routing import RoutedGateway

# A broken promise, or a process that noticed in time and ended.
NOTICED = (Exception, BaseExceptionGroup, InvariantViolation, SystemExit)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=4), 10), ids=str)
def test_a_cluster_keeps_its_promises(seeds: range) -> None:
    for seed in seeds:
        live(setting_of(seed))


def test_who_wakes_while_it_takes_over_follows_those_who_did() -> None:
    """It has read beyond the end of the log that it meant to go on from."""
    live(setting_of(320_506))


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(chosen(share=4), 20), ids=str)
def test_the_first_leader_may_be_lost_right_after_the_start(seeds: range) -> None:
    for seed in seeds:

        async def main(loop: SimLoop, seed: int = seed) -> None:
            await ClusterWorld(loop, seed).lose_a_leader_for_good()

        run(seed, main)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(4))
def test_leaders_leave_a_disk_without_room_for_tables(seed: int) -> None:
    async def main(loop: SimLoop) -> None:
        await ClusterWorld(loop, seed).fill_the_tables_of_a_leader()

    run(seed, main)


@pytest.mark.slow
def test_a_seed_is_one_run() -> None:
    one, other = live(setting_of(3)), live(setting_of(3))
    assert one == other
    assert one != live(setting_of(4))
    assert one != live(setting_of(3), Less(faults=frozenset({0, 1})))
    for seed in (0, 1, 3):  # followers that read from others, and choices among many
        setting = Setting(seed=seed, shape=SPREAD, kinds=PLAIN, has_knobs=False)
        assert live(setting) == live(setting)


@pytest.mark.slow
def test_what_may_happen_happens() -> None:
    kinds = set(PLAIN + ROUGH + DARK + STALE)
    planned = {fault.kind for seed in range(200) for fault in plan_of(setting_of(seed))}
    assert planned == kinds
    assert len({setting_of(seed).shape for seed in range(200)}) == 3
    happened = Counter[str]()
    for seed in range(4):
        setting = Setting(
            seed=seed, shape=THREE, kinds=(*sorted(kinds),), has_knobs=True, faults=40
        )
        happened += live(setting).happened
    assert set(happened) >= kinds


@pytest.mark.slow
@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_a_broken_promise_is_noticed(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, method, substitute in mutation.patches:
        monkeypatch.setattr(owner, method, substitute)
    for seed in mutation.seeds:
        try:
            live(Setting(seed=seed, shape=THREE, kinds=mutation.kinds, has_knobs=False))
        except NOTICED:
            return
    raise AssertionError(f"{mutation.name}: nobody noticed")


@pytest.mark.slow
def test_metadata_that_lies_stops_a_cluster_and_loses_nothing() -> None:
    """``live_with_lies`` raises what was lost or repeated."""
    ends = [live_with_lies(seed) for seed in range(12)]
    assert any(end is not None and end.startswith("MetadataRegressed") for end in ends)


@pytest.mark.slow
def test_what_a_control_plane_costs_is_measured() -> None:
    costs = measure(4, 24)
    assert costs.led_again_s < 10
    assert costs.replaced_s < 60
    assert 0 < costs.gossip_message_bytes <= costs.gossip_message_bytes_max < 1_000
    assert 0 < costs.wire_bytes_per_round < 5_000
    assert costs.register_bytes_each < 1_000


@pytest.mark.slow
def test_failures_are_told_repeated_and_made_smaller(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    renamed = next(item for item in MUTATIONS if item.name == "a repeat under another id")
    assert cluster_run.main(["--seeds", "3", "--from", "5", "--jobs", "1"]) == 0
    assert "3 of 3 seeds, 0 failed" in capsys.readouterr().out
    monkeypatch.setattr(RoutedGateway, "propose", renamed.patches[0][2])
    assert cluster_run.main(["--seeds", "3", "--from", "5", "--jobs", "2"]) == 1
    told = capsys.readouterr().out
    assert "3 failed" in told
    assert "--only 5" in told
    assert cluster_run.main(["--shrink", "5"]) == 1
    told = capsys.readouterr().out
    assert "faults that are needed: [" in told
    assert told.count(" the last +") < len(plan_of(setting_of(5)))
