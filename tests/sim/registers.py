"""A linearizability checker for registers with compare-and-set.

A history is a list of operations with the moments of their call and answer. It is linearizable when
each operation can be given one moment between the two, so that the answers are those of a register
that does one thing at a time. Registers are independent, so each is checked by itself (Wing and
Gong's search, with the states that were tried remembered). An operation without an answer may take
effect at any time after its call, or never.
"""

from collections.abc import Sequence
from dataclasses import dataclass

NEVER = float("inf")


@dataclass(frozen=True, slots=True)
class Found:
    """What a get saw: version and value, or nothing."""

    register: tuple[int, bytes] | None


@dataclass(frozen=True, slots=True)
class Wrote:
    """A cas succeeded."""

    version: int


@dataclass(frozen=True, slots=True)
class Lost:
    """A cas met this version."""

    version: int | None


Answer = Found | Wrote | Lost | None


@dataclass(slots=True)
class Operation:
    """A get (``value`` is None) or a cas; ``answer`` is None while nobody knows."""

    key: str
    called: float
    expected: int | None = None
    value: bytes | None = None
    answered: float = NEVER
    answer: Answer = None


_State = tuple[int, bytes] | None


def find_violation(history: Sequence[Operation]) -> str | None:
    """The first register whose history no register could have produced, with that history."""
    for key in sorted({operation.key for operation in history}):
        # A get without an answer says nothing.
        of_key = [
            at
            for at in history
            if at.key == key and (at.answer is not None or at.value is not None)
        ]
        of_key.sort(key=lambda operation: operation.called)
        if not _is_linearizable(of_key):
            listed = "\n".join(str(operation) for operation in of_key)
            return f"register {key} is not linearizable:\n{listed}"
    return None


def _is_linearizable(history: list[Operation]) -> bool:
    answered = 0
    for position, operation in enumerate(history):
        if operation.answer is not None:
            answered |= 1 << position
    stack: list[tuple[int, _State]] = [(0, None)]
    seen: set[tuple[int, _State]] = set(stack)
    while stack:
        done, state = stack.pop()
        if done & answered == answered:
            return True
        for position in _candidates(history, done):
            following = _step(history[position], state)
            if isinstance(following, _Impossible):
                continue
            node = (done | 1 << position, following)
            if node not in seen:
                seen.add(node)
                stack.append(node)
    return False


class _Impossible:
    pass


_IMPOSSIBLE = _Impossible()


def _candidates(history: list[Operation], done: int) -> list[int]:
    """Operations that may come next: called before any other was answered."""
    first_answer = NEVER
    found: list[int] = []
    for position, operation in enumerate(history):
        if operation.called > first_answer:
            break
        if not done >> position & 1:
            found.append(position)
            first_answer = min(first_answer, operation.answered)
    return [position for position in found if history[position].called <= first_answer]


def _step(operation: Operation, state: _State) -> _State | _Impossible:
    """The register after the operation, if its answer fits."""
    version = state[0] if state is not None else None
    if operation.value is None:
        fits = isinstance(operation.answer, Found) and operation.answer.register == state
        return state if fits else _IMPOSSIBLE
    if version != operation.expected:
        fits = operation.answer is None or operation.answer == Lost(version)
        # Without an effect and without an answer there's nothing to explain: leave it undone.
        return state if fits and operation.answer is not None else _IMPOSSIBLE
    written = (version or 0) + 1
    fits = operation.answer is None or operation.answer == Wrote(written)
    return (written, operation.value) if fits else _IMPOSSIBLE
