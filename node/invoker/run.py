"""One running session of an invocation: its attempts, one after the other, and the waits between.

A ``Run`` starts when the invocation becomes Invoked and ends when it suspends, pauses, ends, or is
taken away. Everything happens in callbacks on the event loop. An attempt's effects are proposed in
the order they came; the next attempt starts only when all of them are applied and the old stream
is closed, so nothing of the old can meet the new (spec 7.2).
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from perdure.core.attempt_errors import (
    AttemptError,
    CannotResume,
    IncompatibleEndpoint,
    NoDeployment,
)
from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, format_invocation_id
from perdure.core.telemetry import logger
from perdure.engine.actions import NoOutput, Outcome, Recorded
from perdure.engine.commands import Append, Effect, Effects, End, Suspend, Yield
from perdure.node.invoker.attempt import Behavior, Ended, Failed, Suspended, Terminal, fail
from perdure.node.invoker.gate import Place
from perdure.node.invoker.live_attempt import LiveAttempt
from perdure.node.invoker.ports import RunPorts
from perdure.node.invoker.retries import GiveUp, Retry, RetryState
from perdure.node.invoker.tally import FAILURES, AttemptEnd
from perdure.node.registry.effective import Route
from perdure.node.registry.manifest import PROTOCOL_VERSION_MAX
from perdure.storage.tables.futures import Future
from perdure.storage.tables.invocations import Invoked, Pin
from perdure.storage.tables.journal import AttemptFailure

log = logger("invoker")


_REFUSED_RETRY_MS = 1_000.0
NO_PIN = Pin("", 0)
"""For effects that store no entry."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStatistics:
    """What a session remembers of its attempts. Times in ms since the epoch, 0 for none.

    ``retries`` counts against the policy, ``failures_since_command`` is what SDKs are told.
    ``awaiting_on``: what the attempt under way said it waits for.
    """

    is_running: bool
    is_backing_off: bool
    attempts: int
    retries: int
    failures_since_command: int
    last_start_at_ms: int
    next_retry_at_ms: int
    deployment_id: str | None
    server: str | None
    failure: AttemptFailure | None
    awaiting_on: Future | None


