"""Two workers behind one port, under load, while each is killed, and then all of them."""

import asyncio
import json
import os
import signal
import time
from pathlib import Path

import pytest
from tests.process.calls import request
from tests.process.crash import load
from tests.process.driver import RunOptions
from tests.process.processes import EXIT_CONFIGURATION, ManagedProcess, free_ports
from tests.process.workers import WorkersProcess, WorkersRun

from perdure.core.limits import WORKER_PORTS_EACH
from perdure.node.workers.layout import MARKER

_WORKERS = 2
_DEADLINE_SECONDS = 120.0


class _Killer:
    """Each worker once, then the one that watches them."""

    def __init__(self, run: WorkersRun) -> None:
        self._run = run
        self._server = run.workers

    async def run(self) -> None:
        led = await self._server.wait_spread()
        await self._run.wait_busy(3)
        for number in range(_WORKERS):
            os.kill(self._server.workers()[number], signal.SIGKILL)
            await self._server.wait_ended(number + 1)
            # It comes back as the leader of what it has.
            assert await self._server.wait_spread() == led
            await self._run.wait_busy(3)
        orphans = self._server.workers()
        self._server.kill()
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while any(map(_runs, orphans)):
            assert time.monotonic() < deadline, "a worker has outlived its supervisor"
        self._server.start()
        assert await self._server.wait_spread() == led


def _runs(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.slow
def test_workers_lose_nothing_whichever_is_killed(tmp_path: Path) -> None:
    server = WorkersProcess(tmp_path, _WORKERS, free_ports(_WORKERS * WORKER_PORTS_EACH))

    async def play() -> WorkersRun:
        run = WorkersRun(tmp_path, RunOptions(seed=41, kills=0, clients=3), server)
        try:
            await run.start()
            await load(run, _Killer(run))
            cells = await run.read_cells()
            run.check(cells)
            await run.repeat_all()
            run.expect(await run.read_cells() == cells, "requests that came again had an effect")
            await _check_admin(run)
            health = await request(server.admin_port, "GET", "/health")
            run.expect(health.status == 200, f"health is {health}")
            code = await asyncio.to_thread(server.terminate, _DEADLINE_SECONDS)
            run.expect(code == 0, f"it ended with {code}{server.log_tail()}")
        finally:
            run.close()
        return run

    run = asyncio.run(play())
    assert not run.violations, "\n".join(run.violations[:30])
    assert run.figures.programs > 0
    log = server.log()
    assert log.count("worker.ended") == _WORKERS
    for number in range(1, _WORKERS + 1):
        assert f"node.started worker=worker-{number} " in log
    assert (server.base_dir / "workers.secret").stat().st_mode & 0o777 == 0o600
    _check_refusals(server, tmp_path)


async def _check_admin(run: WorkersRun) -> None:
    """Whichever worker is asked, it knows all invocations, by list, by id and by SQL."""
    port = run.workers.admin_port
    headers = {"content-type": "application/json", "accept": "application/json"}
    statement = json.dumps({"query": "select id from sys_invocation"}).encode()
    expected: set[str] = set()
    for _ in range(12):
        answer = await request(port, "POST", "/query", statement, headers)
        found = {row["id"] for row in answer.json()["rows"]}
        expected = expected or found
        run.expect(found == expected, f"SQL knows {len(found)} of {len(expected)}")
        pages: list[str] = []
        path = "/perdure/invocations?limit=100"
        cursor: str | None = ""
        while cursor is not None:
            page = (await request(port, "GET", path + cursor)).json()
            pages += [row["id"] for row in page["invocations"]]
            cursor = f"&cursor={page['cursor']}" if "cursor" in page else None
        run.expect(len(pages) == len(set(pages)), "an invocation is listed twice")
        run.expect(set(pages) == expected, f"the list knows {len(pages)} of {len(expected)}")
    for id in sorted(expected)[:8] + sorted(expected)[-8:]:
        answer = await request(port, "GET", f"/perdure/invocations/{id}")
        run.expect(answer.status == 200, f"{id} is {answer}")
        answer = await request(port, "PATCH", f"/invocations/{id}/cancel")
        run.expect(answer.status == 409, f"{id} had completed, and cancel says {answer}")


def _check_refusals(server: WorkersProcess, tmp_path: Path) -> None:
    """What was divided among two is neither one's nor three's."""
    assert (server.base_dir / MARKER).exists()
    base = ["--base-dir", str(server.base_dir)]
    perdure = server.command[: server.command.index("up")]
    others = [
        ManagedProcess(name, [*perdure, *arguments, *base], tmp_path / f"{name}.log")
        for name, arguments in (("three", ["up", "--workers", "3"]), ("server", ["server"]))
    ]
    for other in others:
        other.start()
    for other in others:
        assert other.wait_exit(_DEADLINE_SECONDS) == EXIT_CONFIGURATION
        assert "was made for 2 workers: start it with" in other.log_path.read_text()
