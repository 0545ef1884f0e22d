"""Clients that work on numbers through all nodes, and write down when they asked and were answered.

Most ask under an idempotency key until they are answered; some ask once, and what they asked for
may have happened or not when nobody answers. The history of both is for ``linearizability.py``.
"""

import random
import time
from dataclasses import asdict
from itertools import count
from typing import TYPE_CHECKING

from tests.chaos.linearizability import UNKNOWN, Add, Operation, Read, Request, Swap, Write
from tests.process.calls import Answer, Unanswered, post_json
from tests.process.driver import pause

if TYPE_CHECKING:
    from tests.chaos.run import ChaosRun

_KEYS = 6
_VALUES = 4
_ONCE_SHARE = 0.05
_PAUSE_SECONDS = 0.12
# A number answers in milliseconds: who says nothing for so long is left for the next node.
_ANSWER_SECONDS = 3.0
_HANDLERS = {Read: "read", Write: "write", Swap: "swap", Add: "add"}


class NumberClients:
    """What they asked for, and what they were told."""

    def __init__(self, run: "ChaosRun") -> None:
        self._run = run
        self._numbers = count()
        self.history: list[Operation] = []

    async def client(self, number: int) -> None:
        """Ask for one thing after the other, until there is calm."""
        dice = random.Random(f"{self._run.options.seed}/number/{number}")
        while not self._run.calm.is_set():
            # Half of the numbers are registers, half are counters.
            key = dice.randrange(_KEYS)
            request = _draw_register(dice) if key % 2 else _draw_counter(dice)
            insists = dice.random() >= _ONCE_SHARE
            await self._ask(f"n{key}", request, insists=insists)
            await pause(self._run.calm, dice.uniform(0, _PAUSE_SECONDS))

    def waits(self, since: float) -> list[float]:
        """How long those waited that insisted, of those answered after ``since``."""
        return [
            item.ended - item.began for item in self.history if item.is_known and item.ended > since
        ]

    async def _ask(self, key: str, request: Request, *, insists: bool) -> None:
        path = f"/Number/{key}/{_HANDLERS[type(request)]}"
        document = asdict(request)
        began = time.monotonic()
        answer: Answer | None
        if insists:
            key_of_request = f"number-{next(self._numbers)}"
            answer = await self._run.insist(lambda: self._try(path, document, key_of_request))
        else:
            answer = await self._ask_once(path, document)
        ended = time.monotonic()
        if answer is None:
            self._note(key, request, None, began, UNKNOWN)
        elif answer.status == 200:
            self._note(key, request, int(answer.json()), began, ended)
        else:
            self._run.expect(False, f"{request} of {key} gave {answer}")

    async def _ask_once(self, path: str, document: dict[str, int]) -> Answer | None:
        """The answer; None if nobody knows whether it happened."""
        try:
            answer = await self._try(path, document, None)
        except Unanswered:
            return None
        return None if answer.status == 503 else answer

    async def _try(self, path: str, document: dict[str, int], key: str | None) -> Answer:
        headers = {"idempotency-key": key} if key is not None else {}
        port = self._run.ingress_port
        return await self._run.limited(
            lambda: post_json(port, path, document, headers), _ANSWER_SECONDS
        )

    def _note(
        self, key: str, request: Request, answer: int | None, began: float, ended: float
    ) -> None:
        self.history.append(
            Operation(key=key, request=request, answer=answer, began=began, ended=ended)
        )


def _draw_register(dice: random.Random) -> Request:
    value = dice.randrange(1, _VALUES)
    swap = Swap(dice.randrange(_VALUES), value)
    return dice.choices((Read(), Write(value), swap), (5, 3, 2))[0]


def _draw_counter(dice: random.Random) -> Request:
    return dice.choices((Read(), Add(1)), (2, 3))[0]
