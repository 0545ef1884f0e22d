"""Spans, and the context that ties them together across processes. Pure.

A context travels as the header ``traceparent`` (W3C Trace Context). Where nobody sent one, ids are
derived from the invocation, so every life of this process gives the same.
"""

import hashlib
import re
from dataclasses import dataclass
from enum import Enum

from perdure.core.ids import InvocationId

TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
_TRACEPARENT = re.compile(
    r"(?!ff)([0-9a-f]{2})-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})(-.*)?",
    re.ASCII,
)
# What goes into a header of ours must not break it.
_TRACESTATE = re.compile(r"[!-~]([ -~]{0,510}[!-~])?", re.ASCII)

Value = str | int | bool


class SpanKind(Enum):
    """Which side of a call a span is; names as in OpenTelemetry."""

    INTERNAL = "INTERNAL"
    SERVER = "SERVER"
    CLIENT = "CLIENT"


@dataclass(frozen=True, slots=True)
class Context:
    """A place in a trace. ``state``: the vendors' part, passed on as it came."""

    trace_id: int
    span_id: int
    is_sampled: bool = True
    state: str = ""

    def traceparent(self) -> str:
        """The header that makes somebody else's spans children of this one."""
        return f"00-{self.trace_id:032x}-{self.span_id:016x}-{int(self.is_sampled):02x}"


@dataclass(frozen=True, slots=True)
class SpanEvent:
    """A moment within a span; nanoseconds since the epoch."""

    name: str
    at_ns: int
    attributes: dict[str, Value]


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A span that is over. ``parent_id`` 0: it begins a trace. ``error`` None: it went well."""

    name: str
    kind: SpanKind
    context: Context
    parent_id: int
    start_ns: int
    end_ns: int
    attributes: dict[str, Value]
    events: tuple[SpanEvent, ...] = ()
    error: str | None = None


def parse_traceparent(text: str, state: str = "") -> Context | None:
    """The context that a header names; None when it isn't one, and is to be ignored.

    A ``state`` that no header can carry, or a very long one, is left behind.
    """
    found = _TRACEPARENT.fullmatch(text.strip())
    if found is None or (found[1] == "00" and found[5] is not None):
        return None
    kept = state if _TRACESTATE.fullmatch(state) else ""
    return Context(int(found[2], 16), int(found[3], 16), bool(int(found[4], 16) & 1), kept)


def trace_of(invocation: InvocationId) -> int:
    """The trace id of an invocation whose caller sent no context."""
    return _derive(invocation, b"trace", 16)


def invocation_span(invocation: InvocationId) -> int:
    """The id of the span of a whole invocation."""
    return _derive(invocation, b"invocation", 8)


def ingress_span(invocation: InvocationId) -> int:
    """The id of the span of the ingress request that started an invocation."""
    return _derive(invocation, b"ingress", 8)


def _derive(invocation: InvocationId, role: bytes, size: int) -> int:
    return int.from_bytes(hashlib.blake2b(invocation, digest_size=size, person=role).digest()) or 1
