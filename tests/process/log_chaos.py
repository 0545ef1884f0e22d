"""Deaths between any two writes of the log: every life of the server ends at a chosen failpoint.

Life k dies at the k-th pass of a failpoint of the write-ahead log: before a group is written,
between its write and its sync, or between its sync and its acknowledgements. The next life starts
from what that left behind.
"""

import asyncio
import signal
import time
from collections.abc import Iterable

from tests.process.driver import CrashRun, pause
from tests.process.dying_server import LOG_FAILPOINTS, VARIABLE
from tests.process.processes import ProcessFailed

_POLL_SECONDS = 0.02
_LIFE_SECONDS_MAX = 60.0


class LogChaos:
    """Lets the server of a run die at the given passes, once per failpoint."""

    def __init__(self, run: CrashRun, passes: Iterable[int]) -> None:
        self._run = run
        self._deaths = [(name, count) for count in passes for name in LOG_FAILPOINTS]
        self._never = asyncio.Event()

    async def run(self) -> None:
        """Live and die; then leave a server that stays."""
        server = self._run.server
        server.kill()
        for name, count in self._deaths:
            server.environment[VARIABLE] = f"{name}:{count}"
            server.start()
            await self._wait_death(f"{name}:{count}")
            self._run.figures.server_kills += 1
        del server.environment[VARIABLE]
        server.start()
        await server.wait_healthy()

    async def _wait_death(self, place: str) -> None:
        server = self._run.server
        deadline = time.monotonic() + _LIFE_SECONDS_MAX
        while (code := server.exit_code()) is None:
            if time.monotonic() > deadline:
                raise ProcessFailed(f"the server never passed {place}{server.log_tail()}")
            await pause(self._never, _POLL_SECONDS)
        if code != -signal.SIGKILL:
            raise ProcessFailed(f"the server ended with {code} before {place}{server.log_tail()}")
