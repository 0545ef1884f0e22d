"""Backup and restore of one node, as an operator does it: the disk is gone, the bucket is there.

The node is killed amid random programs that call and send across partitions; what was acknowledged
before the snapshots were asked for must be in the restored node, and everything in it must go on to
its end. Were the partitions' snapshots not of one moment, messages would be lost or a gap in their
numbers would halt a partition.
"""

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.calls import post_json, request
from tests.process.driver import CrashRun, RunOptions, Submission
from tests.process.ledger import LedgerReader
from tests.process.model import Observed, check_outcome
from tests.process.processes import ROOT, ServerProcess
from tests.process.programs import FLOW, awakeable_value
from tests.storage.bucket import CREDENTIALS, make_bucket, moto_server

pytestmark = pytest.mark.slow

_UNFINISHED = "scheduled,pending,ready,running,backing-off,suspended,paused"
_DEADLINE_SECONDS = 60.0
_CLIENTS = 6


def destination_flags(destination: str) -> list[str]:
    return ["--set", f"snapshots.destination={destination}"]


@pytest.fixture
def run(tmp_path: Path) -> Iterator[CrashRun]:
    flags = destination_flags(f"file://{tmp_path}/bucket")
    run = CrashRun(tmp_path, RunOptions(seed=11, kills=0), ServerProcess(tmp_path, flags=flags))
    yield run
    run.close()


def perdure(*arguments: str, environment: dict[str, str] | None = None) -> str:
    """Run the command; what it printed."""
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *arguments],
        cwd=ROOT,
        env={**os.environ, **(environment or {})},
        capture_output=True,
        text=True,
        timeout=_DEADLINE_SECONDS,
        check=False,
    )
    assert done.returncode == 0, (arguments, done.stdout, done.stderr)
    return done.stdout


async def take_snapshots(server: ServerProcess) -> str:
    """Have a set taken; its name."""
    answer = await post_json(server.admin_port, "/perdure/snapshots", {})
    assert answer.status == 200, (answer, server.log_tail())
    document = answer.json()
    assert [row["partition"] for row in document["partitions"]] == list(range(8))
    return str(document["name"])


def replace_flag(server: ServerProcess, old: str, new: str) -> None:
    server.command = [part.replace(old, new) for part in server.command]


async def wait_ended(run: CrashRun) -> None:
    """Wait until no invocation of the node has anything left to do."""
    async with asyncio.timeout(_DEADLINE_SECONDS):
        while True:
            answer = await request(
                run.server.admin_port, "GET", f"/perdure/invocations?status={_UNFINISHED}"
            )
            assert answer.status == 200, answer
            if not answer.json()["invocations"] and "cursor" not in answer.json():
                return
            await resolve_all(run)
            await run.breathe()


async def check_kept(
    run: CrashRun, acknowledged: list[Submission], known: dict[str, object]
) -> None:
    """What was acknowledged before the set comes to its end, with the outcomes already known."""
    for submission in acknowledged:
        if submission.program.service == FLOW:
            await run.settle(submission.program)
    await wait_ended(run)
    observed = Observed()
    for submission in acknowledged:
        submission.outcome = None
        await run.attach(submission)
        check_outcome(submission.program, submission.outcome, observed)
        if submission.invocation in known:
            assert submission.outcome == known[submission.invocation], submission.program.name
    assert not observed.violations
    assert not run.violations


async def resolve_all(run: CrashRun) -> None:
    """Answer every awakeable that ever was: the restored node forgot some of the answers."""
    reader = LedgerReader(run.service.ledger_path)
    lines = [line for line in reader.read_new() if line.kind == "wake"]
    reader.close()
    for line in lines:
        path = f"/restate/awakeables/{line.value}/resolve"
        await post_json(run.server.ingress_port, path, awakeable_value(*line.place), {})


