"""The port of chance: the only module that rolls dice.

Whatever is random in the log was drawn here by a leader and written into a command, so replicas
and replays see the same value.
"""

import os
import random
import threading
from typing import Protocol


class Entropy(Protocol):
    """A source of unpredictable bytes and of jitter."""

    def bits(self, count: int) -> int:
        """A uniform integer in ``[0, 2**count)``."""
        ...

    def jitter(self, upper: float) -> float:
        """A uniform float in ``[0, upper)``."""
        ...


class SystemEntropy:
    """The operating system's generator for identities, a cheap one for jitter.

    Bytes are drawn from the kernel in bulk: one call serves a few hundred ids. Threads may share
    it: no two callers get the same bytes.
    """

    _POOL_BYTES = 4096

    def __init__(self) -> None:
        self._pool = b""
        self._used = 0
        self._lock = threading.Lock()
        self._random = random.Random(os.urandom(16))

    def bits(self, count: int) -> int:
        size = (count + 7) // 8
        with self._lock:
            if self._used + size > len(self._pool):
                self._pool = os.urandom(max(self._POOL_BYTES, size))
                self._used = 0
            drawn = int.from_bytes(self._pool[self._used : self._used + size])
            self._used += size
        return drawn >> (size * 8 - count)

    def jitter(self, upper: float) -> float:
        return self._random.random() * upper


def ulid(now_ms: int, entropy: Entropy) -> int:
    """A 128-bit ULID: 48 bits of milliseconds, then 80 random bits."""
    return ((now_ms & 0xFFFF_FFFF_FFFF) << 80) | entropy.bits(80)
