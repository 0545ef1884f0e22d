"""From figures to a page in Markdown, its pictures, and JSON."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from bench import svg
from bench.sizes import Sizes
from bench.workloads import Figures

Taken = dict[str, list[Figures | None]]
"""System to its runs in order; None where a run gave nothing. Index i of all is one round."""
_PAIRS = (("perdure", "reference", "ratio"), ("perdure-ts", "reference-ts", "ratio of -ts"))
"""Ours, theirs, and what their ratio is called."""
_FLOORS = {"python": "floor", "typescript": "floor-ts"}

_GROUPS = {
    "cpu": (
        "CPU of an invocation, 50 clients",
        "ms",
        [f"cpu: {n} steps, {who}, ms" for n in (0, 3) for who in ("system", "system and service")],
    ),
    "memory": (
        "Memory",
        "MB",
        ["start: memory idle, MB", "start: memory after load, MB"],
    ),
    "start": (
        "Start",
        "s",
        ["start: process to healthy, s", "start: process to first result, s"],
    ),
}
"""Pictures of bars: title, unit, and the figures in them."""


@dataclass(slots=True)
class Results:
    """All that was measured, and what wasn't."""

    about: dict[str, str]
    sizes: Sizes
    systems: list[str]
    runs: Taken = field(default_factory=dict[str, "list[Figures | None]"])
    samples: dict[str, dict[str, list[list[float]]]] = field(
        default_factory=dict[str, "dict[str, list[list[float]]]"]
    )
    missing: dict[str, str] = field(default_factory=dict[str, str])
    failures: list[str] = field(default_factory=list[str])

    def add(self, system: str, run: int, figures: Figures) -> None:
        rows = self.runs.setdefault(system, [])
        while len(rows) <= run:
            rows.append(None)
        rows[run] = {**(rows[run] or {}), **figures}

    def values(self, system: str, key: str) -> list[float]:
        return [row[key] for row in self.runs.get(system, []) if row and key in row]

    def middle(self, system: str, key: str) -> float:
        values = self.values(system, key)
        return median(values) if values else math.nan

    def keys(self) -> list[str]:
        seen: dict[str, None] = {}
        for rows in self.runs.values():
            for row in rows:
                seen.update(dict.fromkeys(row or {}))
        return list(seen)

    def ratio(self, key: str, ours: str, theirs: str) -> float:
        """The median of the ratios within each round: drift between rounds cancels out."""
        pairs = zip(self.runs.get(ours, []), self.runs.get(theirs, []), strict=False)
        ratios = [
            mine[key] / its[key]
            for mine, its in pairs
            if mine and its and key in mine and its.get(key)
        ]
        return median(ratios) if ratios else math.nan


