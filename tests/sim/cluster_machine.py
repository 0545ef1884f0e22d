"""A machine of a simulated cluster and the processes that run on it, one after the other.

A process is a context of its own (tests/sim/loop.py): so it can be stopped as a whole, threads and
timers included, and goes on later with everything that has become late.
"""

import asyncio
import random
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from tests.sim.client_link import LinkedService
from tests.sim.disk import SimDisk
from tests.sim.loop import OWNER
from tests.sim.network import SimWires
from tests.sim.node_world import CAPACITY, PARTITIONS, SIZES
from tests.sim.ports import SimClock, SimEntropy, SimEnv, SimOffload, SimTables
from tests.sim.registered import make_catalogue
from tests.sim.service import SimService

from perdure.cluster.core.handshake import ClusterIdentity
from perdure.cluster.core.membership import Addresses, NodeMeta, NodeProfile, NodeRole
from perdure.cluster.core.types import NodeId
from perdure.cluster.fabric import Fabric
from perdure.cluster.membership import join
from perdure.core.errors import DiskFull, MetadataUnavailable, PartitionUnavailable, PerdureError
from perdure.core.ids import InvocationId
from perdure.core.tasks import Supervisor
from perdure.engine.actions import Outcome
from perdure.engine.commands import Command
from perdure.node.partition.cluster_host import ClusterHost, ClusterPorts, identity_of
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.storage.tables.invocations import Result

if TYPE_CHECKING:
    from tests.sim.cluster_world import ClusterWorld

THREAD_MS = 2.0


class Machine:
    """A node's disk and tables, which outlive its processes."""

    def __init__(self, world: "ClusterWorld", number: int) -> None:
        self.world = world
        self.name = f"node-{number}"
        self.host = f"node-{number}:5123"
        self.disk: SimDisk
        self.tables: list[SimTables]
        self.life: ClusterLife | None = None
        self.lock = asyncio.Lock()  # who ends or starts a process
        self.get_disk()

    def get_disk(self) -> None:
        """An empty one; what was on the one before is gone."""
        self.world.monitor.on_wiped(self)
        self.disk = SimDisk(random.Random(self.world.dice.getrandbits(64)), CAPACITY)
        self.tables = [SimTables(self.disk) for _ in range(PARTITIONS)]

    async def start(self) -> None:
        """Until a process comes up: without registers or room one ends, and another follows."""
        while True:
            life = ClusterLife(self.world, self)
            self.life = life
            try:
                await life.within(life.boot())
            except (MetadataUnavailable, DiskFull):
                self.world.happened["start failed"] += 1
                self.life = None
                await life.fall()
                await asyncio.sleep(0.3)
            else:
                self.world.monitor.on_boot(life)
                return

    async def end(self, how: str) -> None:
        """``stop``: hand over first. ``kill``, ``power``: from one instant to the next."""
        life, self.life = self.life, None
        if life is None:
            return  # another process of the cluster has failed, and everything is being ended
        failure = life.supervisor.failure
        if how == "stop":
            self.world.loop.continue_owner(life)
            await life.within(life.host.close())
            failure = life.supervisor.failure
            life.is_up = False
        else:
            life.die(is_power_lost=how == "power")
            await life.within(life.host.abandon())
        await life.within(life.fabric.aclose())
        await life.within(life.supervisor.aclose())
        if failure is not None and not life.may_fail:
            raise failure


@dataclass(frozen=True, slots=True)
class Door:
    """The way of clients into one process: what they ask is done in its context, or never."""

    life: "ClusterLife"

    def propose(
        self,
        command: Command,
        partition_key: int,
        on_applied: Callable[[Outcome], None],
        on_lost: Callable[[PerdureError], None],
    ) -> None:
        """As ``RoutedGateway.propose``, but a refusal is ``on_lost`` too."""

        def ask() -> None:
            if not self.life.is_up:
                on_lost(PartitionUnavailable("the node is gone"))
                return
            try:
                self.life.host.gateway.propose(command, partition_key, on_applied, on_lost)
            except PerdureError as error:
                on_lost(error)

        self.life.world.loop.call_soon(ask, context=self.life.context.copy())

    def wait(
        self, invocation: InvocationId, on_result: Callable[[Result | PerdureError], None]
    ) -> None:
        """Called from within the process."""
        self.life.host.gateway.wait(invocation, on_result)


