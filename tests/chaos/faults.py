"""The faults: each does one thing to a cluster under load, again and again, and undoes it.

A fault that leaves a node out for good says so in ``run.absent``. How long each time, whom, and how
bad is drawn from the run's seed.
"""

import asyncio
import random
import shutil
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from deploy.namespaces.links import both_ways, one_way
from deploy.namespaces.machine import Container, remove
from deploy.namespaces.switch import GATEWAY
from tests.chaos.run import ChaosRun, tail
from tests.process.driver import pause
from tests.process.processes import EXIT_START
from tests.process.programs import RUNNER, Program, Step

Fault = Callable[["Blow"], Awaitable[None]]

_CALM_SECONDS = (1.0, 3.0)
_CUT_SECONDS = (6.0, 14.0)
_FREEZE_SECONDS = 30.0
_LOSS = 0.2
_DELAY_SECONDS = 0.05
_CLOCK_SECONDS = (-7_200.0, -60.0, -2.0, 2.0, 60.0, 7_200.0)
_PADDING_BYTES = 1024 * 1024
_FULL_WORDS = ("wal.disk.full", "partition.flush.failed")
_START_SECONDS = 60.0


class Blow:
    """What a fault has in hand."""

    def __init__(self, run: ChaosRun, seconds: float, folder: Path) -> None:
        self.run = run
        self.machine = run.machine
        self.dice = random.Random(f"{run.options.seed}/fault")
        self.folder = folder
        self.times = 0
        self.longest = 0.0
        self._ends = time.monotonic() + seconds
        self._never = asyncio.Event()

    async def again(self) -> bool:
        """Whether to strike once more; at least once. Waits until the cluster is well."""
        began = time.monotonic()
        self.machine.network.heal()
        await self.run.wait_healed()
        await self.hold(*_CALM_SECONDS)
        self.times += 1
        return self.times == 1 or began < self._ends

    async def hold(self, lower: float, upper: float | None = None) -> None:
        """Let time pass while things are bad."""
        seconds = lower if upper is None else self.dice.uniform(lower, upper)
        await pause(self._never, seconds)

    def others(self, node: Container) -> list[Container]:
        return [other for other in self.run.nodes if other is not node]

    def restart(self, node: Container) -> None:
        node.kill()
        node.start()

    def expect_logged(self, node: Container, text: str, since: int) -> None:
        told = node.log_path.read_text(errors="replace")[since:]
        self.run.expect(text in told, f"{node.name} doesn't tell of {text}: {tail(node)}")


async def partition(blow: Blow) -> None:
    """Cut the busiest node off from the others; sometimes from clients and services as well."""
    while await blow.again():
        node = await blow.run.find_busiest()
        if blow.dice.random() < 0.5:
            blow.machine.isolate(node.name, also_gateway=blow.dice.random() < 0.5)
        else:
            others = [other.name for other in blow.others(node)]
            blow.machine.network.cut(both_ways([node.name], others))
        await blow.hold(*_CUT_SECONDS)


async def one_way_cut(blow: Blow) -> None:
    """The busiest node is heard but doesn't hear, or hears but isn't heard: by one or by all."""
    while await blow.again():
        node = await blow.run.find_busiest()
        others = [other.name for other in blow.others(node)]
        if blow.dice.random() < 0.4:
            others = [blow.dice.choice(others)]
        ways = one_way([node.name], others)
        if blow.dice.random() < 0.5:
            ways = one_way(others, [node.name])
        blow.machine.network.cut(ways)
        await blow.hold(*_CUT_SECONDS)


async def loss(blow: Blow) -> None:
    """A fifth of all frames between all is lost."""
    names = blow.machine.network.names
    while await blow.again():
        blow.machine.network.lose(both_ways(names, [*names, GATEWAY]), _LOSS)
        await blow.hold(*_CUT_SECONDS)


async def delay(blow: Blow) -> None:
    """Every frame between nodes takes 50 ms, each way."""
    nodes = [node.name for node in blow.run.nodes]
    while await blow.again():
        blow.machine.network.delay(both_ways(nodes, nodes), _DELAY_SECONDS)
        await blow.hold(*_CUT_SECONDS)


async def freeze(blow: Blow) -> None:
    """Stop the busiest node for half a minute; it wakes in the belief that it still leads."""
    while await blow.again():
        node = await blow.run.find_busiest()
        node.freeze()
        await blow.hold(_FREEZE_SECONDS)
        node.thaw()


async def kill(blow: Blow) -> None:
    """SIGKILL for the busiest node and all that it runs."""
    while await blow.again():
        node = await blow.run.find_busiest()
        node.kill()
        await blow.hold(0.5, 6.0)
        node.start()


async def clock(blow: Blow) -> None:
    """The wall clock of the busiest node jumps, ahead or back, by seconds or by hours."""
    for node in blow.run.nodes:
        node.set_clock(0)
    while await blow.again():
        node = await blow.run.find_busiest()
        node.set_clock(blow.dice.choice(_CLOCK_SECONDS))
        await blow.hold(4.0, 8.0)
        if blow.dice.random() < 0.5:
            node.set_clock(0)


async def full_disk(blow: Blow) -> None:
    """The disk of the busiest node is full until it notices, and for a while longer; sometimes it
    is killed, and has to come up with it."""
    while await blow.again():
        node = await blow.run.find_busiest()
        known = node.log_path.stat().st_size
        node.disk.fill()
        await _write_until_noticed(blow, node, known)
        if blow.dice.random() < 0.3:
            node.kill()
            node.disk.free()
            node.start()
        else:
            await blow.hold(2.0, 8.0)
            node.disk.free()


