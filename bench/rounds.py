"""The order of runs: systems take turns, in another order each round."""

import shutil
import sys
import time
from collections.abc import Callable, Sequence
from collections.abc import Generator as Yields
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import TypeVar

from bench import workloads
from bench.floor import measure_floor
from bench.loadgen import Generator
from bench.processes import BenchFailed
from bench.results import Results
from bench.systems import SYSTEMS
from bench.workloads import Session

_FAILURES = (BenchFailed, OSError, ValueError, KeyError)
"""What the failure of a system under load looks like; any other is a fault of the benchmark."""
_FOLDERS = count()
T = TypeVar("T")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


class Rounds:
    """Runs what was chosen and collects it in ``results``."""

    def __init__(
        self, results: Results, chosen: Sequence[str], work: Path, save: Callable[[], object]
    ) -> None:
        self._save = save  # after each round, so that an end of any kind loses one at most
        self.results, self.sizes = results, results.sizes
        self._chosen, self._work = chosen, work
        self.generator = Generator()

    def close(self) -> None:
        self.generator.close()

    def shared(self) -> None:
        """Everything that one started system can be asked in a row, and the floor beside it."""
        wanted = [name for name in ("start", *workloads.SHARED) if name in self._chosen]
        if not wanted:
            return
        for run in range(self.sizes.runs):
            for name in _turn(self.results.systems, run):
                if run >= SYSTEMS[name].runs_max:
                    continue
                say(f"round {run + 1} of {self.sizes.runs}: {name}")
                self._shared_run(name, run, wanted)
            if not {"latency", "throughput"}.isdisjoint(self._chosen):
                self._floor(run)
            self._save()

    def alone(self) -> None:
        """What needs a system of its own: crowds, and kills."""
        for workload, action in workloads.ALONE.items():
            if workload not in self._chosen:
                continue
            for run in range(self.sizes.runs_alone):
                for name in _turn(self._crowded(), run):
                    kind = SYSTEMS[name]
                    runs = self.sizes.runs_alone if kind.runs_max >= self.sizes.runs else 1
                    if workload not in kind.workloads or run >= runs:
                        continue
                    say(f"{workload}, round {run + 1} of {self.sizes.runs_alone}: {name}")
                    with self._session(name) as session, self._kept(session, workload, run):
                        session.system.launch()
                        session.system.prepare()
                        action(session)
                self._save()

    def growth(self) -> None:
        """The systems grow together, and are probed in turns at each mark."""
        if "growth" not in self._chosen:
            return
        sessions: list[Session] = []
        try:
            for name in self._crowded():
                if "growth" not in SYSTEMS[name].workloads:
                    continue
                folder = self._fresh(name)
                session = Session(SYSTEMS[name](folder), self.generator, self.sizes)
                sessions.append(session)
            alive = [each for each in sessions if self._did(each, "growth", _begin)]
            stored = 0
            for mark in self.sizes.growth:
                say(f"growth to {mark:,}")
                alive = [each for each in alive if self._did(each, "growth", _grow(stored, mark))]
                stored = mark
                for run in range(self.sizes.runs):
                    for session in _turn(alive, run):
                        session.figures = {}
                        if self._did(session, "growth", _probe(mark)):
                            self.results.add(session.system.name, run, session.figures)
        finally:
            for session in sessions:
                session.system.stop()
                shutil.rmtree(session.system.folder, ignore_errors=True)

    def _crowded(self) -> list[str]:
        """One system of each kind: a crowd costs the same whatever the service's language."""
        usual = [name for name in self.results.systems if not name.endswith(("-ts", "-sqlite"))]
        return usual or self.results.systems

    def _shared_run(self, name: str, run: int, wanted: list[str]) -> None:
        wanted = [each for each in wanted if each in SYSTEMS[name].workloads]
        with self._session(name) as session:
            with self._kept(session, "start", run):
                workloads.run_start(session)
            if not session.figures:
                return  # it doesn't start: nothing else can be asked
            for workload in wanted:
                if workload != "start":
                    with self._kept(session, workload, run):
                        workloads.SHARED[workload](session)
            for key, quantiles in session.samples.items():
                kept = self.results.samples.setdefault(name, {})
                kept.setdefault(key, []).append(quantiles)

    def _floor(self, run: int) -> None:
        languages = {SYSTEMS[name].language for name in self.results.systems}
        for language in sorted(languages):
            floor = "floor" if language == "python" else "floor-ts"
            folder = self._fresh(floor)
            say(f"round {run + 1} of {self.sizes.runs}: {floor}")
            try:
                self.results.add(floor, run, measure_floor(language, self.sizes, folder))
            except _FAILURES as failure:
                self._failed(floor, "floor", failure)
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _session(self, name: str) -> Yields[Session]:
        folder = self._fresh(name)
        system = SYSTEMS[name](folder)
        try:
            yield Session(system, self.generator, self.sizes)
        finally:
            system.stop()
            shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def _kept(self, session: Session, workload: str, run: int) -> Yields[None]:
        """A workload that fails leaves a line on the page instead of its figures."""
        before = dict(session.figures)
        try:
            yield
        except _FAILURES as failure:
            session.figures = before
            self._failed(session.system.name, workload, failure)
        else:
            self.results.add(session.system.name, run, session.figures)

    def _did(self, session: Session, workload: str, action: Callable[[Session], None]) -> bool:
        try:
            action(session)
        except _FAILURES as failure:
            self._failed(session.system.name, workload, failure)
            return False
        return True

    def _failed(self, name: str, workload: str, failure: Exception) -> None:
        text = f"{name}, {workload}: {type(failure).__name__}: {failure}".replace("\n", " ")
        self.results.failures.append(text[:600])
        say(f"FAILED {text[:2000]}")

    def _fresh(self, name: str) -> Path:
        folder = self._work / f"{next(_FOLDERS)}-{name}"
        folder.mkdir(parents=True)
        return folder


def _turn(items: Sequence[T], run: int) -> list[T]:
    """Rotated, so that nobody always runs first; neighbours stay neighbours."""
    start = run % len(items) if items else 0
    return [*items[start:], *items[:start]]


def _begin(session: Session) -> None:
    session.system.launch()
    session.system.prepare()


def _grow(stored: int, mark: int) -> Callable[[Session], None]:
    def action(session: Session) -> None:
        workloads.fill(session, stored, mark - stored)
        workloads.until_quiet(session.system)

    return action


def _probe(mark: int) -> Callable[[Session], None]:
    def action(session: Session) -> None:
        workloads.probe_growth(session, mark)

    return action
