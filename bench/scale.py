"""``python -m bench.scale``: one node with a million completed and a million scheduled invocations.

Memory, disk, latency as the tables grow, boot after kill -9, look-ups, and what retention does when
everything expires at once. Prints one page; the figures also land as JSON in ``bench/results/``.
"""

import argparse
import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from bench.processes import ROOT, BenchFailed, Process, free_port
from bench.scale_load import SAMPLES_FILE, memory
from bench.scale_node import CLUSTER, NODE, RESULT
from perdure.core.ids import InvocationId, format_invocation_id

Told = dict[str, Any]
QUICK_COUNT = 50_000
FULL_COUNT = 1_000_000


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything."""

    completed: int
    scheduled: int
    suspended: int
    derived: bool
    expire_seconds_max: float


def load(arguments: list[str], *, kill_at: str | None) -> list[Told]:
    """Run ``bench.scale_load``; what it told. Killed when it tells of ``kill_at``."""
    child = subprocess.Popen(
        [sys.executable, "-m", "bench.scale_load", *arguments],
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    told: list[Told] = []
    assert child.stdout is not None
    for line in child.stdout:
        figures: Told = json.loads(line)
        _say(_brief(figures))
        told.append(figures)
        if figures["stage"] == kill_at:
            child.send_signal(signal.SIGKILL)
    child.stdout.close()
    if child.wait() != (0 if kill_at is None else -signal.SIGKILL):
        raise BenchFailed(f"bench.scale_load {arguments[0]} ended with {child.returncode}")
    return [figures for figures in told if figures["stage"] != "progress"]


def boot(folder: Path) -> Told:
    """A real server over the killed one's directory: time to healthy, memory, look-ups by HTTP."""
    ports = [free_port() for _ in range(3)]
    ingress, admin, node = (f"127.0.0.1:{port}" for port in ports)
    command = [sys.executable, "-m", "perdure", "server", "--base-dir", str(folder)]
    command += ["--cluster-name", CLUSTER, "--node-name", NODE, "--log-level", "error"]
    command += ["--ingress-address", ingress, "--admin-address", admin, "--bind-address", node]
    server = Process(command, {}, folder / "server.log")
    try:
        seconds = server.wait_healthy(f"http://{ingress}/restate/health", ports[0])
        held = memory(server.pid)
        samples = (folder / SAMPLES_FILE).read_text().split()
        latencies = sorted(_look_up(ports[0], samples))
    finally:
        server.stop()
    return {
        "stage": "booted",
        "seconds": seconds,
        **held,
        "http_lookup_p50_ms": latencies[len(latencies) // 2] * 1e3,
        "http_lookup_p99_ms": latencies[len(latencies) * 99 // 100] * 1e3,
    }


def _look_up(port: int, samples: list[str]) -> list[float]:
    connection = http.client.HTTPConnection("127.0.0.1", port)
    latencies: list[float] = []
    for sample in samples:
        name = format_invocation_id(InvocationId(bytes.fromhex(sample)))
        started = perf_counter()
        connection.request("GET", f"/restate/invocation/{name}/output")
        answer = connection.getresponse()
        body = answer.read()
        latencies.append(perf_counter() - started)
        if (answer.status, body) != (200, RESULT):
            raise BenchFailed(f"{name}: {answer.status} {body[:100]!r}")
    connection.close()
    return latencies


def measure(folder: Path, sizes: Sizes) -> dict[str, Told | list[Told]]:
    """Fill, kill, boot, look up, expire."""
    told = load(
        [
            *("fill", str(folder), "--completed", str(sizes.completed)),
            *("--scheduled", str(sizes.scheduled), "--suspended", str(sizes.suspended)),
            *(("--derived",) if sizes.derived else ()),
        ],
        kill_at="filled",
    )
    found: dict[str, Told | list[Told]] = {
        figures["stage"]: figures for figures in told if figures["stage"] != "stored"
    }
    found["growth"] = [figures for figures in told if figures["stage"] == "stored"]
    found["boot"] = boot(folder)
    limit = str(sizes.expire_seconds_max)
    found["expiry"] = load(["expire", str(folder), "--seconds-max", limit], kill_at=None)[-1]
    return found


def page(found: dict[str, Any]) -> str:
    """The figures for people."""
    lines = [
        f"{'stored':>10} {'p50 ms':>8} {'p99 ms':>8} {'CPU us':>8} {'look-up us':>11} "
        f"{'own MB':>7} {'mapped':>7}"
    ]
    for row in found["growth"]:
        lines.append(
            f"{row['stored']:>10,} {row['latency_p50_ms']:>8.2f} {row['latency_p99_ms']:>8.2f} "
            f"{row['cpu_us']:>8.0f} {row['lookup_us']:>11.1f} "
            f"{row['memory_bytes'] / 1e6:>7.0f} {row['mapped_bytes'] / 1e6:>7.0f}"
        )
    lines.append("")
    for kind in ("suspended", "scheduled", "completed"):
        figures = found[kind]
        own, mapped = figures["grown_memory_bytes"], figures["grown_mapped_bytes"]
        line = f"{figures['count']:,} {kind}: {own / 1e6:.1f} MB of memory of its own"
        line += f", {mapped / 1e6:.1f} MB of files mapped"
        if "disk_bytes_each" in figures:
            line += f", {figures['disk_bytes_each']:.0f} bytes on disk each"
            line += f", {figures['per_second']:,.0f} a second"
        lines.append(line)
    booted, expired = found["boot"], found["expiry"]
    lines += [
        f"boot after kill -9: {booted['seconds']:.2f} s, "
        f"{booted['memory_bytes'] / 1e6:.0f} MB of its own, "
        f"{booted['mapped_bytes'] / 1e6:.0f} MB mapped",
        f"look-up by HTTP: p50 {booted['http_lookup_p50_ms']:.2f} ms, "
        f"p99 {booted['http_lookup_p99_ms']:.2f} ms",
        f"retention: {expired['due']:,} due at once, {expired['left']:,} left, "
        f"{expired['per_second']:,.0f} a second",
        f"foreground meanwhile: p50 {expired['meanwhile_p50_ms']:.2f} ms, "
        f"p99 {expired['meanwhile_p99_ms']:.2f} ms",
        f"foreground afterwards: p50 {expired['after_p50_ms']:.2f} ms, "
        f"p99 {expired['after_p99_ms']:.2f} ms",
    ]
    return "\n".join(lines) + "\n"


def _brief(figures: Told) -> str:
    return " ".join(
        f"{name}={value:,.2f}" if isinstance(value, float) else f"{name}={value}"
        for name, value in figures.items()
    )


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--completed", type=int, default=None)
    parser.add_argument("--scheduled", type=int, default=None)
    parser.add_argument("--suspended", type=int, default=10_000)
    parser.add_argument("--derived", action="store_true", help="ids as under idempotency keys")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_COUNT:,} of each")
    parser.add_argument("--expire-seconds-max", type=float, default=600.0)
    parser.add_argument("--folder", type=Path, help="where; several gigabytes (default: temporary)")
    given = parser.parse_args()
    count = QUICK_COUNT if given.quick else FULL_COUNT
    sizes = Sizes(
        completed=count if given.completed is None else given.completed,
        scheduled=count if given.scheduled is None else given.scheduled,
        suspended=given.suspended,
        derived=given.derived,
        expire_seconds_max=given.expire_seconds_max,
    )
    folder = Path(tempfile.mkdtemp(prefix="scale-", dir=given.folder))
    try:
        found = measure(folder, sizes)
    except BenchFailed as error:
        _say(str(error))
        return 1
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    text = page(found)
    print(text)
    results = ROOT / "bench" / "results"
    results.mkdir(exist_ok=True)
    name = f"scale-{time.strftime('%Y-%m-%dT%H-%M-%S')}"
    (results / f"{name}.json").write_text(json.dumps({"cpus": os.cpu_count(), **found}, indent=1))
    (results / f"{name}.txt").write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
