"""Samples as Prometheus text: the only module that knows the Prometheus library.

Imported by the first scrape, off the event loop: a node that nobody scrapes never loads it.
"""

from collections.abc import Iterable, Iterator
from typing import Final

from prometheus_client import generate_latest
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector, CollectorRegistry

from perdure.core.summary import QUANTILES, SummaryFigures
from perdure.node.metrics.samples import Kind, Metric, Sample

CONTENT_TYPE: Final = b"text/plain; version=0.0.4; charset=utf-8"
_COMMON = ("cluster_name", "node_name")


class _Families(Collector):
    def __init__(self, samples: Iterable[Sample], common: tuple[str, str]) -> None:
        self._samples = samples
        self._common = common

    def collect(self) -> Iterator[Family]:
        families: dict[Metric, Family] = {}
        for sample in self._samples:
            family = families.get(sample.metric)
            if family is None:
                family = families[sample.metric] = _family(sample.metric)
            names = (*_COMMON, *sample.metric.labels)
            labels = dict(zip(names, (*self._common, *sample.labels), strict=True))
            _add(family, sample, labels)
        yield from families.values()


def render(samples: Iterable[Sample], cluster_name: str, node_name: str) -> bytes:
    """The text of a scrape."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Families(samples, (cluster_name, node_name)))
    return generate_latest(registry)


def _family(metric: Metric) -> Family:
    kind = "summary" if metric.kind is Kind.COUNT else metric.kind.value
    if kind == "counter" and not metric.name.endswith("_total"):
        kind = "unknown"  # the library would call it …_total in its comments
    name = metric.name.removesuffix("_total") if kind == "counter" else metric.name
    return Family(name, metric.meaning, kind)


def _add(family: Family, sample: Sample, labels: dict[str, str]) -> None:
    name, value = sample.metric.name, sample.value
    if isinstance(value, SummaryFigures):
        for quantile, seconds in zip(QUANTILES, value.quantiles, strict=False):
            family.add_sample(name, {**labels, "quantile": f"{quantile:g}"}, seconds)
        family.add_sample(f"{name}_sum", labels, value.seconds)
        family.add_sample(f"{name}_count", labels, value.count)
    elif sample.metric.kind is Kind.COUNT:
        family.add_sample(f"{name}_count", labels, value)
    else:
        family.add_sample(name, labels, float(value))
