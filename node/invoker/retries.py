"""What follows a failed attempt: another one, and when, or the end of trying. Pure.

Two counters (spec 5.7): attempts of this running session, never reset by progress, against the
policy; and failures since the last stored command, which SDKs are told. Delays that the service
asked for count for neither.
"""

from dataclasses import dataclass
from email.utils import parsedate_to_datetime

from perdure.core.entropy import Entropy
from perdure.core.limits import RETRY_DELAY_MS_MAX
from perdure.core.retry import RetryPolicy, with_jitter
from perdure.engine.commands import AttemptFailed, Effect, Fail, PauseAttempt
from perdure.node.invoker.attempt import Behavior, Failed
from perdure.node.registry.model import OnMaxAttempts
from perdure.storage.tables.invocations import Failure
from perdure.storage.tables.journal import AttemptFailure

# Connections come and go: so many losses are made good at once before they count as failures.
_UNSEEN_MAX = 3
_RETRY_AFTER_DIGITS_MAX = 12


@dataclass(frozen=True, slots=True)
class Retry:
    """Try again after ``delay_ms``; ``effects`` go into the log before."""

    delay_ms: float
    effects: list[Effect]


@dataclass(frozen=True, slots=True)
class GiveUp:
    """The last effect ends or pauses the invocation."""

    effect: Effect


class RetryState:
    """The counters of one running session."""

    def __init__(self) -> None:
        self.retries = 0
        self.failures_since_command = 0
        self._unseen = 0
        self._last_event: AttemptFailure | None = None

    def on_progress(self, commands: int) -> None:
        """Something was recorded; ``commands`` of it were commands."""
        self._unseen = 0
        if commands:
            self.failures_since_command = 0
            self._last_event = None

    def on_failed(
        self,
        failed: Failed,
        policy: RetryPolicy,
        on_max_attempts: OnMaxAttempts,
        entropy: Entropy,
    ) -> Retry | GiveUp:
        """Count a failure and decide."""
        if failed.is_unseen and self._unseen < _UNSEEN_MAX:
            self._unseen += 1
            return Retry(0.0, [])
        event = failed.failure
        match failed.behavior:
            case Behavior.PAUSE:
                return GiveUp(PauseAttempt(event))
            case Behavior.FAIL:
                return GiveUp(_end(event))
            case Behavior.RETRY:
                pass
        if failed.is_reached:
            self.failures_since_command += 1
        effects: list[Effect] = []
        if event != self._last_event:
            self._last_event = event
            effects.append(AttemptFailed(event))
        if failed.retry_after_ms is not None:
            return Retry(min(float(failed.retry_after_ms), RETRY_DELAY_MS_MAX), effects)
        delay_ms = policy.delay_ms(self.retries + 1)
        if delay_ms is None:
            if on_max_attempts is OnMaxAttempts.KILL:
                return GiveUp(_end(event))
            return GiveUp(PauseAttempt(event))
        self.retries += 1
        return Retry(with_jitter(min(delay_ms, RETRY_DELAY_MS_MAX), entropy), effects)


def _end(event: AttemptFailure) -> Fail:
    return Fail(Failure(event.code, event.message, (), event.stacktrace), event)


def retry_after_ms(value: bytes, now_ms: int) -> int | None:
    """The delay that a Retry-After header asks for (a number of seconds, or a date)."""
    text = value.decode("latin-1").strip()
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return min(int(text[:_RETRY_AFTER_DIGITS_MAX]) * 1000, RETRY_DELAY_MS_MAX)
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    delay = int(moment.timestamp() * 1000) - now_ms
    return delay if delay > 0 else None
