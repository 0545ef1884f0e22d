"""A deterministic event loop on virtual time: no sockets, no sleeping, one seed.

Timers jump: when nothing is ready, time moves to the next timer. Whatever is ready runs in an order
drawn from the seed, so that one seed is one schedule. It leans on private names of asyncio's
``BaseEventLoop`` (``_ready``, ``_selector``, ``_process_events``, ``_write_to_self``); test_loop.py
tells when a new Python moves them.
"""

import asyncio
import random
import selectors
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from contextvars import Context
from typing import Any, NoReturn, TypeVar, TypeVarTuple, Unpack

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_CLEANUPS_MAX = 20


class Deadlock(Exception):
    """Every task waits and no timer is set: nothing will ever happen again."""


class _NoFiles(selectors.BaseSelector):
    """Waiting for files means that virtual time passes; there are no files."""

    def __init__(self, advance: Callable[[float], None]) -> None:
        self._advance = advance

    def register(self, fileobj: Any, events: int, data: Any = None) -> NoReturn:
        raise NotImplementedError("simulated code opens no files or sockets")

    def unregister(self, fileobj: Any) -> NoReturn:
        raise NotImplementedError("simulated code opens no files or sockets")

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        return {}

    def select(self, timeout: float | None = None) -> list[Any]:
        if timeout is None:
            raise Deadlock("every task waits and no timer is set")
        self._advance(timeout)
        return []


class SimLoop(asyncio.BaseEventLoop):
    """Runs on virtual seconds from 0. ``failures`` collects what no callback caught."""

    _ready: deque[asyncio.Handle]

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._now = 0.0
        self._dice = random.Random(seed)
        self._selector = _NoFiles(self._advance)
        self._clock_resolution = 1e-9
        self.failures: list[BaseException] = []
        self.set_exception_handler(self._collect)

    def time(self) -> float:
        return self._now

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = super().call_soon(callback, *args, context=context)
        # Any runnable callback may be next; those of one task stay in order, because a task has at
        # most one of them.
        self._ready.rotate(-self._dice.randrange(len(self._ready)))
        return handle

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def discard(self) -> None:
        """Throw away what is left, as a machine does that lost its power: nothing is told."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(task.get_coro())
        self._ready.clear()
        self.close()

    def _advance(self, seconds: float) -> None:
        self._now += max(seconds, 0.0)

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody needs waking."""

    def _collect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        self.failures.append(failure or RuntimeError(str(context.get("message"))))


def _close(work: Any) -> None:
    for _ in range(_CLEANUPS_MAX):
        try:
            work.close()
        except (Exception, SystemExit):
            continue  # it waits or fails while cleaning up; nobody is there to see
        return


def run(seed: int, main: Callable[[SimLoop], Coroutine[Any, Any, T]]) -> T:
    """Run ``main`` to its end on a loop of its own; stray failures are the caller's."""
    loop = SimLoop(seed)
    asyncio.set_event_loop(None)
    try:
        result = loop.run_until_complete(main(loop))
        if loop.failures:
            raise loop.failures[0]
        return result
    finally:
        loop.discard()
