"""Random programs for the interpreter service, generated from a seed and encoded as JSON.

Every program has a name of its own and is invoked exactly once, so whatever happens twice shows.
Awaited calls go only to services or to cells of a higher number than the cells already held: no
program can wait for a lock that is held by somebody who waits for it.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"

RUNNER = "Runner"
CELL = "Cell"
FLOW = "Flow"

_DEPTH_MAX = 3
_OPS_MAX = 5
_FAILURE_SHARE = 0.06
_FLAKY_SHARE = 0.05
_PADDING_SHARE = 0.04
_PADDING_BYTES_MAX = 800_000
_SLEEP_MS_MAX = 400
_DELAY_MS_MAX = 1_500


@dataclass(frozen=True, slots=True)
class Step:
    """A durable step that records a fresh nonce; a flaky one fails first in every process."""

    is_flaky: bool


@dataclass(frozen=True, slots=True)
class Sleep:
    duration_ms: int


@dataclass(frozen=True, slots=True)
class Call:
    program: "Program"


@dataclass(frozen=True, slots=True)
class Send:
    program: "Program"
    delay_ms: int


@dataclass(frozen=True, slots=True)
class Attach:
    """Wait for the result of the send that is operation ``send`` of the same program."""

    send: int


@dataclass(frozen=True, slots=True)
class Both:
    """Several calls at once."""

    programs: tuple["Program", ...]


@dataclass(frozen=True, slots=True)
class Twice:
    """The same call twice at once under one idempotency key: one invocation."""

    program: "Program"


@dataclass(frozen=True, slots=True)
class Awakeable:
    """Completed from outside with ``awakeable_value``."""


@dataclass(frozen=True, slots=True)
class Increment:
    """Add one to the own cell's counter; the result is the value before."""


@dataclass(frozen=True, slots=True)
class Append:
    """Append ``token`` to the own cell's list."""


@dataclass(frozen=True, slots=True)
class Peek:
    """Read the counter of a cell through its shared handler."""

    key: str


@dataclass(frozen=True, slots=True)
class AwaitPromise:
    promise: str


@dataclass(frozen=True, slots=True)
class RunFlow:
    """Start a workflow, settle its promises meanwhile, then wait for its result."""

    program: "Program"
    promises: tuple[str, ...]


