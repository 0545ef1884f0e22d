"""Durations as clients write them in ``?delay=``: ISO 8601, or numbers with units. Pure.

``PT1M30S`` · ``P1DT12H`` · ``1h30m`` · ``60 sec`` · ``1.5s`` · ``1 hour, 30 minutes`` · ``900ms``.
A bare integer is milliseconds, as one SDK's client sends it. Months and years have no fixed
length and are refused, as is anything negative.
"""

import re
from decimal import Decimal

from perdure.core.errors import BadRequest
from perdure.core.limits import DELAY_MS_MAX

_SECOND_MS = Decimal(1000)
_MINUTE_MS = 60 * _SECOND_MS
_HOUR_MS = 60 * _MINUTE_MS
_DAY_MS = 24 * _HOUR_MS

# Largest first; a duration names each at most once, in this order.
_UNITS: tuple[tuple[Decimal, str], ...] = (
    (7 * _DAY_MS, "weeks week wks wk w"),
    (_DAY_MS, "days day d"),
    (_HOUR_MS, "hours hour hrs hr h"),
    (_MINUTE_MS, "minutes minute mins min m"),
    (_SECOND_MS, "seconds second secs sec s"),
    (Decimal(1), "milliseconds millisecond millis milli msecs msec ms"),
    (Decimal("0.001"), "microseconds microsecond micros micro usecs usec us µs"),
    (Decimal("0.000001"), "nanoseconds nanosecond nanos nano nsecs nsec ns"),
)
_SIZES = {name: size for size, names in _UNITS for name in names.split()}
_TEXT_MAX = 128
_NUMBER = r"[0-9]{1,20}(?:[.,][0-9]{1,9})?"
_ISO = re.compile(
    rf"P(?:(?P<w>{_NUMBER})W)?(?:(?P<d>{_NUMBER})D)?"
    rf"(?P<T>T(?:(?P<h>{_NUMBER})H)?(?:(?P<m>{_NUMBER})M)?(?:(?P<s>{_NUMBER})S)?)?",
    re.IGNORECASE | re.ASCII,
)
_ISO_SIZES = (
    ("w", 7 * _DAY_MS),
    ("d", _DAY_MS),
    ("h", _HOUR_MS),
    ("m", _MINUTE_MS),
    ("s", _SECOND_MS),
)
_PART = re.compile(r"([0-9]{1,20}(?:\.[0-9]{1,9})?)[ ]*([a-zµ]+)(?:[ ]*,[ ]+|[ ]*)")


def parse_delay_ms(text: str) -> int:
    """The duration in whole milliseconds, rounded down.

    Raises:
        BadRequest: not a duration, negative, or longer than the limit.
    """
    exact = _bare(text) if len(text) <= _TEXT_MAX else None
    if exact is None and len(text) <= _TEXT_MAX:
        exact = _iso(text) if text[:1] in ("P", "p") else _friendly(text)
    if exact is None:
        raise BadRequest(
            f"delay {text[:_TEXT_MAX]!r} is not a duration: write ISO 8601 such as PT1M30S, or "
            "numbers with units up to days such as 1m30s or 1500ms"
        )
    if exact > DELAY_MS_MAX:
        raise BadRequest(f"delay {text!r} is longer than {DELAY_MS_MAX // _DAY_MS} days")
    return int(exact)


def _bare(text: str) -> Decimal | None:
    return Decimal(text) if text.isascii() and text.isdigit() else None


def _iso(text: str) -> Decimal | None:
    matched = _ISO.fullmatch(text)
    if matched is None:
        return None
    stated = [(matched[name], size) for name, size in _ISO_SIZES if matched[name] is not None]
    numbers = [number.replace(",", ".") for number, _ in stated]
    # Only the last number may have a fraction, and a T announces a time.
    if not stated or any("." in number for number in numbers[:-1]) or matched["T"] in ("T", "t"):
        return None
    return sum(
        (Decimal(number) * size for number, (_, size) in zip(numbers, stated, strict=True)),
        Decimal(0),
    )


def _friendly(text: str) -> Decimal | None:
    rest = text.strip(" ").lower()
    total = Decimal(0)
    previous: Decimal | None = None
    position = 0
    while position < len(rest):
        matched = _PART.match(rest, position)
        if matched is None:
            return None
        size = _SIZES.get(matched[2])
        if size is None or (previous is not None and size >= previous):
            return None
        position = matched.end()
        if "." in matched[1] and position < len(rest):
            return None
        total += Decimal(matched[1]) * size
        previous = size
    return None if previous is None else total
