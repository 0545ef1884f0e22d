"""Metadata members in one process: virtual clock, in-memory links, disks that lose power, clients.

No event loop: the world picks what happens next (a tick, a frame, a client's call, a fault) from
one seed, so a run is a function of it. Members are the real ones, with the real journal and dumps
on simulated disks; the library as it comes is run in the same world to show what it does there.

A run ends with all faults healed. Then: every member has applied the same entries, no client's
history contradicts a register, and everybody has caught up.
"""

import random
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.registers import NEVER, Found, Lost, Operation, Wrote, find_violation

from perdure.cluster.metadata.raft import MemberStatus
from perdure.cluster.metadata.raft_state import (
    Applied,
    Barrier,
    Cas,
    Command,
    Conflicting,
    Passed,
    RegisterMap,
    Written,
)

KEYS = ("a", "b", "c")
TRIES_MAX = 3
TIMEOUT_S = 2.0


class Violation(Exception):
    """The members broke a promise."""


class Member(Protocol):
    """One life of a member, real or as the library comes."""

    state: RegisterMap

    def tick(self) -> None: ...
    def receive(self, peer: int, frame: bytes) -> None: ...
    def connect(self, peer: int) -> None: ...
    def disconnect(self, peer: int) -> None: ...
    def submit(self, command: Command, finished: Callable[[Applied | None], None]) -> None: ...
    def status(self) -> MemberStatus: ...
    def close(self) -> None: ...


