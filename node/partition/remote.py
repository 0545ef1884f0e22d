"""What other nodes ask of the partitions that this node leads."""

import asyncio
from collections.abc import Callable
from typing import NoReturn

import msgspec

from perdure.cluster.answers import LateAnswers
from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import Writer
from perdure.cluster.transport import Answer, Transport
from perdure.core.errors import PartitionUnavailable, PerdureError
from perdure.core.ids import InvocationId, PartitionId
from perdure.core.limits_log import ROUTE_RESULT_MS
from perdure.engine.actions import Accepted, Outcome
from perdure.engine.commands import Invoke, decode_command
from perdure.node.partition.gateway import LedPartition, find
from perdure.node.partition.leader import Leader
from perdure.node.partition.messages import (
    Deliver,
    Delivered,
    Ended,
    Known,
    LookUp,
    Propose,
    Undelivered,
    Unwatch,
    Watch,
    pack,
)
from perdure.node.partition.routing import find_surely, gone
from perdure.storage.tables.invocations import Result
from perdure.storage.tables.timers import Outgoing

_Ticket = tuple[Writer, int]
"""A process, and what it calls its question."""


class RemoteDesk:
    """Serves the messages of ``node/partition/messages.py``."""

    def __init__(self, partitions: list[LedPartition], transport: Transport) -> None:
        self._here = {led.processor.partition: led for led in partitions}
        self._transport = transport
        self._watches: dict[_Ticket, Callable[[], None]] = {}
        self._answers = LateAnswers()
        self._loop = asyncio.get_running_loop()
        transport.serve(Propose, self._propose)
        transport.serve(LookUp, self._look_up)
        transport.serve(Watch, self._watch)
        transport.serve(Unwatch, self._unwatch)
        transport.serve(Deliver, self._deliver)
        transport.serve(Delivered, self._delivered)
        transport.serve(Undelivered, self._undelivered)
        transport.on_session(self._on_session)

    @property
    def watching(self) -> int:
        """Results that other nodes wait for here."""
        return len(self._watches)

    def _propose(self, _: Peer, request: Propose, answer: Answer) -> None:
        command = decode_command(request.command)
        leader = self._led(request.partition).leader

        def applied(outcome: Outcome) -> None:
            if request.is_awaited and isinstance(outcome, Accepted) and isinstance(command, Invoke):
                self._answer_ended(leader, command.id, outcome, answer)
            else:
                answer(pack(outcome))

        leader.propose(command, request.partition_key, applied, answer)

    def _answer_ended(
        self, leader: Leader, invocation: InvocationId, outcome: Accepted, answer: Answer
    ) -> None:
        """Answer with the result too, if it comes soon: that saves a question and its answer."""

        def told(result: Result | PerdureError) -> None:
            timer.cancel()
            found = None if isinstance(result, PerdureError) else result
            answer(msgspec.structs.replace(pack(outcome), result=found))

        def give_up() -> None:
            forget()
            answer(pack(outcome))

        try:
            forget = leader.wait(invocation, told)
        except PerdureError:
            answer(pack(outcome))  # not leading any more: its successor will be asked
            return
        timer = self._loop.call_later(ROUTE_RESULT_MS / 1000, give_up)

    def _look_up(self, _: Peer, request: LookUp, answer: Answer) -> None:
        led = self._led(request.partition)

        async def look() -> Known:
            found = await find_surely(led, request.invocation)
            if found is None:
                return Known(None, None, 0)
            return Known(found.target, found.result, found.expires_at_ms)

        self._answers.start(look(), answer)

    def _watch(self, peer: Peer, request: Watch, answer: Answer) -> None:
        led = self._led(request.partition)
        found = find(led.processor.store, request.invocation)
        if found is None:
            self._answers.start(self._say_gone(led, request), answer)
            return
        if found.result is not None:
            answer(Ended(found.result))
            return
        ticket = peer.writer, request.ticket

        def told(result: Result | PerdureError) -> None:
            self._watches.pop(ticket, None)
            answer(result if isinstance(result, PerdureError) else Ended(result))

        self._watches[ticket] = led.leader.wait(request.invocation, told)

    @staticmethod
    async def _say_gone(led: LedPartition, request: Watch) -> NoReturn:
        await led.leader.confirm()
        raise gone(request.invocation)

    def _unwatch(self, peer: Peer, message: Unwatch, _: Answer) -> None:
        self._forget((peer.writer, message.ticket))

    def _on_session(self, peer: Peer, is_up: bool) -> None:
        """The processes that the node had before wait for nothing any more."""
        if is_up:
            for ticket in [*self._watches]:
                if ticket[0].node == peer.node and ticket[0] != peer.writer:
                    self._forget(ticket)

    def _forget(self, ticket: _Ticket) -> None:
        if (forget := self._watches.pop(ticket, None)) is not None:
            forget()

    def _deliver(self, _: Peer, message: Deliver, answer: Answer) -> None:
        outgoing = Outgoing(message.partition_key, message.payload)
        try:
            self._led(message.target).leader.receive(message.source, message.sequence, outgoing)
        except PerdureError:
            answer(Undelivered(message.source, message.target))

    def _delivered(self, _: Peer, message: Delivered, __: Answer) -> None:
        if (led := self._here.get(PartitionId(message.source))) is not None:
            led.leader.shuffle.applied(message.target, message.sequence)

    def _undelivered(self, _: Peer, message: Undelivered, __: Answer) -> None:
        if (led := self._here.get(PartitionId(message.source))) is not None:
            led.leader.shuffle.resend_later(message.target)

    def _led(self, partition: int) -> LedPartition:
        led = self._here.get(PartitionId(partition))
        if led is None or not led.leader.is_leading:
            raise PartitionUnavailable(
                f"partition {partition} is not led by this node (any more): ask the new leader"
            )
        return led
