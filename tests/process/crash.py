"""The crash test as a program: ``python -m tests.process.crash --kills 200`` (``make crash``).

Runs rounds of random programs under kills until the number of kills is reached, alternating
between the streaming and the request/response mode of the service. Prints seeds, progress and
figures; the exit code is 1 after the first round with a violation, whose files are kept.
"""

import argparse
import asyncio
import random
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tests.process.chaos import Chaos
from tests.process.driver import CrashRun, RunFigures, RunOptions
from tests.process.processes import ServerProcess

_KILLS_PER_ROUND = 50


class Killer(Protocol):
    """What ends lives during the load."""

    async def run(self) -> None:
        """Do it all; then leave both processes running and healthy."""
        ...


async def run_round(
    folder: Path,
    options: RunOptions,
    server: ServerProcess,
    make_chaos: Callable[[CrashRun], Killer] = Chaos,
) -> RunFigures:
    """One round: load and kills, quiet, checks, clean restart, checks again.

    Raises:
        AssertionError: with all violations, the folder and how to repeat the round.
    """
    run = CrashRun(folder, options, server)
    try:
        async with asyncio.timeout(60):
            await run.start()
        await load(run, make_chaos(run))
        await _compare(run)
    except BaseException as error:
        error.add_note(how_to_repeat(options, folder))
        raise
    finally:
        run.close()
    return run.figures


def how_to_repeat(options: RunOptions, folder: Path) -> str:
    """What to type to run the same programs again, and where the remains are."""
    mode = " --http1" if options.use_http_11 else ""
    return (
        f"repeat with: python -m tests.process.crash --seed {options.seed} "
        f"--kills {options.kills} --rounds 1{mode} (logs, ledger and data in {folder})"
    )


async def load(run: CrashRun, chaos: Killer) -> None:
    """Clients and kills, until everything that was asked for is done."""
    done = asyncio.Event()
    async with asyncio.TaskGroup() as group:
        group.create_task(run.wake(done))
        clients = [group.create_task(run.client(n)) for n in range(run.options.clients)]
        await chaos.run()
        run.calm.set()
        try:
            async with asyncio.timeout(run.options.finish_seconds):
                await asyncio.gather(*clients)
        except TimeoutError:
            waiting = [item.program.name for item in run.submissions if item.outcome is None]
            raise AssertionError(f"never answered: {waiting[:20]}") from None
        await run.wait_quiet()
        done.set()


async def _compare(run: CrashRun) -> None:
    cells = await run.read_cells()
    run.check(cells)
    code = run.server.terminate()
    run.expect(code == 0, f"the server ended with {code} after SIGTERM{run.server.log_tail()}")
    run.server.start()
    await run.server.wait_healthy()
    await run.attach_all()
    await run.repeat_all()
    again = await run.read_cells()
    run.expect(again == cells, "the cells changed over a clean restart")
    if run.violations:
        raise AssertionError(
            f"{len(run.violations)} violations:\n" + "\n".join(run.violations[:30])
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one")
    parser.add_argument("--kills", type=int, default=200, help="in all rounds together")
    parser.add_argument("--rounds", type=int, default=None, help="default: one per 50 kills")
    parser.add_argument("--http1", action="store_true", help="request/response mode only")
    parser.add_argument("--server", default=None, help="command that starts the server")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if arguments.seed is None else arguments.seed
    rounds = arguments.rounds or max(1, arguments.kills // _KILLS_PER_ROUND)
    command = shlex.split(arguments.server) if arguments.server else None
    started, kills = time.monotonic(), 0
    for number in range(rounds):
        options = RunOptions(
            seed=seed + number,
            kills=arguments.kills // rounds,
            use_http_11=arguments.http1 or number % 4 == 3,
        )
        folder = Path(tempfile.mkdtemp(prefix=f"perdure-crash-{options.seed}-"))
        mode = "HTTP/1.1" if options.use_http_11 else "HTTP/2"
        print(f"round {number + 1}/{rounds}: seed {options.seed}, {mode}, {folder}", flush=True)
        try:
            figures = asyncio.run(
                run_round(folder, options, ServerProcess(folder, command=command))
            )
        except (AssertionError, ExceptionGroup):
            traceback.print_exc(file=sys.stdout)
            return 1
        kills += figures.server_kills + figures.service_kills
        print(f"  {figures}", flush=True)
    print(f"{kills} kills in {time.monotonic() - started:.0f} s, no violation")
    return 0


if __name__ == "__main__":
    sys.exit(main())
