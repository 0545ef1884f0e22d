"""A perdure server that kills itself at a named instant: the log's failpoints, armed with SIGKILL.

Run as ``python -m tests.process.dying_server server …`` with ``DYING_AT=<failpoint>:<count>``: the
process is killed when the failpoint is passed for the count-th time. Without the variable it is an
ordinary server.
"""

import os
import signal

from perdure.core.failpoint import arm
from perdure.node.cli.main import main

VARIABLE = "DYING_AT"

LOG_FAILPOINTS = ("wal.before_write", "wal.before_sync", "wal.after_sync")


def arm_death(name: str, count: int) -> None:
    """Have the process killed at the ``count``-th pass."""
    left = count

    def die() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    arm(name, die)


if __name__ == "__main__":
    if place := os.environ.get(VARIABLE):
        failpoint, _, number = place.rpartition(":")
        arm_death(failpoint, int(number))
    main()