class Machine(Protocol):
    """What survives the lives of a member."""

    disk: SimDisk

    def boot(self, world: "World") -> Member: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What may happen. ``crash`` to ``pause`` are shares of the faults, the rest are repairs."""

    steps: int = 6_000
    fault: float = 0.006
    crash: float = 0.15
    bounce: float = 0.1
    cut: float = 0.15
    pause: float = 0.1
    power: bool = True
    lose_frame: float = 0.001
    repeat_frame: float = 0.001
    keep_frames: float = 0.5  # how often frames outlive a cut and come late
    deliver: float = 0.55
    tick: float = 0.3
    stall: float = 0.0  # how often looking at the clock takes 50 ms
    lag: float = 0.0  # share of the faults that make a direction of a link slow for a while

    @staticmethod
    def drawn(dice: random.Random) -> "Plan":
        """Networks and machines of all kinds."""
        return Plan(
            fault=dice.choice((0.002, 0.006, 0.02)),
            bounce=dice.choice((0.0, 0.1, 0.3)),
            cut=dice.choice((0.05, 0.15, 0.3)),
            pause=dice.choice((0.0, 0.1)),
            lag=dice.choice((0.0, 0.1)),
            lose_frame=dice.choice((0.0, 0.001, 0.01)),
            repeat_frame=dice.choice((0.0, 0.001, 0.3)),
            deliver=dice.choice((0.2, 0.35, 0.55)),
            tick=dice.choice((0.1, 0.3)),
            stall=dice.choice((0.0, 0.0, 0.01)),
        )


class WorldClock:
    """The clock of all members. It creeps while it is read, as it does in life."""

    def __init__(self, dice: random.Random, stall: float) -> None:
        self.now = 1_000.0
        self._dice = dice
        self.stall = stall

    def now_ms(self) -> int:
        return int(self.now * 1000)

    def monotonic(self) -> float:
        self.now += 0.05 if self.stall and self._dice.random() < self.stall else 2e-5
        return self.now


class Client:
    """Makes one call at a time; repeats it elsewhere, under its number, when no answer comes."""

    def __init__(self, world: "World", number: int) -> None:
        self._world = world
        self._id = number
        self._sent = 0
        self._since = 0
        self._known: dict[str, int | None] = dict.fromkeys(KEYS)
        self._command: Command | None = None
        self._operation: Operation | None = None
        self._tries = 0
        self._deadline = NEVER

    def step(self) -> None:
        world = self._world
        if self._operation is None:
            self._begin()
        elif world.clock.now > self._deadline:
            if self._tries >= TRIES_MAX:
                self._operation = None  # unknown for ever
            else:
                self._send()

    def _begin(self) -> None:
        dice, key = self._world.dice, self._world.dice.choice(KEYS)
        self._sent += 1
        self._tries = 0
        self._operation = Operation(key, self._world.clock.now)
        if dice.random() < 0.4:
            self._command = Barrier(self._id, self._sent)
        else:
            expected = self._known[key]
            if dice.random() < 0.1:
                expected = dice.choice((None, 1, 5))
            value = b"%d.%d" % (self._id, self._sent) + b"." * dice.choice((0, 60))
            self._operation.expected, self._operation.value = expected, value
            self._command = Cas(self._id, self._sent, self._since, key, expected, value)
        self._world.history.append(self._operation)
        self._send()

    def _send(self) -> None:
        world, operation, command = self._world, self._operation, self._command
        assert operation is not None
        assert command is not None
        self._tries += 1
        self._deadline = world.clock.now + TIMEOUT_S
        alive = sorted(world.members)
        if not alive:
            return
        node = world.dice.choice(alive)
        member = world.members[node]
        if command.number != self._sent:
            return

        def finished(applied: Applied | None) -> None:
            if applied is not None and self._operation is operation:
                self._answer(operation, member.state, applied)

        world.call(node, lambda: member.submit(command, finished))

    def _answer(self, operation: Operation, state: RegisterMap, applied: Applied) -> None:
        key = operation.key
        register = state.registers.get(key)
        match applied.outcome:
            case Passed():
                found = (register.version, register.value) if register else None
                operation.answer = Found(found)
                self._known[key] = register.version if register else None
            case Written(version):
                operation.answer = Wrote(version)
                self._known[key] = version
            case Conflicting(version):
                operation.answer = Lost(version)
                self._known[key] = version
            case _:
                self._operation = None
                return
        operation.answered = self._world.clock.now
        self._since = state.applied_count
        self._operation = None


class World:
    """Members, links and clients of one seed."""

    def __init__(self, seed: int, machines: dict[int, Machine], plan: Plan) -> None:
        self.dice = random.Random(seed)
        self.clock = WorldClock(self.dice, plan.stall)
        self.machines = machines
        self.plan = plan
        self.members: dict[int, Member] = {}
        self.queues: dict[tuple[int, int], deque[bytes]] = defaultdict(deque)
        self.up: dict[frozenset[int], bool] = {}
        self.history: list[Operation] = []
        self.entries: dict[int, bytes] = {}
        self.paused_until: dict[int, float] = {}
        self.lagging_until: dict[tuple[int, int], float] = {}
        self.clients = [Client(self, 1_000 + number) for number in range(6)]
        self.created: dict[str, bytes] = {}  # acknowledged, of those that _burst made
        self._burst_count = 0
        self._nodes = sorted(machines)
        self._pairs = [(x, y) for x in self._nodes for y in self._nodes if x < y]

    # --- For members ----------------------------------------------------------------------------

    def send(self, sender: int, peer: int, frame: bytes) -> None:
        if self.up.get(frozenset((sender, peer))) and self.dice.random() >= self.plan.lose_frame:
            self.queues[sender, peer].append(frame)
            if self.dice.random() < self.plan.repeat_frame:
                self.queues[sender, peer].append(frame)

    def call(self, node: int, action: Callable[[], None]) -> None:
        """Do something inside a member; the power may go meanwhile."""
        try:
            action()
        except PowerLoss:
            self._die(node, power=True)

    def on_apply(self, node: int, index: int, blob: bytes) -> None:
        agreed = self.entries.setdefault(index, blob)
        if agreed != blob:
            raise Violation(f"member {node} applies another entry at {index} than others did")

    # --- Running --------------------------------------------------------------------------------

    def run(self) -> int:
        """Live through the plan, heal, check; how many writes were acknowledged."""
        for node in self._nodes:
            self._boot(node)
        for pair in self._pairs:
            self._connect(*pair)
        for _ in range(self.plan.steps):
            self._step()
        self._heal()
        if (violation := find_violation(self.history)) is not None:
            raise Violation(violation)
        wrote = sum(isinstance(operation.answer, Wrote) for operation in self.history)
        return wrote + len(self.created)

    def _step(self) -> None:
        x = self.dice.random()
        plan = self.plan
        if x < plan.deliver:
            for _ in range(len(self._nodes) - 1):
                self._deliver()
        elif x < plan.deliver + plan.tick:
            self.clock.now += self.dice.choice((0.0, 0.0, 0.01, 0.02, 0.1))
            self._tick(self.dice.choice(self._nodes))
        elif x < 1 - plan.fault:
            if self.dice.random() < 0.3:
                self._burst()
            else:
                self.dice.choice(self.clients).step()
        else:
            self._fault(self.dice.random())

    def _burst(self) -> None:
        """Create registers of their own, some at a time, and forget about them but for the ack."""
        if not self.members:
            return
        node = self.dice.choice(sorted(self.members))
        member = self.members[node]
        for _ in range(self.dice.choice((1, 1, 6))):
            self._burst_count += 1
            key, value = f"burst/{self._burst_count}", b"%d" % self._burst_count + b"." * 60
            command = Cas(7, self._burst_count, member.state.applied_count, key, None, value)

            def finished(applied: Applied | None, key: str = key, value: bytes = value) -> None:
                if applied is not None and applied.outcome == Written(1):
                    self.created[key] = value

            self.call(node, partial(member.submit, command, finished))

    def _fault(self, x: float) -> None:
        plan = self.plan
        if x < plan.crash:
            node = self.dice.choice(self._nodes)
            if node in self.members:
                if plan.power and self.dice.random() < 0.5:
                    disk = self.machines[node].disk
                    disk.power_loss_at = disk.steps + self.dice.randint(1, 12)
                else:
                    self._die(node, power=plan.power and self.dice.random() < 0.5)
        elif x < plan.crash + plan.bounce:
            node = self.dice.choice(self._nodes)
            self._die(node, power=plan.power and self.dice.random() < 0.5)
            self._boot(node)
            self._connect_all(node)
        elif x < plan.crash + plan.bounce + plan.cut and self._pairs:
            x_node, y_node = self.dice.choice(self._pairs)
            self._cut(x_node, y_node)
        elif x < plan.crash + plan.bounce + plan.cut + plan.pause:
            node = self.dice.choice(self._nodes)
            self.paused_until[node] = self.clock.now + self.dice.random() * 4
        elif x < plan.crash + plan.bounce + plan.cut + plan.pause + plan.lag and self._pairs:
            pair = self.dice.choice(self._pairs)
            pair = pair if self.dice.random() < 0.5 else (pair[1], pair[0])
            self.lagging_until[pair] = self.clock.now + self.dice.random() * 10
        else:
            self._repair()

    def _repair(self) -> None:
        dead = [node for node in self._nodes if node not in self.members]
        if dead and self.dice.random() < 0.6:
            node = self.dice.choice(dead)
            self._boot(node)
            self._connect_all(node)
            return
        down = [pair for pair in self._pairs if not self.up.get(frozenset(pair))]
        if down:
            self._connect(*self.dice.choice(down))

    def _tick(self, node: int) -> None:
        if node in self.members and self.paused_until.get(node, 0) <= self.clock.now:
            self.call(node, self.members[node].tick)

    def _deliver(self) -> None:
        waiting = [
            pair
            for pair, queue in self.queues.items()
            if queue and self.paused_until.get(pair[1], 0) <= self.clock.now
        ]
        if waiting:
            pair = self.dice.choice(waiting)
            lags = self.lagging_until.get(pair, 0) > self.clock.now
            if not lags or self.dice.random() < 0.05:
                self._pass(pair)

    def _pass(self, pair: tuple[int, int]) -> None:
        sender, node = pair
        frame = self.queues[pair].popleft()
        if node in self.members:
            member = self.members[node]
            self.call(node, lambda: member.receive(sender, frame))

    def _boot(self, node: int) -> None:
        self.call(node, lambda: self.members.__setitem__(node, self.machines[node].boot(self)))

    def _die(self, node: int, *, power: bool) -> None:
        member = self.members.pop(node, None)
        for peer in self._nodes:
            if peer != node:
                self._cut(*sorted((node, peer)))
        disk = self.machines[node].disk
        if power:
            disk.lose_power()
        else:
            disk.kill()
        if member is not None:
            member.close()

    def _connect_all(self, node: int) -> None:
        for peer in self._nodes:
            if peer != node and peer in self.members and node in self.members:
                self._connect(*sorted((node, peer)))

    def _connect(self, x: int, y: int) -> None:
        if x in self.members and y in self.members and not self.up.get(frozenset((x, y))):
            self.up[frozenset((x, y))] = True
            self.members[x].connect(y)
            self.members[y].connect(x)

    def _cut(self, x: int, y: int) -> None:
        if not self.up.get(frozenset((x, y))):
            return
        self.up[frozenset((x, y))] = False
        if self.dice.random() >= self.plan.keep_frames:
            self.queues[x, y].clear()
            self.queues[y, x].clear()
        for node, peer in ((x, y), (y, x)):
            if node in self.members:
                self.members[node].disconnect(peer)

    def _heal(self) -> None:
        self.plan = replace(self.plan, lose_frame=0.0, stall=0.0)
        self.clock.stall = 0.0
        self.lagging_until.clear()
        self.paused_until.clear()
        for machine in self.machines.values():
            machine.disk.power_loss_at = None
        for node in self._nodes:
            if node not in self.members:
                self._boot(node)
        for pair in self._pairs:
            self._connect(*pair)
        for turn in range(2_000):
            self.clock.now += 0.03
            for node in self._nodes:
                self._tick(node)
            for pair in list(self.queues):
                for _ in range(len(self.queues[pair])):
                    self._pass(pair)
            if turn > 100 and self._has_converged():
                break
        else:
            raise Violation(f"somebody never caught up: {self._statuses()}")
        self._read_all()

    def _has_converged(self) -> bool:
        statuses = self._statuses()
        return (
            len({(at.applied_index, at.term) for at in statuses}) == 1
            and any(at.is_leader for at in statuses)
            and len({member.state.encode() for member in self.members.values()}) == 1
        )

    def _statuses(self) -> list[MemberStatus]:
        return [self.members[node].status() for node in self._nodes]

    def _read_all(self) -> None:
        """What everybody holds in the end is what a last reader finds."""
        for node, member in self.members.items():
            for key, value in self.created.items():
                register = member.state.registers.get(key)
                if register is None or register.value != value:
                    raise Violation(f"member {node} doesn't hold {key}, which was acknowledged")
            for key in KEYS:
                register = member.state.registers.get(key)
                found = Found((register.version, register.value) if register else None)
                now = self.clock.now
                self.history.append(Operation(key, now, answered=now + 1, answer=found))
