"""Keeps a node's metadata member running: a process of its own, started again whenever it ends.

A process of its own because elections hang on heartbeats of 50 ms: a long turn of the node's event
loop must not depose a leader, and the member's inline syncs must not delay the node. The child's
standard input is its lifeline: it ends when the node's process does, however that happens.
"""

import asyncio
import contextlib
import sys
from collections.abc import Sequence

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.limits import METADATA_RESTART_FIRST_MS, METADATA_RESTART_MAX_MS
from perdure.core.retry import RetryPolicy, with_jitter
from perdure.core.telemetry import logger

log = logger("metadata")

_STOP_S = 5.0
_RETRY = RetryPolicy(
    initial_ms=METADATA_RESTART_FIRST_MS,
    factor=2,
    interval_ms_max=METADATA_RESTART_MAX_MS,
    attempts_max=None,
)
# A process that lived so long starts the schedule anew.
_STEADY_S = 60.0

MEMBER_COMMAND = (sys.executable, "-m", "perdure.cluster.metadata.server")


class MemberProcess:
    """Run it as a task; cancelling it stops the child."""

    def __init__(
        self,
        settings: bytes,
        clock: Clock,
        entropy: Entropy,
        command: Sequence[str] = MEMBER_COMMAND,
    ) -> None:
        """``settings`` is the line that the child reads first."""
        self._settings = settings
        self._clock = clock
        self._entropy = entropy
        self._command = command
        self.starts = 0
        self.process_id: int | None = None

    async def run(self) -> None:
        """Start the child for ever."""
        failures = 0
        while True:
            started = self._clock.monotonic()
            code: int | str
            try:
                code = await self._live()
            except OSError as failure:  # no room for another process, for now
                code = str(failure)
            lived = self._clock.monotonic() - started
            failures = 1 if lived > _STEADY_S else failures + 1
            delay_ms = with_jitter(_RETRY.delay_ms(failures) or 0.0, self._entropy)
            log.warning("metadata.process.ended", code=code, restart_ms=int(delay_ms))
            await asyncio.sleep(delay_ms / 1000)

    async def _live(self) -> int:
        """One life of the child; its exit code."""
        self.starts += 1
        child = await _spawn(self._command)
        self.process_id = child.pid
        log.info("metadata.process.started", process=child.pid, starts=self.starts)
        try:
            assert child.stdin is not None
            # A child may die before it is told anything; uvloop has a word of its own for that.
            with contextlib.suppress(ConnectionError, RuntimeError):
                child.stdin.write(self._settings + b"\n")
                await child.stdin.drain()
            return await child.wait()
        finally:
            self.process_id = None
            if child.returncode is None:
                await _stop(child)


async def _spawn(command: Sequence[str]) -> asyncio.subprocess.Process:
    spawning = asyncio.ensure_future(
        asyncio.create_subprocess_exec(*command, stdin=asyncio.subprocess.PIPE)
    )
    try:
        return await asyncio.shield(spawning)
    except asyncio.CancelledError:
        with contextlib.suppress(OSError):
            await _stop(await spawning)  # nobody else knows of it
        raise


async def _stop(child: asyncio.subprocess.Process) -> None:
    assert child.stdin is not None
    child.stdin.close()
    try:
        async with asyncio.timeout(_STOP_S):
            await child.wait()
    except TimeoutError:
        child.kill()
        await child.wait()
