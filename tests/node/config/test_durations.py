"""Durations in words and ISO 8601: what is read, what is refused, and the way back."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.node.config.durations import DURATION_MS_MAX, format_duration, parse_duration

SECOND, MINUTE, HOUR, DAY = 1_000, 60_000, 3_600_000, 86_400_000


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("0", 0),
        ("0s", 0),
        ("500ms", 500),
        ("1.5s", 1_500),
        ("1m", MINUTE),
        ("1h30m", 90 * MINUTE),
        ("1h 30m", 90 * MINUTE),
        (" 2 days ", 2 * DAY),
        ("3d 2h", 3 * DAY + 2 * HOUR),
        ("1 week", 7 * DAY),
        ("1000000 ns", 1),
        ("2000us", 2),
        ("10 min", 10 * MINUTE),
        ("PT1M30S", 90 * SECOND),
        ("pt1m30s", 90 * SECOND),
        ("P1DT2H", DAY + 2 * HOUR),
        ("P2W", 14 * DAY),
        ("P0D", 0),
        ("PT0.5S", 500),
        ("PT86400S", DAY),
    ],
)
def test_reads(text: str, milliseconds: int) -> None:
    assert parse_duration(text) == milliseconds


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a number with a unit"),
        ("90", "a number with a unit"),
        ("s", "a number with a unit"),
        ("-5s", "a number with a unit"),
        ("5 fortnights", "unknown unit 'fortnights'"),
        ("5s and more", "a number with a unit"),
        ("0.5ms", "whole milliseconds"),
        ("1ns", "whole milliseconds"),
        ("P1Y", "no fixed length"),
        ("P1M", "no fixed length"),
        ("P", "no fixed length"),
        ("PT", "no fixed length"),
        ("P1DT", "no fixed length"),
        ("1001 d " * 400, "a number with a unit"),
        ("400000 d", "a thousand years"),
        ("\u0663s", "a number with a unit"),
    ],
)
def test_refuses_and_says_what_is_allowed(text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        parse_duration(text)


@given(st.integers(0, DURATION_MS_MAX))
def test_reads_back_what_it_writes(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds)) == milliseconds


@given(st.integers(0, 1000), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59_999))
def test_words_and_iso_agree(days: int, hours: int, minutes: int, milliseconds: int) -> None:
    words = f"{days}d {hours}h {minutes}m {milliseconds}ms"
    iso = f"P{days}DT{hours}H{minutes}M{milliseconds / 1000:.3f}S"
    assert parse_duration(words) == parse_duration(iso)


@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    with suppress(ValueError):
        assert 0 <= parse_duration(text) <= DURATION_MS_MAX
