"""``python -m bench.workers``: the same load on one worker and on two (``perdure up --workers``).

Three durable steps of the Python SDK, one process of it, by crowds over HTTP/1.1 (so that
connections are many, and each worker gets some). Rounds take turns; each figure is the median of
them. Prints a table; JSON lands in ``bench/results/``.
"""

import argparse
import json
import os
import random
import socket
import sys
import tempfile
import time
import urllib.request
from collections import defaultdict
from pathlib import Path
from statistics import median

from bench.loadgen import Generator, Load
from bench.processes import ROOT, BenchFailed, NotHere
from bench.systems.restate_sdk import Perdure
from perdure.core.limits import WORKER_PORTS_EACH

STEPS = 3
CLIENTS = (50, 200)
KNOWN_SECONDS = 30.0
_CONNECTIONS = 24


class PerdureWorkers(Perdure):
    """perdure with so many workers."""

    workers = 1

    def command(self) -> tuple[list[str], dict[str, str]]:
        base = _free_ports(WORKER_PORTS_EACH * self.workers)
        arguments = [sys.executable, "-m", "perdure", "up", "--workers", str(self.workers)]
        arguments += ["--log-level", "error", "--base-dir", str(self.folder / "data")]
        arguments += ["--ingress-address", f"127.0.0.1:{self.port}"]
        arguments += ["--admin-address", f"127.0.0.1:{self.admin_port}"]
        arguments += ["--bind-address", f"127.0.0.1:{base}"]
        return [*arguments, "--set", f"cluster.bind-address=127.0.0.1:{base + 1}"], {}

    def wait_known(self) -> None:
        """Wait until every worker has heard of the service."""
        deadline = time.perf_counter() + KNOWN_SECONDS
        while not all(self._knows() for _ in range(_CONNECTIONS)):
            if time.perf_counter() > deadline:
                raise BenchFailed("a worker doesn't hear of the service")

    def _knows(self) -> bool:
        url = f"http://127.0.0.1:{self.admin_port}/services/Bench"
        try:
            with urllib.request.urlopen(url, timeout=10):
                return True
        except OSError:
            return False


Row = dict[str, float]


def measure(workers: int, clients: int, seconds: float, generator: Generator) -> Row:
    """One load on a fresh directory."""
    with tempfile.TemporaryDirectory(prefix="bench-workers-") as folder:
        system = PerdureWorkers(Path(folder))
        system.workers = workers
        try:
            system.launch()
            system.prepare()
            system.wait_known()
            load = Load(
                port=system.port,
                path="/Bench/steps",
                body=str(STEPS).encode(),
                requests=1_000_000,
                concurrency=clients,
                http_version="HTTP/1.1",
                seconds_max=seconds,
                deadline_s=seconds + 60.0,
            )
            generator.drive(load._replace(seconds_max=min(seconds, 2.0)))  # warm up
            server, service = system.measured[0], system.services[0]
            before = server.cpu_seconds(), service.cpu_seconds()
            outcome = generator.drive(load)
            after = server.cpu_seconds(), service.cpu_seconds()
        finally:
            system.stop()
    if outcome.failures:
        raise BenchFailed(f"{outcome.failures} requests failed: {outcome.statuses}")
    count = outcome.answered
    return {
        "rate": outcome.rate,
        "p50_ms": outcome.at(0.5),
        "p99_ms": outcome.at(0.99),
        "server_cpu_ms": (after[0] - before[0]) / count * 1e3,
        "service_cpu_ms": (after[1] - before[1]) / count * 1e3,
    }


def main() -> int:
    """Measure, print, write down."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="of load, each time")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    rows: dict[tuple[int, int], list[Row]] = defaultdict(list)
    generator = Generator()
    try:
        for number in range(options.rounds):
            for clients in CLIENTS:
                # Whoever comes first in a round isn't always the same.
                for workers in random.Random(number).sample(options.workers, len(options.workers)):
                    row = measure(workers, clients, options.seconds, generator)
                    rows[clients, workers].append(row)
                    print(
                        f"round {number + 1}: {clients} clients, {workers} workers: "
                        f"{row['rate']:.0f}/s",
                        file=sys.stderr,
                    )
    finally:
        generator.close()
    figures = [
        {
            "clients": clients,
            "workers": workers,
            "rounds": len(found),
            **{name: median(row[name] for row in found) for name in found[0]},
        }
        for (clients, workers), found in sorted(rows.items())
    ]
    print(
        f"{os.cpu_count()} cores, load average {os.getloadavg()[0]:.1f}; {STEPS} steps, Python SDK"
    )
    print("clients  workers  calls/s  p50 ms  p99 ms  server CPU ms/call  service CPU ms/call")
    for row in figures:
        print(
            "{clients:>7}  {workers:>7}  {rate:>7.0f}  {p50_ms:>6.1f}  {p99_ms:>6.1f}  "
            "{server_cpu_ms:>18.2f}  {service_cpu_ms:>19.2f}".format(**row)
        )
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    (results / "workers.json").write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _free_ports(count: int) -> int:
    """The first of so many ports in a row that nobody has."""
    for _ in range(1_000):
        base = random.randrange(20_000, 32_000 - count)
        probes = [socket.socket() for _ in range(count)]
        try:
            for offset, probe in enumerate(probes):
                probe.bind(("127.0.0.1", base + offset))
            return base
        except OSError:
            continue
        finally:
            for probe in probes:
                probe.close()
    raise NotHere("no ports are free")


if __name__ == "__main__":
    sys.exit(main())
