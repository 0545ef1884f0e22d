"""Load from a process of its own: requests over our HttpClient, latencies and rates out.

The parent calls ``spawned`` functions in a fresh interpreter, so that the generator's CPU is never
counted as a server's.
"""

import asyncio
from functools import partial
from multiprocessing import get_context
from time import perf_counter
from typing import NamedTuple

import uvloop

from perdure.core.entropy import SystemEntropy
from perdure.node.http.client import HttpClient
from perdure.node.http.cores import make_client_core
from perdure.node.http.ports import Headers
from perdure.node.http.stream import Origin, RequestStream, StreamFailure


class Load(NamedTuple):
    """What to ask for. ``path`` may hold ``{n}``: the number of the request."""

    port: int
    path: str
    body: bytes
    requests: int
    concurrency: int
    http_version: str = "HTTP/2.0"
    core: str = "auto"


class Outcome(NamedTuple):
    """What came of it; latencies in seconds, sorted."""

    seconds: float
    latencies: list[float]
    failures: int
    statuses: dict[int, int]


class _Call:
    """One request; tells its driver when it is over."""

    def __init__(self, driver: "_Driver") -> None:
        self.driver = driver
        self.started = perf_counter()
        self.status = 0
        self.stream: RequestStream

    def on_response(self, status: int, headers: Headers) -> None:
        self.status = status

    def on_body(self, data: bytes) -> None:
        self.stream.consumed(len(data))

    def on_end(self) -> None:
        self.driver.over(self)

    def on_failed(self, failure: StreamFailure) -> None:
        self.status = 0
        self.driver.over(self)

    def on_writable(self) -> None:
        pass


class _Driver:
    """Keeps ``concurrency`` requests going until all are answered."""

    def __init__(self, load: Load) -> None:
        self.load = load
        self.client = HttpClient(partial(make_client_core, load.core), SystemEntropy())
        self.origin = Origin("http", "127.0.0.1", load.port, load.http_version)
        self.begun = self.ended = 0
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}
        self.is_done = asyncio.Event()

    async def run(self) -> Outcome:
        started = perf_counter()
        for _ in range(min(self.load.concurrency, self.load.requests)):
            self.begin()
        await self.is_done.wait()
        seconds = perf_counter() - started
        self.client.close()
        good = sum(count for status, count in self.statuses.items() if 200 <= status < 300)
        failures = self.ended - good
        return Outcome(seconds, sorted(self.latencies), failures, self.statuses)

    def begin(self) -> None:
        load = self.load
        path = load.path.replace("{n}", str(self.begun))
        self.begun += 1
        call = _Call(self)
        headers = [(b"content-type", b"application/json")]
        call.stream = self.client.open(self.origin, "POST", path, headers, call)
        call.stream.write(load.body)
        call.stream.end()

    def over(self, call: _Call) -> None:
        self.ended += 1
        self.latencies.append(perf_counter() - call.started)
        self.statuses[call.status] = self.statuses.get(call.status, 0) + 1
        if self.ended == self.load.requests:
            self.is_done.set()
        elif self.begun < self.load.requests:
            self.begin()


def drive(load: Load) -> Outcome:
    """Run a load here and now."""

    async def main() -> Outcome:
        return await _Driver(load).run()

    return uvloop.run(main())


def drive_apart(load: Load) -> Outcome:
    """Run a load in a process of its own."""
    with get_context("spawn").Pool(1) as pool:
        return pool.apply(drive, (load,))
