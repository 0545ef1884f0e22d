"""``python -m bench``: perdure and the reference server side by side, one page and JSON.

Both run the same service on the same machine, in turn, several times; a figure is the median of
the runs. Ratios are only ever formed within one invocation of this program.
"""

import argparse
import json
import os
import platform
import pstats
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import cast

import perdure
from bench.loadgen import Load, drive_apart
from bench.measures import FULL, QUICK, Figures, Sizes, measure, measure_floor
from bench.processes import ROOT, BenchFailed, Server, find_reference, start_service

RESULTS = ROOT / "bench" / "results"
_Table = dict[tuple[str, int, str], tuple[int, int, float, float, object]]
"""Place to primitive calls, calls, own and cumulative seconds, callers."""
SERVERS = ("perdure", "reference")
PROFILED = 2000


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small run, under a minute")
    parser.add_argument("--only", choices=SERVERS, help="one server alone")
    parser.add_argument("--runs", type=int, help="how many runs, instead of the usual number")
    parser.add_argument("--profile", action="store_true", help="name perdure's five top costs")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # the children are stopped on the way
    try:
        if options.profile:
            print(profile())
            return 0
        sizes = QUICK if options.quick else FULL
        runs = options.runs or sizes.runs
        names = (options.only,) if options.only else SERVERS
        page, record = bench(sizes, runs, names)
    except BenchFailed as failure:
        print(f"bench: {failure}", file=sys.stderr)
        return 1
    RESULTS.mkdir(parents=True, exist_ok=True)
    stem = RESULTS / time.strftime("%Y-%m-%dT%H-%M-%S")
    stem.with_suffix(".txt").write_text(page)
    stem.with_suffix(".json").write_text(json.dumps(record, indent=2))
    print(f"\n{page}\nalso in {stem}.json")
    return 0


def bench(sizes: Sizes, runs: int, names: tuple[str, ...]) -> tuple[str, dict[str, object]]:
    """Run everything; the page and what it was made of."""
    reference = find_reference() if "reference" in names else None
    taken: dict[str, list[Figures]] = {name: [] for name in (*names, "floor")}
    for run in range(runs):
        order = names if run % 2 == 0 else tuple(reversed(names))
        for name in order:
            with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
                folder = Path(temporary)
                _say(f"run {run + 1} of {runs}: {name}")
                taken[name].append(_run_one(name, folder, sizes, reference))
        with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
            _say(f"run {run + 1} of {runs}: the machine itself")
            taken["floor"].append(measure_floor(sizes, Path(temporary)))
    middles = {name: _medians(figures) for name, figures in taken.items()}
    record: dict[str, object] = {
        "perdure": perdure.__version__,
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "commit": _commit(),
        "runs": taken,
        "medians": middles,
    }
    return _page(middles, runs, names), record


def _run_one(name: str, folder: Path, sizes: Sizes, reference: list[str] | None) -> Figures:
    service, port = start_service(folder)
    try:
        server = Server(name, folder / name, reference if name == "reference" else None)
        try:
            return measure(server, port, sizes, folder)
        finally:
            server.process.stop()
    finally:
        service.stop()


def _medians(runs: list[Figures]) -> Figures:
    return {key: median(run[key] for run in runs) for key in runs[0]}


def _page(middles: dict[str, Figures], runs: int, names: tuple[str, ...]) -> str:
    lines = [
        f"perdure {perdure.__version__} ({_commit()}), {time.strftime('%Y-%m-%d %H:%M')}",
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}; "
        f"median of {runs} interleaved runs",
        "service: restate-sdk (Python) under hypercorn, HTTP/2; its CPU is not counted",
        "",
        f"{'':<44}"
        + "".join(f"{name:>12}" for name in names)
        + (f"{'ratio':>9}" if len(names) == 2 else ""),
    ]
    for key in middles[names[0]]:
        values = [middles[name][key] for name in names]
        line = f"{key:<44}" + "".join(f"{value:>12,.2f}" for value in values)
        if len(values) == 2 and values[1]:
            line += f"{values[0] / values[1]:>9.2f}"
        lines.append(line)
    lines.append("")
    lines += [f"{key:<44}{value:>12,.3f}" for key, value in middles["floor"].items()]
    floor = middles["floor"]["floor of a durable step, ms"]
    for name in names:
        times = middles[name]["added by a durable step, ms"] / floor
        lines.append(f"{name}: a durable step takes {times:.1f} times the floor")
    return "\n".join(lines) + "\n"


def profile() -> str:
    """Perdure's five top costs under a load of 3-step invocations."""
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        service, port = start_service(folder)
        stats = folder / "profile"
        command = [sys.executable, "-m", "cProfile", "-o", str(stats), "-m", "perdure"]
        try:
            server = Server("perdure", folder / "perdure", command)
            server.register(port)
            drive_apart(Load(server.ingress_port, "/Bench/steps", b"3", PROFILED, 50))
            server.process.stop()
        finally:
            service.stop()
        table = cast(_Table, vars(pstats.Stats(str(stats)))["stats"])
    # The loop's own time is that of waiting.
    work = [item for item in table.items() if "runners.py" not in item[0][0]]
    costs = sorted(work, key=lambda item: -item[1][2])[:5]
    lines = [f"five top costs of {PROFILED} 3-step invocations (own time, under cProfile)"]
    for (path, line, name), (_, calls, own, _, _) in costs:
        where = f"{Path(path).name}:{line}" if line else "built in"
        lines.append(
            f"{own / PROFILED * 1e6:>8.1f} us an invocation  {calls:>9,} calls  {name} ({where})"
        )
    return "\n".join(lines)


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def _commit() -> str:
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout.strip() or "no commit"


if __name__ == "__main__":
    sys.exit(main())
