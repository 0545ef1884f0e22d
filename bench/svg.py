"""Pictures without a library: lines and grouped bars as SVG."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

_WIDTH, _HEIGHT = 720, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 170, 36, 48
_COLOURS = ("#0b6e4f", "#c8553d", "#3c91e6", "#e0a030", "#7d5ba6", "#5f6b6d", "#2bb3a3", "#a23b72")
_FONT = "font-family='system-ui, sans-serif' font-size='12' fill='#333'"


class Line(NamedTuple):
    name: str
    points: Sequence[tuple[float, float]]


class _Axis:
    """From values to places; logarithmic or from zero."""

    def __init__(self, values: Sequence[float], start: float, end: float, is_log: bool) -> None:
        self._is_log, self._start, self._end = is_log, start, end
        positive = [value for value in values if value > 0] or [1.0]
        if is_log:
            self.low, self.high = math.log10(min(positive)), math.log10(max(positive))
        else:
            self.low, self.high = 0.0, max(positive)
        if self.high - self.low < 1e-9:
            self.high = self.low + 1.0

    def place(self, value: float) -> float:
        if self._is_log:
            value = math.log10(max(value, 10**self.low))
        share = (value - self.low) / (self.high - self.low)
        return self._start + share * (self._end - self._start)

    def ticks(self) -> list[float]:
        if not self._is_log:
            step = 10 ** math.floor(math.log10(self.high / 2))
            step *= next(factor for factor in (1, 2, 5, 10) if self.high / (step * factor) <= 6)
            return [step * number for number in range(int(self.high / step) + 1)]
        decades = range(math.floor(self.low), math.ceil(self.high) + 1)
        marks = [factor * 10.0**decade for decade in decades for factor in (1, 2, 5)]
        inside = [mark for mark in marks if self.low <= math.log10(mark) <= self.high]
        return inside if len(inside) <= 9 else [m for m in inside if f"{m:e}".startswith("1")]


def lines(
    title: str, across: str, up: str, series: Sequence[Line], *, log_x: bool, log_y: bool
) -> str:
    """A curve for each series, with its points."""
    horizontal = _Axis(
        [x for line in series for x, _ in line.points], _LEFT, _WIDTH - _RIGHT, log_x
    )
    vertical = _Axis([y for line in series for _, y in line.points], _HEIGHT - _BOTTOM, _TOP, log_y)
    parts = [_grid_line(vertical.place(tick), tick) for tick in vertical.ticks()]
    for tick in horizontal.ticks():
        parts.append(_text(horizontal.place(tick), _HEIGHT - _BOTTOM + 18, _number(tick), "middle"))
    for number, line in enumerate(series):
        colour = _COLOURS[number % len(_COLOURS)]
        places = [(horizontal.place(x), vertical.place(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='2'/>")
        if len(places) <= 12:
            parts += [
                f"<circle cx='{x:.1f}' cy='{y:.1f}' r='3' fill='{colour}'/>" for x, y in places
            ]
    return _frame(title, across, up, [line.name for line in series], parts)


def bars(title: str, up: str, groups: Sequence[str], series: Mapping[str, Sequence[float]]) -> str:
    """Bars side by side for each group; nan: no bar."""
    values = [value for row in series.values() for value in row if not math.isnan(value)]
    vertical = _Axis(values, _HEIGHT - _BOTTOM, _TOP, is_log=False)
    parts = [_grid_line(vertical.place(tick), tick) for tick in vertical.ticks()]
    group_width = (_WIDTH - _LEFT - _RIGHT) / max(len(groups), 1)
    width = group_width * 0.8 / max(len(series), 1)
    for index, group in enumerate(groups):
        left = _LEFT + index * group_width + group_width * 0.1
        middle = left + group_width * 0.4
        parts.append(_text(middle, _HEIGHT - _BOTTOM + 18, group, "middle"))
        for number, row in enumerate(series.values()):
            if math.isnan(row[index]):
                continue
            top = vertical.place(row[index])
            colour = _COLOURS[number % len(_COLOURS)]
            parts.append(
                f"<rect x='{left + number * width:.1f}' y='{top:.1f}' width='{width * 0.92:.1f}' "
                f"height='{_HEIGHT - _BOTTOM - top:.1f}' fill='{colour}'/>"
            )
    return _frame(title, "", up, list(series), parts)


def _frame(title: str, across: str, up: str, names: list[str], parts: list[str]) -> str:
    legend: list[str] = []
    for number, name in enumerate(names):
        top = _TOP + number * 20
        colour, left = _COLOURS[number % len(_COLOURS)], _WIDTH - _RIGHT + 16
        legend.append(f"<rect x='{left}' y='{top}' width='12' height='12' fill='{colour}'/>")
        legend.append(_text(left + 18, top + 10, name))
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {_HEIGHT}' "
        f"width='{_WIDTH}' height='{_HEIGHT}'><rect width='100%' height='100%' fill='white'/>"
    )
    axes = [
        _text(_LEFT, 20, f"{title} ({up})"),
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 8, across, "middle"),
    ]
    return "\n".join([head, *axes, *parts, *legend, "</svg>", ""])


def _grid_line(height: float, tick: float) -> str:
    line = f"<line x1='{_LEFT}' x2='{_WIDTH - _RIGHT}' y1='{height:.1f}' y2='{height:.1f}' "
    return line + "stroke='#ddd'/>" + _text(_LEFT - 8, height + 4, _number(tick), "end")


def _text(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f"<text x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}' {_FONT}>{escape(text)}</text>"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.3g}"
