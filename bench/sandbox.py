"""A network and a process table of the benchmark's own, where the system allows it.

Nobody else's server can hold our ports or be measured, and whatever way the benchmark ends, the
kernel ends every process it started.
"""

import os
import shutil
import subprocess
import sys

_INSIDE = "BENCH_INSIDE"


def is_inside() -> bool:
    return _INSIDE in os.environ


def can_isolate() -> bool:
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        return False
    return subprocess.run(_isolated(["true"]), capture_output=True).returncode == 0


def enter(arguments: list[str], work: str) -> int:
    """Run the benchmark again, inside; its exit code."""
    command = _isolated([sys.executable, "-m", "bench", *arguments])
    child = subprocess.Popen(command, env={**os.environ, _INSIDE: work})
    try:
        return child.wait()
    except BaseException:
        child.kill()  # --kill-child: all inside goes with it
        child.wait()
        raise


def _isolated(command: list[str]) -> list[str]:
    isolate = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child", "--"]
    return [*isolate, "sh", "-c", 'ip link set lo up && exec "$@"', "sh", *command]


def work_folder() -> str:
    return os.environ[_INSIDE]
