"""Rows of the table, read off statistics that are hard to come by."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from perdure.node.metrics.table import PARTITION


@pytest.mark.parametrize(
    ("is_leading", "tail", "applied", "lag"),
    [(True, 10, 7, 2), (True, 10, 9, 0), (False, 2, 30, 0), (False, 30, 2, 0)],
)
def test_who_leads_tells_the_lag(is_leading: bool, tail: int, applied: int, lag: int) -> None:
    """A follower knows the log as it was when it led last, which it may have led in vain."""
    (row,) = (row for row in PARTITION if row.metric.name == "restate_partition_applied_lsn_lag")
    partition = SimpleNamespace(
        leader=SimpleNamespace(is_leading=is_leading, log=SimpleNamespace(tail_lsn=tail)),
        processor=SimpleNamespace(applied_lsn=applied),
    )
    assert row.read(cast(Any, partition)) == lag
