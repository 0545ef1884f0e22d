"""When does a suspended invocation go on? Three-valued evaluation of its tree of combinators.

Service protocol 7 (spec 3.8). Versions 5 and 6 send flat lists, which are a node of UNKNOWN: any
of its leaves resumes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import TypeVar

from perdure.storage.tables.futures import Combinator, Future

_Leaf = TypeVar("_Leaf", int, str)
_Leaves = tuple[tuple[int, ...], tuple[int, ...], tuple[str, ...]]


class State(Enum):
    """Outcome of a node. INDETERMINATE: completed, but the server can't know how."""

    SUCCESS = "success"
    FAILURE = "failure"
    INDETERMINATE = "indeterminate"


@dataclass(frozen=True, slots=True)
class Lookup:
    """Each returns None while the notification is absent, else whether it is a failure."""

    completion: Callable[[int], bool | None]
    signal: Callable[[int], bool | None]
    name: Callable[[str], bool | None]


@dataclass(frozen=True, slots=True)
class Arrival:
    """One notification that came: a completion id or a signal index or a test for names."""

    failed: bool
    completion: int = -1
    signal: int = -1
    is_name: Callable[[str], bool] = lambda _: False


class _ResumeNow(Exception):
    """A child's outcome is indeterminate where it would matter: the SDK has to decide."""


_Sift = Callable[[Future, list[State]], _Leaves]
"""The leaves of a node that are still pending; outcomes of the others are appended."""


def settle(future: Future, lookup: Lookup) -> Future | None:
    """What remains to be waited for; None when the invocation must go on."""
    return _settle(future, partial(_look_up, lookup))


def arrive(rest: Future, arrival: Arrival) -> Future | None:
    """``settle`` for what remained before, when just this came since: nothing else is looked up.

    An invocation that waits for a thousand others is told a thousand times.
    """
    return _settle(rest, partial(_take_out, arrival))


def depth(future: Future) -> int:
    """Levels of nesting, 1 for a node without nested ones."""
    deepest = 0
    level = [future]
    while level:
        deepest += 1
        level = [child for node in level for child in node.nested]
    return deepest


def size_of(future: Future) -> int:
    """How many nodes and leaves there are."""
    count = 0
    level = [future]
    while level:
        for node in level:
            count += 1 + len(node.completions) + len(node.signals) + len(node.names)
        level = [child for node in level for child in node.nested]
    return count


def is_empty(future: Future) -> bool:
    """Whether nothing at all is waited for at the root."""
    return not (future.completions or future.signals or future.names or future.nested)


def _settle(future: Future, sift: _Sift) -> Future | None:
    try:
        outcome = _evaluate(future, sift)
    except _ResumeNow:
        return None
    return outcome if isinstance(outcome, Future) else None


def _evaluate(node: Future, sift: _Sift) -> Future | State:
    outcomes: list[State] = []
    completions, signals, names = sift(node, outcomes)
    nested: list[Future] = []
    for child in node.nested:
        outcome = _evaluate(child, sift)
        if isinstance(outcome, Future):
            nested.append(outcome)
        else:
            outcomes.append(outcome)
    rest = Future(node.combinator, completions, signals, names, tuple(nested))
    if not outcomes and not is_empty(rest):
        return rest
    return _combine(node.combinator, outcomes, rest)


def _combine(combinator: int, outcomes: list[State], rest: Future) -> Future | State:
    is_settled = is_empty(rest)
    match combinator:
        case Combinator.FIRST_COMPLETED:
            return _agreed(outcomes) if outcomes else rest
        case Combinator.ALL_COMPLETED:
            return State.SUCCESS if is_settled else rest
        case Combinator.FIRST_SUCCEEDED_OR_ALL_FAILED:
            if State.SUCCESS in outcomes:
                return State.SUCCESS
            if State.INDETERMINATE in outcomes:
                raise _ResumeNow
            return State.FAILURE if is_settled else rest
        case Combinator.ALL_SUCCEEDED_OR_FIRST_FAILED:
            if State.FAILURE in outcomes:
                return State.FAILURE
            if State.INDETERMINATE in outcomes:
                raise _ResumeNow
            return State.SUCCESS if is_settled else rest
        case _:
            return State.INDETERMINATE if outcomes else rest


def _agreed(outcomes: list[State]) -> State:
    """What the first of several was, when which came first can't be told from here."""
    return outcomes[0] if len(set(outcomes)) == 1 else State.INDETERMINATE


def _look_up(lookup: Lookup, node: Future, outcomes: list[State]) -> _Leaves:
    return (
        _pending(node.completions, lookup.completion, outcomes),
        _pending(node.signals, lookup.signal, outcomes),
        _pending(node.names, lookup.name, outcomes),
    )


def _take_out(arrival: Arrival, node: Future, outcomes: list[State]) -> _Leaves:
    completions = _without(node.completions, arrival.completion)
    signals = _without(node.signals, arrival.signal)
    names = tuple(name for name in node.names if not arrival.is_name(name))
    pending = (completions, signals, names)
    if pending != (node.completions, node.signals, node.names):
        outcomes.append(State.FAILURE if arrival.failed else State.SUCCESS)
    return pending


def _without(leaves: tuple[int, ...], leaf: int) -> tuple[int, ...]:
    while leaf in leaves:
        place = leaves.index(leaf)
        leaves = leaves[:place] + leaves[place + 1 :]
    return leaves


def _pending(
    leaves: tuple[_Leaf, ...], find: Callable[[_Leaf], bool | None], outcomes: list[State]
) -> tuple[_Leaf, ...]:
    pending: list[_Leaf] = []
    for leaf in leaves:
        failed = find(leaf)
        if failed is None:
            pending.append(leaf)
        else:
            outcomes.append(State.FAILURE if failed else State.SUCCESS)
    return tuple(pending)
