"""Run the suite against perdure and against the reference server, and say where they differ.

``make compat``, or ``python -m tests.conformance.compare [pytest's arguments]``. A test that only
perdure passes is an intended difference if it is marked with ``differs``, whose reason stands in
docs/compatibility.md; without the mark it is a claim that nothing supports. Exits with 1 when
perdure fails, when a difference has no mark, or when a mark marks none.
"""

import os
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from tests.conformance.services import ROOT, install_packages

_FOLDER = Path(__file__).parent
# Perdure would take variables of this form for settings of its own.
_CHOICES = ("PERDURE_UNDER_TEST", "PERDURE_REFERENCE_SERVER")
_NO_TESTS_FAILED, _SOME_FAILED = 0, 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """Of one test. ``reason``: why it is meant to differ, if only ``sometimes``."""

    has_passed: bool
    reason: str | None
    is_sometimes: bool = False


Outcomes = dict[str, Outcome]


def read_report(path: Path) -> Outcomes:
    """The outcomes in a report in JUnit's format."""
    outcomes: Outcomes = {}
    for case in ElementTree.parse(path).iter("testcase"):
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        properties = {each.get("name"): each.get("value") for each in case.iter("property")}
        is_unfit = any(case.find(tag) is not None for tag in ("failure", "error", "skipped"))
        outcomes[name] = Outcome(not is_unfit, properties.get("differs"), "sometimes" in properties)
    return outcomes


def compare(perdure: Outcomes, reference: Outcomes) -> tuple[str, bool]:
    """The differences as text, and whether all is as it is meant to be."""
    failed = [name for name, outcome in perdure.items() if not outcome.has_passed]
    only_perdure = {
        name: outcome.reason
        for name, outcome in perdure.items()
        if outcome.has_passed and not (name in reference and reference[name].has_passed)
    }
    unmarked = [name for name, reason in only_perdure.items() if reason is None]
    reasons = Counter(reason for reason in only_perdure.values() if reason is not None)
    idle = [
        name
        for name, outcome in perdure.items()
        if outcome.reason is not None and not outcome.is_sometimes
        if outcome.has_passed and name not in only_perdure
    ]
    agreed = sum(outcome.has_passed for outcome in perdure.values()) - len(only_perdure)
    lines = [f"{len(perdure)} tests; both servers pass {agreed}."]
    lines += [f"  differs on purpose ({count}): {reason}" for reason, count in reasons.items()]
    for title, names in (
        ("perdure fails", failed),
        ("only perdure passes, without a reason", unmarked),
        ("marked as different, but both pass", idle),
    ):
        lines += [f"{title}:", *(f"  {name}" for name in names)] if names else []
    return "\n".join(lines), bool(perdure) and not (failed or unmarked or idle)


def find_reference() -> str:
    """The reference server's binary: as told, or installed with npm."""
    given = os.environ.get("PERDURE_REFERENCE_SERVER")
    if given:
        return given
    folder = _FOLDER / "reference"
    install_packages(folder)
    packages = (folder / "node_modules" / "@restatedev").glob("restate-server-*/bin/restate-server")
    return str(next(packages))


def _run(server: str, report: Path, arguments: list[str]) -> Outcomes:
    environment = {name: value for name, value in os.environ.items() if name not in _CHOICES}
    if server == "reference":
        environment |= dict(zip(_CHOICES, ("reference", find_reference()), strict=True))
    # What the reference server fails at is told below.
    shown = ["--tb=no", "-rN"] if server == "reference" else ["--tb=short"]
    command = [sys.executable, "-m", "pytest", "-q", *shown, f"--junitxml={report}"]
    # The examples' demo starts perdure itself.
    command += ["--deselect", "tests/conformance/test_examples.py", *(arguments or [str(_FOLDER)])]
    print(f"--- {server}", flush=True)
    done = subprocess.run(command, cwd=ROOT, env=environment, check=False)
    if done.returncode not in (_NO_TESTS_FAILED, _SOME_FAILED):
        sys.exit(f"pytest ended with {done.returncode}")
    return read_report(report)


def main(arguments: list[str]) -> int:
    with tempfile.TemporaryDirectory() as directory:
        reference, perdure = (
            _run(server, Path(directory) / f"{server}.xml", arguments)
            for server in ("reference", "perdure")
        )
    text, is_as_meant = compare(perdure, reference)
    print(text)
    return 0 if is_as_meant else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
