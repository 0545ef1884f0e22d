"""Runs the ``perdure`` command inside the test, as a terminal would."""

import io
import json
from dataclasses import dataclass
from typing import Any

import pytest

from perdure.node.cli.main import run


@dataclass(frozen=True, slots=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The data on stdout."""
        return json.loads(self.out)

    @property
    def table(self) -> list[list[str]]:
        """The rows on stdout; columns stand two spaces or more apart."""
        return [
            [cell.strip() for cell in line.split("  ") if cell.strip()]
            for line in self.out.splitlines()
            if line.strip()
        ]


class Terminal:
    """Commands typed one after the other, against one admin address."""

    def __init__(
        self, capture: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self._capture = capture
        self._monkeypatch = monkeypatch

    def type(self, *arguments: str, answer: str = "") -> Done:
        """Run a command; ``answer`` is what is typed when it asks."""
        self._monkeypatch.setattr("sys.stdin", io.StringIO(answer))
        self._capture.readouterr()
        code = run(list(arguments))
        captured = self._capture.readouterr()
        return Done(code, captured.out, captured.err)
