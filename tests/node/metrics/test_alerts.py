"""Alerts in deploy/prometheus ask only for what a node has, say what to do, and are on the page."""

import re
from pathlib import Path
from typing import Any

import yaml
from tests.node.metrics.test_dashboard import series

from perdure.node.metrics.samples import Kind

ROOT = Path(__file__).resolve().parents[3]
RULES = ROOT / "deploy" / "prometheus" / "perdure.rules.yaml"

_NAME = re.compile(r"\b(?:restate|perdure|process)_\w+")
_MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"")
_BY = re.compile(r"\bby \(([^)]*)\)")
_LABEL = re.compile(r"\$labels\.(\w+)")
_OVER_TIME = re.compile(r"\b(rate|increase|changes|delta)\((\w+)")
_COMMON = {"cluster_name", "node_name", "instance", "job"}
# What must wake somebody: each of them means that something was broken that must never be.
_PAGES = {
    "perdure_cluster_pin_conflicts_total",
    "perdure_cluster_identity_conflicts_total",
    "perdure_log_diverging_records",
    "perdure_metadata_is_readable",
    "perdure_partitions_halted",
}


def alerts() -> list[dict[str, Any]]:
    document = yaml.safe_load(RULES.read_text())
    return [rule for group in document["groups"] for rule in group["rules"]]


def test_every_metric_exists_with_the_labels_asked_for() -> None:
    known = series()
    for alert in alerts():
        expression, name = alert["expr"], alert["alert"]
        names = _NAME.findall(expression)
        assert names or expression.startswith("up{"), name
        asked = set(_MATCHER.findall(expression))
        said = set(_LABEL.findall(str(alert["annotations"])))
        kept = {label.strip() for group in _BY.findall(expression) for label in group.split(",")}
        assert not kept or said <= kept, (name, said, kept)
        for metric_name in names:
            assert metric_name in known, (name, metric_name)
            metric = known[metric_name]
            extra = {"quantile"} if metric.kind is Kind.SUMMARY else set[str]()
            assert asked | kept | said <= {*metric.labels, *_COMMON, *extra}, name


def test_counters_and_gauges_are_asked_for_as_such() -> None:
    known = series()
    for alert in alerts():
        for function, metric in _OVER_TIME.findall(alert["expr"]):
            is_counter = known[metric].kind is Kind.COUNTER
            assert is_counter == (function in ("rate", "increase")), alert["alert"]


def test_every_alert_says_how_bad_it_is_and_what_to_do() -> None:
    found = alerts()
    assert len({alert["alert"] for alert in found}) == len(found) > 20
    for alert in found:
        assert alert["labels"]["severity"] in ("page", "warn"), alert["alert"]
        assert set(alert["annotations"]) == {"summary", "description"}, alert["alert"]


def test_what_must_never_be_wakes_somebody() -> None:
    paging = [alert["expr"] for alert in alerts() if alert["labels"]["severity"] == "page"]
    assert {name for expression in paging for name in _NAME.findall(expression)} >= _PAGES


def test_every_alert_is_on_the_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text()
    for alert in alerts():
        assert f"`{alert['alert']}`" in page, alert["alert"]
