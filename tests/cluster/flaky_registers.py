"""Registers in memory that take their time, answer "unknown" now and then, and lose hints.

Held to the metadata suite as far as it is linearizable: a write whose outcome is not told has been
made at once, will be made later, or never.
"""

import asyncio
import random
from collections.abc import Callable
from contextvars import Context, copy_context

from perdure.cluster.metadata.store import CasOutcome, Conflict, Unknown, Versioned
from perdure.core.errors import MetadataUnavailable


class FlakyRegisters:
    """Implements ``registers.Registers`` on the running loop; one instance is shared by all."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.found: dict[str, Versioned] = {}
        self.unknown_chance = 0.0
        self.lost_hint_chance = 0.0
        self.delay_s = 0.002
        self.is_down = False
        self.writes = 0
        self._hints: list[tuple[str, Callable[[str], None], Context]] = []

    async def get(self, key: str) -> Versioned | None:
        await self._travel()
        found = self.found.get(key)
        await self._travel()
        return found

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        await self._travel()
        found = {key: value for key, value in self.found.items() if key.startswith(prefix)}
        await self._travel()
        return found

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        await self._travel()
        if self.dice.random() < self.unknown_chance:
            fate = self.dice.random()
            if fate < 0.4:
                self._write(key, expected, value)
            elif fate < 0.7:
                delay = self.dice.random()
                asyncio.get_running_loop().call_later(delay, self._write, key, expected, value)
            return Unknown()
        outcome = self._write(key, expected, value)
        await self._travel()
        return outcome

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        entry = (prefix, hint, copy_context())  # a hint arrives where it is watched for
        self._hints.append(entry)
        return lambda: self._hints.remove(entry)

    def _write(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        known = self.found.get(key)
        version = known.version if known is not None else None
        if version != expected:
            return Conflict(version)
        written = self.found[key] = Versioned((version or 0) + 1, value)
        self.writes += 1
        loop = asyncio.get_running_loop()
        for prefix, hint, context in self._hints:
            if key.startswith(prefix) and self.dice.random() >= self.lost_hint_chance:
                delay = self.dice.random() * self.delay_s
                loop.call_later(delay, hint, key, context=context.copy())
        return written

    async def _travel(self) -> None:
        await asyncio.sleep(self.dice.random() * self.delay_s)
        if self.is_down:
            raise MetadataUnavailable("cut off from metadata")
