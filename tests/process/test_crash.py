"""Random programs while processes are killed: a slice in every run, all of it by ``make crash``.

``CRASH_KILLS`` sets the number of kills (default: a slice), ``CRASH_SEED`` the
seed. A failure prints the command that runs the same programs again.
"""

import asyncio
import os
import random
import sys
from pathlib import Path

import pytest
from tests.process.crash import run_round
from tests.process.driver import RunOptions
from tests.process.dying_server import LOG_FAILPOINTS
from tests.process.log_chaos import LogChaos
from tests.process.processes import ServerProcess

_SLICE_KILLS = 24
_KILLS_PER_ROUND = 50
_DEFAULT_SEED = 20_261

# Which passes of the log's failpoints a life of the server ends at; a boot takes the first few.
_SLICE_PASSES = (1, 2, 3, 5, 8, 13, 34)
_ALL_PASSES = (*range(1, 33), 64, 128, 256)


def plan_rounds() -> list[RunOptions]:
    """The rounds of this run; one in four speaks HTTP/1.1 request/response."""
    wanted = os.environ.get("CRASH_KILLS")
    seed = int(os.environ.get("CRASH_SEED", "0"))
    if wanted is None:
        half = _SLICE_KILLS // 2
        seed = seed or _DEFAULT_SEED
        return [
            RunOptions(seed=seed, kills=half),
            RunOptions(seed=seed + 1, kills=half, use_http_11=True),
        ]
    seed = seed or random.SystemRandom().randrange(1, 1_000_000)
    count = max(1, -(-int(wanted) // _KILLS_PER_ROUND))
    kills = -(-int(wanted) // count)
    return [
        RunOptions(seed=seed + number, kills=kills, use_http_11=number % 4 == 3)
        for number in range(count)
    ]


def name_round(options: RunOptions) -> str:
    mode = "http1" if options.use_http_11 else "http2"
    return f"seed{options.seed}-{options.kills}kills-{mode}"


@pytest.mark.slow
@pytest.mark.parametrize("options", plan_rounds(), ids=name_round)
def test_nothing_is_lost_and_nothing_is_done_twice(options: RunOptions, tmp_path: Path) -> None:
    figures = asyncio.run(run_round(tmp_path, options, ServerProcess(tmp_path)))
    print(figures)
    assert figures.server_kills + figures.service_kills >= options.kills
    assert figures.programs > 0


@pytest.mark.slow
def test_dying_between_any_two_steps_of_the_log_loses_nothing(tmp_path: Path) -> None:
    is_full = "CRASH_KILLS" in os.environ
    passes = _ALL_PASSES if is_full else _SLICE_PASSES
    server = ServerProcess(tmp_path, command=(sys.executable, "-m", "tests.process.dying_server"))
    options = RunOptions(seed=_DEFAULT_SEED, kills=0, clients=4)
    figures = asyncio.run(run_round(tmp_path, options, server, lambda run: LogChaos(run, passes)))
    print(figures)
    assert figures.server_kills == len(passes) * len(LOG_FAILPOINTS)
