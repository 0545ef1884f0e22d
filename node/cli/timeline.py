"""What ``perdure invocations watch`` knows of an invocation: documents in, changes out. Pure.

Each read of the invocation's page brings its state, the entries after those known, and its latest
events; ``absorb`` tells what is new in them. A command and what completes it are one step.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import cast

from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of

# What is a change of its own when it differs from the last read.
_STATE = (
    "status",
    "is_pausing",
    "deployment",
    "attempt_count",
    "retry_count",
    "last_failure",
    "next_retry_at",
    "awaiting",
)
_ENDED = "completed"


@dataclass(slots=True)
class Step:
    """A command or a signal. ``done_at``: when its result was recorded; None while it waits."""

    entry: Document
    is_waiting: bool
    done_at: str | None = None
    failure: object = None

    @property
    def took_ms(self) -> int | None:
        """From the command to its result."""
        if self.done_at is None:
            return None
        return time_ms(self.done_at) - time_ms(str(self.entry["appended_at"]))


@dataclass(slots=True)
class Timeline:
    """The invocation as it was read last, and everything that was seen of it."""

    state: Document = field(default_factory=dict[str, object])
    steps: list[Step] = field(default_factory=list[Step])
    events: list[Document] = field(default_factory=list[Document])
    next_index: int = 0
    is_gone: bool = False
    _waiting: dict[int, Step] = field(default_factory=dict[int, Step])
    _seen: set[str] = field(default_factory=set[str])

    @property
    def is_over(self) -> bool:
        """Whether nothing more will happen."""
        return self.is_gone or self.state.get("status") == _ENDED

    def absorb(self, document: Document) -> list[Document]:
        """Take in what was read from ``next_index`` on; what changed, one document each."""
        changes: list[Document] = []
        for entry in rows_of(document, "journal"):
            if entry.get("index") == self.next_index:
                self.next_index += 1
                self._add(entry)
                changes.append({"change": "step", **entry})
        for event in rows_of(document, "events"):
            key = json.dumps(event, sort_keys=True)
            if key not in self._seen:
                self._seen.add(key)
                self.events.append(event)
                changes.append({"change": "event", **event})
        before = self.state
        self.state = document
        changed = {name: document.get(name) for name in _STATE if _differs(name, before, document)}
        # While entries are still to come, the end is not in sight.
        if changed and "next_from" not in document:
            changes.append({"change": "state", "status": document.get("status"), **changed})
            if self.is_over:
                names = ("completed_at", "result")
                ending = {name: document[name] for name in names if name in document}
                changes.append({"change": "ended", **ending})
        elif changed:
            kept = {name: before[name] for name in _STATE if name in before}
            rest = {name: value for name, value in document.items() if name not in _STATE}
            self.state = {**rest, **kept}
        return changes

    def vanish(self) -> list[Document]:
        """It ended, and nothing of it is retained."""
        self.is_gone = True
        return [{"change": "gone"}]

    def _add(self, entry: Document) -> None:
        numbers = entry.get("completion_ids")
        ids = cast(list[int], numbers) if isinstance(numbers, list) else []
        if not entry.get("is_command") and ids:
            step = self._waiting.pop(ids[0], None)
            if step is not None:
                step.is_waiting = False
                step.done_at = str(entry["appended_at"])
                step.failure = entry.get("failure")
            return
        # A call's first completion is its id, which comes at once; the last one is the result.
        step = Step(entry, bool(ids), failure=entry.get("failure"))
        self.steps.append(step)
        if ids:
            self._waiting[ids[-1]] = step


def time_ms(text: str) -> int:
    """A moment of the admin API in milliseconds since the epoch."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)


def _differs(name: str, before: Document, after: Document) -> bool:
    return before.get(name) != after.get(name)
