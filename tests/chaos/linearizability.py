"""Whether a history of concurrent operations could have happened on one object, one after another.

The search of Wing and Gong with Lowe's memory: try to put an operation that may be next at the end
of an order, remember the sets of ordered operations with the state that they led to, and go back
when nothing fits. Objects are checked each for itself: a history of many is linearizable exactly if
each of its parts is. Times are of one clock, that of the clients.
"""

import math
from collections import defaultdict
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeAlias, TypeVar

State: TypeAlias = Hashable


@dataclass(frozen=True, slots=True)
class Read:
    """What the object holds."""


@dataclass(frozen=True, slots=True)
class Write:
    """Set it; the answer is what it held before."""

    value: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Set it if it holds ``expected``; the answer is whether it did (1 or 0)."""

    expected: int
    value: int


@dataclass(frozen=True, slots=True)
class Add:
    """Add to it; the answer is the sum."""

    amount: int


Request: TypeAlias = Read | Write | Swap | Add
UNKNOWN = math.inf
"""The time at which an operation ended that was never answered: it may take effect at any time
after it began, or never."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation on one object, as its client saw it."""

    key: str
    request: Request
    answer: int | None
    began: float
    ended: float

    @property
    def is_known(self) -> bool:
        return self.ended != UNKNOWN


_S = TypeVar("_S", bound=Hashable)


class Model(Protocol, Generic[_S]):
    """An object with one operation at a time. Says nothing of time."""

    @property
    def initial(self) -> _S: ...

    def step(self, state: _S, request: Request) -> tuple[_S, int]:
        """The state after an operation, and its answer."""
        ...


@dataclass(frozen=True, slots=True)
class Number:
    """A register and a counter at once: a number that starts at ``initial``."""

    initial: int = 0

    def step(self, state: int, request: Request) -> tuple[int, int]:
        match request:
            case Read():
                return state, state
            case Write(value):
                return value, state
            case Swap(expected, value):
                return (value, 1) if state == expected else (state, 0)
            case Add(amount):
                return state + amount, state + amount


@dataclass(frozen=True, slots=True)
class Verdict:
    """``longest``: of the orders that were found, the longest; what isn't in it, nobody could
    explain after it. Is the whole history, or at least all that was answered, if it is well."""

    key: str
    is_linearizable: bool
    longest: tuple[Operation, ...]
    left: tuple[Operation, ...]

    def __str__(self) -> str:
        if self.is_linearizable:
            return f"{self.key}: {len(self.longest)} operations in order"
        ordered = "\n  ".join(str(item) for item in self.longest[-8:])
        left = "\n  ".join(str(item) for item in self.left[:8])
        return f"{self.key} isn't linearizable; after\n  {ordered}\nnothing of this fits:\n  {left}"


def check(history: Iterable[Operation], model: Model[_S]) -> list[Verdict]:
    """A verdict per object, by key."""
    by_key: dict[str, list[Operation]] = defaultdict(list)
    for operation in history:
        by_key[operation.key].append(operation)
    return [check_object(key, by_key[key], model) for key in sorted(by_key)]


def check_object(key: str, operations: Sequence[Operation], model: Model[_S]) -> Verdict:
    """Search for an order of all answered operations, and as many others as it takes."""
    search = _Search(operations, model)
    is_linearizable = search.run()
    chosen = frozenset(search.longest)
    return Verdict(
        key,
        is_linearizable,
        tuple(search.operations[number] for number in search.longest),
        tuple(item for number, item in enumerate(search.operations) if number not in chosen),
    )


class _Search(Generic[_S]):
    """Depth first. Sets of operations are bits of one number."""

    def __init__(self, operations: Sequence[Operation], model: Model[_S]) -> None:
        self.operations = sorted(operations, key=lambda item: (item.began, item.ended))
        self.longest: tuple[int, ...] = ()
        self._model = model
        self._must = sum(1 << n for n, item in enumerate(self.operations) if item.is_known)

    def run(self) -> bool:
        model, seen = self._model, set[tuple[int, _S]]()
        order: list[int] = []
        # What is left to try at each depth, with the state and the set there.
        stack = [(model.initial, 0, self._candidates(0, 0))]
        while True:
            state, done, candidates = stack[-1]
            if done & self._must == self._must:
                self.longest = tuple(order)
                return True
            if len(order) > len(self.longest):
                self.longest = tuple(order)
            if not candidates:
                stack.pop()
                if not stack:
                    return False
                order.pop()
                continue
            number = candidates.pop()
            item = self.operations[number]
            after, answer = model.step(state, item.request)
            if item.is_known and answer != item.answer:
                continue
            reached = (done | 1 << number, after)
            if reached in seen:
                continue
            seen.add(reached)
            order.append(number)
            first = stack[-1][1]
            stack.append((after, reached[0], self._candidates(reached[0], _low(first))))

    def _candidates(self, done: int, first: int) -> list[int]:
        """Operations that may be next: begun before any that is left has ended. The one that ended
        first is the last of the list, and so tried first. All before ``first`` are done."""
        found: list[int] = []
        earliest = UNKNOWN
        for number in range(first, len(self.operations)):
            item = self.operations[number]
            if item.began > earliest:
                break
            if not done >> number & 1:
                found.append(number)
                earliest = min(earliest, item.ended)
        return sorted(found, key=lambda number: -self.operations[number].ended)


def _low(done: int) -> int:
    """How many operations from the first on are done without a gap."""
    return (~done & done + 1).bit_length() - 1
