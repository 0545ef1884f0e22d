"""On which lines of a TOML file its keys stand, for error messages. Pure, and only that exact.

The parser of the standard library keeps no positions. Plain ``key = value`` lines below plain
``[table]`` lines are found, which is how people write; what isn't found has no line.
"""

import re

_TABLE = re.compile(r"\s*\[\s*([A-Za-z0-9_.\s-]+?)\s*\]\s*(?:#.*)?")
_KEY = re.compile(r"\s*([A-Za-z0-9_-]+(?:\s*\.\s*[A-Za-z0-9_-]+)*)\s*=")


def lines_of_keys(text: str) -> dict[tuple[str, ...], int]:
    """Line numbers, from 1, by key path; tables have the line of their header."""
    found: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        header = _TABLE.fullmatch(line)
        if header is not None:
            table = _split(header[1])
            found.setdefault(table, number)
        elif (key := _KEY.match(line)) is not None:
            found.setdefault((*table, *_split(key[1])), number)
    return found


def _split(dotted: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in dotted.split("."))
