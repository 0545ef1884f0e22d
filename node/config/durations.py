"""Durations as people write them: ``500ms``, ``1m 30s``, ``2 days``, ``PT1M30S``; kept in whole ms.

Pure. Used for configuration and by every interface that takes a duration in words.
"""

import re
from decimal import Decimal

_UNITS_MS: dict[str, Decimal] = {
    name: Decimal(size)
    for names, size in (
        (("ns", "nsec", "nanos"), "0.000001"),
        (("us", "usec", "µs", "micros"), "0.001"),
        (("ms", "msec", "millis", "millisecond", "milliseconds"), "1"),
        (("s", "sec", "secs", "second", "seconds"), "1000"),
        (("m", "min", "mins", "minute", "minutes"), "60000"),
        (("h", "hr", "hrs", "hour", "hours"), "3600000"),
        (("d", "day", "days"), "86400000"),
        (("w", "wk", "wks", "week", "weeks"), "604800000"),
    )
    for name in names
}
# The largest unit first; what ``format_duration`` writes with.
_WRITTEN = (("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1))
_PART = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zµ]+)\s*", re.ASCII)
_ISO = re.compile(
    r"P(?:(?P<w>[0-9]+)W)?(?:(?P<d>[0-9]+)D)?"
    r"(?:T(?:(?P<h>[0-9]+)H)?(?:(?P<m>[0-9]+)M)?(?:(?P<s>[0-9]+(?:[.,][0-9]+)?)S)?)?",
    re.ASCII,
)
# Longer text is no duration; it keeps arithmetic on hostile digits cheap.
_TEXT_LENGTH_MAX = 128
DURATION_MS_MAX = 1_000 * 365 * 86_400_000
SYNTAX = "a number with a unit (ms, s, m, h, d, w) such as '500ms' or '1h 30m', or ISO 8601 'PT90S'"


def parse_duration(text: str) -> int:
    """Milliseconds of a duration in words or ISO 8601; ``0`` needs no unit.

    Raises:
        ValueError: it is neither, is finer than a millisecond, or longer than a thousand years.
    """
    total = exact_milliseconds(text)
    if total != total.to_integral_value():
        raise ValueError("expected whole milliseconds, this is finer")
    if total > DURATION_MS_MAX:
        raise ValueError("expected at most a thousand years")
    return int(total)


def exact_milliseconds(text: str) -> Decimal:
    """As ``parse_duration``, with fractions of a millisecond kept and no limit.

    Raises:
        ValueError: it is neither in words nor ISO 8601.
    """
    stripped = text.strip()
    if len(stripped) > _TEXT_LENGTH_MAX:
        raise ValueError(f"expected {SYNTAX}")
    if stripped == "0":
        return Decimal(0)
    return _iso(stripped) if stripped[:1] in ("P", "p") else _words(stripped)


def format_duration(milliseconds: int) -> str:
    """The compact form, such as ``1d 2h`` or ``0s``; ``parse_duration`` reads it back."""
    if milliseconds == 0:
        return "0s"
    parts: list[str] = []
    left = milliseconds
    for unit, size in _WRITTEN:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts)


def _words(text: str) -> Decimal:
    total = Decimal(0)
    position = 0
    while position < len(text) or position == 0:
        part = _PART.match(text, position)
        if part is None:
            raise ValueError(f"expected {SYNTAX}")
        unit = _UNITS_MS.get(part[2])
        if unit is None:
            raise ValueError(f"unknown unit {part[2]!r}: expected {SYNTAX}")
        total += Decimal(part[1]) * unit
        position = part.end()
    return total


def _iso(text: str) -> Decimal:
    found = _ISO.fullmatch(text.upper())
    if found is None or text.upper().endswith("T") or not any(found.groups()):
        raise ValueError(f"expected {SYNTAX}; ISO years and months have no fixed length")
    return sum(
        (
            Decimal(value.replace(",", ".")) * _UNITS_MS[unit]
            for unit, value in found.groupdict().items()
            if value
        ),
        Decimal(0),
    )
