"""The world outside of a simulated cluster: clients that insist, and who completes awakeables."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import TypeVar

from tests.sim.cluster_machine import Door
from tests.sim.cluster_monitor import Monitor
from tests.sim.node_world import NodeWorld, Request, Violation

from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, partition_key_of
from perdure.engine.actions import Existing, Outcome
from perdure.engine.commands import Signal
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import Result

T = TypeVar("T")


class Outside:
    """Asks any of the nodes that live through ``doors``, over the first ``seconds``."""

    def __init__(
        self,
        dice: random.Random,
        work: NodeWorld,
        happened: Counter[str],
        doors: Callable[[], list[Door]],
        seconds: float,
        monitor: Monitor,
    ) -> None:
        self._monitor = monitor
        self._dice = dice
        self._work = work
        self._happened = happened
        self._doors = doors
        self._seconds = seconds
        self._patient: list[asyncio.Event] = []

    def hurry(self) -> None:
        """Who has not asked yet does so now: one of them."""
        if self._patient:
            self._patient.pop(0).set()

    async def insist(self, request: Request) -> None:
        """Ask any node, under the same id, until the result is known."""
        await self._wait_for(self._dice.random() * self._seconds)
        while request.result is None:
            doors = self._doors()
            if not doors:
                await asyncio.sleep(0.05)
                continue
            door = self._dice.choice(doors)
            told: asyncio.Future[Result | PerdureError] = asyncio.get_running_loop().create_future()
            door.propose(
                request.command,
                partition_key_of(request.command.id),
                partial(self._on_accepted, door, request, request.is_acknowledged, told),
                partial(_tell, told),
            )
            try:
                async with asyncio.timeout(self._dice.choice((2.0, 8.0, 30.0))):
                    outcome = await told
            except TimeoutError:
                await asyncio.sleep(0.02)
                continue
            if isinstance(outcome, PerdureError):
                self._happened["client " + outcome.code] += 1
                await asyncio.sleep(0.02)
            else:
                request.finish(outcome)

    async def _wait_for(self, seconds: float) -> None:
        hurry = asyncio.Event()
        self._patient.append(hurry)
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await hurry.wait()
        if hurry in self._patient:
            self._patient.remove(hurry)

    def _on_accepted(
        self,
        door: Door,
        request: Request,
        was_acknowledged: bool,  # when it was asked: answers may come late, and in any order
        told: "asyncio.Future[Result | PerdureError]",
        outcome: Outcome,
    ) -> None:
        if was_acknowledged and not isinstance(outcome, Existing):
            raise Violation(f"{request.command.id.hex()} was acknowledged and then forgotten")
        request.is_acknowledged = True
        self._monitor.on_acknowledged(request.command.id)
        if isinstance(outcome, Existing) and outcome.result is not None:
            _tell(told, outcome.result)
        else:
            door.wait(request.command.id, partial(_tell, told))

    async def complete_awakeables(self) -> None:
        awakeables = self._work.ledger.awakeables
        while True:
            await asyncio.sleep(self._dice.choice((0.05, 0.2)))
            for (invocation, index), is_done in list(awakeables.items()):
                if not is_done and self._doors():
                    await self._signal(invocation, index)

    async def _signal(self, invocation: InvocationId, index: int) -> None:
        note = pb.NotificationMessage(signal_idx=index, value=pb.Value(content=b"hello %d" % index))
        command = Signal(invocation, index, "", note.SerializeToString(), False)
        told: asyncio.Future[Outcome | PerdureError] = asyncio.get_running_loop().create_future()
        door = self._dice.choice(self._doors())
        door.propose(
            command, partition_key_of(invocation), partial(_tell, told), partial(_tell, told)
        )
        try:
            async with asyncio.timeout(self._dice.choice((2.0, 8.0))):
                outcome = await told
        except TimeoutError:
            return
        if not isinstance(outcome, PerdureError):
            self._work.ledger.awakeables[invocation, index] = True


def _tell(told: "asyncio.Future[T]", outcome: T) -> None:
    if not told.done():
        told.set_result(outcome)
