"""The workloads: what is done to one system in one run, and the figures that come of it.

A figure's name is ``workload: what, unit``. Workloads of one session share a started system; those
that leave a crowd behind, or kill, have a session of their own.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from bench.loadgen import Generator, Load, Outcome
from bench.processes import BenchFailed
from bench.sizes import Sizes
from bench.systems.base import System

Figures = dict[str, float]
_QUIET_SECONDS = 0.5
_DRAIN_SECONDS = 60.0


@dataclass(slots=True)
class Session:
    """A started system, the means to load it, and what was measured of it so far."""

    system: System
    generator: Generator
    sizes: Sizes
    figures: Figures = field(default_factory=dict[str, float])
    samples: dict[str, list[float]] = field(default_factory=dict[str, list[float]])
    """Quantiles of latencies (ms, a hundred and one), for the pictures."""

    def load(
        self, path: str, argument: object, requests: int, clients: int, seconds_max: float
    ) -> Outcome:
        """A number of requests, or fewer if time runs out; all of them must succeed."""
        body = json.dumps(argument).encode()
        load = Load(self.system.port, path, body, requests, clients, seconds_max=seconds_max)
        outcome = self.generator.drive(load)
        if outcome.failures or not outcome.latencies:
            raise BenchFailed(
                f"{self.system.name}: {outcome.failures} of {requests} calls to {path} failed: "
                f"{outcome.statuses}"
            )
        return outcome

    def timed(self, path: str, argument: object, clients: int, seconds: float) -> Outcome:
        """As many requests as there is time for."""
        return self.load(path, argument, 10**9, clients, seconds)


def run_start(session: Session) -> None:
    """Process to healthy, to the first result; memory at rest before and after a load."""
    system, figures = session.system, session.figures
    started = time.perf_counter()
    figures["start: process to healthy, s"] = system.launch()
    system.prepare()
    system.call("steps", 0)
    figures["start: process to first result, s"] = time.perf_counter() - started
    if system.services:  # the service was started before the server; its start is not the server's
        first = system.measured[0].started_at
        figures["start: process to first result, s"] = time.perf_counter() - first
    until_quiet(system)
    figures["start: memory idle, MB"] = system.memory_bytes() / 1e6
    for steps in (0, 3):
        clients = min(50, system.clients_max)
        session.timed("/Bench/steps", steps, clients, session.sizes.warm_seconds)
    until_quiet(system)
    figures["start: memory after load, MB"] = system.memory_bytes() / 1e6


def run_latency(session: Session) -> None:
    """One client; sequential durable steps."""
    p50: dict[int, float] = {}
    for steps in session.sizes.steps:
        count = max(session.sizes.serial // (1 + steps // 4), session.sizes.serial_min)
        outcome = session.load(
            "/Bench/steps", steps, count, 1, seconds_max=session.sizes.serial_seconds
        )
        p50[steps] = outcome.at(0.5)
        session.figures[f"latency: {steps} steps p50, ms"] = p50[steps]
        session.figures[f"latency: {steps} steps p99, ms"] = outcome.at(0.99)
        session.samples[f"{steps} steps"] = [outcome.at(share / 100) for share in range(101)]
    few, many = min(p50), max(p50)
    session.figures["latency: each further step, ms"] = (p50[many] - p50[few]) / (many - few)


def run_throughput(session: Session) -> None:
    """Ever more clients; the CPU that an invocation costs with 50 of them."""
    system = session.system
    for steps in (0, 3):
        for clients in session.sizes.clients:
            if clients > system.clients_max:
                break
            before, service = system.cpu_seconds(), system.service_cpu_seconds()
            seconds = session.sizes.crowd_seconds(clients)
            outcome = session.timed("/Bench/steps", steps, clients, seconds)
            cpu = (system.cpu_seconds() - before) / outcome.answered * 1e3
            service_cpu = (system.service_cpu_seconds() - service) / outcome.answered * 1e3
            session.figures[f"throughput: {steps} steps, {clients} clients, /s"] = outcome.rate
            session.figures[f"throughput: {steps} steps, {clients} clients p99, ms"] = outcome.at(
                0.99
            )
            if clients == 50:
                session.figures[f"cpu: {steps} steps, system, ms"] = cpu
                session.figures[f"cpu: {steps} steps, system and service, ms"] = cpu + service_cpu


def run_object(session: Session) -> None:
    """A get and a set: all on one key, then over a thousand keys."""
    seconds = session.sizes.throughput_seconds
    hot = session.timed("/Counter/hot/add", 1, 50, seconds)
    session.figures["object: one hot key, 50 clients, /s"] = hot.rate
    session.figures["object: one hot key p99, ms"] = hot.at(0.99)
    load = Load(session.system.port, "/Counter/{n}/add", b"1", 10**9, 50)
    many = session.generator.drive(load._replace(keys=1000, seconds_max=seconds))
    if many.failures:
        raise BenchFailed(f"{session.system.name}: objects: statuses {many.statuses}")
    session.figures["object: 1,000 keys, 50 clients, /s"] = many.rate
    session.figures["object: 1,000 keys p99, ms"] = many.at(0.99)


def run_fan(session: Session) -> None:
    """A hundred calls, begun and awaited together."""
    outcome = session.load(
        "/Bench/fan", 100, session.sizes.fans, 1, seconds_max=session.sizes.fan_seconds
    )
    session.figures["fan: 100 calls awaited p50, ms"] = outcome.at(0.5)


def run_replay(session: Session) -> None:
    """A second attempt over a journal of a thousand entries (500 steps and their results)."""
    taken = sorted(float(str(session.system.call("replay", 500))) for _ in range(3))
    session.figures["replay: 1,000 entries, ms"] = taken[1] * 1e3


def run_payload(session: Session) -> None:
    """A payload in, through a durable step, and out again."""
    for name, size in (("1 KiB", 1024), ("100 KiB", 100 * 1024), ("1 MiB", 1024 * 1024 - 64)):
        outcome = session.load(
            "/Bench/echo", "x" * size, session.sizes.payloads, 1,
            seconds_max=session.sizes.payload_seconds,
        )  # fmt: skip
        session.figures[f"payload: {name} p50, ms"] = outcome.at(0.5)


def run_sleep(session: Session) -> None:
    """A crowd that sleeps until the same moment: what it holds, how late it wakes, how fast."""
    system, sizes = session.system, session.sizes
    # What the traffic itself leaves behind is not the sleepers': the same traffic goes ahead.
    ahead = session.load("/Bench/hold/send", 0, sizes.crowd, 50, seconds_max=sizes.fill_seconds / 5)
    _wait_woken(session, ahead.answered)
    until_quiet(system)
    before = system.memory_bytes()
    wake_ms, count = _send_crowd(session)
    # Looked at shortly before the crowd wakes, when what follows an arrival is over.
    time.sleep(max(0.0, wake_ms / 1e3 - time.time() - 0.5))
    figures = session.figures
    figures["sleep: crowd"] = count
    figures["sleep: memory each, bytes"] = (system.memory_bytes() - before) / count
    report = _wait_woken(session, count)
    figures["sleep: woken late p50, ms"] = report["late_p50_ms"]
    figures["sleep: woken late p99, ms"] = report["late_p99_ms"]
    figures["sleep: earliest wake-up, ms"] = report["late_min_ms"]
    seconds = max(report["last_ms"] - report["first_ms"], 1.0) / 1e3
    figures["sleep: wake-ups, /s"] = count / seconds


def run_kill(session: Session) -> None:
    """kill -9 while a crowd is in flight; back to healthy, and until the last has gone on."""
    system = session.system
    wake_ms, count = _send_crowd(session)
    killed = time.time()
    system.kill()
    healthy = system.launch()
    session.figures["kill: in flight"] = count
    session.figures["kill: process to healthy, s"] = healthy
    report = _wait_woken(session, count)
    # Those whose time had not come when the server was back must not count as its delay.
    begin = max(killed, wake_ms / 1e3)
    session.figures["kill: all gone on, s"] = report["last_ms"] / 1e3 - begin


def probe_growth(session: Session, mark: int) -> None:
    """The same load, whatever is stored."""
    name = f"growth: {mark:,} stored"
    system, sizes = session.system, session.sizes
    serial = session.load("/Bench/steps", 1, sizes.serial, 1, seconds_max=sizes.growth_seconds)
    session.figures[f"{name}, 1 step p50, ms"] = serial.at(0.5)
    before = system.cpu_seconds()
    outcome = session.timed("/Bench/steps", 1, 50, sizes.growth_seconds)
    cpu = system.cpu_seconds() - before
    session.figures[f"{name}, throughput, /s"] = outcome.rate
    session.figures[f"{name}, cpu, ms"] = cpu / outcome.answered * 1e3
    session.figures[f"{name}, memory, MB"] = system.memory_bytes() / 1e6


def fill(session: Session, stored: int, more: int) -> Outcome:
    """Store more invocations: under idempotency keys, so that results are kept."""
    load = Load(session.system.port, "/Bench/steps", b"0", more, 50, deadline_s=1800)
    outcome = session.generator.drive(load._replace(idempotency_key=f"fill-{stored}-{{n}}"))
    if outcome.failures:
        raise BenchFailed(f"{session.system.name}: fill: statuses {outcome.statuses}")
    return outcome


def _send_crowd(session: Session) -> tuple[int, int]:
    """Send sleepers for a bounded time. When they are due (ms of the epoch), and their number."""
    sizes = session.sizes
    session.system.call("woken", True)
    wake_ms = int((time.time() + sizes.fill_seconds + sizes.settle_seconds) * 1e3)
    outcome = session.load(
        "/Bench/hold/send", wake_ms, sizes.crowd, 50, seconds_max=sizes.fill_seconds
    )
    return wake_ms, outcome.answered


def _wait_woken(session: Session, count: int) -> dict[str, float]:
    deadline = time.perf_counter() + _DRAIN_SECONDS + session.sizes.settle_seconds
    report: dict[str, float] = {"count": 0}
    while time.perf_counter() < deadline:
        try:
            report = cast(dict[str, float], session.system.call("woken", False))
        except BenchFailed:
            report = {"count": 0}  # not back yet
        if report["count"] >= count:
            return report
        time.sleep(0.25)
    raise BenchFailed(f"{session.system.name}: only {report['count']} of {count} woke up")


def until_quiet(system: System) -> None:
    """Wait until the system uses next to no CPU, so that memory is that of rest."""
    deadline = time.perf_counter() + 5
    while time.perf_counter() < deadline:
        before = system.cpu_seconds()
        time.sleep(_QUIET_SECONDS)
        if system.cpu_seconds() - before < 0.1 * _QUIET_SECONDS:
            return


SHARED: dict[str, Callable[[Session], None]] = {
    "latency": run_latency,
    "throughput": run_throughput,
    "object": run_object,
    "fan": run_fan,
    "replay": run_replay,
    "payload": run_payload,
}
"""One after the other on one started system."""
ALONE: dict[str, Callable[[Session], None]] = {"sleep": run_sleep, "kill": run_kill}
"""Each on a system of its own."""
WORKLOADS = ("start", *SHARED, *ALONE, "growth")
