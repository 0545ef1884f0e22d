"""What follows a failed attempt: the two counters, delays, and the end of trying."""

import pytest

from perdure.core.limits import RETRY_DELAY_MS_MAX
from perdure.core.retry import RetryPolicy
from perdure.engine.commands import AttemptFailed, Fail, PauseAttempt
from perdure.node.invoker.attempt import Behavior, Failed
from perdure.node.invoker.retries import GiveUp, Retry, RetryState
from perdure.node.registry.model import OnMaxAttempts
from perdure.storage.tables.invocations import Failure
from perdure.storage.tables.journal import AttemptFailure

POLICY = RetryPolicy(initial_ms=100, factor=2, interval_ms_max=300, attempts_max=4)
EVENT = AttemptFailure(500, "no", "stack", "RT0007")


class Dice:
    """Always the largest jitter."""

    def bits(self, count: int) -> int:
        return 0

    def jitter(self, upper: float) -> float:
        return upper


def fail(
    state: RetryState,
    failed: Failed | None = None,
    policy: RetryPolicy = POLICY,
    on_max: OnMaxAttempts = OnMaxAttempts.PAUSE,
) -> Retry | GiveUp:
    return state.on_failed(failed or Failed(failure=EVENT), policy, on_max, Dice())


def delays(state: RetryState, count: int) -> list[float]:
    found: list[float] = []
    for _ in range(count):
        decision = fail(state)
        assert isinstance(decision, Retry)
        found.append(decision.delay_ms)
    return found


def test_schedule_with_jitter_on_top() -> None:
    assert delays(RetryState(), 3) == [130, 260, 390]


def test_small_delays_get_three_milliseconds_of_jitter() -> None:
    policy = RetryPolicy(initial_ms=1, factor=1, interval_ms_max=None, attempts_max=None)
    decision = fail(RetryState(), policy=policy)
    assert isinstance(decision, Retry)
    assert decision.delay_ms == 4


def test_default_end_is_pause() -> None:
    state = RetryState()
    delays(state, 3)
    assert fail(state) == GiveUp(PauseAttempt(EVENT))


def test_kill_ends_with_the_last_error() -> None:
    state = RetryState()
    delays(state, 3)
    last = AttemptFailure(503, "last", "stack")
    ended = Fail(Failure(503, "last", (), "stack"), last)
    assert fail(state, Failed(failure=last), on_max=OnMaxAttempts.KILL) == GiveUp(ended)


@pytest.mark.parametrize("attempts_max", [0, 1])
def test_one_attempt_is_all(attempts_max: int) -> None:
    policy = RetryPolicy(initial_ms=1, factor=1, interval_ms_max=1, attempts_max=attempts_max)
    assert isinstance(fail(RetryState(), policy=policy), GiveUp)


def test_progress_does_not_reset_the_attempts() -> None:
    state = RetryState()
    for _ in range(3):
        state.on_progress(1)
        assert isinstance(fail(state), Retry)
    state.on_progress(1)
    assert isinstance(fail(state), GiveUp)


def test_asked_delays_are_exact_and_uncounted() -> None:
    state = RetryState()
    asked = Failed(failure=EVENT, retry_after_ms=70)
    for _ in range(100):
        decision = fail(state, asked)
        assert isinstance(decision, Retry)
        assert decision.delay_ms == 70
    assert state.retries == 0
    assert state.failures_since_command == 100
    assert delays(state, 3) == [130, 260, 390]


def test_delay_beyond_all_dates_is_cut() -> None:
    decision = fail(RetryState(), Failed(failure=EVENT, retry_after_ms=2**64 - 1))
    assert isinstance(decision, Retry)
    assert decision.delay_ms == RETRY_DELAY_MS_MAX
    endless = RetryPolicy(initial_ms=100, factor=10, interval_ms_max=None, attempts_max=None)
    state = RetryState()
    for _ in range(1000):
        fail(state, policy=endless)
    decision = fail(state, policy=endless)
    assert isinstance(decision, Retry)
    assert decision.delay_ms <= RETRY_DELAY_MS_MAX * 1.3


def test_count_for_sdks_is_reset_by_commands_only() -> None:
    state = RetryState()
    for expected in (1, 2, 3):
        fail(state)
        assert state.failures_since_command == expected
    state.on_progress(0)  # a run's proposal
    assert state.failures_since_command == 3
    state.on_progress(1)
    assert state.failures_since_command == 0


def test_failures_that_never_reached_the_sdk_are_not_told_to_it() -> None:
    state = RetryState()
    fail(state, Failed(failure=EVENT, is_reached=False))
    assert (state.failures_since_command, state.retries) == (0, 1)


def test_lost_streams_are_made_good_unseen_three_times() -> None:
    state = RetryState()
    lost = Failed(failure=EVENT, is_unseen=True)
    assert [fail(state, lost) for _ in range(3)] == [Retry(0.0, [])] * 3
    decision = fail(state, lost)
    assert isinstance(decision, Retry)
    assert decision.delay_ms == 130
    state.on_progress(0)
    assert fail(state, lost) == Retry(0.0, [])


@pytest.mark.parametrize(
    ("behavior", "effect"),
    [
        (Behavior.PAUSE, PauseAttempt(EVENT)),
        (Behavior.FAIL, Fail(Failure(500, "no", (), "stack"), EVENT)),
    ],
)
def test_service_may_decide_itself(behavior: Behavior, effect: Fail | PauseAttempt) -> None:
    assert fail(RetryState(), Failed(failure=EVENT, behavior=behavior)) == GiveUp(effect)


def test_same_failure_is_recorded_once_until_a_command() -> None:
    state = RetryState()

    def recorded(event: AttemptFailure) -> list[object]:
        decision = fail(state, Failed(failure=event, retry_after_ms=1))
        assert isinstance(decision, Retry)
        return list(decision.effects)

    other = AttemptFailure(500, "other")
    assert recorded(EVENT) == [AttemptFailed(EVENT)]
    assert recorded(EVENT) == []
    assert recorded(other) == [AttemptFailed(other)]
    assert recorded(EVENT) == [AttemptFailed(EVENT)]
    state.on_progress(1)
    assert recorded(EVENT) == [AttemptFailed(EVENT)]
