"""The Grafana dashboards ask only for metrics and labels that a node has."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from perdure.node.metrics.readings import METRICS
from perdure.node.metrics.samples import Kind, Metric

FOLDER = Path(__file__).resolve().parents[3] / "deploy" / "grafana"
each_dashboard = pytest.mark.parametrize("name", [path.name for path in FOLDER.glob("*.json")])

_COMMON = {"cluster_name", "node_name"}
_NAME = re.compile(r"\b(?:restate|perdure|process)_\w+")
_BY = re.compile(r"\bby \(([^)]*)\)")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_LEGEND = re.compile(r"\{\{(\w+)\}\}")


def load(name: str) -> Any:
    return json.loads((FOLDER / name).read_text())


def series() -> dict[str, Metric]:
    """Every name that a scrape may hold, with its metric."""
    found: dict[str, Metric] = {}
    for metric in METRICS:
        if metric.kind is not Kind.COUNT:
            found[metric.name] = metric
        if metric.kind is Kind.SUMMARY:
            found[f"{metric.name}_sum"] = metric
        if metric.kind in (Kind.SUMMARY, Kind.COUNT):
            found[f"{metric.name}_count"] = metric
    return found


def targets(name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(p["title"], t) for p in load(name)["panels"] for t in p.get("targets", ())]


@each_dashboard
def test_every_metric_exists_with_the_labels_asked_for(name: str) -> None:
    known = series()
    assert targets(name)
    for title, target in targets(name):
        expression = target["expr"]
        names = _NAME.findall(expression)
        assert names, title
        labels = {*_MATCHER.findall(expression), *_LEGEND.findall(target["legendFormat"])}
        for group in _BY.findall(expression):
            labels |= {label.strip() for label in group.split(",")}
        for asked in names:
            assert asked in known, (title, asked)
            metric = known[asked]
            extra = {"quantile"} if metric.kind is Kind.SUMMARY else set[str]()
            assert labels <= {*metric.labels, *_COMMON, *extra}, (title, asked, labels)


@each_dashboard
def test_counters_are_shown_as_rates_and_gauges_are_not(name: str) -> None:
    known = series()
    for title, target in targets(name):
        expression = target["expr"]
        rated = set(re.findall(r"rate\((\w+)\{", expression))
        for asked in _NAME.findall(expression):
            metric = known[asked]
            grows = metric.kind in (Kind.COUNTER, Kind.COUNT) or asked != metric.name
            assert (asked in rated) == grows, (title, asked)


@each_dashboard
def test_the_variables_are_read_from_a_metric_that_exists(name: str) -> None:
    queries = [v["definition"] for v in load(name)["templating"]["list"] if v["type"] == "query"]
    assert len(queries) == 2
    for query in queries:
        assert set(_NAME.findall(query)) <= set(series())


def test_dashboards_have_names_of_their_own() -> None:
    found = [load(path.name) for path in FOLDER.glob("*.json")]
    assert len({item["uid"] for item in found}) == len({item["title"] for item in found}) == 2


@each_dashboard
def test_panels_have_ids_of_their_own_and_do_not_overlap(name: str) -> None:
    panels = load(name)["panels"]
    ids = [panel["id"] for panel in panels]
    assert len(ids) == len(set(ids))
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
