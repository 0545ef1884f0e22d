"""Leaders of a whole cluster in any history: one seed after another, and rules that can be missed.

``make sim SEEDS=20000`` runs more of them; ``SEED=17 make sim`` runs one.
"""

import asyncio
import random
from collections import Counter

import pytest
from tests.sim.leadership_play import leading, play, settle
from tests.sim.leadership_world import SimNode, World
from tests.sim.seeds import batches, chosen

from perdure.cluster.core.leadership import Effect, LeadershipCore
from perdure.core.invariant import InvariantViolation

SEEDS = chosen(share=32)


async def _strike(world: World, dice: random.Random) -> None:
    """One fault, which lasts until something ends it."""
    alive = [node for node in world.nodes if node.life is not None]
    dead = [node for node in world.nodes if node.life is None]
    node = dice.choice(world.nodes)
    match dice.randrange(11):
        case 0 | 1 if len(alive) > 1:
            victim = dice.choice(alive)
            await victim.kill(loses_power=dice.random() < 0.5)
            world.happened["killed"] += 1
        case 2 if len(alive) > 1:
            victim = dice.choice(alive)
            if not victim.is_paused and not victim.is_cut_from_metadata:
                await victim.stop()
                world.happened["stopped"] += 1
        case 3 | 4 if dead:
            await _try_start(dice.choice(dead), world)
        case 5:
            node.gate.close()
            world.happened["stalled"] += 1
            await asyncio.sleep(dice.choice((0.2, 1.0, 4.0, 20.0)))
            node.gate.open()
        case 6:
            world.network.cut(node.host, dice.choice(["*", dice.choice(world.nodes).host]))
            world.happened["cut"] += 1
        case 7:
            world.network.isolate(node.host)
            world.happened["isolated"] += 1
        case 8:
            node.is_cut_from_metadata = not node.is_cut_from_metadata
            world.happened["cut from metadata"] += 1
        case 9:
            world.registers.unknown_chance = dice.choice((0.0, 0.2))
            world.registers.lost_hint_chance = dice.choice((0.0, 0.5, 1.0))
            world.network.faults.reset_chance = dice.choice((0.0, 0.001))
        case _:
            world.network.heal()


async def _try_start(node: SimNode, world: World) -> None:
    if not node.is_cut_from_metadata:
        await node.start()
        world.happened["started"] += 1


async def _history(world: World) -> None:
    dice = random.Random(world.dice.getrandbits(64))
    await world.until(world.is_led, 60)
    for _ in range(dice.randint(4, 16)):
        await _strike(world, dice)
        await asyncio.sleep(dice.choice((0.1, 2.0, 8.0, 25.0)))
    world.heal()
    for node in world.nodes:
        if node.life is None:
            await node.start()
    world.happened["recovered in s"] += round(await world.until(world.is_led, 60))
    await asyncio.sleep(60)
    commits = Counter(world.log.commits)
    assert world.is_led() or await world.until(world.is_led, 5)
    await asyncio.sleep(5)
    assert all(world.log.commits[p] > commits[p] for p in range(world.partitions))
    await world.until(lambda: world.is_led() and world.busiest_has_more_by() <= 1, 200)


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 5), ids=str)
def test_whatever_happens_one_leads_and_all_is_led_again(seeds: range) -> None:
    for seed in seeds:
        play(_history, seed, size=3 + 2 * (seed % 2), partitions=4)


@pytest.mark.slow
def test_the_faults_happen() -> None:
    happened = Counter[str]()
    for seed in range(2000, 2008):
        happened += play(_history, seed, size=3, partitions=3).happened
    for what in (
        "killed",
        "started",
        "stopped",
        "stalled",
        "cut",
        "isolated",
        "cut from metadata",
        "leader gone",
        "given up",
        "hand-over",
        "paused",
        "resumed",
        "ended: cut off",
        "ended: another segment follows",
        "ended: handed over",
    ):
        assert happened[what] > 0, f"{what} never happened"


@pytest.mark.slow
def test_a_seed_replays_exactly() -> None:
    def trace(seed: int) -> tuple[object, ...]:
        world = play(_history, seed, size=3, partitions=3)
        return dict(world.log.led_epochs), world.log.commits, world.happened, world.loop.time()

    assert trace(5) == trace(5)
    assert trace(5) != trace(6)


# --- The checks can fail: without one of the rules, some early seed breaks what must hold. -------


def _lead_unannounced(core: LeadershipCore, epoch: int) -> list[Effect]:
    """Leading begins with the segment, not with the announcement read back."""
    return [*ON_OPENED(core, epoch), *core.on_announced(epoch)]


def _see_no_silence(core: LeadershipCore, now: int) -> str | None:
    """Only somebody's death makes a vacancy, never what a leader says or doesn't say."""
    found = VACANCY(core, now)
    return found if found in (None, "leader gone", "never led") else None


ON_OPENED = LeadershipCore.on_opened
VACANCY = LeadershipCore._vacancy  # pyright: ignore[reportPrivateUsage]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        ("perdure.cluster.core.leadership.LeadershipCore.on_opened", _lead_unannounced),
        ("perdure.cluster.core.leadership.LeadershipCore._vacancy", _see_no_silence),
    ],
)
def test_a_broken_rule_is_noticed(
    rule: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, mutant)
    for seed in range(20):
        try:
            play(_history, seed, size=3, partitions=3)
        except (AssertionError, InvariantViolation):
            return
    pytest.fail("no seed noticed")


@pytest.mark.slow
def test_a_hasty_detector_thrashes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.core.failure_detector.FD_DEAD_TICKS", 3)

    async def scenario(world: World) -> None:
        await settle(world)
        before = world.epochs()
        for _ in range(10):
            node = leading(world)
            node.gate.close()
            await asyncio.sleep(1.0)
            node.gate.open()
            await asyncio.sleep(6)
        assert world.epochs() > before

    play(scenario)
