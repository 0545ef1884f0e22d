"""Carries out the faults of a plan against a simulated cluster."""

import asyncio
import random
from collections.abc import Callable, Coroutine, Iterable
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.sim.client_link import POINTS
from tests.sim.cluster_faults import Fault
from tests.sim.cluster_machine import THREAD_MS, ClusterLife, Machine
from tests.sim.network import NetworkFaults
from tests.sim.node_world import CAPACITY

from perdure.cluster.core.membership import NodeMeta, StorageState, node_key, resume
from perdure.cluster.core.types import NodeId
from perdure.cluster.registers import edit_register
from perdure.core.errors import MetadataUnavailable

if TYPE_CHECKING:
    from tests.sim.cluster_world import ClusterWorld

_PACE_SECONDS = 0.002
_TRAP_SECONDS = 3.0
_CLOCK_STEPS_MS = (-90_000, -30_000, -500, 500, 30_000, 90_000)


class Suffering:
    """Of one world."""

    def __init__(self, world: "ClusterWorld") -> None:
        self._world = world
        self._machines = world.machines

    async def go_through(self, plan: tuple[Fault, ...]) -> None:
        """All of it; a fault's own failure is the world's."""
        last: asyncio.Task[None] | None = None
        async with asyncio.TaskGroup() as group:
            for fault in plan:
                if last is not None and fault.is_after:
                    await asyncio.wait((last,))
                await asyncio.sleep(fault.gap)
                self._world.check_lives()
                last = group.create_task(self._suffer(fault))

    async def _suffer(self, fault: Fault) -> None:
        machine = self._machines[fault.node]
        self._world.happened[fault.kind] += 1
        match fault.kind:
            case "kill" | "power" | "stop":
                await self._restart(machine, fault.kind, fault.length)
            case "blackout":
                await self._black_out(fault)
            case "rolling":
                for each in self._machines[fault.node :] + self._machines[: fault.node]:
                    await self._restart(each, "stop", fault.length)
            case "wipe":
                await self._wipe(machine, fault)
            case "sync":
                await self._fail_sync(machine, fault)
            case "isolate" | "one way" | "reset" | "lag":
                await self._disturb_network(machine, fault)
            case "unknown" | "lost hints" | "no metadata":
                await self._disturb_metadata(fault)
            case "zombie":
                await self._catch_at_work(fault)
            case _:
                await self._trouble(machine, fault)

    # --- Processes and machines -----------------------------------------------------------------

    async def _restart(self, machine: Machine, how: str, seconds: float) -> None:
        async with machine.lock:
            await machine.end(how)
            await asyncio.sleep(seconds)
            await machine.start()

    async def _black_out(self, fault: Fault) -> None:
        """All at one instant; back each in its time."""
        machines = self._machines
        for machine in machines:
            await machine.lock.acquire()
        try:
            await _together(machine.end("power") for machine in machines)
            await asyncio.sleep(fault.length * fault.level)
            await _together(self._start_in(machine, fault.length) for machine in machines)
        finally:
            for machine in machines:
                machine.lock.release()

    async def _start_in(self, machine: Machine, seconds: float) -> None:
        await asyncio.sleep(self._world.dice.random() * seconds)
        await machine.start()

    async def _wipe(self, machine: Machine, fault: Fault) -> None:
        """A node comes back on an empty disk; later an operator lets it store records again."""
        async with machine.lock:
            assert machine.life is not None
            node = machine.life.host.plane.detector.me.node
            await machine.end("power")
            machine.get_disk()
            await asyncio.sleep(fault.length)
            await machine.start()
            await asyncio.sleep(fault.level * 10)
            await self._resume(node)
            await machine.end("stop")
            await machine.start()

    async def _resume(self, node: NodeId) -> None:
        while True:
            try:
                await edit_register(self._world.registers, node_key(node), NodeMeta, _resumed)
            except MetadataUnavailable:
                await asyncio.sleep(0.3)
            else:
                return

    async def _fail_sync(self, machine: Machine, fault: Fault) -> None:
        """A sync fails, the process ends of it, and it or its whole machine is started again."""
        async with machine.lock:
            life = machine.life
            assert life is not None
            life.may_fail = True
            machine.disk.sync_failure_at = int(fault.level * 10)
            with suppress(TimeoutError):
                async with asyncio.timeout(3.0):
                    await life.supervisor.wait_failed()
            self._world.happened["sync failed"] += life.supervisor.failure is not None
            await machine.end("power" if fault.level < 0.5 else "kill")
            await asyncio.sleep(fault.length)
            await machine.start()

    async def _catch_at_work(self, fault: Fault) -> None:
        """Whoever says something to a service, or hears of it, stands still at that instant; it
        goes on when others have long led what it leads."""
        world, dice = self._world, random.Random(fault.level)
        async with world.trap.lock:
            world.hurry()
            caught = world.trap.arm(dice.choice(POINTS), dice.choice((1, 1, 2, 5)))
            await asyncio.wait((caught,), timeout=_TRAP_SECONDS)
            world.trap.disarm()
        if not caught.done():
            return
        life = caught.result()
        world.happened["caught at work"] += 1
        if dice.random() < 0.3:
            self._world.network.reset(
                self._machines[fault.node].host, self._machines[fault.other].host
            )
        await asyncio.sleep(fault.length)
        world.loop.continue_owner(life, _PACE_SECONDS if dice.random() < 0.5 else 0.0)

    # --- What is between them -------------------------------------------------------------------

    async def _disturb_network(self, machine: Machine, fault: Fault) -> None:
        network, other = self._world.network, self._machines[fault.other]
        if fault.kind == "reset":
            network.reset(machine.host, other.host)
        elif fault.kind == "lag":
            network.faults = NetworkFaults(
                latency_max=0.02 + 0.4 * fault.level, reset_chance=0.01 * fault.level
            )
            await asyncio.sleep(fault.length)
            network.faults = NetworkFaults()
        else:
            if fault.kind == "isolate":
                network.isolate(machine.host)
            else:
                network.cut(machine.host, other.host)
            await asyncio.sleep(fault.length)
            network.mend(machine.host)

    async def _disturb_metadata(self, fault: Fault) -> None:
        registers = self._world.registers
        if fault.kind == "unknown":
            registers.unknown_chance = 0.1 + 0.4 * fault.level
        elif fault.kind == "lost hints":
            registers.lost_hint_chance = 1.0
        else:
            registers.is_down = True
        await asyncio.sleep(fault.length)
        registers.unknown_chance = registers.lost_hint_chance = 0.0
        registers.is_down = False

    # --- What a process has trouble with --------------------------------------------------------

    async def _trouble(self, machine: Machine, fault: Fault) -> None:
        """Stopped, a disk without room or speed for a while, a wall clock that is set."""
        life, disk, loop = machine.life, machine.disk, self._world.loop
        if life is None or not life.is_up:
            return
        if fault.kind == "clock":
            life.clock.offset_ms += _CLOCK_STEPS_MS[int(fault.level * len(_CLOCK_STEPS_MS))]
            return
        if fault.kind == "freeze":
            loop.stop_owner(life)
        elif fault.kind == "full":
            disk.capacity -= disk.free_bytes()
        else:
            life.delay(1_000.0 * fault.level)
            disk.on_sync = partial(_spend, life, self._world.dice.random)
        await asyncio.sleep(fault.length)
        loop.continue_owner(life, _PACE_SECONDS if fault.level < 0.5 else 0.0)
        disk.capacity = CAPACITY
        life.delay(THREAD_MS)
        disk.on_sync = _at_once


async def _together(works: Iterable[Coroutine[Any, Any, None]]) -> None:
    async with asyncio.TaskGroup() as group:
        for work in works:
            group.create_task(work)


def _spend(life: ClusterLife, draw: Callable[[], float]) -> None:
    life.clock.spent += draw() * 0.01


def _resumed(known: NodeMeta | None) -> NodeMeta | None:
    if known is None or known.storage is not StorageState.DATA_LOSS:
        return None
    return resume(known)


def _at_once() -> None:
    """A sync takes no time."""
