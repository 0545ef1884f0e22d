"""The checker of registers: histories that a register could have produced, and others."""

import random

import pytest
from tests.sim.registers import Found, Lost, Operation, Wrote, find_violation

A1, B2 = (1, b"a"), (2, b"b")


def _get(called: float, answered: float, found: tuple[int, bytes] | None) -> Operation:
    return Operation("k", called, answered=answered, answer=Found(found))


def _cas(
    called: float,
    answered: float,
    expected: int | None,
    value: bytes,
    answer: Wrote | Lost | None,
) -> Operation:
    return Operation("k", called, expected, value, answered, answer)


NEVER = float("inf")
GOOD = {
    "one after the other": [
        _cas(0, 1, None, b"a", Wrote(1)),
        _get(2, 3, A1),
        _cas(4, 5, 1, b"b", Wrote(2)),
        _get(6, 7, B2),
    ],
    "two at once, one wins": [
        _cas(0, 5, None, b"a", Wrote(1)),
        _cas(0, 5, None, b"x", Lost(1)),
        _get(6, 7, A1),
    ],
    "a read beside a write sees either": [
        _cas(0, 1, None, b"a", Wrote(1)),
        _cas(2, 6, 1, b"b", Wrote(2)),
        _get(3, 4, A1),
        _get(3, 5, B2),
    ],
    "an unknown write took effect late": [
        _cas(0, 1, None, b"a", Wrote(1)),
        _cas(2, NEVER, 1, b"b", None),
        _get(3, 4, A1),
        _get(5, 6, B2),
    ],
    "an unknown write never took effect": [
        _cas(0, NEVER, None, b"a", None),
        _get(1, 2, None),
        _get(3, 4, None),
    ],
}
BAD = {
    "a lost write": [_cas(0, 1, None, b"a", Wrote(1)), _get(2, 3, None)],
    "a stale read": [
        _cas(0, 1, None, b"a", Wrote(1)),
        _cas(2, 3, 1, b"b", Wrote(2)),
        _get(4, 5, A1),
    ],
    "two winners": [_cas(0, 5, None, b"a", Wrote(1)), _cas(0, 5, None, b"x", Wrote(1))],
    "reads that go back": [
        _cas(0, 1, None, b"a", Wrote(1)),
        _cas(2, 9, 1, b"b", Wrote(2)),
        _get(3, 4, B2),
        _get(5, 6, A1),
    ],
    "a value out of nowhere": [_get(0, 1, A1)],
    "a write seen before it was asked for": [
        _get(0, 1, A1),
        _cas(2, 3, None, b"a", Wrote(1)),
    ],
    "an unknown write that came and went": [
        _cas(0, NEVER, None, b"a", None),
        _get(1, 2, A1),
        _get(3, 4, None),
    ],
    "a refusal without a reason": [_cas(0, 1, None, b"a", Lost(1))],
    "a version that jumps": [_cas(0, 1, None, b"a", Wrote(2))],
}


@pytest.mark.parametrize("name", GOOD)
def test_what_a_register_may_do_passes(name: str) -> None:
    assert find_violation(GOOD[name]) is None


@pytest.mark.parametrize("name", BAD)
def test_what_no_register_does_is_found(name: str) -> None:
    violation = find_violation(BAD[name])
    assert violation is not None
    assert "register k" in violation


def test_registers_are_judged_by_themselves() -> None:
    other = Operation("other", 0, answered=1, answer=Found(A1))
    violation = find_violation([*GOOD["one after the other"], other])
    assert violation is not None
    assert "register other" in violation


def test_random_histories_of_a_real_register_pass_and_tampered_ones_fail() -> None:
    tampered = 0
    for seed in range(200):
        dice = random.Random(seed)
        history = _lived(dice)
        assert find_violation(history) is None
        reads = [at for at in history if isinstance(at.answer, Found) and at.answer.register]
        if reads:
            victim = dice.choice(reads)
            assert isinstance(victim.answer, Found)
            assert victim.answer.register is not None
            victim.answer = Found((victim.answer.register[0], b"never written"))
            assert find_violation(history) is not None
            tampered += 1
    assert tampered > 100


def _lived(dice: random.Random) -> list[Operation]:
    """Operations that overlap, each executed at one moment between call and answer."""
    state: tuple[int, bytes] | None = None
    history: list[Operation] = []
    for moment in range(30):
        called, answered = moment - 3 * dice.random(), moment + 3 * dice.random()
        if dice.random() < 0.5:
            history.append(_get(called, answered, state))
            continue
        version = state[0] if state else None
        expected = version if dice.random() < 0.7 else dice.choice((None, 1, 2))
        value = b"%d" % moment
        answer: Wrote | Lost | None
        if expected == version:
            state = ((version or 0) + 1, value)
            answer = Wrote(state[0])
        else:
            answer = Lost(version)
        if dice.random() < 0.2:
            answered, answer = NEVER, None
        history.append(_cas(called, answered, expected, value, answer))
    return history
