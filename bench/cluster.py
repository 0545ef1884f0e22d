"""``python -m bench.cluster``: three nodes of perdure beside three of the reference server.

Both keep two copies of every record and serve the same service. They take turns, in another order
each round, and never run at the same time; ratios are formed round by round. One client's latency
is asked at all three nodes in turn, crowds are spread over them. Then the node that leads most
partitions is killed with SIGKILL, again and again, while clients call on. perdure's hand-overs are
timed, too: the reference server has no command for one.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import perdure
from bench.cluster_pulse import Pulse
from bench.loadgen import Generator, Load, Outcome
from bench.processes import ROOT, BenchFailed
from bench.systems.clusters import CLUSTERS, NODES, PARTITIONS, REPLICATION, SdkCluster

RESULTS = ROOT / "bench" / "results"
_CROWDS = (50, 200)
_OURS, _THEIRS = "perdure", "reference"
Figures = dict[str, float]
# A ratio below one is good, or one above.
_RATES = ("rate",)


def main() -> int:
    options = _parse()
    rounds: dict[str, list[Figures]] = {name: [] for name in options.systems}
    samples: dict[str, list[float]] = {}
    failures: list[str] = []
    generator = Generator()
    started = time.strftime("%Y-%m-%dT%H-%M-%S")
    try:
        for number in range(options.rounds):
            turn = number % len(options.systems)
            for name in (*options.systems[turn:], *options.systems[:turn]):
                say(f"round {number + 1} of {options.rounds}: {name}")
                try:
                    found = run(name, generator, options, samples)
                except (BenchFailed, OSError, ValueError) as failure:
                    failures.append(f"{name}: {failure}")
                    found = {}
                rounds[name].append(found)
    except KeyboardInterrupt:
        failures.append("interrupted: this is what was measured until then")
    finally:
        generator.close()
    text = tell(rounds, samples, failures)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"cluster-{started}"
    found_all = {"about": about(), "rounds": rounds, "samples": samples, "failures": failures}
    path.with_suffix(".json").write_text(json.dumps(found_all, indent=1) + "\n")
    path.with_suffix(".txt").write_text(text)
    print(f"{text}\n{path}.txt")
    return 1 if failures else 0


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def about() -> dict[str, str]:
    return {
        "perdure": perdure.__version__,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "load": f"{os.getloadavg()[2]:.1f} processes were running, on average",
        "clusters": f"{NODES} nodes, {PARTITIONS} partitions, {REPLICATION} copies",
    }


def run(
    name: str, generator: Generator, options: argparse.Namespace, samples: dict[str, list[float]]
) -> Figures:
    """One start of a cluster, and all that is asked of it."""
    with tempfile.TemporaryDirectory(prefix=f"bench-{name}-") as folder:
        cluster = CLUSTERS[name](Path(folder))
        try:
            cluster.launch()
            figures = measure_latency(cluster, generator, options.requests)
            figures |= measure_crowds(cluster, generator, options.seconds)
            pauses = [measure_pause(cluster, number) for number in range(options.kills)]
            if pauses:
                samples.setdefault(f"{name}: pause after kill -9, s", []).extend(pauses)
                figures["pause after kill -9, p50, s"] = statistics.median(pauses)
            moves = [measure_move(cluster, number) for number in range(options.moves)]
            if found := [move for move in moves if move is not None]:
                samples.setdefault(f"{name}: pause at a hand-over, s", []).extend(found)
                figures["pause at a hand-over, p50, s"] = statistics.median(found)
            return figures
        finally:
            cluster.stop()


def measure_latency(cluster: SdkCluster, generator: Generator, requests: int) -> Figures:
    """One client, at each node in turn."""
    figures: Figures = {}
    for what, path, body, keys in (
        ("0 steps", "/Bench/steps", b"0", 0),
        ("3 steps", "/Bench/steps", b"3", 0),
        ("get + set", "/Counter/latency-{n}/add", b"1", 2 * PARTITIONS),
    ):
        taken: list[float] = []
        for port in (node.port for node in cluster.nodes):
            generator.drive(Load(port, path, body, requests // 10, 1, keys=keys))
            taken += _good(generator.drive(Load(port, path, body, requests, 1, keys=keys)))
        taken.sort()
        for share in (50, 99):
            figures[f"one client, {what}, p{share}, ms"] = taken[len(taken) * share // 100] * 1e3
    return figures


def measure_crowds(cluster: SdkCluster, generator: Generator, seconds: float) -> Figures:
    """Many clients, a third of them at each node."""
    figures: Figures = {}
    for count in _CROWDS:
        before = cluster.cpu_seconds()
        each = -(-count // len(cluster.nodes))
        loads = [
            Load(node.port, "/Bench/steps", b"1", 1 << 30, each, seconds_max=seconds)
            for node in cluster.nodes
        ]
        outcomes = generator.drive_together(loads)
        answered = len([one for outcome in outcomes for one in _good(outcome)])
        longest = max(outcome.seconds for outcome in outcomes)
        figures[f"{count} clients, 1 step, rate, /s"] = answered / longest
        used = cluster.cpu_seconds() - before
        figures[f"{count} clients, 1 step, CPU of all nodes, ms"] = used / answered * 1e3
    return figures


def measure_pause(cluster: SdkCluster, number: int) -> float:
    """kill -9 of the node that leads most; for how long a client waited. It comes back."""
    node = cluster.busiest()
    with Pulse([each.port for each in cluster.nodes], f"kill-{number}") as pulse:
        killed = time.monotonic()
        node.kill()
        pause = pulse.wait_answered(killed)
    cluster.start(node)
    cluster.wait_healthy(node)
    cluster.wait_settled()
    return pause


def measure_move(cluster: SdkCluster, number: int) -> float | None:
    """A leader hands over; for how long a client waited. None where there is no way to ask."""
    with Pulse([each.port for each in cluster.nodes], f"move-{number}") as pulse:
        asked = time.monotonic()
        if not cluster.move(number % PARTITIONS):
            return None
        return pulse.wait_answered(asked)


def tell(
    rounds: dict[str, list[Figures]], samples: dict[str, list[float]], failures: Iterable[str]
) -> str:
    """The page: medians, and the median of the ratios of the rounds."""
    lines = [f"{key}: {text}" for key, text in about().items()]
    lines += ["", f"{'':44}" + "".join(f"{name:>12}" for name in rounds) + f"{'ratio':>10}"]
    keys = list(dict.fromkeys(key for runs in rounds.values() for run in runs for key in run))
    for key in keys:
        cells: list[str] = []
        for runs in rounds.values():
            values = [run[key] for run in runs if key in run]
            cells.append(f"{statistics.median(values):12.2f}" if values else f"{'-':>12}")
        pairs = [
            ours[key] / theirs[key]
            for ours, theirs in zip(rounds.get(_OURS, ()), rounds.get(_THEIRS, ()), strict=False)
            if key in ours and key in theirs
        ]
        ratio = f"{statistics.median(pairs):10.2f}" if pairs else f"{'-':>10}"
        lines.append(f"{key:44}" + "".join(cells) + ratio)
    lines.append("")
    for key, values in samples.items():
        ordered = sorted(values)
        told = ", ".join(f"{value:.2f}" for value in ordered)
        lines.append(f"{key}: p50 {statistics.median(ordered):.2f}, max {ordered[-1]:.2f} ({told})")
    lines += [f"FAILED {failure}" for failure in failures]
    return "\n".join(lines) + "\n"


def _good(outcome: Outcome) -> list[float]:
    if outcome.failures or not outcome.latencies:
        raise BenchFailed(f"{outcome.failures} of the requests failed: {outcome.statuses}")
    return outcome.latencies


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__)
    parser.add_argument("--systems", nargs="+", choices=list(CLUSTERS), default=list(CLUSTERS))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=300, help="of one client, per node")
    parser.add_argument("--seconds", type=float, default=8.0, help="for how long a crowd calls")
    parser.add_argument("--kills", type=int, default=3, help="per round")
    parser.add_argument("--moves", type=int, default=6, help="hand-overs per round")
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
