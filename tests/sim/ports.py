"""The other ports of a node, simulated: clock, entropy, threads, and the ordered store.

All draw from seeds and run on the loop's virtual time. ``SimEnv`` is held to the suite of the LMDB
environment (tests/storage/test_env.py).
"""

import asyncio
import errno
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import TypeVar

from tests.engine.memory_env import DictSnapshot
from tests.sim.disk import PowerLoss, SimDisk

from perdure.storage.env import MapFull, Snapshot

T = TypeVar("T")

EPOCH_MS = 1_700_000_000_000


class SimClock:
    """Virtual time. ``spent`` is what inline work took; ``offset_ms`` is where the wall stands."""

    def __init__(self, loop: asyncio.AbstractEventLoop, offset_ms: int = 0) -> None:
        self._loop = loop
        self.offset_ms = offset_ms
        self.spent = 0.0

    def now_ms(self) -> int:
        return EPOCH_MS + self.offset_ms + int(self._loop.time() * 1000)

    def monotonic(self) -> float:
        return self._loop.time() + self.spent


class SimEntropy:
    """Dice of one seed."""

    def __init__(self, dice: random.Random) -> None:
        self._dice = dice

    def bits(self, count: int) -> int:
        return self._dice.getrandbits(count)

    def jitter(self, upper: float) -> float:
        return self._dice.random() * upper


class SimOffload:
    """A thread's twin: jobs run whole, in order, on the loop, after virtual delays."""

    def __init__(self, dice: random.Random, delay_ms_max: float) -> None:
        self._dice = dice
        self.delay_ms_max = delay_ms_max
        self._loop = asyncio.get_running_loop()
        self._jobs: deque[Callable[[], None]] = deque()
        self._told: deque[Callable[[], None]] = deque()  # in order, also where a loop is late
        self._is_running = False
        self._is_dead = False

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        def run() -> None:
            try:
                result = job()
            except PowerLoss:
                raise
            except BaseException as failure:
                self._tell(partial(failed, failure))
            else:
                self._tell(partial(done, result))

        if not self._is_dead:
            self._jobs.append(run)
            self._schedule()

    def close(self) -> None:
        while self._jobs:
            self._jobs.popleft()()

    def kill(self) -> None:
        """The process is gone: what was not begun never will be."""
        self._is_dead = True
        self._jobs.clear()

    def _tell(self, outcome: Callable[[], None]) -> None:
        self._told.append(outcome)
        self._loop.call_soon(self._tell_next)

    def _tell_next(self) -> None:
        self._told.popleft()()

    def _schedule(self) -> None:
        if self._jobs and not self._is_running:
            self._is_running = True
            delay = self._dice.random() * self.delay_ms_max / 1000
            self._loop.call_later(delay, self._run_next)

    def _run_next(self) -> None:
        self._is_running = False
        if self._jobs:
            self._jobs.popleft()()
        self._schedule()


class SimTables:
    """What an environment keeps on the disk: survives lives. Commits are atomic and synced."""

    def __init__(self, disk: SimDisk, map_bytes: int = 1 << 30) -> None:
        self.disk = disk
        self.map_bytes = map_bytes
        self.committed: dict[bytes, bytes] = {}
        self.refusals = 0  # commits that will fail for want of space


class SimEnv:
    """One life's handle on ``SimTables``; implements ``storage.env.Env``."""

    def __init__(self, tables: SimTables) -> None:
        self._tables = tables
        self._life = tables.disk.life
        self._seen = tables.committed
        self._order = sorted(self._seen)

    def get(self, key: bytes) -> bytes | None:
        return self._seen.get(key)

    def scan(self, lower: bytes, upper: bytes) -> Iterator[tuple[bytes, bytes]]:
        for position in range(bisect_left(self._order, lower), len(self._order)):
            key = self._order[position]
            if key >= upper:
                return
            yield key, self._seen[key]

    def commit(
        self,
        cleared: Sequence[tuple[bytes, bytes]],
        deleted: Sequence[bytes],
        written: Sequence[tuple[bytes, bytes]],
    ) -> None:
        tables = self._tables
        if self._life != tables.disk.life:
            raise PowerLoss("a handle of an earlier life")
        if tables.refusals:
            tables.refusals -= 1
            raise OSError(errno.ENOSPC, "simulated disk full")
        following = {
            key: value
            for key, value in tables.committed.items()
            if not any(lower <= key < upper for lower, upper in cleared)
        }
        for key in deleted:
            following.pop(key, None)
        following.update(written)
        if sum(len(key) + len(value) for key, value in following.items()) > tables.map_bytes:
            raise MapFull
        tables.disk.step()  # the power goes before the commit …
        tables.committed = following
        tables.disk.step()  # … or after it, never in the middle

    def refresh(self) -> None:
        self._seen = self._tables.committed
        self._order = sorted(self._seen)

    def snapshot(self) -> Snapshot:
        return DictSnapshot(self._tables.committed)

    def grow(self) -> bool:
        self._tables.map_bytes *= 2
        return True

    def close(self) -> None:
        """Handles cost nothing."""