def write(results: Results, folder: Path) -> str:
    """The page and all beside it; the page's text."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = draw(results)
    for name, picture in pictures.items():
        (folder / f"{name}.svg").write_text(picture)
    text = page(results, list(pictures))
    (folder / "results.md").write_text(text)
    record = {
        "about": results.about,
        "systems": results.systems,
        "missing": results.missing,
        "failures": results.failures,
        "runs": results.runs,
        "latency_quantiles_ms": results.samples,
    }
    (folder / "results.json").write_text(json.dumps(record, indent=1) + "\n")
    return text


def page(results: Results, pictures: list[str]) -> str:
    about = results.about
    lines = ["# Benchmark results", ""]
    lines += [f"{name}: {value}  " for name, value in about.items()]
    lines += [
        "",
        "Each figure is the median of interleaved runs, with the lowest and highest in brackets. "
        "The ratio is perdure to the reference, taken within each round; below 1 is better for "
        "times, memory and CPU, above 1 for rates. `floor` is what the machine and the SDK alone "
        "take.",
        "",
    ]
    lines += [f"- **{name} is not on this page**: {why}" for name, why in results.missing.items()]
    lines += [f"- **failed**: {failure}" for failure in results.failures]
    lines.append("")
    for picture in pictures:
        lines += [f"![{picture}]({picture}.svg)", ""]
    keys = results.keys()
    for workload in dict.fromkeys(key.split(":")[0] for key in keys):
        members = [key for key in keys if key.split(":")[0] == workload]
        lines += _table(results, workload, members)
    return "\n".join(lines + _distances(results, keys))


def _table(results: Results, workload: str, keys: list[str]) -> list[str]:
    shown = [
        name
        for name in (*results.systems, *_FLOORS.values())
        if any(results.values(name, key) for key in keys)
    ]
    pairs = [pair for pair in _PAIRS if pair[0] in shown and pair[1] in shown]
    head = ["", *shown, *(title for _, _, title in pairs)]
    lines = [f"## {workload}", "", _row(head), _row(["---", *["---:"] * (len(head) - 1)])]
    for key in keys:
        cells = [_cell(results.values(name, key)) for name in shown]
        cells += [_plain(results.ratio(key, ours, theirs)) for ours, theirs, _ in pairs]
        lines.append(_row([key.split(": ", 1)[1], *cells]))
    return [*lines, ""]


def _distances(results: Results, keys: list[str]) -> list[str]:
    """How far each latency is from what no server can beat."""
    floored = [
        key
        for key in keys
        if key.startswith("latency") and any(results.values(f, key) for f in _FLOORS.values())
    ]
    lines = ["## Distance to the floor", ""]
    lines += ["Added: measured minus floor; in brackets how many times the floor.", ""]
    lines += [_row(["", *floored]), _row(["---", *["---:"] * len(floored)])]
    for name in results.systems:
        cells: list[str] = []
        for key in floored:
            floor = results.middle(_FLOORS["typescript" if name.endswith("-ts") else "python"], key)
            ours = results.middle(name, key)
            is_known = not math.isnan(ours - floor)
            cells.append(f"{_plain(ours - floor)} ({ours / floor:.1f}x)" if is_known else "-")
        lines.append(_row([name, *cells]))
    return [*lines, ""]


def draw(results: Results) -> dict[str, str]:
    """The pictures that there are figures for."""
    sizes, pictures = results.sizes, dict[str, str]()
    for steps in (0, 3):
        series = [
            svg.Line(name, points)
            for name in results.systems
            if (points := _curve(results, name, steps))
        ]
        if series:
            title = f"Throughput, {steps} durable steps"
            pictures[f"throughput-{steps}-steps"] = svg.lines(
                title, "concurrent clients", "invocations/s", series, log_x=True, log_y=False
            )
    for steps in sizes.steps[:3]:
        series = [
            svg.Line(name, _distribution(samples[f"{steps} steps"]))
            for name, samples in results.samples.items()
            if f"{steps} steps" in samples
        ]
        if series:
            title = f"Latency, {steps} durable steps, one client"
            pictures[f"latency-{steps}-steps"] = svg.lines(
                title, "percentile", "ms", series, log_x=False, log_y=True
            )
    for name, (title, unit, keys) in _GROUPS.items():
        rows = {
            system: [results.middle(system, key) for key in keys]
            for system in results.systems
            if any(results.values(system, key) for key in keys)
        }
        if rows:
            labels = [key.split(": ", 1)[1].rsplit(",", 1)[0] for key in keys]
            pictures[name] = svg.bars(title, unit, labels, rows)
    return pictures


def _curve(results: Results, name: str, steps: int) -> list[tuple[float, float]]:
    points = (
        (float(clients), results.middle(name, f"throughput: {steps} steps, {clients} clients, /s"))
        for clients in results.sizes.clients
    )
    return [(clients, rate) for clients, rate in points if not math.isnan(rate)]


def _distribution(runs: list[list[float]]) -> list[tuple[float, float]]:
    return [(float(at), median(run[at] for run in runs)) for at in range(1, 100)]


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(values: list[float]) -> str:
    if not values:
        return "-"
    if len(values) == 1:
        return f"{_plain(values[0])} (1 run)"
    return f"{_plain(median(values))} [{_plain(min(values))}, {_plain(max(values))}]"


def _plain(value: float) -> str:
    if math.isnan(value):
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.01 else f"{value:.3f}"
