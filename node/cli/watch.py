"""``perdure invocations watch``: an invocation as it happens, until it ends."""

import json
import sys
import threading
from typing import TYPE_CHECKING, cast
from urllib.parse import quote

import click

from perdure.core.clock import SystemClock
from perdure.node.cli.client import Document
from perdure.node.cli.output import plain
from perdure.node.cli.refused import Refused
from perdure.node.cli.session import Session, admin_options
from perdure.node.cli.timeline import Step, Timeline, time_ms
from perdure.node.config.durations import format_duration

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

_PAGE = "500"
_INTERVAL_SECONDS = 0.5
_NOT_FOUND = 404
_EVENTS_SHOWN = 5
# Lines of the screen that are not steps.
_FRAME_LINES = 8
_MARKS = {True: "…", False: "✓"}
# Shown in columns or parts of their own.
_KNOWN = (
    "index",
    "type",
    "name",
    "size",
    "appended_at",
    "is_command",
    "completion_ids",
    "failure",
)


@click.command()
@click.argument("invocation_id", metavar="ID")
@click.option(
    "--interval",
    type=click.FloatRange(0.05, 60),
    default=_INTERVAL_SECONDS,
    show_default=True,
    help="Seconds between two looks.",
)
@admin_options
def watch(session: Session, invocation_id: str, interval: float) -> None:
    """Follow an invocation: steps, attempts, errors, until it ends.

    With --json, or into a pipe, it prints one line per change.
    """
    timeline = Timeline()
    if session.as_json or not sys.stdout.isatty():
        _follow(session, invocation_id, timeline, interval)
    else:
        _show(session, invocation_id, timeline, interval)


def _follow(session: Session, invocation_id: str, timeline: Timeline, interval: float) -> None:
    while True:
        for change in read(session, invocation_id, timeline):
            if session.as_json:
                click.echo(json.dumps(change, ensure_ascii=False))
            else:
                click.echo(describe(change))
        if timeline.is_over:
            return
        if "next_from" not in timeline.state:
            pause(interval)


def _show(session: Session, invocation_id: str, timeline: Timeline, interval: float) -> None:
    from rich.live import Live

    clock = SystemClock()
    read(session, invocation_id, timeline)
    with Live(auto_refresh=False) as live:
        while True:
            height = live.console.height
            live.update(render(timeline, clock.now_ms(), height), refresh=True)
            if timeline.is_over:
                live.update(render(timeline, clock.now_ms(), len(timeline.steps) + height))
                return
            if "next_from" not in timeline.state:
                pause(interval)
            read(session, invocation_id, timeline)


def read(session: Session, invocation_id: str, timeline: Timeline) -> list[Document]:
    """Look once; what changed since the last look.

    Raises:
        Refused: the node refuses, or never knew the invocation.
    """
    path = f"/perdure/invocations/{quote(invocation_id, safe='')}"
    query = {"from": str(timeline.next_index), "limit": _PAGE}
    try:
        return timeline.absorb(session.client.get(path, query))
    except Refused as refused:
        if refused.status != _NOT_FOUND or not timeline.state:
            raise
        return timeline.vanish()


def pause(seconds: float) -> None:
    """Wait; an interrupt ends it."""
    threading.Event().wait(seconds)


def describe(change: Document) -> str:
    """A change as a line."""
    at = change.get("appended_at") or change.get("at") or change.get("completed_at") or ""
    match change["change"]:
        case "step":
            words = [f"#{change['index']}", str(change["type"]), _details(change)]
        case "event":
            words = [str(change["event"]), _failure(change.get("failure"))]
        case "state":
            words = [f"is {change['status']}", *_facts(change)]
        case "ended":
            words = ["ended:", _outcome(change.get("result"))]
        case _:
            words = ["ended; nothing of it is retained"]
    return " ".join(word for word in (str(at), *words) if word)