def test_a_killed_and_wiped_node_comes_back_from_its_bucket(run: CrashRun, tmp_path: Path) -> None:
    async def before() -> tuple[str, list[Submission], dict[str, object]]:
        await run.start()
        over = asyncio.Event()
        tasks = [asyncio.ensure_future(run.client(number)) for number in range(_CLIENTS)]
        tasks.append(asyncio.ensure_future(run.wake(over)))
        async with asyncio.timeout(_DEADLINE_SECONDS):
            while sum(bool(item.invocation) for item in run.submissions) < 40:
                await run.breathe()
        acknowledged = [item for item in run.submissions if item.invocation]
        known = {item.invocation: item.outcome for item in acknowledged if item.outcome is not None}
        name = await take_snapshots(run.server)
        count = len(run.submissions)
        async with asyncio.timeout(_DEADLINE_SECONDS):
            while len(run.submissions) < count + 20:
                await run.breathe()
        run.server.kill()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return name, acknowledged, dict(known)

    async def after(acknowledged: list[Submission], known: dict[str, object]) -> None:
        run.server.start()
        await run.server.wait_healthy()
        await check_kept(run, acknowledged, known)
        assert (await request(run.server.admin_port, "GET", "/health")).status == 200
        await take_snapshots(run.server)  # to its own destination
        assert run.server.terminate() == 0

    where = ("--base-dir", str(run.server.base_dir), "--node-name", "n1")
    destination = ("--destination", f"file://{tmp_path}/bucket")
    with asyncio.Runner() as runner:
        name, acknowledged, known = runner.run(before())
        assert known
        shutil.rmtree(run.server.base_dir)
        listed = json.loads(perdure("snapshots", "list", *destination, "--json"))
        assert name in [row["name"] for row in listed["sets"]]
        perdure("snapshots", "verify", name, *destination)
        perdure("snapshots", "restore", name, *destination, *where)
        replace_flag(run.server, "/bucket", "/bucket-2")
        runner.run(after(acknowledged, known))


def test_a_restored_node_does_not_write_to_the_old_destination(
    run: CrashRun, tmp_path: Path
) -> None:
    async def take() -> None:
        run.server.start()
        await run.server.wait_healthy()
        await take_snapshots(run.server)
        assert run.server.terminate() == 0

    async def refuse() -> None:
        run.server.start()
        await run.server.wait_healthy()
        answer = await post_json(run.server.admin_port, "/perdure/snapshots", {})
        assert answer.status == 409, answer
        assert "SNAP0002" in answer.json()["message"]
        status = (await request(run.server.admin_port, "GET", "/perdure/snapshots")).json()
        assert status["is_sound"] is False
        assert run.server.terminate() == 0

    asyncio.run(take())
    shutil.rmtree(run.server.base_dir)
    where = ("--base-dir", str(run.server.base_dir), "--node-name", "n1")
    destination = ("--destination", f"file://{tmp_path}/bucket")
    perdure("snapshots", "restore", *destination, *where)
    before = {path: path.read_bytes() for path in (tmp_path / "bucket").rglob("*.json")}
    asyncio.run(refuse())
    after = {path: path.read_bytes() for path in (tmp_path / "bucket").rglob("*.json")}
    assert before == after


def test_state_comes_back_from_s3(tmp_path: Path) -> None:
    with moto_server() as url:
        options = make_bucket(url)
        flags = [
            *destination_flags(f"s3://{options.bucket}/perdure/one"),
            *("--set", f"snapshots.endpoint-url={url}", "--set", "snapshots.path-style=true"),
            *("--set", "snapshots.records=5"),
        ]
        run = CrashRun(tmp_path, RunOptions(seed=3, kills=0), ServerProcess(tmp_path, flags=flags))
        run.server.environment |= CREDENTIALS
        try:
            _restore_from_s3(run, [*flags[:6], "--json"])
        finally:
            run.close()


def _restore_from_s3(run: CrashRun, flags: list[str]) -> None:
    async def before() -> dict[str, object]:
        await run.start()
        generator = asyncio.ensure_future(run.client(1))
        over = asyncio.Event()
        waking = asyncio.ensure_future(run.wake(over))
        async with asyncio.timeout(_DEADLINE_SECONDS):
            # Nobody asks: there are enough records.
            while len((await status())["sets"]) < 2:
                await run.breathe()
        run.calm.set()
        await generator
        await run.wait_quiet()
        over.set()
        await waking
        cells = await run.read_cells()
        admin = ("--admin-url", f"http://127.0.0.1:{run.server.admin_port}")
        created = await asyncio.to_thread(perdure, "snapshots", "create", *admin, "--json")
        sets = (await status())["sets"]
        assert sets[0]["name"] == json.loads(created)["name"]
        assert len(sets) == 2
        run.server.kill()
        return dict(cells)

    async def status() -> dict[str, list[dict[str, object]]]:
        answer = await request(run.server.admin_port, "GET", "/perdure/snapshots")
        found: dict[str, list[dict[str, object]]] = answer.json()
        return found

    async def after() -> dict[str, object]:
        run.server.start()
        await run.server.wait_healthy()
        await run.attach_all()
        return dict(await run.read_cells())

    cells = asyncio.run(before())
    assert any(cell for cell in cells.values())
    shutil.rmtree(run.server.base_dir)
    where = ("--base-dir", str(run.server.base_dir), "--node-name", "n1")
    environment = CREDENTIALS
    listed = json.loads(perdure("snapshots", "list", *flags, environment=environment))
    assert len(listed["sets"]) == 2
    perdure("snapshots", "restore", *flags, *where, environment=environment)
    replace_flag(run.server, "/perdure/one", "/perdure/two")
    assert asyncio.run(after()) == cells
    assert not run.violations
