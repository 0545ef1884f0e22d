"""Processes that stand still: tasks of a supervisor that make no step while a gate is closed.

Other processes of the same loop go on, and what arrives meanwhile waits, as it does for a process
whose interpreter or machine is stopped. Plain callbacks of the loop are not held up.
"""

import asyncio
import types
from collections.abc import Coroutine, Generator
from typing import Any

from perdure.core.tasks import Supervisor


class Gate:
    """Open, or closed."""

    def __init__(self) -> None:
        self._is_open = asyncio.Event()
        self._is_open.set()

    @property
    def is_closed(self) -> bool:
        return not self._is_open.is_set()

    def close(self) -> None:
        self._is_open.clear()

    def open(self) -> None:
        self._is_open.set()

    async def wait(self) -> None:
        await self._is_open.wait()


class StallableSupervisor(Supervisor):
    """A supervisor whose tasks stop at ``gate``."""

    def __init__(self, gate: Gate) -> None:
        super().__init__()
        self._gate = gate

    def start(self, name: str, work: Coroutine[None, None, None]) -> asyncio.Task[None]:
        return super().start(name, _stopping_at(self._gate, work))


async def _stopping_at(gate: Gate, work: Coroutine[Any, Any, None]) -> None:
    await _steps(gate, work)


@types.coroutine
def _steps(gate: Gate, work: Coroutine[Any, Any, None]) -> Generator[Any, Any, None]:
    failure: BaseException | None = None
    while True:
        while gate.is_closed and failure is None:
            try:
                yield from gate.wait().__await__()
            except asyncio.CancelledError as cancelled:
                failure = cancelled
        try:
            awaited = work.throw(failure) if failure is not None else work.send(None)
        except StopIteration:
            return
        failure = None
        try:
            yield awaited
        except BaseException as thrown:
            failure = thrown
