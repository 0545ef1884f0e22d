"""Faults on real processes in namespaces, and a verdict: ``python -m tests.chaos``, ``make chaos``.

Each round is one kind of fault under load on a cluster of its own, made from deploy/compose.yaml.
Prints a row per round; ends with 1 after the first that isn't exactly right, whose files are kept,
and with 2 where this machine can't run it at all.
"""

import argparse
import asyncio
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from pathlib import Path

from deploy.namespaces.machine import (
    Impossible,
    check_possible,
    enter_own_mounts,
    find_faketime,
)
from tests.chaos.faults import FAULTS, NEEDS_CLOCKS, Blow
from tests.chaos.run import ChaosRun
from tests.process.driver import RunOptions

_CLIENTS = 3
_CELLS = 12
_FINISH_SECONDS = 180.0
_STORE = "weed"


@dataclass(frozen=True, slots=True)
class Row:
    """What is told of a round."""

    fault: str
    seed: int
    strikes: int
    operations: int
    programs: int
    invocations: int
    segments: int
    longest_seconds: float
    took_seconds: float

    def __str__(self) -> str:
        return (
            f"{self.fault:17} seed {self.seed:<7} {self.strikes:3} strikes  "
            f"{self.operations:6} operations  {self.programs:5} programs  "
            f"{self.invocations:5} invocations  {self.segments:3} segments  "
            f"longest wait {self.longest_seconds:5.1f} s  "
            f"exactly right, {self.took_seconds:.0f} s"
        )


def check_needs(faults: list[str]) -> None:
    """Say at once what can't be run here.

    Raises:
        Impossible: with what is missing.
    """
    check_possible()
    if shutil.which(_STORE, path=f"{Path(sys.executable).parent}:{os.environ['PATH']}") is None:
        raise Impossible("the object store is missing: pip install --group chaos")
    if NEEDS_CLOCKS & set(faults):
        find_faketime()


async def play(folder: Path, fault: str, seed: int, seconds: float) -> Row:
    """One round.

    Raises:
        AssertionError: with everything that wasn't as it must be.
    """
    began = time.monotonic()
    options = RunOptions(
        seed=seed, kills=0, clients=_CLIENTS, cells=_CELLS, finish_seconds=_FINISH_SECONDS
    )
    run = ChaosRun(folder, options)
    try:
        if fault in NEEDS_CLOCKS:
            for node in run.nodes:
                node.give_clock()
        await run.start()
        blow = Blow(run, seconds, folder)
        struck = time.monotonic()
        await run.load(lambda _: FAULTS[fault](blow))
        waits = run.numbers.waits(struck)
        await run.judge()
    finally:
        run.close()
    if run.violations:
        raise AssertionError(
            f"{len(run.violations)} violations:\n" + "\n".join(run.violations[:30])
        )
    return Row(
        fault,
        seed,
        blow.times,
        len(run.numbers.history),
        run.figures.programs,
        run.figures.invocations,
        run.compared,
        max(waits, default=0.0),
        time.monotonic() - began,
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: each")
    parser.add_argument("--seconds", type=float, default=40.0, help="how long to go on striking")
    parser.add_argument("--seed", type=int, default=None, help="default: a fresh one")
    parser.add_argument("--rounds", type=int, default=1, help="of each fault, with seeds in a row")
    parser.add_argument("--keep", action="store_true", help="logs and ledgers of all rounds")
    arguments = parser.parse_args()
    faults: list[str] = arguments.fault or list(FAULTS)
    seed = random.SystemRandom().randrange(100_000) if arguments.seed is None else arguments.seed
    try:
        check_needs(faults)
        enter_own_mounts()
    except Impossible as impossible:
        print(f"chaos can't be run here: {impossible}", file=sys.stderr)
        return 2
    for number in range(arguments.rounds):
        for fault in faults:
            folder = Path(tempfile.mkdtemp(prefix=f"perdure-chaos-{fault}-{seed + number}-"))
            try:
                row = asyncio.run(play(folder, fault, seed + number, arguments.seconds))
            except (Exception, ExceptionGroup):
                traceback.print_exc(file=sys.stdout)
                again = f"make chaos FAULT={fault} SEED={seed + number}"
                print(f"{fault} with seed {seed + number} is NOT right; again: {again}")
                print(f"what is left is in {folder}", flush=True)
                return 1
            print(row, flush=True)
            if not arguments.keep:
                shutil.rmtree(folder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
