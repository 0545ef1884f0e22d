"""Where perdure's time goes: ``python -m bench --profile``."""

import pstats
import sys
import tempfile
from pathlib import Path
from typing import cast

from bench.loadgen import Generator, Load
from bench.systems.restate_sdk import Perdure

_Table = dict[tuple[str, int, str], tuple[int, int, float, float, object]]
"""Place to primitive calls, calls, own and cumulative seconds, callers."""
_PROFILED = 2000


class _Profiled(Perdure):
    """Perdure under cProfile."""

    def command(self) -> tuple[list[str], dict[str, str]]:
        arguments, env = super().command()
        profiler = ["-m", "cProfile", "-o", str(self.folder / "profile")]
        return [sys.executable, *profiler, *arguments[1:]], env


def profile() -> str:
    """Perdure's five top costs under a load of 3-step invocations."""
    generator = Generator()
    try:
        with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
            system = _Profiled(Path(temporary))
            try:
                system.launch()
                system.prepare()
                generator.drive(Load(system.port, "/Bench/steps", b"3", _PROFILED, 50))
                system.measured[0].stop()  # which writes the profile
            finally:
                system.stop()
            stats = pstats.Stats(str(Path(temporary) / "profile"))
    finally:
        generator.close()
    table = cast(_Table, vars(stats)["stats"])
    # The loop's own time is that of waiting.
    work = [item for item in table.items() if "runners.py" not in item[0][0]]
    costs = sorted(work, key=lambda item: -item[1][2])[:5]
    lines = [f"five top costs of {_PROFILED} 3-step invocations (own time, under cProfile)"]
    for (path, line, name), (_, calls, own, _, _) in costs:
        where = f"{Path(path).name}:{line}" if line else "built in"
        lines.append(
            f"{own / _PROFILED * 1e6:>8.1f} us an invocation  {calls:>9,} calls  {name} ({where})"
        )
    return "\n".join(lines)
