"""A deterministic event loop on virtual time: no sockets, no sleeping, one seed.

Timers jump: when nothing is ready, time moves to the next timer. Whatever is ready runs in an order
drawn from the seed, so that one seed is one schedule. It leans on private names of asyncio's
``BaseEventLoop`` (``_ready``, ``_run_once``, ``_stopping``, ``_process_events``,
``_write_to_self``) and of its handles; test_loop.py tells when a new Python moves them. A simulated
second is a few hundred callbacks, so what asyncio does around each of them is done here in fewer
steps.

A process is whoever ``OWNER`` names in the context of its callbacks; one that is stopped runs none
of them until it goes on, when all that came due meanwhile runs at once, as after SIGSTOP.
"""

# pyright: reportPrivateUsage=false

import asyncio
import heapq
import random
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from contextvars import Context, ContextVar, copy_context
from typing import Any, TypeVar, TypeVarTuple, Unpack, cast

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
OWNER: ContextVar[object] = ContextVar("OWNER", default=None)
_CLEANUPS_MAX = 20
_RESOLUTION_SECONDS = 1e-9


class Deadlock(Exception):
    """Every task waits and no timer is set: nothing will ever happen again."""


class _Handle(asyncio.Handle):
    """A callback that is to run; made without what asyncio needs for debugging."""

    __slots__ = ()

    _callback: Callable[..., object]
    _args: Sequence[Any]
    _cancelled: bool
    _context: Context

    def __init__(
        self,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: "SimLoop",
        context: Context | None,
    ) -> None:
        _fill(self, callback, args, loop, context)


class _Timer(asyncio.TimerHandle):
    """A callback with its time."""

    __slots__ = ()

    _callback: Callable[..., object]
    _args: Sequence[Any]
    _cancelled: bool
    _context: Context
    _scheduled: bool

    def __init__(
        self,
        when: float,
        callback: Callable[..., object],
        args: tuple[Any, ...],
        loop: "SimLoop",
        context: Context | None,
    ) -> None:
        _fill(self, callback, args, loop, context)
        self._when = when
        self._scheduled = True


def _fill(
    handle: Any,
    callback: Callable[..., object],
    args: tuple[Any, ...],
    loop: "SimLoop",
    context: Context | None,
) -> None:
    handle._callback = callback
    handle._args = args
    handle._loop = loop
    handle._context = copy_context() if context is None else context
    handle._cancelled = False
    handle._repr = None
    handle._source_traceback = None


class _Task(asyncio.Task[Any]):
    """Tells others apart by its number: sets of tasks must not be in the order of addresses."""

    number = 0

    def __hash__(self) -> int:
        return self.number


class SimLoop(asyncio.BaseEventLoop):
    """Runs on virtual seconds from 0. ``failures`` collects what no callback caught."""

    _ready: deque[_Handle | _Timer]

    def __init__(self, seed: int) -> None:
        super().__init__()
        self._now = 0.0
        self._dice = random.Random(seed)
        self._timers: list[tuple[float, int, _Timer]] = []
        self._timers_made = 0
        self._tasks_made = 0
        self._timers_cancelled = 0
        self._stopping = False
        self._stopped: dict[object, list[_Handle | _Timer]] = {}
        self._dead: set[object] = set()
        self.failures: list[BaseException] = []
        self.set_exception_handler(self._collect)
        self.set_task_factory(self._make_task)

    def time(self) -> float:
        return self._now

    def _make_task(
        self, _: asyncio.AbstractEventLoop, work: Any, context: Context | None = None
    ) -> asyncio.Task[Any]:
        # The number comes first: a task's own set is filled while it is made.
        self._tasks_made += 1
        made = _Task.__new__(_Task)
        made.number = self._tasks_made
        made.__init__(work, loop=self, context=context)  # type: ignore[misc]
        return made

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        handle = _Handle(callback, args, self, context)
        ready = self._ready
        ready.append(handle)
        # Any runnable callback may be next; those of one task stay in order, because a task has at
        # most one of them.
        ready.rotate(-self._dice.randrange(len(ready)))
        return handle

    def call_soon_threadsafe(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.Handle:
        return self.call_soon(callback, *args, context=context)

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        handle = _Timer(when, callback, args, self, context)
        self._timers_made += 1
        heapq.heappush(self._timers, (when, self._timers_made, handle))
        return handle

    def stop_owner(self, owner: object) -> None:
        """Let callbacks of ``owner`` wait until it goes on."""
        self._stopped.setdefault(owner, [])

    def continue_owner(self, owner: object, pace_seconds: float = 0.0) -> None:
        """Run what waited for ``owner``, in order: at once, or as fast as a process works it off.

        While it does, what arrives anew is not behind that.
        """
        waiting = self._stopped.pop(owner, [])
        if not pace_seconds:
            self._ready.extend(waiting)
            return
        at = self._now
        for handle in waiting:
            at += pace_seconds * self._dice.random()
            self.call_at(at, self._perform, handle)

    def bury_owner(self, owner: object) -> None:
        """The process is gone: what it still does against its machine ends there, unseen."""
        self._dead.add(owner)
        self.continue_owner(owner)

    def is_stopped(self, owner: object) -> bool:
        return owner in self._stopped

    def discard(self) -> None:
        """Throw away what is left, as a machine does that lost its power: nothing is told."""
        for task in asyncio.all_tasks(self):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            _close(task.get_coro())
        self._ready.clear()
        self._stopped.clear()
        self._timers.clear()
        self.close()

    def _run_once(self) -> None:
        """Run what is ready; when nothing is, let time pass until the next timer."""
        if self._timers_cancelled > len(self._timers) // 2:
            self._drop_cancelled()
        ready, timers = self._ready, self._timers
        while timers and timers[0][2]._cancelled:
            heapq.heappop(timers)
            self._timers_cancelled -= 1
        if not ready and not self._stopping:
            if not timers:
                raise Deadlock("every task waits and no timer is set")
            self._now = max(self._now, timers[0][0])
        due = self._now + _RESOLUTION_SECONDS
        while timers and timers[0][0] < due:
            handle = heapq.heappop(timers)[2]
            handle._scheduled = False
            if handle._cancelled:
                self._timers_cancelled -= 1
            else:
                ready.append(handle)
        for _ in range(len(ready)):
            self._perform(ready.popleft())

    def _perform(self, handle: _Handle | _Timer) -> None:
        if handle._cancelled:
            return
        if self._stopped:
            waiting = self._stopped.get(handle._context.get(OWNER))
            if waiting is not None:
                waiting.append(handle)
                return
        try:
            handle._context.run(handle._callback, *handle._args)
        except (SystemExit, KeyboardInterrupt):
            if handle._context.get(OWNER) not in self._dead:
                raise
        except BaseException as failure:
            self._collect(self, {"exception": failure})

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        if cast(_Timer, handle)._scheduled:
            self._timers_cancelled += 1

    def _drop_cancelled(self) -> None:
        self._timers[:] = [entry for entry in self._timers if not entry[2]._cancelled]
        heapq.heapify(self._timers)
        self._timers_cancelled = 0

    def _process_events(self, events: list[Any]) -> None:
        """There are none."""

    def _write_to_self(self) -> None:
        """Nobody sleeps, so nobody needs waking."""

    def _collect(self, loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        failure = context.get("exception")
        if isinstance(failure, SystemExit):
            return  # it went through the loop, or its owner is dead
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
