"""The processes that are measured: perdure, the reference server, and the service they call."""

import json
import os
import platform
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ROOT = Path(__file__).parent.parent
CACHE = ROOT / "bench" / ".cache"
READY_SECONDS = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class BenchFailed(Exception):
    """The measurement can't be trusted or didn't come about."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """A child that listens, and that is certain to be the one who does."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.started_at = time.perf_counter()
        with log.open("wb") as output:
            self._child = subprocess.Popen(
                command, env={**os.environ, **env}, stdout=output, stderr=output, cwd=ROOT
            )
        self.log = log
        self.pid = self._child.pid

    def wait_healthy(self, url: str, port: int) -> float:
        """Poll until the child answers; seconds since it was started."""
        while time.perf_counter() - self.started_at < READY_SECONDS:
            if self._child.poll() is not None:
                tail = self.log.read_text(errors="replace")[-2000:]
                raise BenchFailed(f"{self.log.stem} ended with {self._child.returncode}:\n{tail}")
            try:
                with urllib.request.urlopen(url, timeout=1):
                    seconds = time.perf_counter() - self.started_at
            except OSError:  # no listener yet, or an answer that says not yet
                time.sleep(0.005)
                continue
            self._check_owner(port)
            return seconds
        raise BenchFailed(f"{self.log.stem} was not healthy after {READY_SECONDS:.0f} s")

    def cpu_seconds(self) -> float:
        fields = Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def rss_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def stop(self) -> None:
        self._child.terminate()
        try:
            self._child.wait(15)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _check_owner(self, port: int) -> None:
        """Somebody else's server on our port would be measured in our stead."""
        wanted = f":{port:04X}"
        sockets = {
            fields[9]
            for table in ("tcp", "tcp6")
            for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]
            if (fields := line.split())[3] == "0A" and fields[1].endswith(wanted)
        }
        ours = {os.readlink(link) for link in Path(f"/proc/{self.pid}/fd").iterdir()}
        if not any(f"socket:[{inode}]" in ours for inode in sockets):
            raise BenchFailed(f"port {port} is not held by {self.log.stem} (pid {self.pid})")


class Server:
    """A server under test, its ports, and how it is asked."""

    def __init__(self, name: str, folder: Path, command: list[str] | None = None) -> None:
        self.name = name
        self.ingress_port, self.admin_port, node_port = free_port(), free_port(), free_port()
        folder.mkdir(parents=True)
        ingress, admin, node = (
            f"127.0.0.1:{port}" for port in (self.ingress_port, self.admin_port, node_port)
        )
        if name == "perdure":
            arguments = [*(command or [sys.executable, "-m", "perdure"]), "server"]
            arguments += ["--base-dir", str(folder / "data"), "--ingress-address", ingress]
            arguments += ["--admin-address", admin, "--bind-address", node]
            arguments += ["--log-level", "error"]
            env: dict[str, str] = {}
        else:
            arguments = [*(command or []), "--base-dir", str(folder / "data")]
            env = {
                "RESTATE_DISABLE_TELEMETRY": "true",
                "RESTATE_INGRESS__BIND_ADDRESS": ingress,
                "RESTATE_ADMIN__BIND_ADDRESS": admin,
                "RESTATE_BIND_ADDRESS": node,
                "RUST_LOG": "error",
            }
        self.process = Process(arguments, env, folder / f"{name}.log")
        self.cold_start_seconds = self.process.wait_healthy(
            f"http://127.0.0.1:{self.ingress_port}/restate/health", self.ingress_port
        )

    def register(self, service_port: int) -> None:
        """Register the service; retried, because health may precede readiness."""
        deadline = time.perf_counter() + READY_SECONDS
        body = json.dumps({"uri": f"http://127.0.0.1:{service_port}"}).encode()
        while True:
            request = urllib.request.Request(
                f"http://127.0.0.1:{self.admin_port}/deployments",
                body,
                {"content-type": "application/json"},
            )
            try:
                with urllib.request.urlopen(request, timeout=10):
                    return
            except OSError as error:
                if time.perf_counter() > deadline:
                    raise BenchFailed(
                        f"{self.name} doesn't register the service: {error}"
                    ) from error
                time.sleep(0.05)

    def call(self, handler: str, argument: int) -> float:
        """One call over HTTP/1.1; its answer as a number."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.ingress_port}/Bench/{handler}",
            str(argument).encode(),
            {"content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=READY_SECONDS) as answer:
            return float(answer.read())


def start_service(folder: Path) -> tuple[Process, int]:
    port = free_port()
    process = Process(
        [sys.executable, "-m", "bench.service", str(port)], {}, folder / "service.log"
    )
    deadline = time.perf_counter() + READY_SECONDS
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return process, port
        if time.perf_counter() > deadline:
            raise BenchFailed("the service doesn't start")
        time.sleep(0.02)


def find_reference() -> list[str]:
    """The reference server: given, or installed with npm into a cache that git ignores."""
    given = os.environ.get("BENCH_REFERENCE_SERVER")
    if given:
        return [given]
    machine = {"x86_64": "x64", "aarch64": "arm64", "arm64": "arm64"}[platform.machine()]
    package = f"@restatedev/restate-server-{sys.platform}-{machine}"
    binary = CACHE / "node_modules" / package / "bin" / "restate-server"
    if not binary.exists():
        npm = shutil.which("npm") or shutil.which("npm", path=str(Path(sys.executable).parent))
        if npm is None:
            raise BenchFailed("set BENCH_REFERENCE_SERVER, or install npm")
        CACHE.mkdir(exist_ok=True)
        subprocess.run([npm, "install", "--silent", "--prefix", str(CACHE), package], check=True)
    return [str(binary)]
