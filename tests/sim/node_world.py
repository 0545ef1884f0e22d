"""Workload of the node: clients, a service and a whole node that keeps losing its power.

One seed is one machine with a data directory, a service beside it that keeps running, and clients
that repeat a request under its id until they know the result. The node boots as in production
(node/identity.py, node/partition/host.py) over simulated disk, tables, threads, time and dice.

What must hold: every acknowledged invocation ends, once, with the result that its service gave; a
recorded step is never executed again and never comes back changed (tests/sim/service.py looks); two
invocations never run under one key; each counter counts every add exactly once.
"""

import asyncio
import hashlib
import json
import random
from collections import Counter
from collections.abc import Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

from tests.sim import knobs
from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.loop import SimLoop
from tests.sim.ports import SimClock, SimEntropy, SimEnv, SimOffload, SimTables
from tests.sim.registered import make_catalogue
from tests.sim.service import Ledger, Program, SimService

from perdure.cluster.metadata.local import LocalMetadata
from perdure.core.errors import PerdureError
from perdure.core.hashing import key_partition_key
from perdure.core.ids import InvocationId, make_invocation_id, partition_key_of
from perdure.engine.actions import Existing, Outcome
from perdure.engine.commands import Invoke, Signal
from perdure.engine.notifications import input_entry
from perdure.node.identity import establish
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.host import Host
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.proto import service_pb2 as pb
from perdure.storage.keys import object_group, state_suffix
from perdure.storage.tables.invocations import (
    HandlerKind,
    Result,
    Source,
    SourceKind,
    Status,
    Success,
    Target,
)
from perdure.storage.wal import WalSizes

T = TypeVar("T")

PARTITIONS = 3
KEYS = ("alice", "bob")
SIZES = WalSizes(first_file=128 * 1024, file=256 * 1024, free_min=4096, reserve=8192)
DAY_MS = 24 * 3600 * 1000
CAPACITY = 1 << 30
PATIENCE_SECONDS = 600.0


class Violation(AssertionError):
    """The node broke a promise to a client."""


@dataclass
class Request:
    """A client's request: the same command until its result is known."""

    command: Invoke
    is_acknowledged: bool = False
    result: Result | None = None

    def finish(self, result: Result) -> None:
        if self.result is not None and self.result != result:
            raise Violation(f"{self.command.id.hex()} had another result before")
        self.result = result


@dataclass(frozen=True, kw_only=True)
class Faults:
    """What goes wrong in one life; times are virtual."""

    seconds: float
    power_loss_after_steps: int | None
    sync_failure_after: int | None
    is_slow: bool
    is_flaky: bool
    full_at: float | None
    clock_step_ms: int
    ending: str

    @staticmethod
    def draw(dice: random.Random) -> "Faults":
        return Faults(
            seconds=dice.choice((0.05, 0.3, 1.5)),
            power_loss_after_steps=dice.randint(1, 700) if dice.random() < 0.5 else None,
            sync_failure_after=dice.randint(0, 80) if dice.random() < 0.1 else None,
            is_slow=dice.random() < 0.4,
            is_flaky=dice.random() < 0.5,
            full_at=dice.random() * 0.3 if dice.random() < 0.15 else None,
            clock_step_ms=dice.choice((0, 0, 1_000, -300)),
            ending=dice.choice(("stop", "kill", "power")),
        )


HEALED = Faults(
    seconds=120.0,
    power_loss_after_steps=None,
    sync_failure_after=None,
    is_slow=False,
    is_flaky=False,
    full_at=None,
    clock_step_ms=0,
    ending="stop",
)


