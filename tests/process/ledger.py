"""The external ledger: what really happened in the service, in order, whoever died afterwards.

The interpreter appends one line per fact with a single write to a file opened with O_APPEND; what
a killed process has written stays. A line is ``kind name index value invocation``:

- ``ran``: a durable step was executed and is about to return ``value`` (a nonce);
- ``seen``: a handler got the recorded result of the step (again at every replay);
- ``wake``: an awakeable with id ``value`` waits to be resolved;
- ``end``: a program reached its end.
"""

import os
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

Place = tuple[str, int]
"""Program name and number of the operation in it."""


@dataclass(frozen=True, slots=True)
class Line:
    kind: str
    name: str
    index: int
    value: str
    invocation: str

    @property
    def place(self) -> Place:
        return self.name, self.index


class LedgerWriter:
    """The interpreter's end."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def append(self, line: Line) -> None:
        text = f"{line.kind} {line.name} {line.index} {line.value} {line.invocation}\n".encode()
        written = os.write(self._fd, text)
        assert written == len(text), "a ledger line is one write"


class LedgerReader:
    """Follows a ledger that is still being written."""

    def __init__(self, path: Path) -> None:
        path.touch()
        self._file = path.open("rb")
        self._rest = b""
        self.lines: list[Line] = []

    def read_new(self) -> list[Line]:
        """The lines that were appended since the last call."""
        *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
        new = [_parse(text.decode()) for text in whole]
        self.lines.extend(new)
        return new

    def close(self) -> None:
        self._file.close()


@dataclass(slots=True)
class StepFacts:
    """What a ledger says of the steps, and what is wrong with it."""

    seen: dict[Place, str] = field(default_factory=dict[Place, str])
    violations: list[str] = field(default_factory=list[str])
    reruns: int = 0


def check_steps(lines: list[Line]) -> StepFacts:
    """Hold recorded steps to their promise: never executed again, never another value.

    A step may be executed several times while no handler has seen its result: a crash between the
    execution and the record makes that unavoidable.
    """
    facts = StepFacts()
    ran: dict[Place, set[str]] = defaultdict(set)
    owner: dict[str, str] = {}
    for line in lines:
        first = owner.setdefault(line.name, line.invocation)
        if first != line.invocation:
            facts.violations.append(
                f"{line.name} runs as two invocations: {first} and {line.invocation}"
            )
        match line.kind:
            case "ran":
                if line.place in facts.seen:
                    facts.violations.append(f"{line} was executed after its result was recorded")
                facts.reruns += line.place in ran
                ran[line.place].add(line.value)
            case "seen":
                known = facts.seen.setdefault(line.place, line.value)
                if known != line.value:
                    facts.violations.append(f"{line} was {known} before")
                if line.value not in ran[line.place]:
                    facts.violations.append(f"{line} was never returned by the step")
            case _:
                pass
    return facts


def _parse(text: str) -> Line:
    kind, name, index, value, invocation = text.split(" ")
    return Line(kind, name, int(index), value, invocation)