def render(timeline: Timeline, now_ms: int, height: int) -> "Group":
    """The screen: state, as many of the latest steps as fit, the latest events."""
    from rich.console import Group
    from rich.text import Text

    state = timeline.state
    head = Text(plain(state.get("target")), style="bold")
    head.append(f"  {plain(state.get('status'))}", style=_style(timeline))
    lines = [head, Text(plain(state.get("id")), style="dim")]
    lines += [Text(text) for text in _status_lines(timeline, now_ms)]
    events = timeline.events[-_EVENTS_SHOWN:]
    room = max(height - _FRAME_LINES - len(events), 5)
    hidden = max(len(timeline.steps) - room, 0)
    if hidden:
        lines.append(Text(f"({hidden} earlier steps)", style="dim"))
    steps = _steps(timeline.steps[hidden:], now_ms)
    tail = [
        Text(f"{plain(event.get('at'))}  {plain(event.get('event'))}  "
             f"{plain(_failure(event.get('failure')))}".rstrip(), style="yellow")
        for event in events
    ]  # fmt: skip
    return Group(*lines, steps, *tail)


def _steps(steps: list[Step], now_ms: int) -> "Table":
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, show_header=False)
    for step in steps:
        entry = step.entry
        if step.failure is not None:
            mark, style = "✗", "red"
        else:
            mark, style = _MARKS[step.is_waiting], "yellow" if step.is_waiting else "green"
        if step.is_waiting:
            took = format_duration(_since(str(entry["appended_at"]), now_ms))
        else:
            took = format_duration(step.took_ms) if step.took_ms is not None else ""
        what = " ".join(text for text in (_details(entry), _failure(step.failure)) if text)
        table.add_row(
            Text(mark, style=style),
            Text(str(entry["index"]), style="dim"),
            Text(plain(entry["type"])),
            Text(plain(what)),
            Text(took, style="dim"),
        )
    return table


def _status_lines(timeline: Timeline, now_ms: int) -> list[str]:
    state = timeline.state
    if timeline.is_gone:
        return ["It ended; nothing of it is retained."]
    lines: list[str] = []
    if timeline.is_over:
        lines.append(_outcome(state.get("result")))
    elif facts := _facts(state):
        lines.append(", ".join(facts))
    if "next_retry_at" in state:
        left = max(time_ms(str(state["next_retry_at"])) - now_ms, 0)
        lines.append(f"next attempt in {format_duration(left)}")
    if "last_failure" in state and not timeline.is_over:
        lines.append(_failure(state["last_failure"]))
    return [plain(line) for line in lines]


def _facts(state: Document) -> list[str]:
    facts: list[str] = []
    if state.get("is_pausing"):
        facts.append("pausing")
    if state.get("attempt_count"):
        facts.append(f"attempt {state['attempt_count']}")
    if state.get("deployment"):
        facts.append(f"on {state['deployment']}")
    if state.get("retry_count"):
        facts.append(f"{state['retry_count']} retries")
    if state.get("awaiting") is not None:
        facts.append(f"waits for {_awaited(state['awaiting'])}")
    return facts


def _awaited(value: object) -> str:
    if not isinstance(value, dict):
        return plain(value)
    future = cast(dict[str, list[object]], value)
    leaves = [
        *(f"completion {number}" for number in future.get("completions", [])),
        *(f"signal {index}" for index in future.get("signals", [])),
        *(f"signal {name}" for name in future.get("signal_names", [])),
        *(f"({_awaited(nested)})" for nested in future.get("nested", [])),
    ]
    return ", ".join(plain(leaf) for leaf in leaves)


def _details(entry: Document) -> str:
    facts = [plain(entry["name"])] if entry.get("name") else []
    for name, value in entry.items():
        if _is_detail(name):
            facts.append(f"{name.replace('_', ' ')} {plain(value)}")
    return ", ".join(facts)


def _is_detail(name: str) -> bool:
    return name not in _KNOWN and name != "change"


def _failure(value: object) -> str:
    if not isinstance(value, dict):
        return ""
    failure = cast(Document, value)
    code = failure.get("error_code") or failure.get("code")
    return f"[{code}] {plain(failure.get('message'))}"


def _outcome(value: object) -> str:
    result = cast(Document, value) if isinstance(value, dict) else {}
    return "success" if result.get("kind") == "success" else f"failed {_failure(result)}"


def _style(timeline: Timeline) -> str:
    styles = {"completed": "green", "paused": "red", "backing-off": "yellow"}
    return styles.get(str(timeline.state.get("status")), "cyan")


def _since(moment: str, now_ms: int) -> int:
    # Clocks of two machines may differ.
    return max(now_ms - time_ms(moment), 0)