@dataclass
class NodeWorld:
    """The machine, the service and the clients of one seed."""

    seed: int
    requests: list[Request] = field(default_factory=list[Request])
    ledger: Ledger = field(default_factory=Ledger)
    happened: Counter[str] = field(default_factory=Counter[str])
    wall_ms: int = 0

    def __post_init__(self) -> None:
        self.dice = random.Random(self.seed)
        self.disk = SimDisk(random.Random(self.dice.getrandbits(64)), CAPACITY)
        self.tables = [SimTables(self.disk, map_bytes=20_000) for _ in range(PARTITIONS)]
        self.trace = hashlib.sha256()
        for _ in range(self.dice.randint(3, 8)):
            self.requests.append(self._draw_request())

    def leave_out(self, numbers: frozenset[int]) -> None:
        """Never make these requests."""
        kept = enumerate(self.requests)
        self.requests = [request for number, request in kept if number not in numbers]

    def run(self, lives: int) -> str:
        """Live under faults, then heal: everything must come to its end. Returns a hash of all."""
        with knobs.drawn(self.dice):
            for number in range(lives):
                self._live(number, Faults.draw(self.dice))
            self._live(lives, HEALED)
        for request in self.requests:
            self.check(request)
        return self.trace.hexdigest()

    def _live(self, number: int, faults: Faults) -> None:
        loop = SimLoop(self.dice.getrandbits(64))
        self.disk.capacity = CAPACITY
        ending = faults.ending
        try:
            life = self.make_life(faults, loop)
            if not loop.run_until_complete(life.run()):
                ending = self.dice.choice(("kill", "power"))
            if loop.failures:
                raise loop.failures[0]
        except PowerLoss:
            ending = "power"
        finally:
            loop.discard()
        if ending == "power":
            self.disk.lose_power()
        else:
            self.disk.kill()
        self.wall_ms += int(loop.time() * 1000) + faults.clock_step_ms
        self.happened[ending] += 1
        self.note("end", number, ending, self.disk.steps)

    def make_life(self, faults: Faults, loop: SimLoop) -> "NodeLife":
        """The next run of the node's process."""
        return NodeLife(self, faults, loop)

    def note(self, *event: object) -> None:
        """Something happened that a repetition must repeat."""
        self.trace.update(repr(event).encode())

    def expected_counts(self) -> Counter[str]:
        """How often each key is added to by all requests together."""
        counts = Counter[str]()
        for request in self.requests:
            if request.command.target.service == "Counter":
                counts[request.command.target.key or ""] += 1
            else:
                _count_adds(_program_of(request.command), counts)
        return counts

    def _draw_request(self) -> Request:
        dice = self.dice
        if dice.random() < 0.25:
            key: str | None = dice.choice(KEYS)
            assert key is not None
            target = Target("Counter", "add", key, HandlerKind.EXCLUSIVE)
            partition_key = key_partition_key(key)
            body = b"[]"
        else:
            target = Target("Worker", "go", None, HandlerKind.SERVICE)
            partition_key = dice.getrandbits(64)
            body = json.dumps(_draw_program(dice, depth=2)).encode()
        command = Invoke(
            id=make_invocation_id(partition_key, dice.getrandbits(128)),
            target=target,
            source=Source(SourceKind.INGRESS),
            sink=None,
            execute_at_ms=0,
            idempotency_key=None,
            completion_retention_ms=DAY_MS,
            journal_retention_ms=dice.choice((0, DAY_MS)),
            input=input_entry([], body),
        )
        return Request(command)

    def check(self, request: Request) -> None:
        name = request.command.id.hex()
        if not isinstance(request.result, Success):
            raise Violation(f"{name} ended with {request.result}")
        if request.result.value != self.ledger.outputs[request.command.id]:
            raise Violation(f"{name} has another result than its service gave")
        if request.command.target.service == "Worker":
            results = json.loads(request.result.value)
            for step, value in _expected_runs(request.command, results):
                if self.ledger.known[request.command.id, step] != value:
                    raise Violation(f"{name} ended with another value for {step}")
        self.note("result", name, request.result.value)


