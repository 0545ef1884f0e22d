"""Delays of sends: what is read, what is refused, and a dumb twin."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.errors import BadRequest
from perdure.core.limits import DELAY_MS_MAX
from perdure.node.ingress.delays import parse_delay_ms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("PT1S", 1_000),
        ("P1D", 86_400_000),
        ("P1DT1H1M1.5S", 90_061_500),
        ("P1W", 604_800_000),
        ("1h30m", 5_400_000),
        ("1h 30m", 5_400_000),
        ("1 hour, 30 minutes", 5_400_000),
        ("60 sec", 60_000),
        ("1.5s", 1_500),
        ("60000ms", 60_000),
        ("1.5ms", 1),
        ("0s", 0),
        ("0", 0),
        ("1500", 1_500),
        (str(DELAY_MS_MAX), DELAY_MS_MAX),
    ],
)
def test_read(text: str, expected: int) -> None:
    assert parse_delay_ms(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "foo", "-1s", "-PT1S", "-1", "1mo", "1y", "P1M", "P1Y", "P", "PT", "P1DT"),
        *("1h,", "1 2s", "s", "1.s", "\u0661s", "1e3"),
        *(f"{DELAY_MS_MAX + 1}", "9" * 30, "9" * 300 + "s"),
    ],
)
def test_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        parse_delay_ms(text)


WORDS = {"d": 86_400_000, "hours": 3_600_000, "min": 60_000, "sec": 1_000, "ms": 1}
LETTERS = {"D": 86_400_000, "H": 3_600_000, "M": 60_000, "S": 1_000}
COUNTS = st.lists(st.integers(0, 999), min_size=5, max_size=5)


@given(COUNTS, st.sampled_from(["", " ", ", "]), st.sampled_from(["", " "]))
def test_words_add_up(counts: list[int], between: str, before_unit: str) -> None:
    parts = list(zip(counts, WORDS, strict=True))
    text = between.join(f"{count}{before_unit}{unit}" for count, unit in parts)
    assert parse_delay_ms(text) == sum(count * WORDS[unit] for count, unit in parts)


@given(COUNTS)
def test_iso_adds_up(counts: list[int]) -> None:
    parts = list(zip(counts, LETTERS, strict=False))
    days, *times = [f"{count}{letter}" for count, letter in parts]
    text = f"P{days}T{''.join(times)}"
    assert parse_delay_ms(text) == sum(count * LETTERS[letter] for count, letter in parts)


@given(st.text(max_size=12))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        assert 0 <= parse_delay_ms(text) <= DELAY_MS_MAX
    except BadRequest as refusal:
        assert refusal.message
