"""The checker of histories: known good ones, known bad ones, and a dumb twin for small ones."""

import random
from dataclasses import replace
from itertools import permutations

import pytest
from tests.chaos.linearizability import (
    UNKNOWN,
    Add,
    Number,
    Operation,
    Read,
    Request,
    Swap,
    Write,
    check,
    check_object,
)

MODEL = Number()


def did(request: Request, answer: int, began: float, ended: float, key: str = "k") -> Operation:
    return Operation(key=key, request=request, answer=answer, began=began, ended=ended)


def lost(request: Request, began: float) -> Operation:
    return Operation(key="k", request=request, answer=None, began=began, ended=UNKNOWN)


def is_well(*history: Operation) -> bool:
    return check_object("k", history, MODEL).is_linearizable


# Each is a figure of the literature or of what a broken leader would do.
GOOD = {
    "nothing happened": [],
    "one after the other": [did(Write(1), 0, 0, 1), did(Read(), 1, 2, 3)],
    "a read beside a write sees the old": [did(Write(1), 0, 0, 9), did(Read(), 0, 1, 2)],
    "a read beside a write sees the new": [did(Write(1), 0, 0, 9), did(Read(), 1, 1, 2)],
    "first the old, then the new": [
        did(Write(1), 0, 0, 9),
        did(Read(), 0, 1, 2),
        did(Read(), 1, 3, 4),
    ],
    "writes beside each other in the other order": [
        did(Write(1), 2, 0, 5),
        did(Write(2), 0, 0, 5),
        did(Read(), 1, 6, 7),
    ],
    "a swap that fails": [did(Write(3), 0, 0, 1), did(Swap(2, 9), 0, 2, 3), did(Read(), 3, 4, 5)],
    "a lost write that took effect late": [
        lost(Write(7), 0),
        did(Read(), 0, 1, 2),
        did(Read(), 7, 3, 4),
    ],
    "a lost write that never did": [lost(Write(7), 0), did(Read(), 0, 1, 2)],
    "sums in any order": [did(Add(1), 3, 0, 9), did(Add(2), 2, 0, 9), did(Read(), 3, 9.5, 10)],
}
BAD = {
    "a stale read": [did(Write(1), 0, 0, 1), did(Read(), 0, 2, 3)],
    "the new, then the old": [
        did(Write(1), 0, 0, 9),
        did(Read(), 1, 1, 2),
        did(Read(), 0, 3, 4),
    ],
    "a value that nobody wrote": [did(Write(1), 0, 0, 1), did(Read(), 5, 0, 1)],
    "two of a swap win": [did(Swap(0, 1), 1, 0, 9), did(Swap(0, 2), 1, 0, 9)],
    "an increment that happened twice": [did(Add(1), 1, 0, 1), did(Read(), 2, 2, 3)],
    "an increment that was lost": [did(Add(1), 1, 0, 1), did(Add(1), 1, 2, 3)],
    "two increments with one sum": [did(Add(1), 1, 0, 9), did(Add(1), 1, 0, 9)],
    "a lost write before it began": [did(Read(), 7, 0, 1), lost(Write(7), 2)],
    "a lost write that came, went and came again": [
        lost(Write(7), 0),
        did(Read(), 7, 1, 2),
        did(Read(), 0, 3, 4),
    ],
    "two readers that see writes in different orders": [
        did(Write(1), 0, 0, 20),
        did(Write(2), 1, 0, 20),
        did(Read(), 2, 1, 2),
        did(Read(), 1, 3, 4),
    ],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_can_be_explained_passes(name: str) -> None:
    assert is_well(*GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_what_nobody_can_explain_is_found(name: str) -> None:
    assert not is_well(*BAD[name])


def test_objects_are_checked_each_for_itself() -> None:
    well, ill = check([*GOOD["one after the other"], did(Read(), 1, 0, 1, "z")], MODEL)
    assert (well.key, well.is_linearizable) == ("k", True)
    assert (ill.key, ill.is_linearizable) == ("z", False)
    assert "z isn't linearizable" in str(ill)
    assert "k: 2 operations" in str(well)


def draw_history(dice: random.Random, count: int, clients: int) -> list[Operation]:
    """What an honest object answers to clients that are served at instants of the dice."""
    history: list[Operation] = []
    free = [0.0] * clients
    state = 0
    served: list[tuple[float, int, Request]] = []
    for _ in range(count):
        client = dice.randrange(clients)
        began = free[client] + dice.random()
        instant = began + dice.random()
        free[client] = instant + dice.random()
        served.append((instant, len(history), draw_request(dice)))
        history.append(did(Read(), 0, began, free[client]))
    for _, number, request in sorted(served):
        state, answer = MODEL.step(state, request)
        history[number] = replace(history[number], request=request, answer=answer)
    return history


def draw_request(dice: random.Random) -> Request:
    value = dice.randrange(1, 4)
    return dice.choice((Read(), Write(value), Swap(dice.randrange(4), value), Add(value)))


@pytest.mark.parametrize("seed", range(20))
def test_an_honest_object_passes_with_many_clients(seed: int) -> None:
    dice = random.Random(seed)
    history = draw_history(dice, 400, 8)
    # Some clients never hear the answer; whatever they asked for did happen.
    history = [
        replace(item, ended=UNKNOWN, answer=None) if dice.random() < 0.02 else item
        for item in history
    ]
    assert is_well(*history)


@pytest.mark.parametrize("seed", range(20))
def test_one_wrong_answer_among_many_is_found(seed: int) -> None:
    dice = random.Random(seed)
    history = [replace(item, request=Add(1)) for item in draw_history(dice, 300, 5)]
    order = sorted(range(len(history)), key=lambda number: history[number].began)
    for total, number in enumerate(order, 1):
        history[number] = replace(history[number], answer=total)
    assert is_well(*history)
    wrong = dice.randrange(len(history))
    history[wrong] = replace(history[wrong], answer=(history[wrong].answer or 0) + 1)
    verdict = check_object("k", history, MODEL)
    assert not verdict.is_linearizable
    assert len(verdict.longest) + len(verdict.left) == len(history)


def is_well_by_trying(history: list[Operation]) -> bool:
    """The dumb twin: every order of every choice of the operations that nobody heard of."""
    known = [item for item in history if item.is_known]
    unknown = [item for item in history if not item.is_known]
    for chosen in range(1 << len(unknown)):
        some = [item for number, item in enumerate(unknown) if chosen >> number & 1]
        if any(fits(order) for order in permutations([*known, *some])):
            return True
    return False


def fits(order: tuple[Operation, ...]) -> bool:
    state = MODEL.initial
    for place, item in enumerate(order):
        if any(later.ended < item.began for later in order[place + 1 :]):
            return False
        state, answer = MODEL.step(state, item.request)
        if item.is_known and answer != item.answer:
            return False
    return True


def test_it_agrees_with_trying_everything() -> None:
    dice = random.Random(5)
    verdicts = {True: 0, False: 0}
    for _ in range(1_500):
        history = draw_history(dice, dice.randint(1, 5), 3)
        for number, item in enumerate(history):
            if dice.random() < 0.25:
                history[number] = replace(item, answer=dice.randrange(4))
            if dice.random() < 0.2:
                history[number] = replace(item, answer=None, ended=UNKNOWN)
        verdict = is_well(*history)
        assert verdict == is_well_by_trying(history), history
        verdicts[verdict] += 1
    assert min(verdicts.values()) > 100, "both happen often enough to mean something"