class NodeLife:
    """One run of the node's process."""

    def __init__(self, world: NodeWorld, faults: Faults, loop: SimLoop) -> None:
        self.world = world
        self.faults = faults
        self.loop = loop
        self.dice = random.Random(world.dice.getrandbits(64))
        self.clock = SimClock(loop, world.wall_ms)
        self.failed = asyncio.Event()
        self.failure: BaseException | None = None
        self.host: Host

    async def run(self) -> bool:
        """Boot, serve, stop; False when a failed sync ended it."""
        disk = self.world.disk
        if self.faults.power_loss_after_steps is not None:
            disk.power_loss_at = disk.steps + self.faults.power_loss_after_steps
        disk.sync_failure_at = self.faults.sync_failure_after
        disk.on_sync = self._spend
        try:
            await self._until_failed(self.boot())
        except OSError:
            assert self.faults.sync_failure_after is not None
            return False
        if self.failure is None:
            await self._until_failed(self._serve())
        if self.failure is not None:
            self.world.happened["sync failed"] += 1
            return False
        if self.faults.ending == "stop":
            await self._until_failed(self.host.close())
        return self.failure is None

    async def _until_failed(self, work: Coroutine[Any, Any, None]) -> None:
        working = asyncio.ensure_future(work)
        failing = asyncio.ensure_future(self.failed.wait())
        await asyncio.wait(
            (working, failing), timeout=PATIENCE_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
        if not working.done() and not failing.done():
            raise Violation("the node makes no progress")
        failing.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)
        else:
            working.result()

    async def boot(self) -> None:
        """Start as in production, up to the point where everything is led."""
        world = self.world
        metadata = LocalMetadata(world.disk)
        entropy = SimEntropy(self.dice)
        identity = await establish(world.disk, metadata, entropy, ("sim", "n1"), PARTITIONS)
        catalogue = make_catalogue()
        ports = HostPorts(
            disk=world.disk,
            open_env=lambda partition: SimEnv(world.tables[partition]),
            metadata=metadata,
            clock=self.clock,
            entropy=entropy,
            log_thread=self._offload(),
            housekeeping_thread=self._offload(),
            storage_thread=self._offload(),
            caller=SimService(world.ledger, self.dice, self.clock, is_flaky=self.faults.is_flaky),
            catalogue=lambda: catalogue,
            on_failure=self._on_failure,
            wal_sizes=SIZES,
        )
        self.host = Host(identity, ports, HostOptions(slots=4, software="sim"))
        await self.host.open()
        world.happened["replayed"] += self.host.figures.records_replayed
        world.happened["torn"] += self.host.figures.torn_at is not None

    async def _serve(self) -> None:
        clients = [
            asyncio.ensure_future(self._insist(request))
            for request in self.world.requests
            if request.result is None
        ]
        helpers = [asyncio.ensure_future(self._complete_awakeables())]
        if self.faults.full_at is not None:
            helpers.append(asyncio.ensure_future(self._fill_disk(self.faults.full_at)))
        if self.faults is HEALED:
            async with asyncio.timeout(self.faults.seconds):
                await asyncio.gather(*clients)
                await self._wait_until_settled()
        else:
            await asyncio.sleep(self.faults.seconds)
        for task in (*clients, *helpers):
            task.cancel()
        await asyncio.gather(*clients, *helpers, return_exceptions=True)
        for task in (*clients, *helpers):
            if not task.cancelled() and task.exception() is not None:
                raise task.exception() or AssertionError

    async def _insist(self, request: Request) -> None:
        """Ask under the same id until the result is known."""
        await asyncio.sleep(self.dice.random() * 0.05)
        while request.result is None:
            told: asyncio.Future[Result | PerdureError] = self.loop.create_future()
            try:
                self.host.gateway.propose(
                    request.command,
                    partition_key_of(request.command.id),
                    partial(self._on_accepted, request, told),
                    partial(_tell, told),
                )
            except PerdureError:
                await asyncio.sleep(0.02)
                continue
            outcome = await told
            if isinstance(outcome, PerdureError):
                await asyncio.sleep(0.02)
            else:
                request.finish(outcome)

    def _on_accepted(
        self, request: Request, told: "asyncio.Future[Result | PerdureError]", outcome: Outcome
    ) -> None:
        if request.is_acknowledged and not isinstance(outcome, Existing):
            raise Violation(f"{request.command.id.hex()} was acknowledged and then forgotten")
        request.is_acknowledged = True
        if isinstance(outcome, Existing) and outcome.result is not None:
            _tell(told, outcome.result)
        else:
            self.host.gateway.wait(request.command.id, partial(_tell, told))

    async def _complete_awakeables(self) -> None:
        """The outside world answers, more than once if it isn't sure."""
        awakeables = self.world.ledger.awakeables
        while True:
            await asyncio.sleep(self.dice.choice((0.005, 0.05)))
            for (invocation, index), is_done in list(awakeables.items()):
                if not is_done:
                    await self._signal(invocation, index)

    async def _signal(self, invocation: InvocationId, index: int) -> None:
        note = pb.NotificationMessage(signal_idx=index, value=pb.Value(content=b"hello %d" % index))
        command = Signal(invocation, index, "", note.SerializeToString(), False)
        told: asyncio.Future[Outcome | PerdureError] = self.loop.create_future()
        try:
            self.host.gateway.propose(
                command, partition_key_of(invocation), partial(_tell, told), partial(_tell, told)
            )
        except PerdureError:
            return
        if not isinstance(await told, PerdureError):
            self.world.ledger.awakeables[invocation, index] = True

    async def _wait_until_settled(self) -> None:
        """Sends have arrived too, and nothing is left to do."""
        expected = self.world.expected_counts()
        while True:
            if self._counts() == expected and not has_work(self.host.led):
                return
            await asyncio.sleep(0.05)

    def _counts(self) -> Counter[str]:
        counts = Counter[str]()
        for key in KEYS:
            store = self.host.gateway.store(key_partition_key(key))
            entry = store.state.get(object_group("Counter", key), state_suffix(b"n"))
            if entry is not None:
                counts[key] = int(entry.value)
                if counts[key] > self.world.expected_counts()[key]:
                    raise Violation(f"{key} was added to {counts[key]} times")
        return counts

    async def _fill_disk(self, at: float) -> None:
        await asyncio.sleep(at)
        disk = self.world.disk
        disk.capacity -= disk.free_bytes()
        await asyncio.sleep(0.3)
        disk.capacity = CAPACITY
        self.world.happened["full"] += 1

    def _spend(self) -> None:
        self.clock.spent += self.dice.random() * (0.004 if self.faults.is_slow else 0.0004)

    def _offload(self) -> SimOffload:
        return SimOffload(random.Random(self.dice.getrandbits(64)), delay_ms_max=2)

    def _on_failure(self, failure: BaseException) -> None:
        if self.faults.sync_failure_after is None:
            raise failure
        self.failure = failure
        self.failed.set()


