"""When does a suspended invocation go on? Three-valued evaluation of its tree of combinators.

Service protocol 7 (spec 3.8). Versions 5 and 6 send flat lists, which are a node of UNKNOWN: any
of its leaves resumes.
"""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import TypeVar

from perdure.storage.tables.futures import Combinator, Future

_Leaf = TypeVar("_Leaf", int, str)


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


class _ResumeNow(Exception):
    """A child's outcome is indeterminate where it would matter: the SDK has to decide."""


def settle(future: Future, lookup: Lookup) -> Future | None:
    """What remains to be waited for; None when the invocation must go on."""
    try:
        outcome = _evaluate(future, lookup)
    except _ResumeNow:
        return None
    return outcome if isinstance(outcome, Future) else None


def depth(future: Future) -> int:
    """Levels of nesting, 1 for a node without nested ones."""
    deepest = 0
    level = [future]
    while level:
        deepest += 1
        level = [child for node in level for child in node.nested]
    return deepest


def is_empty(future: Future) -> bool:
    """Whether nothing at all is waited for at the root."""
    return not (future.completions or future.signals or future.names or future.nested)


def _evaluate(node: Future, lookup: Lookup) -> Future | State:
    outcomes: list[State] = []
    completions = _pending(node.completions, lookup.completion, outcomes)
    signals = _pending(node.signals, lookup.signal, outcomes)
    names = _pending(node.names, lookup.name, outcomes)
    nested: list[Future] = []
    for child in node.nested:
        outcome = _evaluate(child, lookup)
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
