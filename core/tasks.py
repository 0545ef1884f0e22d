"""Named background tasks that nobody may forget: a failure in one is everybody's failure.

``Supervisor`` owns the long-lived tasks of a process. When one of them ends with an exception, the
first failure is kept and ``wait_failed`` wakes up, so the process can stop loudly.
"""

import asyncio
from collections.abc import Coroutine

from perdure.core.telemetry import logger

log = logger("tasks")


class Supervisor:
    """Holds tasks by name until ``aclose``."""

    def __init__(self) -> None:
        self._tasks: dict[asyncio.Task[None], str] = {}
        self._failed = asyncio.Event()
        self.failure: BaseException | None = None

    def start(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        """Run ``work`` in the background under ``name``."""
        task = asyncio.create_task(work, name=name)
        self._tasks[task] = name
        task.add_done_callback(self._on_done)
        return task

    def fail(self, failure: BaseException) -> None:
        """Report a fatal failure that happened in a callback rather than in a task."""
        if self.failure is None:
            self.failure = failure
            self._failed.set()

    async def wait_failed(self) -> BaseException:
        """Wait for the first failure and return it."""
        await self._failed.wait()
        assert self.failure is not None
        return self.failure

    async def aclose(self) -> None:
        """Cancel what still runs and wait for it."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _on_done(self, task: asyncio.Task[None]) -> None:
        name = self._tasks.pop(task)
        if task.cancelled():
            return
        failure = task.exception()
        if failure is not None:
            log.error("task.failed", cause=failure, task=name)
            self.fail(failure)