def has_work(partitions: list[LedPartition]) -> bool:
    """Whether something runs or is on its way to another partition."""
    return any(
        store.of_statuses(Status.INVOKED, Status.INVOKED, b"", 1) or store.outbox.scan(b"", 1)
        for store in (led.processor.store for led in partitions)
    )


def _tell(told: "asyncio.Future[T]", outcome: T) -> None:
    if not told.done():
        told.set_result(outcome)


def _draw_program(dice: random.Random, depth: int) -> Program:
    program: Program = []
    for _ in range(dice.randint(1, 5)):
        match dice.choice(("run", "run", "sleep", "add", "post", "call", "awake")):
            case "run":
                program.append(["run"])
            case "sleep":
                program.append(["sleep", dice.choice((1, 30, 200))])
            case "call" if depth:
                program.append(["call", _draw_program(dice, depth - 1)])
            case "awake":
                program.append(["awake"])
            case "post":
                program.append(["post", dice.choice(KEYS)])
            case _:
                program.append(["add", dice.choice(KEYS)])
    return program


def _program_of(command: Invoke) -> Program:
    program: Program = json.loads(pb.InputCommandMessage.FromString(command.input).value.content)
    return program


def _count_adds(program: Program, counts: Counter[str]) -> None:
    for kind, *arguments in program:
        if kind in ("add", "post"):
            counts[arguments[0]] += 1
        elif kind == "call":
            _count_adds(arguments[0], counts)


def _expected_runs(command: Invoke, results: list[object]) -> list[tuple[str, object]]:
    """The values that a program's own runs contributed to its output."""
    runs: list[tuple[str, object]] = []
    position = 0
    for number, (kind, *_) in enumerate(_program_of(command)):
        if kind in ("sleep", "post"):
            continue
        if kind == "run":
            runs.append((f"run {number}", results[position]))
        position += 1
    return runs
