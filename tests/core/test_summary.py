"""Summaries count everything and remember the latest."""

import pytest

from perdure.core.summary import RECENT_COUNT, Summary


def test_nothing_has_no_quantiles() -> None:
    figures = Summary().figures()
    assert (figures.count, figures.seconds, figures.quantiles) == (0, 0.0, ())


def test_quantiles_are_values_that_were_seen() -> None:
    summary = Summary()
    for hundredths in range(100, -1, -1):
        summary.add(hundredths / 100)
    figures = summary.figures()
    assert figures.count == 101
    assert figures.seconds == pytest.approx(50.5)
    assert figures.quantiles == (0.5, 0.9, 0.99, 1.0)


def test_only_the_latest_have_a_say_in_quantiles() -> None:
    summary = Summary()
    for _ in range(RECENT_COUNT + 1):
        summary.add(1000.0)
    for _ in range(RECENT_COUNT):
        summary.add(1.0)
    figures = summary.figures()
    assert figures.quantiles == (1.0, 1.0, 1.0, 1.0)
    assert figures.count == 2 * RECENT_COUNT + 1
    assert figures.seconds == pytest.approx(1000.0 * (RECENT_COUNT + 1) + RECENT_COUNT)
