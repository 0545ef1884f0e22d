"""What the doctor says of each thing: how it is, where, and the next step. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any


class Level(IntEnum):
    """CRITICAL: it doesn't work, or won't. WARNING: something is about to go wrong, or less may
    fail than should. NOTE: good to know. OK: looked at, and well."""

    CRITICAL = 0
    WARNING = 1
    NOTE = 2
    OK = 3


@dataclass(frozen=True, slots=True)
class Finding:
    """``check``: what was looked at; ``where``: a path, an address, a setting. ``advice``: the next
    step; empty when nothing is wrong."""

    level: Level
    check: str
    what: str
    where: str = ""
    advice: str = ""


def ok(check: str, what: str, where: str = "") -> Finding:
    """Nothing is wrong with it."""
    return Finding(Level.OK, check, what, where)


def worst_first(findings: Iterable[Finding]) -> list[Finding]:
    """What is wrong before what is well; otherwise in the order in which it was found."""
    return sorted(findings, key=lambda finding: finding.level)


def finding_row(finding: Finding) -> dict[str, Any]:
    """For programs."""
    row: dict[str, Any] = {
        "level": finding.level.name.lower(),
        "check": finding.check,
        "what": finding.what,
    }
    if finding.where:
        row["where"] = finding.where
    if finding.advice:
        row["advice"] = finding.advice
    return row
