"""The trace of one attempt: its span, a child for each step that ran, the header for the service.

A step that an earlier attempt began is run again without its command being sent again, so entries
on their way to the service are looked at too. What a call's callee records carries on the trace.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import msgspec

from perdure.core.limits import TRACE_EVENTS_MAX
from perdure.engine.commands import Append, CompleteRun, Effect
from perdure.node.http.ports import Headers
from perdure.node.invoker.validation import Callee, Resolver, command_name
from perdure.node.traces.spans import (
    TRACEPARENT,
    TRACESTATE,
    Context,
    Span,
    SpanEvent,
    SpanKind,
    Value,
)
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.journal import CallInfo, Entry

UNFINISHED = "the step didn't end in this attempt"
_UNREMARKABLE = frozenset((T.RUN_COMMAND, T.OUTPUT_COMMAND))


class Spans(Protocol):
    """Where spans go, and what they need (tracer.py)."""

    def emit(self, span: Span) -> None: ...

    def span_id(self) -> int: ...

    def now_ns(self) -> int: ...


@dataclass(slots=True)
class _Step:
    name: str
    start_ns: int


class AttemptTrace:
    """From the attempt's start until ``end``, which is called once."""

    def __init__(
        self,
        spans: Spans,
        name: str,
        context: Context,
        parent_id: int,
        attributes: dict[str, Value],
    ) -> None:
        self._spans = spans
        self._name = name
        self.context = context
        self._parent_id = parent_id
        self._attributes = attributes
        self._start_ns = spans.now_ns()
        self._steps: dict[int, _Step] = {}
        self._events: list[SpanEvent] = []

    def headers(self) -> Headers:
        """What the request to the service carries, so that its spans become children."""
        headers: Headers = [(TRACEPARENT.encode(), self.context.traceparent().encode())]
        if self.context.state:
            headers.append((TRACESTATE.encode(), self.context.state.encode()))
        return headers

    def resolver(self, inner: Resolver) -> Resolver:
        """A resolver whose calls continue this trace."""
        return _TracingResolver(inner, self.context)

    def sent(self, entry: Entry) -> None:
        """An entry of the journal is on its way to the service."""
        if entry.type == T.RUN_COMMAND:
            self._begin(entry.payload)
        elif entry.type == T.RUN_COMPLETION:
            self._steps.pop(pb.NotificationMessage.FromString(entry.payload).completion_id, None)

    def received(self, effects: Sequence[Effect]) -> None:
        """The service sent these."""
        for effect in effects:
            match effect:
                case Append() if effect.type_code == T.RUN_COMMAND:
                    self._begin(effect.payload)
                case Append() if effect.type_code not in _UNREMARKABLE:
                    self._note(command_name(effect.type_code))
                case CompleteRun():
                    step = self._steps.pop(effect.completion_id, None)
                    if step is not None:
                        self._finish(step, _failure(effect.payload) if effect.failed else None)
                case _:
                    pass

    def end(self, outcome: str, error: str | None) -> None:
        """The attempt is over."""
        for step in self._steps.values():
            if error is not None:
                self._finish(step, UNFINISHED)
        self._steps.clear()
        self._spans.emit(
            Span(
                name=self._name,
                kind=SpanKind.CLIENT,
                context=self.context,
                parent_id=self._parent_id,
                start_ns=self._start_ns,
                end_ns=self._spans.now_ns(),
                attributes={**self._attributes, "restate.attempt.outcome": outcome},
                events=tuple(self._events),
                error=error,
            )
        )

    def _note(self, name: str) -> None:
        if len(self._events) < TRACE_EVENTS_MAX:
            self._events.append(SpanEvent(name, self._spans.now_ns(), {}))

    def _begin(self, payload: bytes) -> None:
        command = pb.RunCommandMessage.FromString(payload)
        step = _Step(command.name, self._spans.now_ns())
        self._steps[command.result_completion_id] = step

    def _finish(self, step: _Step, error: str | None) -> None:
        context = self.context
        self._spans.emit(
            Span(
                name=f"run {step.name}".rstrip(),
                kind=SpanKind.INTERNAL,
                context=Context(
                    context.trace_id, self._spans.span_id(), context.is_sampled, context.state
                ),
                parent_id=context.span_id,
                start_ns=step.start_ns,
                end_ns=self._spans.now_ns(),
                attributes={
                    name: value
                    for name, value in self._attributes.items()
                    if name.startswith("restate.invocation.")
                },
                error=error,
            )
        )


class _TracingResolver:
    def __init__(self, inner: Resolver, context: Context) -> None:
        self._inner = inner
        self._context = context

    def resolve(self, callee: Callee) -> CallInfo:
        call = self._inner.resolve(callee)
        return msgspec.structs.replace(call, traceparent=self._context.traceparent())


def _failure(payload: bytes) -> str:
    return pb.NotificationMessage.FromString(payload).failure.message
