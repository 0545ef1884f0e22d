"""The evaluator of suspension trees against a twin that knows nothing but the definition."""

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine.world import any_of, tree

from perdure.engine.futures import Arrival, Lookup, arrive, depth, is_empty, settle
from perdure.storage.tables.futures import Combinator, Future

C = Combinator
Notes = Mapping[int | str, bool]
"""What has arrived, and whether it failed: completions by number, signals "#n", names."""


def lookup(notes: Notes) -> Lookup:
    return Lookup(notes.get, lambda index: notes.get(f"#{index}"), notes.get)


class Abort(Exception):
    """The twin can't tell: resume."""


def children(node: Future) -> list[int | str | Future]:
    signals = [f"#{index}" for index in node.signals]
    return [*node.completions, *signals, *node.names, *node.nested]


def twin(node: Future, notes: Notes) -> str:
    """pending, success, failure or unknown: straight from the table of the protocol."""
    outcomes: list[str] = []
    for child in children(node):
        if isinstance(child, Future):
            outcomes.append(twin(child, notes))
        elif child not in notes:
            outcomes.append("pending")
        else:
            outcomes.append("failure" if notes[child] else "success")
    done = [outcome for outcome in outcomes if outcome != "pending"]
    match node.combinator:
        case C.UNKNOWN:
            return "unknown" if done else "pending"
        case C.FIRST_COMPLETED:
            # Which of several came first isn't known: only what they agree on is.
            return "pending" if not done else done[0] if len(set(done)) == 1 else "unknown"
        case C.ALL_COMPLETED:
            return "success" if len(done) == len(outcomes) else "pending"
        case C.FIRST_SUCCEEDED_OR_ALL_FAILED:
            return _decide(done, outcomes, "success", "failure")
        case _:
            return _decide(done, outcomes, "failure", "success")


def _decide(done: list[str], outcomes: list[str], decisive: str, exhausted: str) -> str:
    if decisive in done:
        return decisive
    if "unknown" in done:
        raise Abort
    return exhausted if len(done) == len(outcomes) else "pending"


def must_resume(node: Future, notes: Notes) -> bool:
    try:
        return twin(node, notes) != "pending"
    except Abort:
        return True


_LEAVES = st.lists(st.integers(1, 5), max_size=3).map(tuple)
_NAMES = st.lists(st.sampled_from(["a", "b"]), max_size=2).map(tuple)


def _nodes(nested: st.SearchStrategy[Future]) -> st.SearchStrategy[Future]:
    return st.builds(
        Future,
        st.sampled_from([int(kind) for kind in C]),
        _LEAVES,
        _LEAVES,
        _NAMES,
        st.lists(nested, max_size=3).map(tuple),
    )


_FLAT = st.builds(Future, st.sampled_from([int(kind) for kind in C]), _LEAVES, _LEAVES, _NAMES)
TREES = st.recursive(_FLAT.filter(lambda node: not is_empty(node)), _nodes, max_leaves=8)
_ALL_NOTES: list[int | str] = [*range(1, 6), *(f"#{n}" for n in range(1, 6)), "a", "b"]
NOTES = st.dictionaries(st.sampled_from(_ALL_NOTES), st.booleans(), max_size=8)


@given(TREES, NOTES)
def test_evaluator_agrees_with_the_twin(node: Future, notes: Notes) -> None:
    assert (settle(node, lookup(notes)) is None) == must_resume(node, notes)


@given(TREES, NOTES, NOTES)
def test_what_remains_stands_for_the_whole(node: Future, first: Notes, second: Notes) -> None:
    """Settling by and by is settling at once, unless an order became known in between."""
    rest = settle(node, lookup(first))
    if rest is None:
        return
    both = {**second, **first}
    later = settle(rest, lookup(both))
    at_once = settle(node, lookup(both))
    if at_once is not None:
        assert later is not None
    if not _has_race(node):
        assert (later is None) == (at_once is None)


@given(TREES, st.lists(st.tuples(st.sampled_from(_ALL_NOTES), st.booleans()), max_size=8))
def test_arrivals_one_by_one_are_looking_everything_up(
    node: Future, arrivals: list[tuple[int | str, bool]]
) -> None:
    rest = settle(node, lookup({}))
    for name, failed in arrivals:
        if rest is None:
            return
        looked_up = settle(rest, lookup({name: failed}))
        rest = arrive(rest, _arrival(name, failed))
        assert rest == looked_up