async def wiped_disk(blow: Blow) -> None:
    """A node comes back without what it stored. With nothing at all it would forget what it voted
    for, and doesn't start; without its log and its tables it is taken back by an operator."""
    run = blow.run
    await blow.again()
    node = await run.find_busiest()
    node.kill()
    data = node.disk.path / node.name
    for path in ("MARKER", "wal", "partitions"):
        remove(data / path)
    known = node.log_path.stat().st_size
    await blow.hold(1.0, 5.0)
    node.start()
    await run.wait_healed()
    blow.expect_logged(node, "membership.storage.lost", known)
    await blow.hold(*_CALM_SECONDS)
    await _resume(run, node)
    await blow.again()
    victim = await run.find_busiest()
    victim.kill()
    victim.disk.wipe()
    await _expect_refused(blow, victim)
    run.absent.add(victim.name)
    await run.wait_healed()
    await blow.hold(*_CALM_SECONDS)
    await _replace(blow, victim)


async def rolled_back_disk(blow: Blow) -> None:
    """A node comes back with what it had stored a while ago. If it was started since then, it has
    to notice, and is taken back by an operator; if not, leaders have to. Then another node dies,
    so that what the first one lacks would be missing if it counted."""
    run = blow.run
    while await blow.again():
        node = await run.find_busiest()
        kept = blow.folder / "kept"
        kept.mkdir()
        node.keep_disk(kept)
        is_older = blow.times % 2 == 0
        if is_older:
            blow.restart(node)
            await run.wait_healed()
        await blow.hold(*_CALM_SECONDS)
        node.kill()
        node.disk.roll_back(kept)
        shutil.rmtree(kept)
        known = node.log_path.stat().st_size
        node.start()
        await run.wait_healed()
        if is_older:
            blow.expect_logged(node, "membership.storage.lost", known)
        other = blow.dice.choice(blow.others(node))
        other.kill()
        await blow.hold(*_CALM_SECONDS)
        other.start()
        await run.wait_healed()
        if is_older:
            await _resume(run, node)


async def _write_until_noticed(blow: Blow, node: Container, known: int) -> None:
    """Send large programs until the node finds its disk full."""
    deadline = time.monotonic() + _START_SECONDS
    number = 0
    while time.monotonic() < deadline:
        told = node.log_path.read_text(errors="replace")[known:]
        if any(word in told for word in _FULL_WORDS):
            return
        program = Program(
            name=f"large{blow.times}-{number}",
            service=RUNNER,
            key="",
            ops=(Step(is_flaky=False),),
            padding_bytes=_PADDING_BYTES,
        )
        number += 1
        submission = await blow.run.send(program)
        await blow.run.attach(submission)
    blow.run.expect(False, f"{node.name} never finds its disk full: {tail(node)}")


async def _expect_refused(blow: Blow, node: Container) -> None:
    known = node.log_path.stat().st_size
    node.start()
    code = await asyncio.to_thread(node.wait_exit, _START_SECONDS)
    blow.run.expect(code == EXIT_START, f"{node.name} ended with {code}: {tail(node)}")
    blow.expect_logged(node, "DIR0004", known)


async def _replace(blow: Blow, node: Container) -> None:
    """As the operator's manual says: others hold the metadata, what it stored counts no more, it
    starts on its empty disk; and holds metadata again in the end."""
    run = blow.run
    await _move_voters(run, node, [blow.dice.choice(blow.others(node))])
    ask = run.others_admin(node)
    answer = await run.insist(lambda: ask("PATCH", f"/perdure/nodes/{node.name}/mark-lost"))
    run.expect(answer.status in (200, 202), f"giving up {node.name} gave {answer}")
    node.start()
    run.absent.discard(node.name)
    await run.wait_healed()
    await blow.hold(*_CALM_SECONDS)
    await _move_voters(run, node, run.nodes)


async def _move_voters(run: ChaosRun, node: Container, voters: list[Container]) -> None:
    """Have these hold the metadata; asks another node than ``node``."""
    ask = run.others_admin(node)
    path = "/perdure/metadata/voters"
    names = [voter.name for voter in voters]
    asked = await run.insist(lambda: ask("PATCH", f"{path}?names={','.join(names)}"))
    run.expect(asked.status in (200, 202), f"naming {names} gave {asked}")
    async with asyncio.timeout(_START_SECONDS):
        while True:
            answer = await run.insist(lambda: ask("GET", path))
            found = answer.json()
            if found["voters"] == sorted(names) and not found.get("following"):
                return
            await run.breathe()


async def _resume(run: ChaosRun, node: Container) -> None:
    """As the operator's manual says: take it back, and start it again."""
    ask = run.others_admin(node)
    answer = await run.insist(lambda: ask("PATCH", f"/perdure/nodes/{node.name}/resume"))
    run.expect(answer.status in (200, 202), f"resuming {node.name} gave {answer}")
    node.kill()
    node.start()
    await run.wait_healed()


FAULTS: dict[str, Fault] = {
    "partition": partition,
    "one-way": one_way_cut,
    "loss": loss,
    "delay": delay,
    "freeze": freeze,
    "kill": kill,
    "clock": clock,
    "full-disk": full_disk,
    "wiped-disk": wiped_disk,
    "rolled-back-disk": rolled_back_disk,
}
NEEDS_CLOCKS = frozenset({"clock"})
