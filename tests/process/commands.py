"""The command, as an operator types it against one of several processes."""

import json
import os
import subprocess
import sys
from typing import Any

from tests.process.cluster import ClusterNode
from tests.process.processes import ROOT

DEADLINE_SECONDS = 60.0


def perdure(node: ClusterNode, *arguments: str) -> tuple[int, Any]:
    """Run the command against a node; its exit code and what it printed as JSON."""
    where = ("--json", "--admin-url", f"http://127.0.0.1:{node.admin_port}")
    done = subprocess.run(
        [sys.executable, "-m", "perdure", *arguments, *where],
        cwd=ROOT,
        env={name: value for name, value in os.environ.items() if not name.startswith("PERDURE_")},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    return done.returncode, json.loads(done.stdout) if done.stdout else done.stderr
