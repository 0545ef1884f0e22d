"""How many attempts a service is kept busy with at once: the rest start as these finish.

A service that gets thousands of attempts at once spends its time on juggling them: a Python worker
needs five times the CPU for each of 2,000 attempts under way that it needs for each of 100. So
attempts at an origin start first come, first served, while no more than a bounded number is busy.

Only starts ever wait, and only for attempts on whose streams something moves. One that has just
called somebody, or is silent for a moment, waits for something: a result, a sleep, a slow
computation. It no longer counts until something moves again. So whatever attempts wait for, each
other included, what they wait for starts within a moment, and services that do nothing but wait
are given as many attempts as ever.

How long that moment is follows from how fast the service takes up attempts: silence that is several
times longer than that isn't due to other attempts ahead in its queue.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from perdure.core.limits import (
    ATTEMPTS_BUSY_MAX,
    ATTEMPTS_BUSY_SILENCE_MS_MAX,
    ATTEMPTS_BUSY_SILENCE_MS_MIN,
)
from perdure.node.http.stream import Origin

# Silence counts as waiting when it lasts longer than so many times the usual time to an answer.
_SILENCE_FACTOR = 4
# The share that each new answer has in what is usual.
_ANSWER_SHARE = 1 / 16


class Gated(Protocol):
    """What a gate knows of an attempt: when something last moved (the loop's time), and the gate's
    own mark."""

    last_activity: float
    is_busy: bool


class Place:
    """A place in the queue of a gate."""

    __slots__ = ("_start",)

    def __init__(self, start: Callable[[], None]) -> None:
        self._start: Callable[[], None] | None = start

    @property
    def is_given_up(self) -> bool:
        return self._start is None

    def give_up(self) -> None:
        """Wait no longer: the start won't be called."""
        self._start = None

    def take(self) -> None:
        """Start, unless given up."""
        if self._start is not None:
            self._start()


class Gate:
    """The attempts at one origin: those that are busy, and those that wait to start."""

    def __init__(self, busy_max: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._busy_max = busy_max
        self._busy: dict[Gated, None] = {}
        self._waiting: deque[Place] = deque()
        self._usual_answer = ATTEMPTS_BUSY_SILENCE_MS_MAX / 1000 / _SILENCE_FACTOR
        self._swept_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._is_admitting = False

    @property
    def busy_count(self) -> int:
        return len(self._busy)

    @property
    def waiting_count(self) -> int:
        return sum(not place.is_given_up for place in self._waiting)

    def is_open(self) -> bool:
        """Whether an attempt may start now."""
        return not self._waiting and self._has_room()

    def wait(self, start: Callable[[], None]) -> Place:
        """Call ``start`` when it is its turn."""
        place = Place(start)
        self._waiting.append(place)
        self._arm()
        return place

    def enter(self, attempt: Gated) -> None:
        """Something moves on the attempt's stream, or it starts."""
        attempt.is_busy = True
        self._busy[attempt] = None

    def leave(self, attempt: Gated) -> None:
        """The attempt is over, or waits for something."""
        if attempt.is_busy:
            attempt.is_busy = False
            del self._busy[attempt]
            if self._waiting and not self._is_admitting:
                # Not from within this callback: a start that fails at once would recurse.
                self._is_admitting = True
                self._loop.call_soon(self._admit)

    def answered(self, seconds: float) -> None:
        """The service took up an attempt so long after it was sent."""
        self._usual_answer += (seconds - self._usual_answer) * _ANSWER_SHARE

    def _has_room(self) -> bool:
        if len(self._busy) < self._busy_max:
            return True
        if self._swept_at != self._loop.time():
            self._sweep()
        return len(self._busy) < self._busy_max

    def _admit(self) -> None:
        self._is_admitting = False
        while self._waiting and self._has_room():
            self._waiting.popleft().take()
        self._arm()

    def _arm(self) -> None:
        if self._waiting and self._timer is None:
            self._timer = self._loop.call_later(self._silence_seconds() / 2, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self._sweep()
        self._admit()

    def _sweep(self) -> None:
        """Those that were silent for long enough don't count."""
        self._swept_at = now = self._loop.time()
        latest = now - self._silence_seconds()
        for attempt in [each for each in self._busy if each.last_activity <= latest]:
            attempt.is_busy = False
            del self._busy[attempt]

    def _silence_seconds(self) -> float:
        wanted = self._usual_answer * _SILENCE_FACTOR
        lower, upper = ATTEMPTS_BUSY_SILENCE_MS_MIN, ATTEMPTS_BUSY_SILENCE_MS_MAX
        return min(max(wanted, lower / 1000), upper / 1000)


class Gates:
    """A gate per origin; shared by all partitions of a node."""

    def __init__(self, busy_max: int = ATTEMPTS_BUSY_MAX) -> None:
        self._busy_max = busy_max
        self._gates: dict[Origin, Gate] = {}

    def of(self, origin: Origin) -> Gate:
        gate = self._gates.get(origin)
        if gate is None:
            gate = self._gates[origin] = Gate(self._busy_max)
        return gate

    @property
    def waiting_count(self) -> int:
        """Attempts that wait for their turn."""
        return sum(gate.waiting_count for gate in self._gates.values())
