"""What an invocation costs in counts that noise can't move: ``python -m bench.hotpath``.

The server runs under cProfile, switched on and off by signals around each load, so that only the
hot path is counted. Compare counts of two commits; their times are those of a profiled process.
Only the event loop's thread is counted: a group that the writer thread syncs shows as a hand-over.
"""

import marshal
import os
import signal
import sys
import tempfile
import time
from cProfile import Profile
from pathlib import Path
from typing import cast

from bench.loadgen import Generator, Load
from bench.processes import BenchFailed
from bench.systems.restate_sdk import Perdure

_Stats = dict[tuple[str, int, str], tuple[int, int, float, float, object]]
"""Place to primitive calls, calls, own and cumulative seconds, callers."""
_LOADS = ((0, 1), (3, 1), (0, 50), (3, 50), (0, 1000))
_WARM_UP, _COUNTED = 300, 300  # or twice as many as there are clients
_READY_SECONDS = 30.0
# What is counted: a word for it, the end of the file's name, the function's name.
_COUNTS = (
    ("attempts", "invoker/live_attempt.py", "open"),
    ("records applied", "engine/apply.py", "apply"),
    ("groups written", "cluster/wal_writer.py", "_take_group"),
    ("hand-overs to threads", "core/offload.py", "submit"),
    ("reads by the client", "http/connection.py", "data_received"),
    ("reads by the server", "http/accepted.py", "data_received"),
    ("protobuf parses", "~", "<built-in method FromString>"),
    ("reads of the database", "storage/env.py", "get"),
    ("idle marks considered", "cluster/wal_writer.py", "_mark"),
)


class _Counted(Perdure):
    """Perdure in a process that counts between two signals."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        arguments, env = super().command()
        inside = [sys.executable, "-m", "bench.hotpath", "--inside", str(self.folder / "counts")]
        return [*inside, *arguments[arguments.index("server") :]], env


def main() -> int:
    if sys.argv[1:2] == ["--inside"]:
        _serve(Path(sys.argv[2]), sys.argv[3:])
        return 0
    generator = Generator()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
            system = _Counted(Path(temporary))
            try:
                system.launch()
                system.prepare()
                columns = [_count(system, generator, steps, clients) for steps, clients in _LOADS]
            finally:
                system.stop()
    finally:
        generator.close()
    titles = [f"{steps}-step, {clients} cl." for steps, clients in _LOADS]
    print(f"{'per invocation':<24}" + "".join(f"{title:>18}" for title in titles))
    for name in columns[0]:
        print(f"{name:<24}" + "".join(f"{column[name]:>18.2f}" for column in columns))
    return 0


def _count(system: _Counted, generator: Generator, steps: int, clients: int) -> dict[str, float]:
    """Counts per invocation under one load."""
    argument = str(steps).encode()
    counted = max(_COUNTED, 2 * clients)
    generator.drive(Load(system.port, "/Bench/steps", argument, _WARM_UP, clients))
    found = system.folder / "counts"
    found.unlink(missing_ok=True)
    server = system.measured[0].pid
    os.kill(server, signal.SIGUSR1)
    generator.drive(Load(system.port, "/Bench/steps", argument, counted, clients))
    os.kill(server, signal.SIGUSR2)
    deadline = time.perf_counter() + _READY_SECONDS
    while not found.exists():
        if time.perf_counter() > deadline:
            raise BenchFailed("the server doesn't write its counts")
        time.sleep(0.02)
    table = cast(_Stats, marshal.loads(found.read_bytes()))
    counts = {"calls": sum(calls for _, calls, *_ in table.values()) / counted}
    for word, file, name in _COUNTS:
        calls = [row[1] for place, row in table.items() if _is_it(place, file, name)]
        counts[word] = sum(calls) / counted
    return counts


def _is_it(place: tuple[str, int, str], file: str, name: str) -> bool:
    return place[0].endswith(file) and place[2] == name


def _serve(found: Path, arguments: list[str]) -> None:
    """The server, which counts from SIGUSR1 to SIGUSR2 and then writes to ``found``."""
    from perdure.node.cli.main import main as command_line  # only here: it loads the whole server

    profile = Profile()

    def begin(*_: object) -> None:
        profile.clear()
        profile.enable()

    def end(*_: object) -> None:
        profile.disable()
        profile.create_stats()
        part = found.with_suffix(".part")
        part.write_bytes(marshal.dumps(vars(profile)["stats"]))
        part.rename(found)

    signal.signal(signal.SIGUSR1, begin)
    signal.signal(signal.SIGUSR2, end)
    sys.argv = ["perdure", *arguments]
    command_line()


if __name__ == "__main__":
    sys.exit(main())
