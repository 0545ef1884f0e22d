"""The server as a process: what it refuses to start on, how it stops, what it says."""

import asyncio
import hashlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.process.calls import Unanswered, request
from tests.process.driver import CrashRun, RunOptions
from tests.process.processes import EXIT_CONFIGURATION, EXIT_START, ROOT, ServerProcess
from tests.process.programs import (
    RUNNER,
    Awakeable,
    Op,
    Program,
    Sleep,
    Step,
    awakeable_value,
)

from perdure.storage.wal_format import FRAME_MAGIC

pytestmark = pytest.mark.slow


@pytest.fixture
def run(tmp_path: Path) -> Iterator[CrashRun]:
    run = CrashRun(tmp_path, RunOptions(seed=0, kills=0), ServerProcess(tmp_path))
    yield run
    run.close()


@pytest.fixture
def server(run: CrashRun) -> ServerProcess:
    return run.server


def runner(name: str, *ops: Op) -> Program:
    return Program(name=name, service=RUNNER, key="", ops=ops or (Step(is_flaky=False),))


def refuse(server: ServerProcess) -> tuple[int, str]:
    """Start a server that must not start: its exit code, and what it wrote."""
    before = len(server.log_path.read_bytes()) if server.log_path.exists() else 0
    server.start()
    code = server.wait_exit()
    return code, server.log_path.read_bytes()[before:].decode()


def assert_refused(server: ServerProcess, *facts: str, code: int = EXIT_START) -> None:
    got, text = refuse(server)
    assert got == code, text
    assert "Traceback" not in text
    for fact in facts:
        assert fact in text, f"{fact!r} is not in: {text}"


