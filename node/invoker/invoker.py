"""Runs a partition's invocations: a slot each, a queue behind the slots.

An invocation holds its slot while it runs or backs off; suspended and paused ones hold none.
Actions come from the leader; what attempts learn goes back as commands.
"""

import asyncio
import contextlib
from collections import deque
from dataclasses import dataclass

from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId
from perdure.core.limits import CONCURRENT_INVOCATIONS_MAX
from perdure.engine.actions import Outcome
from perdure.engine.commands import Effects, Yield
from perdure.node.invoker.live_attempt import LiveAttempt
from perdure.node.invoker.ports import RunPorts
from perdure.node.invoker.run import NO_PIN, Run
from perdure.node.invoker.tally import AttemptFigures

# Attempts that live shorter than this never need a timer.
_TIMER_GRACE_SECONDS = 0.05


@dataclass(frozen=True, slots=True)
class InvokerStatistics:
    """Slots, those in use (among them those that back off, and those held back while their service
    is busy), and invocations waiting for one; then, since the start: invocations handed in, slots
    taken and given back, attempts."""

    slots: int
    running: int
    backing_off: int
    held_back: int
    queued: int
    enqueued: int
    acquired: int
    released: int
    attempts: AttemptFigures


class Invoker:
    """The invocations of one partition while this node leads it."""

    def __init__(self, ports: RunPorts, slots: int = CONCURRENT_INVOCATIONS_MAX) -> None:
        self._ports = ports
        self._slots = slots
        self._loop = asyncio.get_running_loop()
        self._runs: dict[InvocationId, Run] = {}
        self._queue: deque[tuple[InvocationId, int]] = deque()
        self._closing: dict[InvocationId, LiveAttempt] = {}
        self._fresh: list[LiveAttempt] = []
        self._sweep: asyncio.TimerHandle | None = None
        self._is_stopped = False
        self._is_held = False
        self._enqueued = self._acquired = self._released = 0

    def start(self, invocation: InvocationId, session: int) -> None:
        """Run the invocation as soon as there is a slot."""
        if self._is_stopped:
            return
        known = self._runs.get(invocation)
        if known is not None:
            if known.session == session:
                known.retry_now()
                return
            known.abort()
        self._enqueued += 1
        if self._is_held or len(self._runs) >= self._slots:
            self._queue.append((invocation, session))
        else:
            self._run(invocation, session)

    def hold(self, is_held: bool) -> None:
        """Start nothing more, because it couldn't be recorded, or do so again."""
        self._is_held = is_held
        if not is_held:
            self._loop.call_soon(self._fill)

    def abort(self, invocation: InvocationId) -> None:
        """The invocation was taken away from its attempt."""
        run = self._runs.get(invocation)
        if run is not None:
            run.abort()

    def wind_down(self, invocation: InvocationId, session: int) -> None:
        """A pause was asked for: let the session come to its end."""
        run = self._runs.get(invocation)
        if run is not None and run.session == session:
            run.wind_down()
        elif run is None and (invocation, session) in self._queue:
            # No attempt to wait for, and the slot may be long in coming.
            effects = Effects(invocation, session, NO_PIN, [Yield()])
            with contextlib.suppress(PerdureError):  # refused: the run gives way when it starts
                self._ports.propose(effects, _ignore)

    def journal_grew(self, invocation: InvocationId, journal_length: int) -> None:
        """Notifications were appended to a running invocation."""
        run = self._runs.get(invocation)
        if run is not None:
            run.journal_grew(journal_length)

    def run_of(self, invocation: InvocationId) -> Run | None:
        """The invocation's running session, for people to look at."""
        return self._runs.get(invocation)

    def runs(self) -> list[Run]:
        """All running sessions, for people to look at."""
        return list(self._runs.values())

    def on_catalogue_change(self) -> None:
        """What failed for want of a deployment may work now."""
        for run in list(self._runs.values()):
            failed = run.last_failure
            if run.is_backing_off and failed is not None and not failed.is_reached:
                run.retry_now()

    def statistics(self) -> InvokerStatistics:
        runs = self._runs.values()
        return InvokerStatistics(
            self._slots,
            len(runs),
            sum(run.is_backing_off for run in runs),
            sum(run.is_held_back for run in runs),
            len(self._queue),
            self._enqueued,
            self._acquired,
            self._released,
            self._ports.tally.figures(),
        )

    def stop(self) -> None:
        """Drop every stream: this node no longer leads, or stops."""
        self._is_stopped = True
        self._queue.clear()
        for run in list(self._runs.values()):
            run.abort()
        for live in list(self._closing.values()):
            live.abort()
        if self._sweep is not None:
            self._sweep.cancel()

    def _run(self, invocation: InvocationId, session: int) -> None:
        run = Run(self._ports, invocation, session, self._over, self._attempt_started)
        self._runs[invocation] = run
        self._acquired += 1
        closing = self._closing.get(invocation)
        if closing is not None:
            closing.when_quiet(lambda: self._start_after(closing, run))
        else:
            run.start()

    def _over(self, run: Run) -> None:
        if self._runs.get(run.id) is run:
            del self._runs[run.id]
            self._released += 1
        live = run.live
        if live is not None and not live.is_quiet:
            self._closing[run.id] = live
            live.when_quiet(lambda: self._closed(run.id, live))
        if not self._is_stopped and self._queue and len(self._runs) < self._slots:
            # Not from within this callback: a run that fails at once would recurse.
            self._loop.call_soon(self._fill)

    def _closed(self, invocation: InvocationId, live: LiveAttempt) -> None:
        if self._closing.get(invocation) is live:
            del self._closing[invocation]

    def _start_after(self, closing: LiveAttempt, run: Run) -> None:
        self._closed(run.id, closing)
        run.start()

    def _fill(self) -> None:
        is_shut = self._is_stopped or self._is_held
        while self._queue and len(self._runs) < self._slots and not is_shut:
            invocation, session = self._queue.popleft()
            if invocation not in self._runs:
                self._run(invocation, session)

    def _attempt_started(self, live: LiveAttempt) -> None:
        self._fresh.append(live)
        if self._sweep is None:
            self._sweep = self._loop.call_later(_TIMER_GRACE_SECONDS, self._arm_timers)

    def _arm_timers(self) -> None:
        self._sweep = None
        fresh, self._fresh = self._fresh, []
        for live in fresh:
            live.arm_timer()


def _ignore(outcome: Outcome) -> None:
    """Nobody waits for it: the tables say what became of it."""
