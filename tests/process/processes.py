"""The real processes of a crash test: a perdure server and the interpreter service.

Each keeps its ports over all its lives, so that a restarted one is found where it was. The ports
are taken below the range from which the kernel draws the ports of outgoing connections: a port
must still be free when its owner comes back.
"""

import asyncio
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from tests.process.calls import Unanswered, post_json, request

ROOT = Path(__file__).resolve().parents[2]
# Exit codes of the command.
EXIT_CONFIGURATION = 3
EXIT_START = 4

_POLL_SECONDS = 0.02
_PORTS = range(20_000, 32_000)
_given: set[int] = set()

T = TypeVar("T")


class ProcessFailed(AssertionError):
    """A process did what it must not: died by itself, didn't start, didn't stop."""


def surroundings() -> dict[str, str]:
    """Our environment without settings of a server: a test decides those itself."""
    prefixes = ("PERDURE_", "RESTATE_")
    return {name: value for name, value in os.environ.items() if not name.startswith(prefixes)}


def free_port() -> int:
    """A TCP port of the loopback interface that nobody listens on."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody listens on, nor is about to: none is given
    twice, because who was given one may begin to listen much later."""
    while True:
        first = random.randrange(_PORTS.start, _PORTS.stop - count)
        block = range(first, first + count)
        if _given.isdisjoint(block) and all(map(_is_free, block)):
            _given.update(block)
            return first


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
        return True


@dataclass(slots=True)
class ManagedProcess:
    """A child process with a log file; at most one life at a time."""

    name: str
    command: Sequence[str]
    log_path: Path
    environment: dict[str, str] = field(default_factory=dict[str, str])
    process: subprocess.Popen[bytes] | None = None
    starts: int = 0

    def start(self) -> None:
        assert self.process is None, f"{self.name} runs already"
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                cwd=ROOT,
                env={**surroundings(), **self.environment},
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.starts += 1

    def kill(self) -> None:
        """SIGKILL. A process that had ended by itself before is a failure."""
        process = self.check_alive()
        process.kill()
        process.wait()
        self.process = None

    def terminate(self, timeout_seconds: float = 20.0) -> int:
        """SIGTERM and wait for the end; returns the exit code."""
        process = self.check_alive()
        process.send_signal(signal.SIGTERM)
        return self.wait_exit(timeout_seconds)

    def wait_exit(self, timeout_seconds: float = 20.0) -> int:
        """Wait until the process ends by itself; returns the exit code."""
        assert self.process is not None, f"{self.name} doesn't run"
        try:
            code = self.process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"{self.name} goes on{self.log_tail()}") from error
        self.process = None
        return code

    def check_alive(self) -> subprocess.Popen[bytes]:
        """The live process.

        Raises:
            ProcessFailed: it ended by itself.
        """
        assert self.process is not None, f"{self.name} doesn't run"
        if (code := self.process.poll()) is not None:
            raise ProcessFailed(f"{self.name} ended by itself with code {code}{self.log_tail()}")
        return self.process

    def exit_code(self) -> int | None:
        """The exit code of a process that has ended (it may be started again); None if it lives."""
        assert self.process is not None, f"{self.name} doesn't run"
        if (code := self.process.poll()) is not None:
            self.process = None
        return code

    def close(self) -> None:
        """Make sure that nothing is left running, whatever happened."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def log_tail(self, line_count: int = 40) -> str:
        """The end of the log, for a failure's message."""
        lines = self.log_path.read_text(errors="replace").splitlines()[-line_count:]
        return "".join(f"\n  {self.name}| {line}" for line in lines)


class ServerProcess(ManagedProcess):
    """A perdure server on one data directory."""

    def __init__(
        self, folder: Path, *, command: Sequence[str] | None = None, flags: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.base_dir = folder / "data"
        self.ingress_port = free_port()
        self.admin_port = free_port()
        launch = command or (sys.executable, "-m", "perdure")
        super().__init__(
            "server",
            [*launch, "server", "--base-dir", str(self.base_dir), "--node-name", "n1", *flags],
            folder / "server.log",
            {
                "PERDURE_INGRESS__BIND_ADDRESS": f"127.0.0.1:{self.ingress_port}",
                "PERDURE_ADMIN__BIND_ADDRESS": f"127.0.0.1:{self.admin_port}",
                "PERDURE_BIND_ADDRESS": "127.0.0.1:0",
            },
        )

    @property
    def data(self) -> Path:
        """The node's own folder below the base directory."""
        return self.base_dir / "n1"

    async def wait_healthy(
        self, timeout_seconds: float = 20.0, admin_statuses: tuple[int, ...] = (200,)
    ) -> float:
        """Wait until ingress and admin answer as they should; returns the seconds that took."""

        async def is_healthy() -> bool:
            self.check_alive()
            try:
                ingress = await request(self.ingress_port, "GET", "/restate/health")
                admin = await request(self.admin_port, "GET", "/health")
            except Unanswered:
                return False
            return ingress.status == 200 and admin.status in admin_statuses

        started = time.monotonic()
        await watch(
            is_healthy,
            bool,
            timeout_seconds,
            lambda _: f"the server doesn't become healthy{self.log_tail()}",
        )
        return time.monotonic() - started

    async def register(self, service_port: int, *, use_http_11: bool = False) -> None:
        """Register a service endpoint on this machine."""
        document = {"uri": f"http://127.0.0.1:{service_port}", "use_http_11": use_http_11}
        answer = await post_json(self.admin_port, "/deployments", document)
        assert answer.status in (200, 201), (answer, self.log_tail())


class InterpreterProcess(ManagedProcess):
    """The interpreter service (interpreter.py) that writes to one ledger."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.ledger_path = folder / "ledger"
        module = [sys.executable, "-m", "tests.process.interpreter"]
        super().__init__(
            "service",
            [*module, "--port", str(self.port), "--ledger", str(self.ledger_path)],
            folder / "service.log",
        )


async def wait_listening(process: ManagedProcess, port: int, timeout_seconds: float = 20.0) -> None:
    """Wait until a process accepts connections on its port."""

    async def is_listening() -> bool:
        process.check_alive()
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            return False
        writer.close()
        return True

    await watch(is_listening, bool, timeout_seconds, lambda _: f"no listener{process.log_tail()}")


async def watch(
    look: Callable[[], Awaitable[T]],
    is_there: Callable[[T], bool],
    timeout_seconds: float,
    tell: Callable[[T], str],
) -> T:
    """Look at other processes until what is seen is as it should be, and return it.

    Nothing here could wake us when it is. ``tell`` says what is wrong when time is up.
    """
    deadline = time.monotonic() + timeout_seconds
    while not is_there(seen := await look()):
        if time.monotonic() > deadline:
            raise ProcessFailed(tell(seen))
        await asyncio.sleep(_POLL_SECONDS)
    return seen


async def led_by(port: int) -> set[int]:
    """The partitions that a node leads, by its metrics; none if it doesn't answer."""
    try:
        answer = await request(port, "GET", "/metrics")
    except Unanswered:
        return set()
    return {
        int(line.split('partition="')[1].split('"')[0])
        for line in answer.body.decode().splitlines()
        if line.startswith("perdure_partition_is_leading{") and line.endswith(" 1.0")
    }
