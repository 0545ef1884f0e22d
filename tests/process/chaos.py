"""The killer of a crash run: SIGKILL at instants drawn from the seed, and at chosen ones.

Kinds of instants: after a random while · the very moment a client reads an acknowledgement · while
a killed server is coming up again.
"""

import asyncio
import random

from tests.process.driver import CrashRun, pause
from tests.process.processes import wait_listening

_WHILE_SECONDS = (0.05, 1.2)
_BOOT_SECONDS = (0.0, 0.6)
_ACKS_MAX = 12
_POLL_SECONDS = 0.1


class Chaos:
    """Kills until the run's number of kills is reached."""

    def __init__(self, run: CrashRun, report_every: int = 10) -> None:
        self._run = run
        self._dice = random.Random(f"{run.options.seed}/chaos")
        self._never = asyncio.Event()
        self._report_every = report_every
        self.kills = 0

    async def run(self) -> None:
        """Kill and restart; then leave everything running and healthy."""
        run, dice = self._run, self._dice
        while self.kills < run.options.kills:
            kind = dice.choices(("server", "ack", "boot", "service", "both"), (45, 20, 10, 15, 10))
            match kind[0]:
                case "server":
                    await self._wait()
                    await self._kill_server()
                case "ack":
                    await self._kill_on_ack(dice.randint(1, _ACKS_MAX))
                case "boot":
                    await self._kill_in_boot()
                case "service":
                    await self._wait()
                    await self._kill_service()
                case _:
                    await self._wait()
                    self._run.service.kill()
                    await self._kill_server()
                    await self._restart_service()
        run.figures.restart_seconds_max = max(
            run.figures.restart_seconds_max, await run.server.wait_healthy()
        )

    async def _wait(self) -> None:
        await pause(self._never, self._dice.uniform(*_WHILE_SECONDS))

    async def _kill_server(self) -> None:
        self._run.server.kill()
        await self._restart_server()

    async def _kill_on_ack(self, count: int) -> None:
        """Kill in the callback of the count-th acknowledgement, before the client goes on."""
        killed = asyncio.Event()
        left = count

        def acknowledged() -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._run.server.kill()
                killed.set()

        self._run.on_ack = acknowledged
        try:
            async with asyncio.timeout(self._run.options.finish_seconds):
                while not killed.is_set():
                    self._run.server.check_alive()
                    await pause(killed, _POLL_SECONDS)
        finally:
            self._run.on_ack = lambda: None
        self._run.figures.kills_on_ack += 1
        await self._restart_server()

    async def _kill_in_boot(self) -> None:
        self._run.server.kill()
        self._count_server_kill()
        self._run.server.start()
        await pause(self._never, self._dice.uniform(*_BOOT_SECONDS))
        await self._kill_server()

    async def _kill_service(self) -> None:
        self._run.service.kill()
        await self._restart_service()

    async def _restart_service(self) -> None:
        self._run.figures.service_kills += 1
        self._count()
        self._run.service.start()
        await wait_listening(self._run.service, self._run.service.port)

    async def _restart_server(self) -> None:
        self._count_server_kill()
        self._run.server.start()
        seconds = await self._run.server.wait_healthy()
        self._run.figures.restart_seconds_max = max(self._run.figures.restart_seconds_max, seconds)

    def _count_server_kill(self) -> None:
        self._run.figures.server_kills += 1
        self._count()

    def _count(self) -> None:
        self.kills += 1
        if self.kills % self._report_every == 0:
            figures = self._run.figures
            print(
                f"  {self.kills} kills, {figures.programs} programs, {figures.retries} retries, "
                f"slowest restart {figures.restart_seconds_max:.2f} s",
                flush=True,
            )
