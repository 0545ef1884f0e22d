"""From figures to a page in Markdown, its pictures, and JSON."""

import json
import math
from pathlib import Path
from statistics import median

from bench import svg
from bench.results import FLOORS, Results
from bench.targets import added_ms, hops_ms, middle_ratio, targets

_PAIRS = (
    ("perdure", "reference", "ratio"),
    ("perdure-ts", "reference-ts", "ratio of -ts"),
    ("perdure-compiled", "perdure", "compiled to not"),
)
"""Ours, theirs, and what their ratio is called."""

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
    lines += _aims(results)
    for picture in pictures:
        lines += [f"![{picture}]({picture}.svg)", ""]
    keys = results.keys()
    for workload in dict.fromkeys(key.split(":")[0] for key in keys):
        members = [key for key in keys if key.split(":")[0] == workload]
        lines += _table(results, workload, members)
    return "\n".join([*lines, *_distances(results, keys), *_added(results), *_shares(results)])


def _table(results: Results, workload: str, keys: list[str]) -> list[str]:
    shown = [
        name
        for name in (*results.systems, *FLOORS.values())
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
        if key.startswith("latency") and any(results.values(f, key) for f in FLOORS.values())
    ]
    if not floored:
        return []
    lines = ["## Distance to the floor", ""]
    lines += ["Added: measured minus floor; in brackets how many times the floor.", ""]
    lines += [_row(["", *floored]), _row(["---", *["---:"] * len(floored)])]
    for name in results.systems:
        cells: list[str] = []
        for key in floored:
            floor = results.middle(FLOORS["typescript" if name.endswith("-ts") else "python"], key)
            ours = results.middle(name, key)
            is_known = not math.isnan(ours - floor)
            cells.append(f"{_plain(ours - floor)} ({ours / floor:.1f}x)" if is_known else "-")
        lines.append(_row([name, *cells]))
    return [*lines, ""]


def _aims(results: Results) -> list[str]:
    lines = ["## What perdure aims at", "", _row(["", "aim", "measured", ""])]
    lines.append(_row(["---", "---:", "---:", "---"]))
    measured = [target for target in targets(results) if not math.isnan(target.value)]
    if not measured:
        return []
    for target in measured:
        sign = "at most" if target.is_most else "at least"
        aim = f"{sign} {_plain(target.bound)} {target.unit}"
        lines.append(_row([target.what, aim, _plain(target.value), target.verdict]))
    return [*lines, ""]


def _added(results: Results) -> list[str]:
    """What each system adds to a step, and how that compares with what the machine takes."""
    lines = ["## Added latency of a durable step", ""]
    lines += ["A further step of one client, minus the same step of the SDK alone.", ""]
    head = ["", "added, ms", "a sync and a round trip, ms", "times these"]
    rows: list[str] = []
    for name in _of_an_sdk(results):
        added, hops = added_ms(results, name), hops_ms(results, name)
        known = [value for value in added if not math.isnan(value)]
        if known:
            times = middle_ratio(added, hops)
            floor = [value for value in hops if not math.isnan(value)]
            rows.append(_row([name, _cell(known), _cell(floor), _plain(times)]))
    return [*lines, _row(head), _row(["---", *["---:"] * 3]), *rows, ""] if rows else []


def _shares(results: Results) -> list[str]:
    """How much of what the SDK alone can take gets through."""
    kinds = [
        (steps, clients)
        for steps in (0, 3)
        for clients in (50, 200)
        if any(results.values(f, _rate(steps, clients)) for f in FLOORS.values())
    ]
    if not kinds:
        return []
    lines = ["## Throughput, as a share of the SDK alone", ""]
    lines.append(_row(["", *(f"{steps} steps, {clients} clients" for steps, clients in kinds)]))
    lines.append(_row(["---", *["---:"] * len(kinds)]))
    for name in _of_an_sdk(results):
        floor = FLOORS["typescript" if name.endswith("-ts") else "python"]
        shares = [results.ratio(_rate(*kind), name, floor) for kind in kinds]
        lines.append(_row([name, *map(_plain, shares)]))
    return [*lines, ""]


def _of_an_sdk(results: Results) -> list[str]:
    """The systems whose service is the one that was driven alone."""
    return [name for name in results.systems if name.startswith(("perdure", "reference"))]


def _rate(steps: int, clients: int) -> str:
    return f"throughput: {steps} steps, {clients} clients, /s"


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
