"""Counts what the ingress did, by service, for metrics to read."""

from dataclasses import dataclass
from enum import Enum

from perdure.core.summary import Summary, SummaryFigures


class Status(Enum):
    """How a request ended; ADMITTED is counted when it begins."""

    ADMITTED = "admitted"
    COMPLETED = "completed"
    REQUEST_ERROR = "request_error"
    INGRESS_ERROR = "ingress_error"
    INVOCATION_ERROR = "invocation_error"
    RATE_LIMITED = "rate-limited"


def status_of(code: int, is_invocation: bool) -> Status:
    """The status of an answer; ``is_invocation``: an invocation's terminal error."""
    if is_invocation:
        return Status.INVOCATION_ERROR
    if code < 400:
        return Status.COMPLETED
    return Status.REQUEST_ERROR if code < 500 else Status.INGRESS_ERROR


@dataclass(frozen=True, slots=True)
class RequestCount:
    """Requests of one status. ``service`` is "" where none was recognized."""

    status: Status
    service: str
    kind: str
    count: int


@dataclass(frozen=True, slots=True)
class Latency:
    """How long requests took that were answered."""

    service: str
    kind: str
    figures: SummaryFigures


class Tally:
    """Grows with the number of services, not of requests."""

    def __init__(self) -> None:
        self._counts: dict[tuple[Status, str, str], int] = {}
        self._latencies: dict[tuple[str, str], Summary] = {}

    def count(self, status: Status, service: str = "", kind: str = "") -> None:
        """One more request of this status."""
        key = (status, service, kind)
        self._counts[key] = self._counts.get(key, 0) + 1

    def answered(self, status: Status, service: str, kind: str, seconds: float) -> None:
        """A request was answered after ``seconds``."""
        self.count(status, service, kind)
        latency = self._latencies.get((service, kind))
        if latency is None:
            latency = self._latencies[service, kind] = Summary()
        latency.add(seconds)

    def counts(self) -> tuple[RequestCount, ...]:
        return tuple(RequestCount(*key, count) for key, count in self._counts.items())

    def latencies(self) -> tuple[Latency, ...]:
        return tuple(Latency(*key, latency.figures()) for key, latency in self._latencies.items())
