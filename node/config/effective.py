"""The settings that services and handlers start from, in the registry's terms."""

from perdure.core.retry import RetryPolicy
from perdure.node.config.model import Config
from perdure.node.registry.effective import Defaults


def to_defaults(config: Config) -> Defaults:
    """Retentions, timeouts and retries as the registry takes them."""
    retention, retry, invoker = config.retention, config.retry, config.invoker
    return Defaults(
        inactivity_timeout_ms=invoker.inactivity_timeout_ms,
        abort_timeout_ms=invoker.abort_timeout_ms,
        journal_retention_ms=retention.journal_ms,
        idempotency_retention_ms=retention.idempotency_ms,
        workflow_completion_retention_ms=retention.workflow_completion_ms,
        journal_retention_ms_max=retention.journal_ms_max,
        idempotency_retention_ms_max=retention.idempotency_ms_max,
        workflow_completion_retention_ms_max=retention.workflow_completion_ms_max,
        retry=RetryPolicy(
            initial_ms=retry.initial_interval_ms,
            factor=retry.exponentiation_factor,
            interval_ms_max=retry.interval_ms_max,
            attempts_max=retry.attempts_max,
        ),
        on_max_attempts=retry.on_max_attempts,
        eager_state_bytes_max=invoker.eager_state_bytes_max,
    )
