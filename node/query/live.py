"""What only the memory of the leaders knows, captured on the event loop when a statement starts."""

from typing import NamedTuple

from perdure.core.ids import InvocationId
from perdure.node.invoker.run import Run
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


def capture(run: Run) -> tuple[InvocationId, Live]:
    """The session as it is now."""
    live, failed = run.live, run.last_failure
    is_backing_off = run.is_backing_off
    return run.id, Live(
        is_in_flight=live is not None and not is_backing_off,
        attempt_count=run.attempt_count,
        last_start_at_ms=run.last_start_at_ms,
        next_retry_at_ms=run.next_retry_at_ms if is_backing_off else 0,
        deployment_id=run.last_deployment_id,
        server=run.last_server,
        failure=failed.failure if failed is not None else None,
    )
