"""A compiled build of the checkout (setup.py), made in a copy of it.

What it leaves beside the sources would be what everybody in the checkout runs.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from bench.processes import ROOT, NotHere

_STAMP = ".compiled"
"""Names the sources of a finished build: of the same ones there is nothing to do."""


def environment(copy: Path) -> dict[str, str]:
    """In which Python finds the build in ``copy``."""
    return {"PYTHONPATH": f"{copy / 'src'}:{copy}"}


def build_compiled(copy: Path) -> None:
    """Copy what git would ship, and compile it there; raises NotHere with the reason."""
    shipped = _shipped()
    stamp, sources = copy / _STAMP, _digest(shipped)
    if stamp.exists() and stamp.read_text() == sources:
        return
    shutil.rmtree(copy, ignore_errors=True)
    for name in shipped:
        target = copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, target, follow_symlinks=False)
    _compile(copy, {**os.environ, **environment(copy), "PERDURE_COMPILE": "1"})
    stamp.write_text(sources)


def _compile(copy: Path, env: dict[str, str]) -> None:
    command = [sys.executable, "setup.py", "build_ext", "--inplace", "--parallel", "2"]
    log = copy / "build.log"
    with log.open("wb") as output:
        subprocess.run(command, cwd=copy, env=env, stdout=output, stderr=output)
    ask = [sys.executable, "-m", "perdure", "version", "--json"]
    answer = subprocess.run(ask, cwd=copy, env=env, check=True, stdout=subprocess.PIPE).stdout
    if json.loads(answer)["code"] != "compiled":
        said = log.read_text(errors="replace")
        print(said, file=sys.stderr)
        why = [line for line in said.splitlines() if "NOT compiled" in line]
        raise NotHere(why[-1] if why else "perdure can't be compiled")


def _shipped() -> list[str]:
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE)
    if listed.returncode:
        raise NotHere("only a checkout of git can be copied and compiled")
    names = sorted(filter(None, listed.stdout.decode().split("\0")))
    return [name for name in names if os.path.lexists(ROOT / name)]


def _digest(names: list[str]) -> str:
    digest = hashlib.sha256(f"{sys.executable} {sys.version}".encode())
    for name in names:
        if name.endswith(".py") and not name.startswith(("tests/", "bench/")):
            digest.update(name.encode() + b"\0" + (ROOT / name).read_bytes())
    return digest.hexdigest()