Op: TypeAlias = (
    Step
    | Sleep
    | Call
    | Send
    | Attach
    | Both
    | Twice
    | Awakeable
    | Increment
    | Append
    | Peek
    | AwaitPromise
    | RunFlow
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """What one invocation does. ``key`` is empty for the plain service; with ``fails`` the
    invocation ends in a terminal error after its last operation. ``padding_bytes`` make the input
    large, so that it doesn't fit into the windows and buffers on its way."""

    name: str
    service: str
    key: str
    ops: tuple[Op, ...]
    fails: bool = False
    padding_bytes: int = 0


FAILURE_CODE = 422


def failure_message(name: str) -> str:
    """Text of the terminal error of a program that fails."""
    return f"{name} fails as told"


def awakeable_value(name: str, index: int) -> str:
    """What the awakeable of operation ``index`` is resolved with."""
    return f"woken:{name}:{index}"


def promise_value(key: str, promise: str) -> str:
    """What a workflow's promise is settled with."""
    return f"settled:{key}:{promise}"


def token(name: str, index: int) -> str:
    """What operation ``index`` appends to its cell's list."""
    return f"{name}#{index}"


def children(program: Program) -> Iterator[tuple[int, Program]]:
    """The programs that a program starts, with the number of the operation that does it."""
    for index, op in enumerate(program.ops):
        match op:
            case Call(child) | Send(child, _) | Twice(child) | RunFlow(child, _):
                yield index, child
            case Both(programs):
                yield from ((index, child) for child in programs)
            case _:
                pass


def walk(program: Program) -> Iterator[Program]:
    """A program and everything it starts, directly or not."""
    yield program
    for _, child in children(program):
        yield from walk(child)


def encode(program: Program) -> dict[str, Json]:
    """The JSON that the interpreter executes."""
    return {
        "name": program.name,
        "service": program.service,
        "key": program.key,
        "ops": [_encode_op(program, index, op) for index, op in enumerate(program.ops)],
        "failure": failure_message(program.name) if program.fails else "",
        "code": FAILURE_CODE,
        "padding": "x" * program.padding_bytes,
    }


def _encode_op(program: Program, index: int, op: Op) -> dict[str, Json]:
    match op:
        case Step(is_flaky):
            return {"op": "step", "flaky": is_flaky}
        case Sleep(duration_ms):
            return {"op": "sleep", "ms": duration_ms}
        case Call(child):
            return {"op": "call", "program": encode(child)}
        case Send(child, delay_ms):
            return {"op": "send", "program": encode(child), "delay_ms": delay_ms}
        case Attach(send):
            return {"op": "attach", "send": send}
        case Both(programs):
            return {"op": "both", "programs": [encode(child) for child in programs]}
        case Twice(child):
            return {"op": "twice", "program": encode(child)}
        case Awakeable():
            return {"op": "awakeable"}
        case Increment():
            return {"op": "increment"}
        case Append():
            return {"op": "append", "token": token(program.name, index)}
        case Peek(key):
            return {"op": "peek", "key": key}
        case AwaitPromise(promise):
            return {"op": "await_promise", "promise": promise}
        case RunFlow(child, promises):
            return {
                "op": "run_flow",
                "program": encode(child),
                "settles": [
                    {"promise": name, "value": promise_value(child.key, name)} for name in promises
                ],
            }


class Generator:
    """Draws programs over ``cell_count`` cells from one source of dice."""

    def __init__(self, dice: random.Random, cell_count: int) -> None:
        self._dice = dice
        self._cells = [cell_key(number) for number in range(cell_count)]

    def program(self, name: str, service: str) -> Program:
        """A top-level program for ``service``, on any cell."""
        match service:
            case "Runner":
                return self._runner(name, 0, 0)
            case "Cell":
                return self._cell(name, 0, 0)
            case _:
                return self._flow(name, 0, 0)[0]

    def lane(self, name: str, key: str) -> Program:
        """A small program for one cell, for order tests."""
        return Program(name=name, service=CELL, key=key, ops=(Append(), Increment()))

    def _runner(self, name: str, floor: int, depth: int) -> Program:
        ops = self._ops(name, floor, depth, [Step(is_flaky=self._chance(_FLAKY_SHARE))], None)
        return Program(
            name=name,
            service=RUNNER,
            key="",
            ops=ops,
            fails=self._chance(_FAILURE_SHARE),
            padding_bytes=self._padding_bytes(),
        )

    def _cell(self, name: str, floor: int, depth: int) -> Program:
        number = self._dice.randrange(floor, len(self._cells))
        ops = self._ops(name, number + 1, depth, [Append()], self._cells[number])
        return Program(
            name=name,
            service=CELL,
            key=self._cells[number],
            ops=ops,
            fails=self._chance(_FAILURE_SHARE),
            padding_bytes=self._padding_bytes(),
        )

    def _flow(self, name: str, floor: int, depth: int) -> tuple[Program, tuple[str, ...]]:
        promises = tuple(f"p{number}" for number in range(self._dice.randint(1, 2)))
        first: list[Op] = [Step(is_flaky=False), *(AwaitPromise(promise) for promise in promises)]
        ops = self._ops(name, floor, depth, first, None)
        return Program(name=name, service=FLOW, key=name, ops=ops), promises

    def _ops(
        self, name: str, floor: int, depth: int, first: list[Op], cell: str | None
    ) -> tuple[Op, ...]:
        ops: list[Op] = list(first)
        for _ in range(self._dice.randint(1, _OPS_MAX)):
            op = self._op(f"{name}.{len(ops)}", floor, depth, cell)
            ops.append(op)
            if isinstance(op, Send) and self._is_awaitable(op.program, floor):
                ops.append(Attach(len(ops) - 1))
        return tuple(ops)

    def _is_awaitable(self, sent: Program, floor: int) -> bool:
        """Whether waiting for a sent program can't close a circle of locks."""
        safe = all(self._number(item.key) >= floor for item in walk(sent) if item.service == CELL)
        return safe and self._chance(0.5)

    def _number(self, key: str) -> int:
        return self._cells.index(key)

    def _op(self, name: str, floor: int, depth: int, cell: str | None) -> Op:
        weights = {"step": 30, "sleep": 8, "peek": 6, "awakeable": 6}
        if depth < _DEPTH_MAX:
            weights |= {"call": 12, "send": 8, "both": 6, "twice": 4, "flow": 4}
        if cell is not None:
            weights |= {"increment": 25, "append": 12}
        dice = self._dice
        match dice.choices(list(weights), list(weights.values()))[0]:
            case "step":
                return Step(is_flaky=self._chance(_FLAKY_SHARE))
            case "sleep":
                return Sleep(dice.randint(0, _SLEEP_MS_MAX))
            case "peek":
                return Peek(dice.choice(self._cells))
            case "awakeable":
                return Awakeable()
            case "call":
                return Call(self._child(name, floor, depth + 1))
            case "send":
                # Sent programs hold no lock of ours while they run: they may use any cell.
                delay_ms = dice.randint(1, _DELAY_MS_MAX) if self._chance(0.4) else 0
                return Send(self._child(name, 0, depth + 1), delay_ms)
            case "both":
                count = dice.randint(2, 3)
                return Both(
                    tuple(self._child(f"{name}.{n}", floor, depth + 1) for n in range(count))
                )
            case "twice":
                return Twice(self._child(name, floor, depth + 1))
            case "flow":
                return RunFlow(*self._flow(name, floor, depth + 1))
            case "increment":
                return Increment()
            case _:
                return Append()

    def _child(self, name: str, floor: int, depth: int) -> Program:
        if floor < len(self._cells) and self._chance(0.6):
            return self._cell(name, floor, depth)
        return self._runner(name, floor, depth)

    def _padding_bytes(self) -> int:
        return self._dice.randrange(_PADDING_BYTES_MAX) if self._chance(_PADDING_SHARE) else 0

    def _chance(self, share: float) -> bool:
        return self._dice.random() < share


def cell_key(number: int) -> str:
    """Key of cell ``number``; the name needs escaping in a URL on purpose."""
    return f"cell/{number:02d} ä"
