"""What must be true in the end, computed from the programs alone.

``check_result`` walks a program and the result it gave side by side; ``check_cells`` compares the
final state of every cell with what all programs together must have left there. Nothing here knows
how the server or the interpreter works.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import TypeVar

from tests.process.ledger import Place
from tests.process.programs import (
    CELL,
    FAILURE_CODE,
    Append,
    Attach,
    AwaitPromise,
    Awakeable,
    Both,
    Call,
    Increment,
    Json,
    Op,
    Peek,
    Program,
    RunFlow,
    Send,
    Sleep,
    Step,
    Twice,
    awakeable_value,
    children,
    failure_message,
    promise_value,
    token,
    walk,
)

_T = TypeVar("_T")


@dataclass(slots=True)
class Observed:
    """What handlers reported in their results."""

    nonces: dict[Place, str] = field(default_factory=dict[Place, str])
    counts: dict[Place, tuple[str, int]] = field(default_factory=dict[Place, tuple[str, int]])
    peeks: list[tuple[str, int]] = field(default_factory=list[tuple[str, int]])
    violations: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class CellState:
    count: int
    log: tuple[str, ...]


def check_outcome(program: Program, outcome: Json, observed: Observed) -> None:
    """Compare ``{"returned": …}`` or ``{"failed": …, "code": …}`` with what must come."""
    if program.fails:
        expected: Json = {"failed": failure_message(program.name), "code": FAILURE_CODE}
        _equal(program.name, outcome, expected, observed)
    elif isinstance(outcome, dict) and outcome.keys() == {"returned"}:
        check_result(program, outcome["returned"], observed)
    else:
        observed.violations.append(f"{program.name} ended with {outcome!r}")


def check_result(program: Program, result: Json, observed: Observed) -> None:
    """Compare a result with the program, and collect what it reports."""
    results = result.get("results") if isinstance(result, dict) else None
    if (
        not isinstance(result, dict)
        or result.get("name") != program.name
        or not isinstance(results, list)
        or len(results) != len(program.ops)
    ):
        observed.violations.append(f"{program.name} returned {result!r}")
        return
    for index, (op, got) in enumerate(zip(program.ops, results, strict=True)):
        _check_op(program, index, op, got, observed)


def _check_op(program: Program, index: int, op: Op, got: Json, observed: Observed) -> None:
    place = (program.name, index)
    where = f"{program.name} operation {index}"
    match op:
        case Step() if isinstance(got, str):
            _once(place, got, observed.nonces, observed)
        case Increment() if isinstance(got, int):
            _once(place, (program.key, got), observed.counts, observed)
        case Peek(key) if isinstance(got, int):
            observed.peeks.append((key, got))
        case Sleep():
            _equal(where, got, "slept", observed)
        case Send():
            _equal(where, got, "sent", observed)
        case Append():
            _equal(where, got, "appended", observed)
        case Awakeable():
            _equal(where, got, awakeable_value(program.name, index), observed)
        case AwaitPromise(promise):
            _equal(where, got, promise_value(program.key, promise), observed)
        case Call(child):
            check_outcome(child, got, observed)
        case Attach(send) if isinstance(sent := program.ops[send], Send):
            check_outcome(sent.program, got, observed)
        case Both(programs) if isinstance(got, list) and len(got) == len(programs):
            for child, outcome in zip(programs, got, strict=True):
                check_outcome(child, outcome, observed)
        case Twice(child) if isinstance(got, list) and len(got) == 2:
            for outcome in got:
                check_outcome(child, outcome, observed)
        case RunFlow(child, promises) if isinstance(got, dict):
            _equal(where, got.get("settled"), ["ok" for _ in promises], observed)
            check_outcome(child, got.get("run"), observed)
        case _:
            observed.violations.append(f"{where} ({op}) returned {got!r}")


def check_cells(
    programs: Sequence[Program], cells: Mapping[str, CellState], observed: Observed
) -> list[str]:
    """Each increment and each token exactly once, in an order that can be explained."""
    violations: list[str] = []
    increments: Counter[str] = Counter()
    tokens: dict[str, Counter[str]] = defaultdict(Counter)
    for program in (item for top in programs for item in walk(top)):
        for index, op in enumerate(program.ops):
            if isinstance(op, Increment):
                increments[program.key] += 1
            elif isinstance(op, Append):
                tokens[program.key][token(program.name, index)] += 1
    for key, cell in cells.items():
        if cell.count != increments[key]:
            violations.append(f"{key} counts {cell.count}, {increments[key]} were asked for")
        counted = Counter(cell.log)
        if missing := tokens[key] - counted:
            violations.append(f"{key} misses {sorted(missing.elements())}")
        if surplus := counted - tokens[key]:
            violations.append(f"{key} has too much: {sorted(surplus.elements())}")
        violations.extend(_check_exclusive(key, cell.log))
    violations.extend(_check_counts(increments, observed))
    violations.extend(
        violation for top in programs for item in walk(top) for violation in _order(item, cells)
    )
    return violations


def check_lane(names: Iterable[str], key: str, cell: CellState) -> list[str]:
    """Sends of one client, each sent after the one before was acknowledged, ran in that order."""
    return _in_order([token(name, 0) for name in names], key, cell)


def _check_exclusive(key: str, log: Sequence[str]) -> list[str]:
    """One exclusive handler at a time: the tokens of an invocation stand together, in order."""
    runs = [
        (name, [int(item.partition("#")[2]) for item in group])
        for name, group in groupby(log, lambda item: item.partition("#")[0])
    ]
    repeated = [name for name, times in Counter(name for name, _ in runs).items() if times > 1]
    violations = [f"{key}: {name} was interrupted by another invocation" for name in repeated]
    violations.extend(
        f"{key}: {name} appended in the order {numbers}"
        for name, numbers in runs
        if numbers != sorted(numbers)
    )
    return violations


def _check_counts(increments: Counter[str], observed: Observed) -> list[str]:
    """Every increment saw a value of its own, and no value outside of what was counted."""
    violations: list[str] = []
    values: dict[str, list[int]] = defaultdict(list)
    for key, value in observed.counts.values():
        values[key].append(value)
    for key, found in values.items():
        if len(set(found)) != len(found):
            violations.append(f"{key}: two increments saw the same value: {sorted(found)}")
        if not all(0 <= value < increments[key] for value in found):
            violations.append(f"{key}: an increment saw a value that never was: {sorted(found)}")
    violations.extend(
        f"{key} was read as {value}"
        for key, value in observed.peeks
        if not 0 <= value <= increments[key]
    )
    return violations


def _order(program: Program, cells: Mapping[str, CellState]) -> list[str]:
    """Calls and undelayed sends of one program to one cell run in the program's order."""
    first: dict[str, list[str]] = defaultdict(list)
    for index, child in children(program):
        match program.ops[index]:
            case Call() | Send(_, 0) if child.service == CELL:
                first[child.key].append(token(child.name, 0))
            case _:
                pass
    return [
        violation
        for key, tokens in first.items()
        for violation in _in_order(tokens, key, cells[key])
    ]


def _in_order(tokens: Sequence[str], key: str, cell: CellState) -> list[str]:
    wanted = set(tokens)
    found = [item for item in cell.log if item in wanted]
    if found != list(tokens):
        return [f"{key} ran {found}, sent in the order {list(tokens)}"]
    return []


def _equal(where: str, got: Json, expected: Json, observed: Observed) -> None:
    if got != expected:
        observed.violations.append(f"{where} gave {got!r} instead of {expected!r}")


def _once(place: Place, value: _T, known: dict[Place, _T], observed: Observed) -> None:
    if known.setdefault(place, value) != value:
        observed.violations.append(f"{place} was {known[place]!r} and is {value!r}")
