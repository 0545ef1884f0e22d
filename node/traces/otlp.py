"""Spans for OpenTelemetry: the only module that knows its libraries.

Imported when tracing is configured, and only then. Sending happens on the library's own thread, in
batches; when the collector is away or slow, spans are dropped, never anything else.
"""

from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from perdure.core.limits import TRACE_EXPORT_MS, TRACE_SPANS_PER_BATCH_MAX, TRACE_SPANS_WAITING_MAX
from perdure.node.traces.spans import Context, Span, Value

TRACES_PATH = "v1/traces"
_EXPORT_INTERVAL_MS = 1_000


class OtlpSink:
    """Where a node's spans leave it."""

    def __init__(self, processor: SpanProcessor, resource: Mapping[str, Value]) -> None:
        self._processor = processor
        self._resource = Resource(dict(resource))
        self._scope = InstrumentationScope("perdure")

    def emit(self, span: Span) -> None:
        """Queue a span; never waits."""
        parent = None
        if span.parent_id:
            parent = _context(span.context, span.parent_id, is_remote=True)
        failed = Status(StatusCode.ERROR, span.error)
        self._processor.on_end(
            ReadableSpan(
                name=span.name,
                context=_context(span.context, span.context.span_id, is_remote=False),
                parent=parent,
                resource=self._resource,
                attributes=span.attributes,
                events=_events(span),
                kind=SpanKind[span.kind.value],
                status=failed if span.error is not None else Status(StatusCode.UNSET),
                start_time=span.start_ns,
                end_time=max(span.end_ns, span.start_ns),
                instrumentation_scope=self._scope,
            )
        )

    def close(self) -> None:
        """Send what is queued, for a while. Blocks: call it off the event loop."""
        self._processor.shutdown()


def open_sink(
    endpoint: str, headers: Sequence[tuple[str, str]], resource: Mapping[str, Value]
) -> OtlpSink:
    """Send to an OTLP collector over HTTP; an endpoint without a path gets the usual one."""
    url = endpoint if urlsplit(endpoint).path.strip("/") else f"{endpoint}{TRACES_PATH}"
    exporter = OTLPSpanExporter(
        endpoint=url.rstrip("/"), headers=dict(headers), timeout=TRACE_EXPORT_MS / 1000
    )
    processor = BatchSpanProcessor(
        exporter,
        max_queue_size=TRACE_SPANS_WAITING_MAX,
        schedule_delay_millis=_EXPORT_INTERVAL_MS,
        max_export_batch_size=TRACE_SPANS_PER_BATCH_MAX,
        export_timeout_millis=TRACE_EXPORT_MS,
    )
    return OtlpSink(processor, resource)


def _context(context: Context, span_id: int, *, is_remote: bool) -> SpanContext:
    flags = TraceFlags(TraceFlags.SAMPLED if context.is_sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([context.state]) if context.state else None
    return SpanContext(context.trace_id, span_id, is_remote, flags, state)


def _events(span: Span) -> list[Event]:
    events = [Event(event.name, event.attributes, event.at_ns) for event in span.events]
    if span.error is not None:
        events.append(Event("exception", {"exception.message": span.error}, span.end_ns))
    return events
