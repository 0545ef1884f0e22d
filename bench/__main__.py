"""``python -m bench``: perdure beside its peers on this machine; one page, pictures, JSON.

Ratios are only ever formed within one invocation of this program.
"""

import argparse
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import perdure
from bench import report, sandbox
from bench.processes import ROOT, NotHere
from bench.profile import profile
from bench.results import Results
from bench.rounds import Rounds, say
from bench.sizes import FULL, QUICK, Sizes
from bench.systems import SYSTEMS
from bench.workloads import WORKLOADS
from perdure.core.build import IS_COMPILED

RESULTS = ROOT / "bench" / "results"
PUBLISHED = ROOT / "docs" / "benchmarks"
_GIVEN = "BENCH_PROVIDED"


def main() -> int:
    options = _parse()
    signal.signal(signal.SIGTERM, _on_terminate)  # the children are stopped on the way
    if options.profile:
        print(profile())
        return 0
    if sandbox.is_inside():
        return _inside(options, Path(sandbox.work_folder()))
    missing = _provide(_systems(options))
    os.environ[_GIVEN] = "\n".join(f"{name}\t{why}" for name, why in missing.items())
    with tempfile.TemporaryDirectory(prefix="bench-") as work:
        if sandbox.can_isolate():
            return sandbox.enter(sys.argv[1:], work)
        say("no private network and process table: only root can make them; ports are checked")
        return _inside(options, Path(work))


def _on_terminate(number: int, frame: object) -> None:
    sys.exit(128 + number)


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one small run, under two minutes")
    parser.add_argument("--full", action="store_true", help="as many runs of crowds as of the rest")
    parser.add_argument("--million", action="store_true", help="growth to a million invocations")
    parser.add_argument("--only", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--systems", nargs="+", choices=list(SYSTEMS))
    parser.add_argument("--runs", type=int, help="how many runs, instead of the usual number")
    parser.add_argument("--publish", action="store_true", help="put the page into docs/benchmarks")
    parser.add_argument("--profile", action="store_true", help="name perdure's five top costs")
    return parser.parse_args()


def _systems(options: argparse.Namespace) -> list[str]:
    usual = ["perdure", "reference"] if options.quick else list(SYSTEMS)
    return options.systems or usual


def _provide(names: list[str]) -> dict[str, str]:
    """Install what the systems need; those that can't be had, and why."""
    missing: dict[str, str] = {}
    for name in names:
        try:
            SYSTEMS[name].provide()
        except NotHere as reason:
            missing[name] = str(reason)
            say(f"SKIPPED {name}: {reason}")
    return missing


def _sizes(options: argparse.Namespace) -> Sizes:
    sizes = QUICK if options.quick else FULL
    if options.full:
        sizes = replace(sizes, runs_alone=sizes.runs)
    if options.runs:
        sizes = replace(sizes, runs=options.runs, runs_alone=options.runs)
    if options.million:
        sizes = replace(sizes, growth=(*sizes.growth, 1_000_000))
    return sizes


def _inside(options: argparse.Namespace, work: Path) -> int:
    missing: dict[str, str] = {}
    for line in os.environ.get(_GIVEN, "").splitlines():
        name, why = line.split("\t", 1)
        missing[name] = why
    systems = [name for name in _systems(options) if name not in missing]
    results = Results(_about(), _sizes(options), systems, missing=missing)
    folder = PUBLISHED if options.publish else RESULTS / time.strftime("%Y-%m-%dT%H-%M-%S")
    rounds = Rounds(results, options.only, work, lambda: report.write(results, folder))
    started = time.perf_counter()
    try:
        rounds.shared()
        rounds.alone()
        rounds.growth()
    except KeyboardInterrupt:
        results.failures.append("interrupted: the page shows what was measured until then")
    finally:
        rounds.close()
        minutes = (time.perf_counter() - started) / 60
        results.about["took"] = f"{minutes:.1f} minutes"
        text = report.write(results, folder)
        print(f"{text}\n{folder / 'results.md'}")
    return 1 if results.failures else 0


def _about() -> dict[str, str]:
    described = ["git", "describe", "--always", "--dirty"]
    commit = subprocess.run(described, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    return {
        "perdure": f"{perdure.__version__} ({commit or 'no commit'}), "
        + ("compiled" if IS_COMPILED else "interpreted"),
        "machine": f"{platform.platform()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d %H:%M"),
        "network": "private" if sandbox.is_inside() else "the machine's",
    }


if __name__ == "__main__":
    sys.exit(main())
