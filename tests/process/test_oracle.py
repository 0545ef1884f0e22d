"""The oracle notices what it is there for: planted faults, each found by the check meant for it."""

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
from tests.process.ledger import Line, check_steps
from tests.process.model import (
    CellState,
    Observed,
    check_cells,
    check_lane,
    check_outcome,
)
from tests.process.programs import (
    CELL,
    FAILURE_CODE,
    RUNNER,
    Append,
    Attach,
    Awakeable,
    Call,
    Generator,
    Increment,
    Json,
    Peek,
    Program,
    Send,
    Step,
    Twice,
    encode,
    failure_message,
    walk,
)

KEY = "k"
CHILD = Program(name="a.1", service=CELL, key=KEY, ops=(Append(), Increment(), Append()))
SENT = Program(name="a.2", service=CELL, key=KEY, ops=(Append(), Increment()), fails=True)
TOP = Program(
    name="a",
    service=RUNNER,
    key="",
    ops=(Step(is_flaky=False), Call(CHILD), Send(SENT, 0), Attach(2), Awakeable(), Peek(KEY)),
)
CHILD_RESULT: Json = {"name": "a.1", "results": ["appended", 0, "appended"]}
FAILED: Json = {"failed": failure_message("a.2"), "code": FAILURE_CODE}
RESULTS: list[Json] = ["n1", {"returned": CHILD_RESULT}, "sent", FAILED, "woken:a:4", 2]
CELL_STATE = CellState(2, ("a.1#0", "a.1#2", "a.2#0"))


def observe(results: list[Json]) -> Observed:
    observed = Observed()
    check_outcome(TOP, {"returned": {"name": "a", "results": results}}, observed)
    return observed


def test_what_is_right_passes() -> None:
    observed = observe(RESULTS)
    assert observed.violations == []
    assert observed.nonces == {("a", 0): "n1"}
    assert check_cells([TOP], {KEY: CELL_STATE}, observed) == []
    assert check_lane(["a.1", "a.2"], KEY, CELL_STATE) == []


@pytest.mark.parametrize(
    ("index", "wrong"),
    [
        (0, None),
        (1, {"returned": {"name": "a.9", "results": ["appended", 0, "appended"]}}),
        (1, {"failed": "x", "code": 500}),
        (1, {"returned": {"name": "a.1", "results": ["appended", 0]}}),
        (2, "lost"),
        (3, {"failed": "something else", "code": FAILURE_CODE}),
        (3, {"returned": {"name": "a.2", "results": []}}),
        (4, "woken:b:4"),
    ],
)
def test_a_wrong_result_is_noticed(index: int, wrong: Json) -> None:
    results = list(RESULTS)
    results[index] = wrong
    assert observe(results).violations


@pytest.mark.parametrize(
    ("state", "text"),
    [
        (replace(CELL_STATE, count=1), "counts 1"),
        (replace(CELL_STATE, count=3), "counts 3"),
        (replace(CELL_STATE, log=("a.1#0", "a.2#0")), "misses"),
        (replace(CELL_STATE, log=(*CELL_STATE.log, "a.2#0")), "too much"),
        (replace(CELL_STATE, log=("a.1#2", "a.1#0", "a.2#0")), "in the order [2, 0]"),
        (replace(CELL_STATE, log=("a.1#0", "a.2#0", "a.1#2")), "interrupted"),
        (replace(CELL_STATE, log=("a.2#0", "a.1#0", "a.1#2")), "sent in the order"),
    ],
)
def test_a_wrong_state_is_noticed(state: CellState, text: str) -> None:
    violations = check_cells([TOP], {KEY: state}, observe(RESULTS))
    assert any(text in violation for violation in violations), violations


def test_a_value_counted_twice_is_noticed() -> None:
    observed = observe(RESULTS)
    observed.counts["b", 0] = (KEY, 0)
    assert any("same value" in item for item in check_cells([TOP], {KEY: CELL_STATE}, observed))


def test_a_lane_out_of_order_is_noticed() -> None:
    assert check_lane(["a.2", "a.1"], KEY, CELL_STATE)


def line(kind: str, value: str, invocation: str = "inv_1", name: str = "a") -> Line:
    return Line(kind, name, 0, value, invocation)


@pytest.mark.parametrize(
    ("lines", "text"),
    [
        ([line("ran", "1"), line("seen", "1"), line("ran", "2")], "after its result was recorded"),
        ([line("ran", "1"), line("ran", "2"), line("seen", "2"), line("seen", "1")], "was 2"),
        ([line("seen", "1")], "never returned"),
        ([line("end", "-"), line("end", "-", "inv_2")], "two invocations"),
    ],
)
def test_a_broken_promise_of_a_step_is_noticed(lines: Sequence[Line], text: str) -> None:
    violations = check_steps(list(lines)).violations
    assert any(text in violation for violation in violations), violations


def test_a_step_may_run_again_until_it_is_recorded() -> None:
    facts = check_steps([line("ran", "1"), line("ran", "2"), line("seen", "2"), line("seen", "2")])
    assert facts.violations == []
    assert facts.reruns == 1


def test_programs_depend_on_the_seed_alone() -> None:
    first, second = (
        [Generator(random.Random(7), 8).program(f"p{n}", CELL) for n in range(20)] for _ in range(2)
    )
    assert first == second
    assert [encode(program) for program in first] == [encode(program) for program in second]


def test_generated_names_are_unique() -> None:
    generator = Generator(random.Random(3), 8)
    programs = [generator.program(f"p{n}", RUNNER) for n in range(200)]
    names = [item.name for program in programs for item in walk(program)]
    assert len(set(names)) == len(names)


def test_a_call_that_became_two_is_noticed() -> None:
    top = Program(name="a", service=RUNNER, key="", ops=(Twice(CHILD),))
    observed = Observed()
    outcomes: list[Json] = [
        {"returned": {"name": "a.1", "results": ["appended", count, "appended"]}}
        for count in (0, 1)
    ]
    check_outcome(top, {"returned": {"name": "a", "results": [outcomes]}}, observed)
    assert any("was" in violation for violation in observed.violations), observed
