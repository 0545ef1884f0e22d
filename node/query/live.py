"""What only the memory of the leaders knows, captured on the event loop when a statement starts."""

from typing import NamedTuple

from perdure.core.ids import InvocationId
from perdure.node.invoker.run import Run
from perdure.storage.tables.futures import Future
from perdure.storage.tables.journal import AttemptFailure


class Live(NamedTuple):
    """A running session of an invocation. Times in ms since the epoch, 0 for none."""

    is_in_flight: bool
    attempt_count: int
    last_start_at_ms: int
    next_retry_at_ms: int
    deployment_id: str | None
    server: str | None
    failure: AttemptFailure | None
    awaiting_on: Future | None


def capture(run: Run) -> tuple[InvocationId, Live]:
    """The session as it is now."""
    found = run.statistics()
    return run.id, Live(
        is_in_flight=found.is_running,
        attempt_count=found.attempts,
        last_start_at_ms=found.last_start_at_ms,
        next_retry_at_ms=found.next_retry_at_ms,
        deployment_id=found.deployment_id,
        server=found.server,
        failure=found.failure,
        awaiting_on=found.awaiting_on,
    )
