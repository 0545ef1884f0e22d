"""What is measured of one server in one run."""

import time
from dataclasses import dataclass
from pathlib import Path

from bench import floor
from bench.loadgen import Load, Outcome, drive_apart
from bench.processes import BenchFailed, Server

Figures = dict[str, float]
STEP_BYTES = 512
QUIET_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    runs: int
    warm_up: int
    serial: int
    parallel: int
    sleeping: int
    replay_steps: int
    clients: int = 50


FULL = Sizes(runs=5, warm_up=500, serial=500, parallel=3000, sleeping=10_000, replay_steps=500)
QUICK = Sizes(runs=1, warm_up=100, serial=80, parallel=500, sleeping=500, replay_steps=500)


def measure(server: Server, service_port: int, sizes: Sizes, folder: Path) -> Figures:
    """All figures of a server that was just started."""
    figures: Figures = {"cold start, s": server.cold_start_seconds}
    server.register(service_port)
    _until_quiet(server)
    figures["memory idle, MB"] = server.process.rss_bytes() / 1e6
    _load(server, 1, sizes.warm_up, sizes.clients)
    p50: dict[int, float] = {}
    for steps in (0, 1, 10):
        outcome = _load(server, steps, sizes.serial, 1)
        p50[steps] = _at(outcome, 0.50)
        figures[f"latency {steps} steps, 1 client, p50 ms"] = p50[steps] * 1e3
        figures[f"latency {steps} steps, 1 client, p99 ms"] = _at(outcome, 0.99) * 1e3
    figures["added by a durable step, ms"] = (p50[10] - p50[0]) / 10 * 1e3
    for steps in (0, 3):
        before = server.process.cpu_seconds()
        outcome = _load(server, steps, sizes.parallel, sizes.clients)
        cpu = server.process.cpu_seconds() - before
        rate = sizes.parallel / outcome.seconds
        figures[f"server CPU per {steps}-step invocation, ms"] = cpu / sizes.parallel * 1e3
        figures[f"throughput {steps} steps, {sizes.clients} clients, /s"] = rate
    figures["replay of 1,000 entries, ms"] = server.call("replay", sizes.replay_steps) * 1e3
    _until_quiet(server)
    resting: list[int] = []
    for _ in range(2):  # the first crowd fills buffers and caches that the second one shares
        _load(server, 1, sizes.sleeping, sizes.clients, handler="sleep/send")
        _until_quiet(server)
        resting.append(server.process.rss_bytes())
    each = (resting[1] - resting[0]) / sizes.sleeping
    figures["memory per sleeping invocation, bytes"] = each
    return figures


def measure_floor(sizes: Sizes, folder: Path) -> Figures:
    """What the machine itself takes, in the same run."""
    sync = floor.sync_seconds(folder, STEP_BYTES, sizes.serial)
    trip = floor.round_trip_seconds(sizes.serial)
    return {
        "fdatasync of a step, ms": sync * 1e3,
        "loopback HTTP/2 round trip, ms": trip * 1e3,
        "floor of a durable step, ms": (sync + trip) * 1e3,
    }


def _load(
    server: Server, argument: int, requests: int, clients: int, handler: str = "steps"
) -> Outcome:
    load = Load(server.ingress_port, f"/Bench/{handler}", str(argument).encode(), requests, clients)
    outcome = drive_apart(load)
    if outcome.failures:
        raise BenchFailed(
            f"{server.name}: {outcome.failures} of {requests} calls failed: {outcome.statuses}"
        )
    return outcome


def _at(outcome: Outcome, share: float) -> float:
    return outcome.latencies[min(int(len(outcome.latencies) * share), len(outcome.latencies) - 1)]


def _until_quiet(server: Server) -> None:
    """Wait until the server uses next to no CPU, so that memory is that of rest."""
    deadline = time.perf_counter() + 30
    while time.perf_counter() < deadline:
        before = server.process.cpu_seconds()
        time.sleep(QUIET_SECONDS / 2)
        if server.process.cpu_seconds() - before < 0.05 * QUIET_SECONDS:
            return