def _arrival(note: int | str, failed: bool) -> Arrival:
    if isinstance(note, int):
        return Arrival(failed, completion=note)
    if note.startswith("#"):
        return Arrival(failed, signal=int(note[1:]))
    return Arrival(failed, is_name=lambda name: name == note)


def _has_race(node: Future) -> bool:
    kinds = (C.UNKNOWN, C.FIRST_COMPLETED)
    return node.combinator in kinds or any(map(_has_race, node.nested))


@given(TREES)
def test_nothing_arrived_changes_nothing(node: Future) -> None:
    rest = settle(node, lookup({}))
    if rest is not None and not _has_void(node):
        assert rest == node


def _has_void(node: Future) -> bool:
    """A node without leaves below: done before it began, for some combinators."""
    return is_empty(node) or any(map(_has_void, node.nested))


@pytest.mark.parametrize("waits", [(1,), (1, 2), ("#1", 2), ("a", "#17", 3)])
def test_flat_lists_resume_on_any(waits: tuple[int | str, ...]) -> None:
    node = any_of(*waits)
    assert settle(node, lookup({9: False})) == node
    for wait in waits:
        for failed in (False, True):
            assert settle(node, lookup({wait: failed})) is None


@pytest.mark.parametrize(
    ("node", "notes", "rest"),
    [
        (tree(C.FIRST_COMPLETED, 1, 2), {2: True}, None),
        (tree(C.ALL_COMPLETED, 1, 2), {2: True}, tree(C.ALL_COMPLETED, 1)),
        (tree(C.ALL_COMPLETED, 1, 2), {1: True, 2: False}, None),
        (
            tree(C.FIRST_SUCCEEDED_OR_ALL_FAILED, 1, 2),
            {1: True},
            tree(C.FIRST_SUCCEEDED_OR_ALL_FAILED, 2),
        ),
        (tree(C.FIRST_SUCCEEDED_OR_ALL_FAILED, 1, 2), {1: True, 2: True}, None),
        (tree(C.FIRST_SUCCEEDED_OR_ALL_FAILED, 1, 2), {2: False}, None),
        (
            tree(C.ALL_SUCCEEDED_OR_FIRST_FAILED, 1, 2),
            {1: False},
            tree(C.ALL_SUCCEEDED_OR_FIRST_FAILED, 2),
        ),
        (tree(C.ALL_SUCCEEDED_OR_FIRST_FAILED, 1, 2), {1: True}, None),
        # The cancel signal that SDKs put beside everything.
        (
            tree(C.FIRST_COMPLETED, "#1", tree(C.ALL_COMPLETED, 3, 5)),
            {3: False},
            tree(C.FIRST_COMPLETED, "#1", tree(C.ALL_COMPLETED, 5)),
        ),
        (tree(C.FIRST_COMPLETED, "#1", tree(C.ALL_COMPLETED, 3, 5)), {"#1": False}, None),
        # Duplicated leaves are legal.
        (tree(C.ALL_COMPLETED, 1, 1), {1: False}, None),
        # An unknown outcome where it would matter: the SDK decides.
        (
            tree(C.ALL_SUCCEEDED_OR_FIRST_FAILED, 1, tree(C.UNKNOWN, 2, 3)),
            {2: False},
            None,
        ),
        # … and where it doesn't matter, waiting goes on.
        (
            tree(C.ALL_COMPLETED, 1, tree(C.UNKNOWN, 2, 3)),
            {2: False},
            tree(C.ALL_COMPLETED, 1),
        ),
        # Two raced and disagree: who was first isn't known here.
        (
            tree(C.ALL_SUCCEEDED_OR_FIRST_FAILED, 3, tree(C.FIRST_COMPLETED, 1, 2)),
            {1: False, 2: True},
            None,
        ),
    ],
)
def test_table(node: Future, notes: Notes, rest: Future | None) -> None:
    assert settle(node, lookup(notes)) == rest


def test_depth_counts_levels() -> None:
    node = tree(C.UNKNOWN, 1)
    for expected in range(1, 200):
        assert depth(node) == expected
        node = tree(C.FIRST_COMPLETED, node)
