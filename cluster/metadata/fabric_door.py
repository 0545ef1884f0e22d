"""The way to a metadata member that isn't beside this node: through the node that it is beside.

A node with a member serves the questions of other nodes over its own fabric, and passes them to the
member. A standstill of that node costs latency, never an election.
"""

from collections.abc import Callable

import msgspec

from perdure.cluster.answers import LateAnswers
from perdure.cluster.core.messages import Peer
from perdure.cluster.metadata.client import Door, DoorClosed
from perdure.cluster.metadata.messages import (
    Answer,
    Ask,
    MetadataAsk,
    MetadataTold,
    decode_answer,
    decode_ask,
    encode,
)
from perdure.cluster.transport import Answer as TransportAnswer
from perdure.cluster.transport import Transport
from perdure.core.errors import AnswerLost, PerdureError
from perdure.core.limits import METADATA_CALL_MS


class VisitorDoor:
    """Asks the member beside whatever node listens at an address, over a session for each question:
    whoever is about to join has no other. ``transport`` may become another one meanwhile."""

    def __init__(self, transport: Callable[[], Transport], address: str) -> None:
        self._transport = transport
        self._address = address

    async def ask(self, ask: Ask, timeout_s: float) -> Answer:
        try:
            request = MetadataAsk(encode(ask))
            told = await self._transport().ask_at(self._address, request, timeout_s)
            return decode_answer(told.content)
        except (PerdureError, msgspec.MsgspecError) as error:
            raise DoorClosed(f"the metadata member at {self._address}: {error}") from error

    async def aclose(self) -> None:
        """The fabric belongs to the node."""


def serve_questions(transport: Transport, door: Door) -> None:
    """Let other nodes, and those that want to become nodes, ask the member behind ``door``."""
    answers = LateAnswers()

    async def pass_on(content: bytes) -> MetadataTold:
        try:
            ask = decode_ask(content)
            wait_ms = getattr(ask, "timeout_ms", 0) + METADATA_CALL_MS
            return MetadataTold(encode(await door.ask(ask, wait_ms / 1000)))
        except (DoorClosed, msgspec.MsgspecError) as error:
            raise AnswerLost(f"the metadata member of this node: {error}") from error

    def on_ask(peer: Peer, ask: MetadataAsk, answer: TransportAnswer) -> None:
        answers.start(pass_on(ask.content), answer)

    transport.serve(MetadataAsk, on_ask, guests=True)
