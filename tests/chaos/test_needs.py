"""Where chaos can't be run it says what is missing, and fails."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.slow
def test_nothing_passes_that_was_not_run(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.chaos", "--fault", "loss"],
        cwd=ROOT,
        env={"PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert "chaos can't be run here" in done.stderr
    assert "the command nsenter" in done.stderr
    assert "exactly right" not in done.stdout
