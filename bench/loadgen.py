"""Load from a process of its own: requests over our HttpClient, latencies and rates out.

``Generator`` keeps a fresh interpreter for it, so that the generator's CPU is never counted as a
server's. A load ends by itself: after its requests, its time, or its deadline.
"""

import asyncio
from collections.abc import Sequence
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

STREAMS_PER_CONNECTION = 50
"""More callers share more connections. Fewer than any server allows: one that is asked for more
before it could say how many it allows may hang up."""


class Load(NamedTuple):
    """What to ask for. ``path`` and ``idempotency_key`` may hold ``{n}``: the request's number."""

    port: int
    path: str
    body: bytes
    requests: int
    concurrency: int
    http_version: str = "HTTP/2.0"
    core: str = "auto"
    seconds_max: float = 0.0  # begins no request after this time; 0: no such limit
    deadline_s: float = 30.0  # what is not answered by then has failed
    keys: int = 0  # {n} counts up to this and starts again; 0: never
    idempotency_key: str = ""


class Outcome(NamedTuple):
    """What came of it; latencies in seconds, sorted."""

    seconds: float
    latencies: list[float]
    failures: int
    statuses: dict[int, int]

    @property
    def answered(self) -> int:
        return len(self.latencies)

    @property
    def rate(self) -> float:
        """Answers per second."""
        return self.answered / self.seconds

    def at(self, share: float) -> float:
        """The latency that this share of the requests did not exceed, in milliseconds."""
        return self.latencies[min(int(self.answered * share), self.answered - 1)] * 1e3


class _Call:
    """One request; tells its driver when it is over."""

    def __init__(self, driver: "_Driver", client: HttpClient) -> None:
        self.driver, self.client = driver, client
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
        connections = -(-min(load.concurrency, load.requests) // STREAMS_PER_CONNECTION)
        self.clients = [
            HttpClient(partial(make_client_core, load.core), SystemEntropy())
            for _ in range(connections)
        ]
        self.origin = Origin("http", "127.0.0.1", load.port, load.http_version)
        self.begun = self.ended = 0
        self.latencies: list[float] = []
        self.statuses: dict[int, int] = {}
        self.is_done = asyncio.Event()
        self.started = perf_counter()

    async def run(self) -> Outcome:
        for number in range(min(self.load.concurrency, self.load.requests)):
            self.begin(self.clients[number % len(self.clients)])
        try:
            await asyncio.wait_for(self.is_done.wait(), self.load.deadline_s)
        except TimeoutError:
            self.statuses[0] = self.statuses.get(0, 0) + self.begun - self.ended
            self.ended = self.begun
        seconds = perf_counter() - self.started
        # Closing fails what is still open: that was counted above and must not be again.
        latencies, statuses, ended = sorted(self.latencies), dict(self.statuses), self.ended
        for client in self.clients:
            client.close()
        good = sum(count for status, count in statuses.items() if 200 <= status < 300)
        return Outcome(seconds, latencies, ended - good, statuses)

    def begin(self, client: HttpClient) -> None:
        load = self.load
        number = str(self.begun % load.keys if load.keys else self.begun)
        self.begun += 1
        call = _Call(self, client)
        headers = [(b"content-type", b"application/json")]
        if load.idempotency_key:
            key = load.idempotency_key.replace("{n}", number)
            headers.append((b"idempotency-key", key.encode()))
        path = load.path.replace("{n}", number)
        call.stream = client.open(self.origin, "POST", path, headers, call)
        call.stream.write(load.body)
        call.stream.end()

    def over(self, call: _Call) -> None:
        if self.is_done.is_set():
            return
        self.ended += 1
        self.latencies.append(perf_counter() - call.started)
        self.statuses[call.status] = self.statuses.get(call.status, 0) + 1
        limit = self.load.seconds_max
        is_late = limit > 0 and perf_counter() - self.started >= limit
        if self.begun < self.load.requests and not is_late:
            self.begin(call.client)
        elif self.ended == self.begun:
            self.is_done.set()


def drive(load: Load) -> Outcome:
    """Run a load here and now."""

    async def main() -> Outcome:
        return await _Driver(load).run()

    return uvloop.run(main())


def drive_together(loads: Sequence[Load]) -> list[Outcome]:
    """Run several loads at the same time."""

    async def main() -> list[Outcome]:
        return await asyncio.gather(*(_Driver(load).run() for load in loads))

    return uvloop.run(main())


class Generator:
    """A process that runs loads, one after the other."""

    def __init__(self) -> None:
        self._pool = get_context("spawn").Pool(1)

    def drive(self, load: Load) -> Outcome:
        return self._pool.apply(drive, (load,))

    def drive_together(self, loads: Sequence[Load]) -> list[Outcome]:
        return self._pool.apply(drive_together, (loads,))

    def close(self) -> None:
        self._pool.terminate()
        self._pool.join()
