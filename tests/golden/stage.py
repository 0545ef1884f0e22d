"""A stage for service-protocol dialogues: real engine, invoker and attempts; a scripted service.

The service's side of each stream is played by a script, time is virtual, and everything the server
does is written into a transcript. What stands in for the node is small: proposals are applied on
the next turn of the loop, actions go where a leader sends them, timers fire when they are due.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from tests.engine.world import FIRST_MS, World
from tests.golden import words
from tests.sim.loop import SimLoop

from perdure.core.errors import Overloaded
from perdure.core.ids import InvocationId, format_invocation_id
from perdure.core.limits import ATTEMPTS_BUSY_MAX
from perdure.core.retry import RetryPolicy
from perdure.engine.actions import (
    AbortAttempt,
    Action,
    InvocationEnded,
    JournalGrew,
    Outcome,
    SetTimer,
    StartAttempt,
    WindDown,
)
from perdure.engine.commands import Command, Effects, FireTimers, Invoke
from perdure.engine.notifications import input_entry
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamListener
from perdure.node.invoker.gate import Gates
from perdure.node.invoker.invoker import Invoker
from perdure.node.invoker.ports import RunPorts, StartFence
from perdure.node.invoker.validation import CatalogueResolver, new_invocation_id
from perdure.node.registry.effective import Catalogue, Defaults, Route
from perdure.node.registry.model import Deployment, OnMaxAttempts, Registry, Service
from perdure.proto.frames import FrameReader
from perdure.storage.tables.invocations import Source, SourceKind, Success, Target

T = TypeVar("T")


class OrderedLoop(SimLoop):
    """Virtual time without the dice: callbacks run in the order they were asked for."""

    def __init__(self) -> None:
        super().__init__(0)

    call_soon = asyncio.BaseEventLoop.call_soon


class Clock:
    """Wall time that starts at a round number and follows the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    def now_ms(self) -> int:
        return FIRST_MS + round(self._loop.time() * 1000)

    def monotonic(self) -> float:
        return self._loop.time()


class Dice:
    """Ids count upwards; jitter is always nothing."""

    def __init__(self) -> None:
        self._next = 0

    def bits(self, count: int) -> int:
        self._next += 1
        return self._next % (1 << count)

    def jitter(self, upper: float) -> float:
        return 0.0


class ServiceStream:
    """A request stream as the service sees it: the transcript of what it is sent."""

    def __init__(self, stage: "Stage", name: str, listener: StreamListener) -> None:
        self._stage = stage
        self.name = name
        self.listener = listener
        self.is_closed = False
        self.is_reading = stage.is_reading
        self.is_answered = False
        self.sizes: list[int] = []  # of what was written at once
        self._reader = FrameReader(1 << 30)

    def write(self, data: bytes) -> None:
        assert not self.is_closed
        self.sizes.append(len(data))
        for frame in self._reader.feed(data):
            self._stage.note(f"{self.name} <- {words.frame(frame)}")

    def end(self) -> None:
        if not self.is_closed:
            self._stage.note(f"{self.name} <- end of request")

    def reset(self) -> None:
        self.is_closed = True
        self._stage.note(f"{self.name} <- reset")

    def is_writable(self) -> bool:
        return self.is_reading

    def consumed(self, size: int) -> None:
        assert size >= 0


