"""docs/logs.md lists every event that the code logs, with its level and fields; nothing else."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "logs.md"
ROOMS = ("core", "proto", "storage", "engine", "cluster", "node")

_LEVELS = ("debug", "info", "warning", "error")
_NAME = re.compile(r"[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)+")
_ROW = re.compile(r"^\| `([^`]+)` \| (\w+) \| ([^|]*)\| ([^|]+) \|$", re.MULTILINE)


class Logged(NamedTuple):
    """An event as the code logs it, or the page lists it."""

    event: str
    level: str
    fields: tuple[str, ...]


def logged() -> Iterator[tuple[str, Logged]]:
    """All ``log.<level>("event", …)`` of the code, with where they are."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            where = path.relative_to(ROOT).as_posix()
            for item in ast.walk(ast.parse(path.read_text())):
                match item:
                    case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level)) if (
                        level in _LEVELS
                    ):
                        yield f"{where}:{item.lineno}", _read(item, level)
                    case _:
                        pass


def _read(call: ast.Call, level: str) -> Logged:
    event = call.args[0]
    name = event.value if isinstance(event, ast.Constant) else ast.unparse(event)
    fields = sorted(word.arg or "**" for word in call.keywords if word.arg != "cause")
    return Logged(str(name), level, tuple(fields))


def listed() -> list[Logged]:
    """The rows of the page."""
    return [
        Logged(event, level, tuple(sorted(re.findall(r"`(\w+)`", fields))))
        for event, level, fields, _ in _ROW.findall(PAGE.read_text())
    ]


def test_events_have_stable_dotted_names() -> None:
    found = list(logged())
    assert len(found) > 30
    for where, item in found:
        assert _NAME.fullmatch(item.event), f"{where}: {item.event}"
        assert "**" not in item.fields, where


def test_an_event_has_one_level_and_one_set_of_fields() -> None:
    known: dict[str, Logged] = {}
    for where, item in logged():
        assert known.setdefault(item.event, item) == item, where


def test_the_page_lists_every_event_and_no_other() -> None:
    rows = listed()
    assert len({row.event for row in rows}) == len(rows)
    assert {item for _, item in logged()} == set(rows)


def test_areas_are_in_order_and_rows_too() -> None:
    events = [row.event for row in listed()]
    assert events == sorted(events)


def test_loggers_are_called_log() -> None:
    """Or the events above would not be found."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            for item in ast.walk(ast.parse(path.read_text())):
                if isinstance(item, ast.Assign) and isinstance(item.value, ast.Call):
                    called = ast.unparse(item.value.func)
                    if called in ("logger", "telemetry.logger"):
                        assert [ast.unparse(name) for name in item.targets] == ["log"], path
