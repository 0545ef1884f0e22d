"""Makes spans of what a node does: ingress requests, invocations, attempts, recorded steps.

Spans are handed to ``emit`` when they are over, so an unfinished one is a few fields here and
nothing elsewhere. Whoever may trace holds a ``Tracer | None``; None costs one comparison.
"""

from collections import OrderedDict
from collections.abc import Callable

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.ids import InvocationId, format_invocation_id
from perdure.core.limits import TRACE_CONTEXTS_MAX
from perdure.node.http.ports import Headers
from perdure.node.traces.attempts import AttemptTrace
from perdure.node.traces.spans import (
    TRACEPARENT,
    TRACESTATE,
    Context,
    Span,
    SpanKind,
    Value,
    ingress_span,
    invocation_span,
    parse_traceparent,
    trace_of,
)
from perdure.proto import service_pb2 as pb
from perdure.storage.keys import index_suffix
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.invocations import Failure, Result, SourceKind, Spec

INVOCATION_ID = "restate.invocation.id"
TARGET = "restate.invocation.target"
_CLOCK_DRIFT_NS_MAX = 50_000_000


class Tracer:
    """Of one node; called on the event loop."""

    def __init__(self, emit: Callable[[Span], None], clock: Clock, entropy: Entropy) -> None:
        self._emit = emit
        self._clock = clock
        self._entropy = entropy
        # The wall clock tells whole milliseconds, the last one begun; taking the next keeps every
        # moment told here at or after the milliseconds that invocations are stamped with.
        self._epoch_ns = (clock.now_ms() + 1) * 1_000_000 - int(clock.monotonic() * 1e9)
        # Of invocations seen lately: (context of the invocation's span, id of its parent's span).
        self._contexts: OrderedDict[InvocationId, tuple[Context, int]] = OrderedDict()

    # --- Ingress --------------------------------------------------------------------------------

    def answered(
        self,
        request: tuple[str, str, str],
        headers: Headers,
        started: float,
        concerns: tuple[InvocationId | None, bool],
        status: int,
    ) -> None:
        """An ingress request that began at ``started`` (monotonic) was answered.

        ``request``: its kind in a word, method, and path. ``concerns``: an invocation, and whether
        the request started it.
        """
        kind, method, target = request
        invocation, is_new = concerns
        caller = _caller(headers)
        context = self._ingress_context(caller, invocation, is_new)
        attributes: dict[str, Value] = {
            "http.request.method": method,
            "url.path": target.partition("?")[0],
            "http.response.status_code": status,
        }
        if invocation is not None:
            attributes[INVOCATION_ID] = format_invocation_id(invocation)
        self.emit(
            Span(
                name=f"ingress {kind}",
                kind=SpanKind.SERVER,
                context=context,
                parent_id=caller.span_id if caller is not None else 0,
                start_ns=self.at_ns(started),
                end_ns=self.now_ns(),
                attributes=attributes,
                error=f"answered with {status}" if status >= 500 else None,
            )
        )

    def _ingress_context(
        self, caller: Context | None, invocation: InvocationId | None, is_new: bool
    ) -> Context:
        span_id = self.span_id()
        if invocation is not None and is_new:
            span_id = ingress_span(invocation)
        if caller is not None:
            return Context(caller.trace_id, span_id, caller.is_sampled, caller.state)
        if invocation is None:
            return Context(self._entropy.bits(128) or 1, span_id)
        known = self._contexts.get(invocation)
        return Context(known[0].trace_id if known else trace_of(invocation), span_id)

    # --- Invocations ----------------------------------------------------------------------------

    def attempt(
        self,
        invocation: InvocationId,
        spec: Spec,
        store: PartitionStore,
        attributes: dict[str, Value],
    ) -> AttemptTrace:
        """An attempt begins."""
        parent, _ = self._context_of(invocation, spec, store)
        target = spec.target
        return AttemptTrace(
            self,
            f"attempt {target.service}/{target.handler}",
            Context(parent.trace_id, self.span_id(), parent.is_sampled, parent.state),
            parent.span_id,
            {**_names(invocation, spec), **attributes},
        )

    def ended(
        self, invocation: InvocationId, spec: Spec, store: PartitionStore, result: Result
    ) -> None:
        """An invocation has its result."""
        context, parent_id = self._context_of(invocation, spec, store)
        self._contexts.pop(invocation, None)
        failure = result if isinstance(result, Failure) else None
        attributes = _names(invocation, spec)
        if failure is not None:
            attributes["restate.invocation.failure.code"] = failure.code
        target = spec.target
        self.emit(
            Span(
                name=f"invoke {target.service}/{target.handler}",
                kind=SpanKind.INTERNAL,
                context=context,
                parent_id=parent_id,
                start_ns=spec.created_at_ms * 1_000_000,
                end_ns=self.now_ns(),
                attributes=attributes,
                error=failure.message if failure is not None else None,
            )
        )

    def _context_of(
        self, invocation: InvocationId, spec: Spec, store: PartitionStore
    ) -> tuple[Context, int]:
        known = self._contexts.get(invocation)
        if known is not None:
            self._contexts.move_to_end(invocation)
            return known
        caller = _recorded_caller(invocation, store)
        span_id = invocation_span(invocation)
        if caller is not None:
            context = Context(caller.trace_id, span_id, caller.is_sampled, caller.state)
            parent_id = caller.span_id
        else:
            context, parent_id = Context(trace_of(invocation), span_id), 0
        if spec.source.kind == SourceKind.INGRESS:
            parent_id = ingress_span(invocation)
        self._contexts[invocation] = (context, parent_id)
        if len(self._contexts) > TRACE_CONTEXTS_MAX:
            self._contexts.popitem(last=False)
        return context, parent_id

    # --- What attempts need ---------------------------------------------------------------------

    def emit(self, span: Span) -> None:
        """Pass on a span that is over, if its trace is wanted at all."""
        if span.context.is_sampled:
            self._emit(span)

    def span_id(self) -> int:
        """The id of a span of this process's life only."""
        return self._entropy.bits(64) or 1

    def now_ns(self) -> int:
        """Now, as spans have it: follows the wall clock, ordered like the monotonic one."""
        now = self.at_ns(self._clock.monotonic())
        wall = self._clock.now_ms() * 1_000_000
        if abs(now - wall) > _CLOCK_DRIFT_NS_MAX:
            self._epoch_ns += wall - now
            return wall
        return now

    def at_ns(self, monotonic: float) -> int:
        """A moment of the monotonic clock."""
        return self._epoch_ns + int(monotonic * 1e9)


def _names(invocation: InvocationId, spec: Spec) -> dict[str, Value]:
    return {
        INVOCATION_ID: format_invocation_id(invocation),
        TARGET: spec.target.text(),
        "rpc.service": spec.target.service,
        "rpc.method": spec.target.handler,
    }


def _caller(headers: Headers) -> Context | None:
    found = {name: value.decode("latin-1") for name, value in reversed(headers)}
    text = found.get(TRACEPARENT.encode())
    return parse_traceparent(text, found.get(TRACESTATE.encode(), "")) if text else None


def _recorded_caller(invocation: InvocationId, store: PartitionStore) -> Context | None:
    """The context in the invocation's Input, if its journal is still there."""
    entry = store.journal.get(invocation, index_suffix(0))
    if entry is None:
        return None
    headers = pb.InputCommandMessage.FromString(entry.payload).headers
    found = {header.key.lower(): header.value for header in reversed(headers)}
    text = found.get(TRACEPARENT)
    return parse_traceparent(text, found.get(TRACESTATE, "")) if text else None
