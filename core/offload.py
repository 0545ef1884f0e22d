"""The port of threads: run blocking work beside the event loop, get its outcome back on the loop.

Each ``ThreadOffload`` is one thread, so its jobs run one at a time and in order. The simulator's
twin runs the job on the loop after a virtual delay.
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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


async def run_offloaded(offload: Offload, job: Callable[[], T]) -> T:
    """Await a job's outcome."""
    future: asyncio.Future[T] = asyncio.get_running_loop().create_future()

    def done(result: T) -> None:
        if not future.done():
            future.set_result(result)

    def failed(failure: BaseException) -> None:
        if not future.done():
            future.set_exception(failure)

    offload.submit(job, done, failed)
    return await future
