"""What the operating system says of this process."""

import os
import resource
import sys
from dataclasses import dataclass

_PROC = "/proc/self"


@dataclass(frozen=True, slots=True)
class ProcessFigures:
    """``open_files`` is -1 where the system doesn't tell."""

    cpu_seconds: float
    resident_bytes: int
    open_files: int


def read_process() -> ProcessFigures:
    """This process, now."""
    times = os.times()
    return ProcessFigures(times.user + times.system, _resident_bytes(), _open_files())


def _resident_bytes() -> int:
    try:
        with open(f"{_PROC}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:  # no /proc: the most there ever was stands in for what is there now
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def _open_files() -> int:
    try:
        return len(os.listdir(f"{_PROC}/fd")) - 1  # the listing itself is one
    except OSError:
        return -1
