"""The port of threads: run blocking work beside the event loop, get its outcome back on the loop.

Each ``ThreadOffload`` is one thread, so its jobs run one at a time and in order; the threads of a
``PoolOffload`` run jobs beside each other. The simulator's twin runs the job on the loop after a
virtual delay.
"""

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Protocol, TypeVar

T = TypeVar("T")


class Offload(Protocol):
    """Runs jobs in order, off the loop."""

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        """Run ``job``; then call ``done`` or ``failed`` on the loop."""
        ...

    def close(self) -> None:
        """Finish the jobs submitted so far and stop."""
        ...


class ThreadOffload:
    """One named thread."""

    def __init__(self, name: str) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._loop = asyncio.get_running_loop()

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        def deliver(future: Future[T]) -> None:
            failure = future.exception()
            if failure is not None:
                self._post(lambda: failed(failure))
            else:
                result = future.result()
                self._post(lambda: done(result))

        self._pool.submit(job).add_done_callback(deliver)

    def close(self) -> None:
        self._pool.shutdown(wait=True)

    def _post(self, callback: Callable[[], None]) -> None:
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(callback)


class PoolOffload:
    """Up to ``thread_count`` named threads, started as they are needed: jobs run beside each other.

    For jobs that wait long for others, such as calls of remote functions: the process doesn't wait
    for those that still run when it ends.
    """

    def __init__(self, name: str, thread_count: int) -> None:
        self._name = name
        self._thread_count_max = thread_count
        self._thread_count = 0
        self._idle_count = 0
        self._is_closed = False
        self._jobs: deque[Callable[[], None]] = deque()
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        def run() -> None:
            try:
                result = job()
            except BaseException as failure:  # bulkhead: whoever submitted the job is told
                self._post(partial(failed, failure))
            else:
                self._post(partial(done, result))

        with self._changed:
            self._jobs.append(run)
            # A thread that was woken counts as idle until it has taken its job.
            if self._idle_count >= len(self._jobs):
                self._changed.notify()
            elif self._thread_count < self._thread_count_max:
                self._thread_count += 1
                name = f"{self._name}-{self._thread_count}"
                threading.Thread(target=self._work, name=name, daemon=True).start()

    def close(self) -> None:
        """Let go: what has not begun is never run, what runs is not waited for."""
        with self._changed:
            self._is_closed = True
            self._jobs.clear()
            self._changed.notify_all()

    def _work(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._is_closed:
                        return
                    self._idle_count += 1
                    self._changed.wait()
                    self._idle_count -= 1
                job = self._jobs.popleft()
            job()

    def _post(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(callback)


async def run_offloaded(offload: Offload, job: Callable[[], T]) -> T:
    """Await a job's outcome."""
    return await offloaded(offload, job)


def offloaded(offload: Offload, job: Callable[[], T]) -> "asyncio.Future[T]":
    """A job's outcome; cancelling it doesn't stop the job."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def failed(failure: BaseException) -> None:
        if not future.done():
            future.set_exception(failure)

    offload.submit(job, done, failed)
    return future
