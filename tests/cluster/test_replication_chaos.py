"""Whole logs on several nodes under kills, power losses, resets and cuts: what was committed stays.

The drivers' counterpart of the machines' world (tests/sim/segment_world.py): real sessions, real
log files on simulated disks.
"""

import asyncio
import contextlib
from collections.abc import Iterable

import pytest
from tests.cluster.nodes import Node, World, simulate
from tests.sim.seeds import batches, chosen

from perdure.core.errors import MetadataConflict, PerdureError
from perdure.core.invariant import InvariantViolation

SEEDS = chosen(4)


class _Chaos:
    """One history; ``seen`` is what anybody was told to be committed."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.leader: Node | None = None
        self.seen: dict[int, bytes] = {}
        self.written = 0

    def collect(self) -> None:
        for node in self.world.nodes:
            for lsn, payload in node.life.committed if node.life is not None else ():
                assert self.seen.setdefault(lsn, payload) == payload

    async def run(self) -> None:
        for _ in range(25):
            await self.step()
            self.collect()
        await self.heal()

    async def step(self) -> None:
        dice, world = self.dice, self.world
        down = [node for node in world.nodes if node.life is None]
        node = dice.choice(world.nodes)
        match dice.randrange(8):
            case 0 | 1 | 2:
                self.append()
            case 3 if not down:
                self.collect()
                if self.leader is node:
                    self.leader = None
                await node.kill(loses_power=dice.random() < 0.6)
            case 4 if down:
                await down[0].start()
            case 5:
                world.network.reset(*(each.host for each in dice.sample(world.nodes, 2)))
            case 6:
                world.network.heal()
                if dice.random() < 0.4:
                    world.network.isolate(node.host)
            case 7 if node.life is not None:
                await self.take_over(node)
            case _:
                pass
        await asyncio.sleep(dice.choice((0, 0.001, 0.01, 0.3)))

    def append(self) -> None:
        leader = self.leader
        if leader is None or leader.life is None:
            return
        log = leader.up.log
        if log is not None and not log.is_stopped:
            for _ in range(self.dice.randint(1, 5)):
                self.written += 1
                leader.up.append(b"%d" % self.written)

    async def take_over(self, node: Node) -> None:
        with contextlib.suppress(MetadataConflict, TimeoutError):
            async with asyncio.timeout(2):
                await node.up.lead()
                self.leader = node

    async def heal(self) -> None:
        world = self.world
        world.network.heal()
        for node in world.nodes:
            if node.life is None:
                await node.start()
        await world.connected()
        taken = await world.nodes[0].up.lead()
        await world.nodes[0].up.world.until(lambda: world.nodes[0].up.log is not None)
        self.collect()
        life = world.nodes[0].up
        life.append(b"last")
        end = taken.opened.base_lsn
        await world.until(lambda: (end, b"last") in life.committed)
        self.collect()
        logs = [await node.up.read(until=end + 1) for node in world.nodes]
        assert logs[0] == logs[1] == logs[2]
        found = dict(logs[0])
        assert list(found) == list(range(1, end + 1))
        for lsn, payload in self.seen.items():
            assert found[lsn] == payload


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 10), ids=str)
def test_what_was_committed_stays(seeds: range) -> None:
    for seed in seeds:
        try:
            simulate(lambda world: _Chaos(world).run(), seed=seed)
        except (AssertionError, PerdureError) as failure:
            failure.add_note(f"repeat with: SEED={seed}")
            raise


@pytest.mark.slow
def test_it_would_notice(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commits by one copy are lost with the power, sooner or later."""

    def highest(tails: Iterable[int], replication: int) -> int:
        return max(tails)

    monkeypatch.setattr("perdure.cluster.core.sequencer.committed_tail", highest)
    for seed in range(100):
        try:
            simulate(lambda world: _Chaos(world).run(), seed=seed)
        except (AssertionError, PerdureError, InvariantViolation):
            return
    pytest.fail("no seed noticed")
