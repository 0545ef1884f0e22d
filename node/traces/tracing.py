"""Starts and stops sending spans; what the boot order holds of tracing."""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from perdure.core.errors import InvalidConfiguration
from perdure.core.offload import Offload, ThreadOffload, run_offloaded
from perdure.core.telemetry import logger
from perdure.node.traces.spans import Span, Value

log = logger("traces")


class Sink(Protocol):
    """Where spans go (otlp.py)."""

    def emit(self, span: Span) -> None: ...

    def close(self) -> None:
        """Send what is queued; may block for a while."""
        ...


class Tracing:
    """A sink, and the thread on which it is closed."""

    def __init__(self, sink: Sink, closing: Offload) -> None:
        self._sink = sink
        self._closing = closing
        self.emit: Callable[[Span], None] = sink.emit

    async def aclose(self, *, is_clean: bool) -> None:
        """Send what is queued, unless the process ends in a hurry."""
        if is_clean:
            await run_offloaded(self._closing, self._sink.close)
        self._closing.close()


def start_tracing(
    endpoint: str, headers: Sequence[tuple[str, str]], resource: Mapping[str, Value]
) -> Tracing:
    """Send spans to a collector from now on.

    Raises:
        InvalidConfiguration: tracing is not installed.
    """
    try:
        from perdure.node.traces import otlp  # nobody else needs the libraries
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] != "opentelemetry":
            raise
        raise InvalidConfiguration(
            f"tracing-endpoint is set, but {error.name} is not installed: "
            "pip install 'perdure[traces]', or remove the setting"
        ) from error
    log.info("traces.started", endpoint=endpoint)
    return Tracing(otlp.open_sink(endpoint, headers, resource), ThreadOffload("traces"))
