"""Rows of the table, read off statistics that are hard to come by."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from perdure.node.metrics.table import PARTITION


@pytest.mark.parametrize(("tail", "applied", "lag"), [(10, 7, 2), (10, 9, 0), (2, 30, 0)])
def test_no_lag_is_negative(tail: int, applied: int, lag: int) -> None:
    """A follower has applied more than the log had when it led last."""
    (row,) = (row for row in PARTITION if row.metric.name == "restate_partition_applied_lsn_lag")
    partition = SimpleNamespace(
        leader=SimpleNamespace(log=SimpleNamespace(tail_lsn=tail)),
        processor=SimpleNamespace(applied_lsn=applied),
    )
    assert row.read(cast(Any, partition)) == lag
