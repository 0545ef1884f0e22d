"""The registers of a simulated cluster: watched, and if so asked, breaking their promise.

Registers that lie are what metadata would be that lost its quorum's disks or was restored from a
backup: a write that was told to have been made is gone, a reading is an old one. The cluster may
then stop; it must not lose or repeat anything without saying so.
"""

import asyncio
import random

from tests.cluster.flaky_registers import FlakyRegisters
from tests.sim.cluster_monitor import Monitor

from perdure.cluster.membership import PARTITIONS_PREFIX
from perdure.cluster.metadata.store import CasOutcome, Versioned


class WatchedRegisters(FlakyRegisters):
    """``stale_chance``: that a reading is an older one. ``lost_chance``: that a write is undone.

    While ``may_lie``.
    """

    def __init__(self, dice: random.Random, monitor: Monitor) -> None:
        super().__init__(dice)
        self.stale_chance = 0.0
        self.lost_chance = 0.0
        self.lies = 0
        self.may_lie = False
        self._monitor = monitor
        self._before: dict[str, Versioned | None] = {}

    async def get(self, key: str) -> Versioned | None:
        found = await super().get(key)
        if (
            self.may_lie
            and self._before.get(key) is not None
            and self.dice.random() < self.stale_chance
        ):
            self.lies += 1
            return self._before[key]
        return found

    def _write(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        before = self.found.get(key)
        outcome = super()._write(key, expected, value)
        if isinstance(outcome, Versioned):
            self._before[key] = before
            if key.startswith(PARTITIONS_PREFIX):
                self._monitor.on_partition(int(key.removeprefix(PARTITIONS_PREFIX)), value)
            if self.may_lie and self.dice.random() < self.lost_chance:
                loop = asyncio.get_running_loop()
                loop.call_later(self.dice.random() * 2, self._undo, key, outcome.version, before)
        return outcome

    def _undo(self, key: str, version: int, before: Versioned | None) -> None:
        found = self.found.get(key)
        if self.may_lie and found is not None and found.version == version and before is not None:
            self.lies += 1
            self.found[key] = before
