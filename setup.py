"""Refuse to build from a checkout that lost its room links; compile the hot paths where asked.

All else is in pyproject.toml. ``PERDURE_COMPILE=1 pip install …`` compiles the modules listed here
with mypyc: the same sources, a tenth less CPU (docs/benchmarks.md). Where that can't be done, for
want of a C compiler above all, it says so and installs perdure as it is.
"""

import os
import sys
import tomllib
from pathlib import Path
from typing import Any

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

# All that runs for an invocation and its steps: what compiling saves, it saves where compiled code
# calls compiled code, so half a path gains next to nothing. What is not here runs seldom, or can't
# be compiled: mypyc makes no classes with a metaclass (msgspec.Struct) and none that derive from
# OSError (storage/disk.py). The monitor of simulated clusters watches methods of five more, which
# compiled callers would not let it do: engine/apply, node/partition/processor, cluster/wal_writer,
# cluster/core/replica and cluster/core/sequencer.
COMPILED = {
    "core": "entropy hashing ids invariant limits summary",
    "proto": "frames",
    "storage": "env keys memtable partition_store wal wal_format",
    "engine": "actions completions effects futures invoke journal lifecycle notifications "
    "objects restart tape turn",
    "cluster": "core/quorum log log_server",
    "node/http": "accepted client connection exchange outgoing owner ports stream zttp_events "
    "zttp_http1 zttp_http2",
    "node/ingress": "content delays ingress paths pending submission tally",
    "node/invoker": "attempt batches gate invoker live_attempt retries run tally validation",
    "node/partition": "gateway leader shuffle timers",
    "node/registry": "effective",
}
COMPILER = "mypy>=2.4,<3"
# Read the types of what perdure imports; where it isn't installed, its values are of any type.
OPTIONS = ["--config-file=", "--explicit-package-bases"]
OPTIONS += ["--ignore-missing-imports", "--follow-imports=silent"]
IS_ASKED = os.environ.get("PERDURE_COMPILE", "") not in ("", "0")
IS_BUILDING = not {"build_ext", "bdist_wheel", "editable_wheel"}.isdisjoint(sys.argv)


def requirements() -> list[str]:
    """What compiling takes: the compiler, and the libraries for their types."""
    extras = tomllib.loads(Path("pyproject.toml").read_text())["project"]["optional-dependencies"]
    return [COMPILER, "types-protobuf>=6.30", *extras["server"]]


def extensions() -> list[Extension]:
    """C sources, written from the listed modules."""
    os.environ["MYPYPATH"] = "src"
    try:
        from mypyc.build import mypycify
    except ImportError as error:
        return give_up(f"there is no mypyc ({error})")
    paths = [
        f"src/perdure/{folder}/{name}.py"
        for folder in COMPILED
        for name in COMPILED[folder].split()
    ]
    try:
        made: list[Extension] = mypycify(
            [*OPTIONS, *paths],
            opt_level="2",
            debug_level="0",
            multi_file=True,
            group_name="perdure",
        )
    except SystemExit:  # which has said what it can't compile
        return give_up("mypyc refuses a module")
    return made


def give_up(why: str) -> list[Extension]:
    """Go on without; nobody shall think that it was done."""
    print(f"perdure is NOT compiled, and runs as plain Python: {why}", file=sys.stderr)
    return []


class BuildAllOrNothing(build_ext):
    """One library holds all modules: without it, none of the others may be there either."""

    def run(self) -> None:
        try:
            super().run()
        except (BaseError, CCompilerError) as error:
            for extension in self.extensions:
                Path(self.get_ext_fullpath(extension.name)).unlink(missing_ok=True)
            print(error, file=sys.stderr)
            self.extensions[:] = give_up("the C compiler fails, as said above")


for room in ("cluster", "core", "engine", "node", "proto", "storage"):
    if not Path("src/perdure", room, "__init__.py").is_file():
        raise SystemExit(f"src/perdure/{room} is not a link to {room}/: run `make links`")

compiling: dict[str, Any] = {}
if IS_ASKED:
    compiling["setup_requires"] = requirements()
    compiling["cmdclass"] = {"build_ext": BuildAllOrNothing}
    if IS_BUILDING:
        compiling["ext_modules"] = extensions()
setup(**compiling)
