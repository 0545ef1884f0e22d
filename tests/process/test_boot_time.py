"""A boot after a crash is quick, however much is on disk: 100,000 invocations in ``make crash``."""

import asyncio
import os
from pathlib import Path

import pytest
from tests.process.boot_time import measure

_FULL_INVOCATIONS = 100_000
_SLICE_INVOCATIONS = 4_000
# To healthy, and to the first result.
_SECONDS_MAX = 2.0


@pytest.mark.slow
def test_a_boot_after_a_crash_takes_less_than_two_seconds(tmp_path: Path) -> None:
    is_full = "CRASH_KILLS" in os.environ
    figures = asyncio.run(measure(tmp_path, _FULL_INVOCATIONS if is_full else _SLICE_INVOCATIONS))
    print(figures)
    assert figures.healthy_seconds < _SECONDS_MAX, figures
    assert figures.first_result_seconds < _SECONDS_MAX, figures
