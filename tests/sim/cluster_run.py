"""Live through many seeds of whole clusters: ``python -m tests.sim.cluster_run --seeds 20000``.

Several processes share the seeds. A seed that fails is told with the command that repeats it;
``--only SEED`` does so and shows its plan, ``--shrink SEED`` looks for the fewest faults and
requests with which it still fails, in the same way.
"""

import argparse
import gc
import logging
import multiprocessing
import os
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

from tests.sim.cluster_seed import Setting, live, plan_of, setting_of
from tests.sim.cluster_world import Less

from perdure.core.telemetry import configure

_CHUNK = 10
_PROGRESS_SECONDS = 30.0
_SCHEDULES = 4


@dataclass(frozen=True, slots=True)
class Failure:
    """How a seed ended that should not have."""

    seed: int
    what: str
    trace: str

    @property
    def sort(self) -> str:
        """The same for failures of one sort: no numbers, no names."""
        return re.sub(r"[0-9a-f]{6,}|\d+", "#", self.what)[:60]


@dataclass(frozen=True, slots=True)
class Done:
    """A portion of seeds was lived through."""

    seeds: int
    virtual_seconds: float
    happened: Counter[str]
    failures: list[Failure]


def main(arguments: list[str]) -> int:
    """Returns the exit status: 1 when any seed failed."""
    options = _parse(arguments)
    logging.disable(logging.CRITICAL)
    gc.set_threshold(50_000, 20, 50)
    if options.only is not None:
        return _tell(options.only, Less(), schedule=0)
    if options.shrink is not None:
        return _shrink(options.shrink)
    return _run(range(options.first, options.first + options.seeds), options.jobs, options.minutes)


def _parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.sim.cluster_run", description=__doc__)
    parser.add_argument("--seeds", type=int, default=1000, help="how many")
    parser.add_argument("--from", type=int, default=0, dest="first", help="the first one")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--minutes", type=float, default=1e9, help="begin nothing after so long")
    parser.add_argument("--only", type=int, help="live through one, and tell of it")
    parser.add_argument("--shrink", type=int, help="make the failure of one smaller")
    return parser.parse_args(arguments)


# --- Many -----------------------------------------------------------------------------------------


def _run(seeds: range, jobs: int, minutes: float) -> int:
    began = told = time.monotonic()
    lived, virtual, happened, failures = 0, 0.0, Counter[str](), list[Failure]()
    for done in _portions(seeds, jobs, began + 60 * minutes):
        lived += done.seeds
        virtual += done.virtual_seconds
        happened += done.happened
        failures += done.failures
        for failure in done.failures:
            _say(f"FAILED  {failure.what}\n{failure.trace}", *_how_to_repeat(failure.seed))
        if time.monotonic() - told > _PROGRESS_SECONDS:
            told = time.monotonic()
            _say(_progress(lived, len(seeds), virtual, len(failures), told - began))
    _say(_progress(lived, len(seeds), virtual, len(failures), time.monotonic() - began))
    _say("what happened: " + ", ".join(f"{what} {n}" for what, n in sorted(happened.items())))
    if failures:
        _say(f"failed: {sorted(failure.seed for failure in failures)}")
    return 1 if failures else 0


def _portions(seeds: range, jobs: int, until: float) -> Iterator[Done]:
    chunks = [seeds[start : start + _CHUNK] for start in range(0, len(seeds), _CHUNK)]
    if jobs == 1:
        for chunk in chunks:
            if time.monotonic() > until:
                return
            yield _live_through(chunk)
        return
    with multiprocessing.get_context("fork").Pool(jobs, gc.freeze, maxtasksperchild=50) as pool:
        for done in pool.imap_unordered(_live_through, chunks):
            yield done
            if time.monotonic() > until:
                pool.terminate()
                return


def _live_through(seeds: range) -> Done:
    virtual, happened, failures = 0.0, Counter[str](), list[Failure]()
    for seed in seeds:
        try:
            lived = live(setting_of(seed))
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            failures.append(_failure(seed, failure))
        else:
            virtual += lived.seconds
            happened += lived.happened
    return Done(len(seeds), virtual, happened, failures)


def _failure(seed: int, failure: BaseException) -> Failure:
    while isinstance(failure, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", failure)
        failure = group.exceptions[0]
    trace = "".join(traceback.format_exception(failure)[-12:])
    return Failure(seed, f"{type(failure).__name__}: {failure}"[:300], trace)


def _how_to_repeat(seed: int) -> tuple[str, str]:
    command = f"PYTHONHASHSEED=0 {sys.executable} -m tests.sim.cluster_run"
    return f"repeat: {command} --only {seed}", f"shrink: {command} --shrink {seed}"


def _progress(lived: int, of: int, virtual: float, failed: int, seconds: float) -> str:
    rate = 60 * lived / seconds if seconds else 0.0
    return (
        f"{lived} of {of} seeds, {failed} failed, {rate:.0f} seeds a minute; "
        f"{virtual / 3600:.1f} virtual hours in {seconds / 60:.1f} minutes"
    )


def _say(*lines: str) -> None:
    for line in lines:
        print(line, flush=True)


# --- One ------------------------------------------------------------------------------------------


def _tell(seed: int, less: Less, schedule: int) -> int:
    setting = setting_of(seed)
    logging.disable(logging.NOTSET)
    configure(os.environ.get("SIM_LOG", "ERROR"), "compact")
    _say(f"seed {seed}: {setting.shape}; kinds {', '.join(sorted(set(setting.kinds)))}")
    _say(f"limits {'drawn' if setting.has_knobs else 'as they are'}")
    for number, fault in enumerate(plan_of(setting)):
        if number not in less.faults:
            _say(f"{number:3} {fault}")
    try:
        lived = live(setting, less, schedule)
    except KeyboardInterrupt:
        raise
    except BaseException as failure:
        traceback.print_exception(failure)
        return 1
    _say(f"{lived.requests} requests, {lived.seconds:.1f} virtual seconds: kept")
    return 0


def _shrink(seed: int) -> int:
    setting = setting_of(seed)
    found = _fails(setting, Less(), range(1))
    if found is None:
        _say(f"seed {seed} doesn't fail")
        return 0
    failure, schedule = found
    _say(failure.what)
    less = Less()
    for kind, count in (("faults", setting.faults), ("requests", 8)):
        less, schedule = _leave_out(setting, less, schedule, failure, kind, count)
    kept = [number for number in range(setting.faults) if number not in less.faults]
    _say(f"faults that are needed: {kept}; on schedule {schedule}")
    return _tell(setting.seed, less, schedule)


def _leave_out(
    setting: Setting, less: Less, schedule: int, failure: Failure, kind: str, count: int
) -> tuple[Less, int]:
    """Try without each item of a kind, again until none can be spared."""
    size = max(1, count // 2)
    while size:
        for first in range(0, count, size):
            more = frozenset(range(first, min(first + size, count)))
            faults, requests = less.faults, less.requests
            if kind == "faults":
                tried = Less(faults=faults | more, requests=requests)
            else:
                tried = Less(faults=faults, requests=requests | more)
            if tried == less:
                continue
            found = _fails(setting, tried, range(_SCHEDULES))
            if found is not None and found[0].sort == failure.sort:
                less, schedule = tried, found[1]
        size //= 2
    return less, schedule


def _fails(setting: Setting, less: Less, schedules: range) -> tuple[Failure, int] | None:
    for schedule in schedules:
        try:
            live(setting, less, schedule)
        except KeyboardInterrupt:
            raise
        except BaseException as failure:
            return _failure(setting.seed, failure), schedule
    return None


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
