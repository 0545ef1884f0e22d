"""The suite against a compiled build (setup.py): ``python -m tests.compiled [pytest options]``."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from bench.compiled import build_compiled, environment
from bench.processes import NotHere

# Tests that work by replacing, deriving from or watching what compiled code binds for good or
# hides. They prove that other tests would notice a broken rule, or look at how something is done,
# and do that where the code is interpreted. The last two ask git, which doesn't know the copy.
OF_INTERPRETED_CODE = [
    "tests/cluster/test_follower.py::test_a_record_that_all_replicas_lost_is_data_loss",
    "tests/node/invoker/test_invoker.py::test_attempts_leave_no_cycles",  # weak references
    "tests/node/partition/test_leader.py"
    "::test_who_resigned_reads_its_old_announcement_and_stays_out_of_office[True]",
    "tests/node/query/test_members.py",  # a stand-in for the leader
    "tests/sim/test_cluster.py"
    "::test_a_broken_promise_is_noticed[followers read what isn't committed]",
    "tests/sim/test_cluster.py::test_a_broken_promise_is_noticed"
    "[what was to be sent before the process stood still is sent]",
    "tests/sim/test_node.py::test_a_broken_rule_is_noticed",
    "tests/test_docs.py",
    "tests/test_package.py",
]


def main(options: list[str]) -> int:
    with tempfile.TemporaryDirectory(prefix="perdure-compiled-") as temporary:
        copy = Path(temporary)
        try:
            build_compiled(copy)
        except NotHere as reason:
            print(reason, file=sys.stderr)
            return 1
        skipped = [f"--deselect={test}" for test in OF_INTERPRETED_CODE]
        run = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *skipped, *options]
        return subprocess.run(run, cwd=copy, env={**os.environ, **environment(copy)}).returncode


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