class ClusterLife:
    """One run of a node's process. ``may_fail``: its disk was made to fail."""

    def __init__(self, world: "ClusterWorld", machine: Machine) -> None:
        self.world = world
        self.machine = machine
        self.context = copy_context()
        self.context.run(OWNER.set, self)
        self.supervisor = Supervisor()
        self.wires: SimWires = world.network.wires(machine.host)
        self.fabric: Fabric
        self.host: ClusterHost
        self.clock = SimClock(world.loop)
        self._threads: list[SimOffload] = []
        self.is_up = False
        self.may_fail = False
        self.has_opened = False

    async def within(self, work: Coroutine[Any, Any, None]) -> None:
        """Do it as this process."""
        await self.world.loop.create_task(work, context=self.context.copy())

    async def boot(self) -> None:
        """Start as in production, up to the point where it takes part."""
        world, machine = self.world, self.machine
        dice = random.Random(world.dice.getrandbits(64))
        entropy, clock = SimEntropy(dice), self.clock
        profile = NodeProfile(
            name=machine.name,
            addresses=Addresses(fabric=machine.host),
            zone="",
            roles=tuple(NodeRole),
            software="sim",
            incarnation=entropy.bits(60),
            fresh_uuid=f"{entropy.bits(128):032x}",
        )
        joined = await join(world.registers, machine.disk, "sim", profile, _nobody, entropy)
        identity = identity_of(joined)
        self.fabric = Fabric(
            me=joined.peer(),
            cluster=ClusterIdentity(name="sim", fingerprint=identity.fingerprint, secret=None),
            wires=self.wires,
            entropy=entropy,
            supervisor=self.supervisor,
        )
        catalogue = make_catalogue()
        caller = self._service(dice)
        ports = HostPorts(
            disk=machine.disk,
            open_env=lambda partition: SimEnv(machine.tables[partition]),
            metadata=world.registers,
            clock=clock,
            entropy=entropy,
            log_thread=self.offload(dice),
            housekeeping_thread=self.offload(dice),
            storage_thread=self.offload(dice),
            caller=caller,
            catalogue=lambda: catalogue,
            on_failure=self.supervisor.fail,
            wal_sizes=SIZES,
        )
        cluster = world.equip(
            self,
            ClusterPorts(
                joined=joined,
                registers=world.registers,
                transport=self.fabric,
                listen=self.fabric.listen,
                supervisor=self.supervisor,
            ),
        )
        self.host = ClusterHost(identity, ports, HostOptions(slots=4, software="sim"), cluster)
        self.has_opened = True
        await self.host.open()
        world.on_opened(self)
        self.is_up = True

    def _service(self, dice: random.Random) -> SimService:
        world = self.world
        ledger, context, is_flaky = world.work.ledger, world.context, world.is_flaky
        if not world.has_links:
            return SimService(ledger, dice, self.clock, is_flaky=is_flaky, context=context)
        pass_by = partial(world.trap.pass_by, self)
        return LinkedService(
            ledger, dice, self.clock, is_flaky=is_flaky, context=context, pass_by=pass_by
        )

    def die(self, *, is_power_lost: bool) -> None:
        """From this instant on nothing of this life reaches its disk or another node."""
        self.is_up = False
        if is_power_lost:
            self.wires.lose_power()
            self.machine.disk.lose_power()
        else:
            self.wires.kill()
            self.machine.disk.kill()
        for thread in self._threads:
            thread.kill()
        self.world.loop.bury_owner(self)

    async def fall(self) -> None:
        """End in the middle of a start."""
        self.die(is_power_lost=False)
        if self.has_opened:
            await self.within(self.host.abandon())
            await self.within(self.fabric.aclose())
        await self.within(self.supervisor.aclose())

    def delay(self, delay_ms_max: float) -> None:
        """From now on the disk takes up to so long for whatever a thread asks of it."""
        for thread in self._threads:
            thread.delay_ms_max = delay_ms_max

    def offload(self, dice: random.Random) -> SimOffload:
        """A thread of this process."""
        thread = SimOffload(random.Random(dice.getrandbits(64)), delay_ms_max=THREAD_MS)
        self._threads.append(thread)
        return thread


async def _nobody(node: NodeId, value: NodeMeta) -> bool:
    return False
