"""Whether a data directory may serve: the whole table."""

import pytest

from perdure.cluster.core.identity import Published, Verdict, judge


@pytest.mark.parametrize(
    ("marker", "published", "writable", "verdict"),
    [
        (None, None, False, Verdict.JOIN),
        (None, 0, False, Verdict.JOIN),
        (None, 3, False, Verdict.JOIN),
        (None, 1, True, Verdict.DATA_LOSS),
        (0, None, False, Verdict.START),
        (1, None, False, Verdict.START),  # a crash between marker and metadata, at the first start
        (2, None, False, Verdict.METADATA_REGRESSED),
        (4, 5, True, Verdict.DATA_LOSS),
        (5, 5, True, Verdict.START),
        (6, 5, True, Verdict.START),
        (7, 5, True, Verdict.METADATA_REGRESSED),
    ],
)
def test_the_table(
    marker: int | None, published: int | None, writable: bool, verdict: Verdict
) -> None:
    known = None
    if published is not None:
        known = Published(generation=published, was_writable=writable)
    assert judge(marker, known) is verdict