def contents(folder: Path) -> dict[str, str]:
    """Hashes of all files below a folder, but for the locks."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in ("LOCK", "lock.mdb")
    }


async def wait_line(run: CrashRun, kind: str, name: str) -> str:
    """Wait until the ledger has a line of this kind; its value."""
    async with asyncio.timeout(20):
        while True:
            run.ledger.read_new()
            for line in run.ledger.lines:
                if (line.kind, line.name) == (kind, name):
                    return line.value
            await run.breathe()


# --- Data directory -------------------------------------------------------------------------------


def test_a_second_process_on_the_directory_is_refused(run: CrashRun, tmp_path: Path) -> None:
    async def scenario() -> None:
        await run.start()
        await run.call(runner("before"))
        second = ServerProcess(tmp_path / "second")
        second.command = run.server.command
        holder = run.server.check_alive().pid
        assert_refused(second, "DIR0001", str(run.server.data), f"process {holder}")
        await run.call(runner("after"))
        run.check({})
        assert not run.violations

    asyncio.run(scenario())


def test_the_lock_ends_with_the_process(server: ServerProcess) -> None:
    async def scenario() -> None:
        server.start()
        await server.wait_healthy()
        server.kill()
        server.start()
        await server.wait_healthy()

    asyncio.run(scenario())


def test_a_newer_format_is_refused(server: ServerProcess) -> None:
    make_directory(server)
    marker = server.data / "MARKER"
    document = json.loads(marker.read_text())
    marker.write_text(json.dumps({**document, "format": 99}))
    before = contents(server.data)
    assert_refused(server, "DIR0003", "format 99", "start the release that wrote it")
    assert contents(server.data) == before


def test_a_marker_changed_by_hand_is_refused(server: ServerProcess) -> None:
    make_directory(server)
    marker = server.data / "MARKER"
    document = json.loads(marker.read_text())
    marker.write_text(json.dumps({**document, "generation": 77}))
    before = contents(server.data)
    assert_refused(server, "DIR0004", "MARKER")
    assert contents(server.data) == before


def test_a_missing_marker_is_refused(server: ServerProcess) -> None:
    make_directory(server)
    (server.data / "MARKER").unlink()
    before = contents(server.data)
    assert_refused(server, "DIR0004", "MARKER")
    assert contents(server.data) == before


def test_the_directory_of_another_cluster_is_refused(server: ServerProcess) -> None:
    make_directory(server)
    before = contents(server.data)
    server.command = [*server.command, "--cluster-name", "other"]
    assert_refused(server, "DIR0002", "'other'", "'n1'")
    assert contents(server.data) == before


def test_the_directory_of_another_node_is_refused(server: ServerProcess) -> None:
    make_directory(server)
    other = server.data.rename(server.base_dir / "n2")
    before = contents(other)
    server.command = ["n2" if part == "n1" else part for part in server.command]
    assert_refused(server, "DIR0002", "'n1'", "'n2'")
    assert contents(other) == before


def make_directory(server: ServerProcess) -> None:
    """Let the server make its data directory, and stop it."""

    async def scenario() -> None:
        server.start()
        await server.wait_healthy()
        assert server.terminate() == 0

    asyncio.run(scenario())


# --- Log ------------------------------------------------------------------------------------------


def test_damage_in_the_middle_of_the_log_is_refused_and_nothing_is_changed(run: CrashRun) -> None:
    async def write() -> None:
        await run.start()
        await asyncio.gather(*(run.call(runner(f"p{number}")) for number in range(60)))
        run.server.kill()

    async def read() -> None:
        run.server.start()
        await run.server.wait_healthy()
        await run.attach_all()
        run.check({})
        assert not run.violations

    asyncio.run(write())
    log, position = find_frame(run.server)
    flip(log, position)
    before = contents(run.server.data / "wal") | contents(run.server.data / "partitions")
    for _ in range(2):
        assert_refused(run.server, "LOG0001", f"wal/{log.name}", f"byte {position}")
        after = contents(run.server.data / "wal") | contents(run.server.data / "partitions")
        assert after == before
    flip(log, position)
    asyncio.run(read())


def find_frame(server: ServerProcess) -> tuple[Path, int]:
    """A frame in the middle of what is written of the youngest log file: its file and offset."""
    log = max((server.data / "wal").glob("*.log"))
    content = log.read_bytes().rstrip(b"\0")
    position = content.find(FRAME_MAGIC, len(content) // 2)
    while position % 512:
        position = content.find(FRAME_MAGIC, position + 1)
    assert 0 < position < len(content) - 4096, "there is a good deal of log behind the frame"
    return log, position


def flip(path: Path, position: int) -> None:
    with path.open("r+b") as file:
        file.seek(position + 20)
        byte = file.read(1)
        file.seek(position + 20)
        file.write(bytes([byte[0] ^ 0x40]))


# --- Stopping -------------------------------------------------------------------------------------


def test_sigterm_answers_what_is_in_flight(run: CrashRun) -> None:
    async def scenario() -> None:
        await run.start()
        in_flight = asyncio.create_task(run.call(runner("p", Step(is_flaky=False), Sleep(400))))
        await wait_line(run, "seen", "p")
        process = run.server.check_alive()
        process.terminate()
        await in_flight
        assert run.figures.retries == 0, "the answer came before the end"
        assert run.server.wait_exit() == 0
        run.check({})
        assert not run.violations

    asyncio.run(scenario())


def test_sigterm_during_the_boot_ends_it_cleanly(server: ServerProcess) -> None:
    """The lock is the first thing that a boot takes."""
    server.start()
    deadline = time.monotonic() + 20
    while not (server.data / "LOCK").exists():
        server.check_alive()
        assert time.monotonic() < deadline
    assert server.terminate() == 0, server.log_tail()
    make_directory(server)


def test_sigterm_lets_go_of_what_takes_too_long(run: CrashRun) -> None:
    """The caller gets no answer; the invocation goes on after the next start."""
    run.server.environment["PERDURE_SHUTDOWN_TIMEOUT"] = "300ms"
    program = runner("p", Awakeable())

    async def scenario() -> None:
        await run.start()
        submission = await run.send(program)
        path = f"/restate/invocation/{submission.invocation}/attach"
        waiting = asyncio.create_task(request(run.server.ingress_port, "GET", path))
        awakeable = await wait_line(run, "wake", "p")
        assert run.server.terminate() == 0
        try:
            answer = await waiting
        except Unanswered:
            pass
        else:
            assert answer.status == 503, answer
        run.server.start()
        await run.server.wait_healthy()
        await run.post(f"/restate/awakeables/{awakeable}/resolve", awakeable_value("p", 0))
        await run.attach(submission)
        run.check({})
        assert not run.violations

    asyncio.run(scenario())


# --- Surroundings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ingress", "admin"])
def test_a_port_in_use_is_named(server: ServerProcess, name: str) -> None:
    port = server.ingress_port if name == "ingress" else server.admin_port
    with socket.create_server(("127.0.0.1", port)):
        assert_refused(server, "CONF0003", f"127.0.0.1:{port}", f"{name}.bind-address")
    make_directory(server)


def test_a_bad_setting_is_named(server: ServerProcess) -> None:
    server.environment["PERDURE_SHUTDOWN_TIMEOUT"] = "soon"
    assert_refused(server, "CONF0001", "soon", code=EXIT_CONFIGURATION)
    assert not server.base_dir.exists()


def test_a_missing_configuration_file_is_named(server: ServerProcess, tmp_path: Path) -> None:
    file = tmp_path / "nothing.toml"
    server.command = [*server.command, "--config-file", str(file)]
    assert_refused(server, str(file), code=EXIT_CONFIGURATION)


if sys.platform == "linux":

    def test_a_full_disk_is_told_and_survived(tmp_path: Path) -> None:
        """In a mount namespace of its own (full_disk.py), with a file system of memory."""
        command = ["unshare", "--map-root-user", "--mount", sys.executable]
        done = subprocess.run(
            [*command, "-m", "tests.process.full_disk", str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=180,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("setting", "tables", "reason"),
    [
        ("query.memory-bytes-max=16MiB", 5, "query.memory-bytes-max"),
        ("query.timeout=1s", 9, "query.timeout"),
    ],
)
def test_a_statement_is_held_to_the_settings(
    tmp_path: Path, setting: str, tables: int, reason: str
) -> None:
    server = ServerProcess(tmp_path, flags=("--set", setting))
    numbers = "(values " + ", ".join(f"({number})" for number in range(20)) + ")"
    names = [f"t{number}" for number in range(tables)]
    product = ", ".join(f"{numbers} as {name} (x)" for name in names)
    columns = ", ".join(f"{name}.x as {name}x" for name in names)
    statement = f"select {columns} from {product} order by {names[-1]}x desc"

    async def ask() -> None:
        await server.wait_healthy()
        body = json.dumps({"query": statement}).encode()
        headers = {"content-type": "application/json"}
        answer = await request(server.admin_port, "POST", "/query", body, headers)
        assert (answer.status, json.loads(answer.body)["restate_code"]) == (422, "SQL0002")
        assert reason in json.loads(answer.body)["message"]
        assert (await request(server.admin_port, "GET", "/health")).status == 200

    server.start()
    try:
        asyncio.run(ask())
    finally:
        server.kill()