class Stage:
    """One partition, its invoker, and the registry; ``lines`` is the transcript."""

    def __init__(self, slots: int = 1000, busy_max: int = ATTEMPTS_BUSY_MAX) -> None:
        self.loop = OrderedLoop()
        self.clock = Clock(self.loop)
        self.world = World()
        self.lines: list[str] = []
        self.names: dict[str, InvocationId] = {}
        self.streams: dict[str, ServiceStream] = {}
        self.registry = Registry()
        self.defaults = Defaults(
            retry=RetryPolicy(initial_ms=100, factor=2, interval_ms_max=300, attempts_max=4)
        )
        self.catalogue = Catalogue(self.registry, self.defaults)
        self.is_refusing = False
        self.is_reading = True
        self.log_delay_ms = 0.0
        self.fence: StartFence | None = None
        self._attempts: dict[str, int] = {}
        self._log: deque[tuple[Command, Callable[[Outcome], None] | None]] = deque()
        self._dice = Dice()
        self._partition = self.world.partitions[0]
        resolver = CatalogueResolver(lambda: self.catalogue, self.clock, self._dice)
        self.ports = RunPorts(
            store=self._partition.store,
            propose=self._propose_effects,
            caller=self,
            catalogue=lambda: self.catalogue,
            resolver=resolver,
            clock=self.clock,
            entropy=self._dice,
            cluster_name="test",
            gates=Gates(busy_max),
            fence=lambda: self.fence,
        )
        self.invoker = self.inside(lambda: Invoker(self.ports, slots))

    # --- The registry -------------------------------------------------------------------------

    def register(self, deployment: Deployment, services: list[Service]) -> None:
        deployments = {**self.registry.deployments, deployment.id: deployment}
        latest = {**self.registry.latest, **{service.name: deployment.id for service in services}}
        self._use(Registry(deployments, latest))

    def forget(self, deployment: str) -> None:
        deployments = {k: v for k, v in self.registry.deployments.items() if k != deployment}
        latest = {k: v for k, v in self.registry.latest.items() if v != deployment}
        self._use(Registry(deployments, latest))

    def give_up_by(self, on_max_attempts: OnMaxAttempts) -> None:
        self.defaults = Defaults(retry=self.defaults.retry, on_max_attempts=on_max_attempts)
        self._use(self.registry)

    def _use(self, registry: Registry) -> None:
        self.registry = registry
        self.catalogue = Catalogue(registry, self.defaults)
        self.inside(self.invoker.on_catalogue_change)

    # --- Playing ------------------------------------------------------------------------------

    def note(self, line: str) -> None:
        for name, id in self.names.items():
            line = line.replace(format_invocation_id(id), f"<{name}>")
        self.lines.append(f"{round(self.loop.time() * 1000):>6} {line}")

    def wait(self, duration_ms: float) -> None:
        """Let virtual time pass."""
        self.loop.run_until_complete(asyncio.sleep(duration_ms / 1000))
        if self.loop.failures:
            raise self.loop.failures[0]

    def invoke(self, name: str, target: Target, body: bytes) -> None:
        id = new_invocation_id(target, None, self.clock, self._dice)
        self.names[name] = id
        source = Source(SourceKind.INGRESS)
        day = 24 * 3600 * 1000
        self.propose(Invoke(id, target, source, None, 0, None, day, day, input_entry([], body)))
        self.wait(0)

    def propose(self, command: Command) -> None:
        """Apply a command on the next turn of the loop."""
        self.inside(lambda: self._append(command, None))

    def name_of(self, id: InvocationId) -> str:
        """The name of an invocation; children are named after their handler."""
        for name, known in self.names.items():
            if known == id:
                return name
        row = self.world.row(id)
        assert row is not None
        name = handler = row.spec.target.handler
        number = 1
        while name in self.names:
            number += 1
            name = f"{handler}{number}"
        self.names[name] = id
        return name

    # --- What the invoker needs ---------------------------------------------------------------

    def open(
        self, route: Route, path: str, headers: Headers, listener: StreamListener
    ) -> ServiceStream:
        found = dict(headers)
        text = found[b"x-restate-invocation-id"].decode()
        name = next(n for n, id in self.names.items() if format_invocation_id(id) == text)
        count = self._attempts[name] = self._attempts.get(name, 0) + 1
        stream = ServiceStream(self, f"{name}/{count}", listener)
        self.streams[name] = stream
        version = found[b"content-type"].decode().rpartition(".")[2]
        key = found.get(b"x-restate-service-key")
        keyed = f" key={key.decode()}" if key is not None else ""
        self.note(
            f"{stream.name} <- POST {route.target(path)} {version} {route.deployment_id}{keyed}"
        )
        return stream

    def _propose_effects(self, effects: Effects, done: Callable[[Outcome], None]) -> None:
        if self.is_refusing:
            raise Overloaded("the script says so")
        self._append(effects, done)

    def _append(self, command: Command, done: Callable[[Outcome], None] | None) -> None:
        self._log.append((command, done))
        if self.log_delay_ms:
            self.loop.call_later(self.log_delay_ms / 1000, self._apply_next)
        else:
            self.loop.call_soon(self._apply_next)

    def _apply_next(self) -> None:
        self._apply(*self._log.popleft())

    def _apply(self, command: Command, done: Callable[[Outcome], None] | None) -> None:
        self.world.now_ms = self.clock.now_ms()
        self._partition.actions.clear()
        outcome = self.world.propose(command, self._partition)
        actions = list(self._partition.actions)
        if done is not None:
            done(outcome)
        for action in actions:
            self._act(action)

    def _act(self, action: Action) -> None:
        match action:
            case StartAttempt():
                self.name_of(action.id)
                self.invoker.start(action.id, action.session)
            case AbortAttempt():
                self.invoker.abort(action.id)
            case WindDown():
                self.invoker.wind_down(action.id, action.session)
            case JournalGrew():
                self.invoker.journal_grew(action.id, action.journal_length)
            case InvocationEnded():
                result = action.result
                text = (
                    f"value {result.value.decode()}".rstrip()
                    if isinstance(result, Success)
                    else f"failure {result.code} {result.message}"
                )
                self.note(f"{self.name_of_ended(action.id)} ended: {text}")
            case SetTimer():
                at = (int.from_bytes(action.key[:8]) - FIRST_MS) / 1000
                self.loop.call_at(max(at, self.loop.time()), self._fire, action.key)
            case _:
                pass

    def name_of_ended(self, id: InvocationId) -> str:
        return next((name for name, known in self.names.items() if known == id), "?")

    def _fire(self, key: bytes) -> None:
        self._apply(FireTimers([key]), None)

    def inside(self, callback: Callable[[], T]) -> T:
        async def call() -> T:
            return callback()

        return self.loop.run_until_complete(call())
