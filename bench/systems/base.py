"""What the workloads need of a system under test."""

import json
import urllib.request
from abc import ABC, abstractmethod
from pathlib import Path
from typing import ClassVar

from bench.processes import BenchFailed, Process

ALL_WORKLOADS = frozenset(
    {"start", "latency", "throughput", "object", "fan", "replay", "payload"}
    | {"sleep", "kill", "growth"}
)


class System(ABC):
    """One system on a data directory of its own, driven over HTTP.

    ``POST /Bench/<handler>`` calls a handler and answers when it is done; ``/send`` behind it
    answers when the call is durable. ``port`` is where. ``measured`` are the processes whose CPU
    and memory are the system's; those of ``services`` are the user's code.
    """

    name: ClassVar[str]
    language: ClassVar[str] = "python"
    workloads: ClassVar[frozenset[str]] = ALL_WORKLOADS
    runs_max: ClassVar[int] = 1_000
    """Runs of what serves to compare may be fewer, so that all of it fits its time."""
    clients_max: ClassVar[int] = 1_000
    """With more at once it no longer answers within the deadline of a load."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = 0
        self.measured: list[Process] = []
        self.services: list[Process] = []

    @classmethod
    @abstractmethod
    def provide(cls) -> None:
        """Install what is missing, with network; raises NotHere with the reason."""

    @abstractmethod
    def launch(self) -> float:
        """Start, or start again after ``kill``; seconds from process to healthy."""

    @abstractmethod
    def prepare(self) -> None:
        """What is needed once before the first call."""

    def kill(self) -> None:
        """kill -9 of everything measured."""
        for process in self.measured:
            process.kill()
        self.measured.clear()

    def stop(self) -> None:
        """End everything at once: what it wrote is thrown away."""
        for process in (*self.measured, *self.services):
            process.kill()
        self.measured.clear()
        self.services.clear()

    def cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.measured)

    def service_cpu_seconds(self) -> float:
        return sum(process.cpu_seconds() for process in self.services)

    def memory_bytes(self) -> int:
        return sum(process.memory_bytes() for process in self.measured)

    def call(self, handler: str, argument: object, timeout_s: float = 60.0) -> object:
        """One call over HTTP/1.1; its answer."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/Bench/{handler}",
            json.dumps(argument).encode(),
            {"content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout_s) as answer:
                body = answer.read()
        except OSError as error:
            raise BenchFailed(f"{self.name}: {handler}: {error}") from error
        return json.loads(body) if body else None
