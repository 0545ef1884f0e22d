"""The world outside of a simulated cluster: clients that insist, and who completes awakeables."""

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from tests.sim.node_world import NodeWorld, Request, Violation

from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, partition_key_of
from perdure.engine.actions import Existing, Outcome
from perdure.engine.commands import Signal
from perdure.node.partition.routing import RoutedGateway
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import Result

T = TypeVar("T")


class Outside:
    """Asks any of the nodes that live; ``gateways`` are theirs."""

    def __init__(
        self,
        dice: random.Random,
        work: NodeWorld,
        happened: Counter[str],
        gateways: Callable[[], list[RoutedGateway]],
    ) -> None:
        self._dice = dice
        self._work = work
        self._happened = happened
        self._gateways = gateways

    async def insist(self, request: Request) -> None:
        """Ask any node, under the same id, until the result is known."""
        await asyncio.sleep(self._dice.random() * 5)
        while request.result is None:
            gateways = self._gateways()
            if not gateways:
                await asyncio.sleep(0.05)
                continue
            gateway = self._dice.choice(gateways)
            told: asyncio.Future[Result | PerdureError] = asyncio.get_running_loop().create_future()
            try:
                gateway.propose(
                    request.command,
                    partition_key_of(request.command.id),
                    partial(self._on_accepted, gateway, request, told),
                    partial(_tell, told),
                )
                async with asyncio.timeout(self._dice.choice((5.0, 60.0))):
                    outcome = await told
            except (PerdureError, TimeoutError):
                await asyncio.sleep(0.02)
                continue
            if isinstance(outcome, PerdureError):
                self._happened["client " + outcome.code] += 1
                await asyncio.sleep(0.02)
            else:
                request.finish(outcome)

    def _on_accepted(
        self,
        gateway: RoutedGateway,
        request: Request,
        told: "asyncio.Future[Result | PerdureError]",
        outcome: Outcome,
    ) -> None:
        if request.is_acknowledged and not isinstance(outcome, Existing):
            raise Violation(f"{request.command.id.hex()} was acknowledged and then forgotten")
        request.is_acknowledged = True
        if isinstance(outcome, Existing) and outcome.result is not None:
            _tell(told, outcome.result)
        else:
            gateway.wait(request.command.id, partial(_tell, told))

    async def complete_awakeables(self) -> None:
        awakeables = self._work.ledger.awakeables
        while True:
            await asyncio.sleep(0.05)
            for (invocation, index), is_done in list(awakeables.items()):
                if not is_done and self._gateways():
                    await self._signal(invocation, index)

    async def _signal(self, invocation: InvocationId, index: int) -> None:
        note = pb.NotificationMessage(signal_idx=index, value=pb.Value(content=b"hello %d" % index))
        command = Signal(invocation, index, "", note.SerializeToString(), False)
        told: asyncio.Future[Outcome | PerdureError] = asyncio.get_running_loop().create_future()
        gateway = self._dice.choice(self._gateways())
        try:
            gateway.propose(
                command, partition_key_of(invocation), partial(_tell, told), partial(_tell, told)
            )
            async with asyncio.timeout(20.0):
                outcome = await told
        except (PerdureError, TimeoutError):
            return
        if not isinstance(outcome, PerdureError):
            self._work.ledger.awakeables[invocation, index] = True


def _tell(told: "asyncio.Future[T]", outcome: T) -> None:
    if not told.done():
        told.set_result(outcome)
