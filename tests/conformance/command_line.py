"""Restate's own command line tool, run against the server under test."""

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.server import Server
from tests.conformance.services import install_packages, node

_FOLDER = Path(__file__).parent / "cli"
_SCRIPT = _FOLDER / "node_modules" / "@restatedev" / "restate" / "lib" / "index.js"
_TIMEOUT_S = 30.0
_EDITOR = """#!{python}
import pathlib, sys, urllib.request
path = pathlib.Path(sys.argv[1])
text = path.read_text()
{changes}
path.write_text(text)
"""
_STYLES = re.compile(r"\x1b\[[0-9;]*m")


@dataclass(frozen=True, slots=True)
class Done:
    """A command that has ended. ``text`` is what a reader sees of both its outputs."""

    code: int
    output: str
    text: str

    def rows(self) -> list[list[str]]:
        """The words of every line that has any."""
        return [line.split() for line in self.text.splitlines() if line.strip()]

    def row(self, *start: str) -> list[str]:
        """The line that begins with these words; the words after them."""
        for words in self.rows():
            if words[: len(start)] == list(start):
                return words[len(start) :]
        raise AssertionError(f"no line begins with {' '.join(start)!r}:\n{self.text}")


class CommandLine:
    """Runs ``restate --yes …`` with a configuration home of its own."""

    def __init__(self, server: Server, home: Path) -> None:
        install_packages(_FOLDER)
        self._home = home
        self._environment = {
            **os.environ,
            "RESTATE_ADMIN_URL": server.admin.url,
            "RESTATE_INGRESS_URL": server.ingress.url,
            "RESTATE_CLI_CONFIG_HOME": str(home),
            "DO_NOT_TRACK": "1",
            "NO_COLOR": "1",
            "NODE_NO_WARNINGS": "1",
        }

    def try_to(self, *arguments: str) -> Done:
        done = subprocess.run(
            [str(node()), str(_SCRIPT), "--yes", *arguments],
            cwd=self._home,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
            check=False,
        )
        both = _STYLES.sub("", done.stdout + done.stderr)
        return Done(done.returncode, done.stdout, both)

    def edit(self, changes: str, *arguments: str) -> Done:
        """Run a command that opens an editor and must succeed. ``changes``: statements of Python
        that make what is saved of what is there, both ``text``."""
        editor = self._home / "editor"
        editor.write_text(_EDITOR.format(python=sys.executable, changes=changes))
        editor.chmod(0o755)
        self._environment["VISUAL"] = str(editor)
        try:
            return self.run(*arguments)
        finally:
            del self._environment["VISUAL"]

    def run(self, *arguments: str) -> Done:
        """Run a command that must succeed."""
        done = self.try_to(*arguments)
        assert done.code == 0, done.text
        return done