class Run:
    """One session of one invocation."""

    def __init__(
        self,
        ports: RunPorts,
        invocation: InvocationId,
        session: int,
        on_over: Callable[["Run"], None],
        on_attempt: Callable[[LiveAttempt], None],
    ) -> None:
        self.id = invocation
        self.session = session
        self.ports = ports
        self.retry_state = RetryState()
        self.last_failure: Failed | None = None
        self.next_retry_at_ms = 0
        self.attempt_count = 0
        self.last_start_at_ms = 0
        self._loop = asyncio.get_running_loop()
        self._on_over = on_over
        self._on_attempt = on_attempt
        self._live: LiveAttempt | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._place: Place | None = None  # in the queue of the origin's gate
        self._route: Route | None = None
        self._pin = NO_PIN  # of the attempt under way
        self._last_server: str | None = None
        self._is_cut_short = False  # if it pauses then, no wait follows the attempt under way
        self._is_counted = True  # how the attempt under way ended; or there is none
        self._is_over = False
        self._is_unsure = False  # whether others lead: there is something to tell

    @property
    def live(self) -> LiveAttempt | None:
        """The attempt under way, or the one whose stream is still closing."""
        return self._live

    @property
    def last_deployment_id(self) -> str | None:
        """Where the last attempt went."""
        return self._route.deployment_id if self._route is not None else None

    @property
    def last_server(self) -> str | None:
        """How the SDK there calls itself, once it answered."""
        if self._live is not None and self._live.server is not None:
            self._last_server = self._live.server
        return self._last_server

    @property
    def is_backing_off(self) -> bool:
        return self._timer is not None

    @property
    def is_held_back(self) -> bool:
        """Whether the next attempt waits because its service is busy."""
        return self._place is not None

    def statistics(self) -> RunStatistics:
        """For people to look at."""
        live, failed, is_backing_off = self._live, self.last_failure, self.is_backing_off
        return RunStatistics(
            is_running=live is not None and not is_backing_off,
            is_backing_off=is_backing_off,
            attempts=self.attempt_count,
            retries=self.retry_state.retries,
            failures_since_command=self.retry_state.failures_since_command,
            last_start_at_ms=self.last_start_at_ms,
            next_retry_at_ms=self.next_retry_at_ms if is_backing_off else 0,
            deployment_id=self.last_deployment_id,
            server=self.last_server,
            failure=failed.failure if failed is not None else None,
            awaiting_on=live.attempt.awaiting_on if live is not None else None,
        )

    def start(self, is_admitted: bool = False) -> None:
        """Begin the next attempt: now, or when the gate of its origin lets it start."""
        self._timer = self._place = None
        row = self.ports.store.invocations.get(self.id)
        if self._is_over or not isinstance(row, Invoked) or row.session != self.session:
            self._end()
            return
        self._is_cut_short = False
        if row.is_pausing:
            self._yield()
            return
        try:
            route, version = self._choose(row)
        except AttemptError as error:
            self._note_start()
            self.conclude(fail(error, is_reached=False), [])
            return
        fence = self.ports.fence()
        if fence is not None and not fence.is_fresh():
            self._place = fence.wait(self._admitted if is_admitted else self.start)
            return
        if not is_admitted and route.function is None:
            gate = self.ports.gates.of(route.origin)
            if not gate.is_open():
                self._place = gate.wait(self._admitted)
                return
        self._note_start()
        self._route, self._pin = route, Pin(route.deployment_id, version)
        self._live = LiveAttempt(self, row, route, version)
        self._is_counted = False
        self.ports.tally.start()
        self._on_attempt(self._live)
        self._live.open()

    def _admitted(self) -> None:
        self.start(is_admitted=True)

    def _note_start(self) -> None:
        self.attempt_count += 1
        self.last_start_at_ms = self.ports.clock.now_ms()

    def retry_now(self) -> None:
        """Cut a wait short."""
        if self._timer is not None:
            self._timer.cancel()
            self.start()

    def wind_down(self) -> None:
        """A pause was asked for: an attempt under way may end by itself, another doesn't begin."""
        if self._timer is not None or self._place is not None:
            self._stop_waiting()
            self._yield()
        else:
            self._is_cut_short = True
            if self._live is not None:
                self._live.wind_down()

    def journal_grew(self, journal_length: int) -> None:
        """Notifications were appended."""
        if self._live is not None:
            self._live.journal_grew(journal_length)

    def may_tell(self) -> bool:
        """Whether the attempt under way may be told more: not while others may lead by now, who may
        have recorded what the service would do next. Once that is ruled out, it is told."""
        fence = self.ports.fence()
        if fence is None or fence.is_fresh():
            return True
        if not self._is_unsure:
            self._is_unsure = True
            fence.wait(self._tell)
        return False

    def _tell(self) -> None:
        self._is_unsure = False
        if self._live is not None:
            self._live.pump()

    def abort(self) -> None:
        """The invocation no longer runs, or this node no longer leads: drop everything."""
        self._count(AttemptEnd.ABORTED)
        if self._live is not None:
            self._live.abort()
        self._end()

    def conclude(self, terminal: Terminal, effects: list[Effect]) -> None:
        """An attempt is over: put what follows into the log behind its last ``effects``."""
        match terminal:
            case Ended():
                self._propose_last(AttemptEnd.COMPLETED, [*effects, End()], None)
            case Suspended():
                delivered = self._live.delivered if self._live is not None else 0
                suspend = Suspend(terminal.awaiting, delivered)
                self._propose_last(AttemptEnd.SUSPENDED, [*effects, suspend], None)
            case Failed():
                self._on_failed(terminal, effects)

    def propose(self, effects: list[Effect], done: Callable[[Outcome], None]) -> bool:
        """Append effects of the attempt under way; False when the log refuses them."""
        try:
            self.ports.propose(Effects(self.id, self.session, self._pin, effects), done)
        except PerdureError as error:
            log.debug("invoker.effects.refused", id=format_invocation_id(self.id), reason=error)
            return False
        return True

    def give_up_attempt(self) -> None:
        """The log takes nothing now: what the service sent is as if it had never come."""
        self._count(AttemptEnd.ABORTED)
        if self._live is not None:
            self._live.abort()
        self._wait_for_quiet(_REFUSED_RETRY_MS)

    def _on_failed(self, failed: Failed, effects: list[Effect]) -> None:
        self.last_failure = failed
        catalogue = self.ports.catalogue()
        if self._route is not None:
            policy = self._route.effective.retry
            on_max = self._route.effective.on_max_attempts
        else:
            policy, on_max = catalogue.defaults.retry, catalogue.defaults.on_max_attempts
        if any(isinstance(effect, Append) for effect in effects):
            self.retry_state.on_progress(1)
        decision = self.retry_state.on_failed(failed, policy, on_max, self.ports.entropy)
        if not failed.is_unseen and log.is_debug():
            log.debug(
                "invoker.attempt.failed",
                id=format_invocation_id(self.id),
                code=failed.failure.error_code,
                message=failed.failure.message,
            )
        if self._is_pausing() and failed.behavior is not Behavior.FAIL:
            delay_ms = decision.delay_ms if isinstance(decision, Retry) else 0.0
            recorded = [*effects, Yield(failed.failure)]
            self._propose_last(AttemptEnd.RETRIED, recorded, delay_ms)
            return
        if isinstance(decision, GiveUp):
            self._propose_last(AttemptEnd.FAILED, [*effects, decision.effect], None)
            return
        recorded = [*effects, *decision.effects]
        if recorded:
            self._propose_last(AttemptEnd.RETRIED, recorded, decision.delay_ms)
        else:
            self._count(AttemptEnd.RETRIED)
            self._wait_for_quiet(decision.delay_ms)

    def _is_pausing(self) -> bool:
        row = self.ports.store.invocations.get(self.id)
        return isinstance(row, Invoked) and row.session == self.session and row.is_pausing

    def _yield(self) -> None:
        """There is no attempt: pause, as was asked for."""
        failure = self.last_failure.failure if self.last_failure is not None else None
        self._propose_last(AttemptEnd.RETRIED, [Yield(failure)], 0.0)

    def _propose_last(self, how: AttemptEnd, effects: list[Effect], retry_ms: float | None) -> None:
        if not self.propose(effects, partial(self._last_recorded, how, retry_ms)):
            self.give_up_attempt()

    def _last_recorded(self, how: AttemptEnd, retry_ms: float | None, outcome: Outcome) -> None:
        if isinstance(outcome, NoOutput):
            error = AttemptError("the service ended the invocation without an Output")
            self.conclude(fail(error), [])
            return
        self._count(how if isinstance(outcome, Recorded) else AttemptEnd.ABORTED)
        match outcome:
            case Recorded() if outcome.is_running and retry_ms is not None:
                self._wait_for_quiet(retry_ms)
            case _:
                self._end()

    def _count(self, how: AttemptEnd) -> None:
        if not self._is_counted and self._live is not None:
            self._is_counted = True
            self.ports.tally.end(how, self.ports.clock.monotonic() - self._live.started)
            if self._live.trace is not None:
                failed = self.last_failure if how in FAILURES else None
                error = failed.failure.message if failed is not None else None
                self._live.trace.end(how.value, error)

    def _wait_for_quiet(self, delay_ms: float) -> None:
        """Schedule the next attempt for when nothing of the old one is left, and the delay over."""
        if self._live is not None:
            self._live.when_quiet(partial(self._retry_in, delay_ms))
        else:
            self._retry_in(delay_ms)

    def _retry_in(self, delay_ms: float) -> None:
        if self._is_over:
            return
        self._last_server = self.last_server
        self._live, self._pin = None, NO_PIN
        if self._is_cut_short and self._is_pausing():
            delay_ms = 0.0
        self.next_retry_at_ms = self.ports.clock.now_ms() + int(delay_ms)
        self._timer = self._loop.call_later(delay_ms / 1000, self.start)

    def _end(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._stop_waiting()
            self._on_over(self)
            self._live = None  # it refers to us

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._place is not None:
            self._place.give_up()
            self._place = None

    def _choose(self, row: Invoked) -> tuple[Route, int]:
        target, pin = row.spec.target, row.progress.pin
        catalogue = self.ports.catalogue()
        if pin is None:
            route = catalogue.latest(target.service, target.handler)
            if route is None:
                raise NoDeployment(f"no deployment serves {target.service}/{target.handler}")
            if not route.is_supported:
                raise IncompatibleEndpoint(
                    f"deployment {route.deployment_id} speaks protocol versions "
                    f"{route.protocol_version_min} to {route.protocol_version_max}, none of which "
                    "is supported any more"
                )
            return route, min(route.protocol_version_max, PROTOCOL_VERSION_MAX)
        route = catalogue.pinned(pin.deployment_id, target.service, target.handler)
        if route is None:
            raise NoDeployment(
                f"the pinned deployment {pin.deployment_id} no longer serves "
                f"{target.service}/{target.handler}"
            )
        version = pin.protocol_version
        if not route.protocol_version_min <= version <= route.protocol_version_max:
            raise CannotResume(
                f"the invocation is pinned to protocol version {version}, deployment "
                f"{pin.deployment_id} now speaks {route.protocol_version_min} to "
                f"{route.protocol_version_max}"
            )
        return route, version
