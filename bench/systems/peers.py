"""The Python packages of other systems, in an environment of their own."""

import subprocess
import sys

from bench.processes import CACHE, ROOT, NotHere

_ENVIRONMENT = CACHE / "peers"
_REQUIREMENTS = ROOT / "bench" / "peers.txt"
PYTHON = _ENVIRONMENT / "bin" / "python"


def install() -> None:
    """Everything in ``bench/peers.txt``; once for each state of that file."""
    stamp, wanted = _ENVIRONMENT / "installed", _REQUIREMENTS.read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    steps = [
        [sys.executable, "-m", "venv", str(_ENVIRONMENT)],
        [str(PYTHON), "-m", "pip", "install", "--quiet", "-r", str(_REQUIREMENTS)],
    ]
    for step in steps:
        if subprocess.run(step).returncode:
            raise NotHere(f"pip can't install {', '.join(wanted.split())}")
    stamp.write_text(wanted)
