"""One node grows to three and five and shrinks to three under load; a disk is replaced between.

``GROW_ROUNDS`` repeats growing and shrinking, with a node that dies on the way (``make grow``).
"""

import asyncio
import os
from pathlib import Path

import pytest
from tests.process.crash import load
from tests.process.driver import RunOptions
from tests.process.growth import Growth, GrowthRun, describe

_ROUNDS = int(os.environ.get("GROW_ROUNDS", "0"))
_CLIENTS = int(os.environ.get("GROW_CLIENTS", "3"))


@pytest.mark.slow
def test_a_node_becomes_three_five_and_three_again_and_loses_nothing(tmp_path: Path) -> None:
    async def play() -> tuple[Growth, GrowthRun]:
        options = RunOptions(seed=20_270, kills=0, clients=_CLIENTS, finish_seconds=180.0)
        run = GrowthRun(tmp_path, options)
        growth = Growth(run, _ROUNDS)
        try:
            await run.start()
            await load(run, growth)
            cells = await run.read_cells()
            run.check(cells)
            await run.attach_all()
            await run.repeat_all()
            run.expect(await run.read_cells() == cells, "requests that came again had an effect")
        finally:
            run.close()
        return growth, run

    growth, run = asyncio.run(play())
    print(describe(growth, run))
    assert not run.violations, "\n".join(run.violations[:30])
    assert run.figures.programs > 0
