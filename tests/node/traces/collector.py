"""An OTLP collector that keeps what it gets."""

import asyncio
from dataclasses import replace
from pathlib import Path

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
from opentelemetry.proto.trace.v1.trace_pb2 import Status
from tests.node.metrics.world import DEADLINE_SECONDS, Stage, World

from perdure.core.limits import MIB
from perdure.node.http.exchange import Exchange


class Arrived:
    """A span as it came over the wire."""

    def __init__(self, span: WireSpan, resource: dict[str, str]) -> None:
        self.name = span.name
        self.kind = WireSpan.SpanKind.Name(span.kind).removeprefix("SPAN_KIND_")
        self.trace_id = int.from_bytes(span.trace_id)
        self.span_id = int.from_bytes(span.span_id)
        self.parent_id = int.from_bytes(span.parent_span_id)
        self.start_ns, self.end_ns = span.start_time_unix_nano, span.end_time_unix_nano
        self.state = span.trace_state
        self.resource = resource
        self.attributes = {
            item.key: item.value.string_value or item.value.int_value for item in span.attributes
        }
        self.events = [event.name for event in span.events]
        is_error = span.status.code == Status.STATUS_CODE_ERROR
        self.error = span.status.message if is_error else None

    def __repr__(self) -> str:
        return f"{self.name} ({self.span_id:x} of {self.parent_id:x}, {self.error})"


class Collector:
    """The HTTP application."""

    body_bytes_max = 4 * MIB

    def __init__(self) -> None:
        self.spans: list[Arrived] = []
        self.headers: list[dict[bytes, bytes]] = []

    def on_exchange(self, exchange: Exchange) -> None:
        assert (exchange.method, exchange.target) == ("POST", "/v1/traces")
        self.headers.append(dict(exchange.headers))
        for group in ExportTraceServiceRequest.FromString(exchange.body).resource_spans:
            resource = {item.key: item.value.string_value for item in group.resource.attributes}
            for scope in group.scope_spans:
                self.spans += [Arrived(span, resource) for span in scope.spans]
        exchange.respond(200, [(b"content-type", b"application/x-protobuf")])

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        raise AssertionError("batches are small")

    async def wait_trace(self, trace_id: int, count: int) -> dict[str, Arrived]:
        """The spans of a trace by name, once ``count`` have come; names must differ."""
        found = {span.name: span for span in await self.wait_spans(trace_id, count)}
        assert len(found) == count, found
        return found

    async def wait_spans(self, trace_id: int, count: int) -> list[Arrived]:
        """The spans of a trace in the order in which they ended, once ``count`` have come."""

        def look() -> list[Arrived]:
            return [span for span in self.spans if span.trace_id == trace_id]

        try:
            async with asyncio.timeout(DEADLINE_SECONDS):
                while len(look()) < count:  # noqa: ASYNC110 - the collector is on this very loop
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"only {self.spans}") from None
        assert len(look()) == count, look()
        return look()


class TracedStage(Stage):
    """A node whose spans go to a collector beside it."""

    def __init__(self, folder: Path) -> None:
        self.collector = Collector()
        super().__init__(World(folder))

    async def before(self, world: World) -> None:
        url = await world.serve(self.collector)
        world.config = replace(
            world.config, tracing_endpoint=url, tracing_headers=(("x-token", "secret"),)
        )
