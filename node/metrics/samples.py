"""What a metric is, and one value of one. Pure."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Generic, TypeVar

from perdure.core.summary import SummaryFigures

S = TypeVar("S")


class Kind(Enum):
    """COUNTER only grows, and starts at 0 with the process; GAUGE goes both ways; SUMMARY has
    ``_count``, ``_sum`` and quantiles; COUNT is a summary of which only ``_count`` is known."""

    COUNTER = "counter"
    GAUGE = "gauge"
    SUMMARY = "summary"
    COUNT = "count"


@dataclass(frozen=True, slots=True)
class Metric:
    """A metric. ``labels``: besides ``cluster_name`` and ``node_name``, which all have."""

    name: str
    kind: Kind
    meaning: str
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Row(Generic[S]):
    """A metric with one value per subject, and how to read it."""

    metric: Metric
    read: Callable[[S], float]


@dataclass(frozen=True, slots=True)
class Sample:
    """A value. ``labels``: the values of the metric's labels, in order."""

    metric: Metric
    labels: tuple[str, ...]
    value: float | SummaryFigures


def counter(name: str, meaning: str, read: Callable[[S], float], label: str = "") -> Row[S]:
    """A row that counts."""
    return Row(Metric(name, Kind.COUNTER, meaning, (label,) if label else ()), read)


def gauge(name: str, meaning: str, read: Callable[[S], float], label: str = "") -> Row[S]:
    """A row that measures."""
    return Row(Metric(name, Kind.GAUGE, meaning, (label,) if label else ()), read)
