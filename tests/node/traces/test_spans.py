"""Contexts and their header, derived ids, and the way into OpenTelemetry's objects."""

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from perdure.core.entropy import SystemEntropy
from perdure.core.errors import InvalidConfiguration
from perdure.core.ids import make_invocation_id
from perdure.node import traces
from perdure.node.traces.otlp import OtlpSink
from perdure.node.traces.spans import (
    Context,
    Span,
    SpanEvent,
    SpanKind,
    ingress_span,
    invocation_span,
    parse_traceparent,
    trace_of,
)
from perdure.node.traces.tracer import Tracer
from perdure.node.traces.tracing import start_tracing

GOOD = "00-0af7651916cd43dd8448eb211c80319c-00f067aa0ba902b7-01"


def test_a_header_is_read_and_written_back() -> None:
    context = parse_traceparent(GOOD, "vendor=1")
    assert context is not None
    assert context == Context(
        0x0AF7651916CD43DD8448EB211C80319C, 0x00F067AA0BA902B7, True, "vendor=1"
    )
    assert context.traceparent() == GOOD
    unwanted = parse_traceparent(GOOD.removesuffix("01") + "00")
    assert unwanted is not None
    assert not unwanted.is_sampled


@pytest.mark.parametrize(
    ("text", "is_sampled"),
    [
        (f"  {GOOD}\t", True),
        (GOOD.removesuffix("01") + "ff", True),
        (GOOD.removesuffix("01") + "fe", False),
        ("cc" + GOOD.removeprefix("00"), True),
        ("cc" + GOOD.removeprefix("00") + "-what-comes-next", True),
    ],
)
def test_what_else_is_a_context(text: str, is_sampled: bool) -> None:
    context = parse_traceparent(text)
    assert context is not None
    assert context.is_sampled is is_sampled


@pytest.mark.parametrize(
    "text",
    [
        "",
        "00",
        GOOD + "-more",
        GOOD + "0",
        GOOD.upper(),
        "ff" + GOOD.removeprefix("00"),
        GOOD.replace("0af7651916cd43dd8448eb211c80319c", "0" * 32),
        GOOD.replace("00f067aa0ba902b7", "0" * 16),
        GOOD.replace("-", "_"),
        GOOD.replace("0af", "xyz"),
    ],
)
def test_anything_else_is_ignored(text: str) -> None:
    assert parse_traceparent(text) is None


@pytest.mark.parametrize("state", ["a=1\r\nhost: x", " a=1", "a=1 ", "ä=1", "a" * 513])
def test_a_state_that_no_header_can_carry_stays_behind(state: str) -> None:
    context = parse_traceparent(GOOD, state)
    assert context is not None
    assert context.state == ""


def test_derived_ids_are_fixed_and_differ() -> None:
    one, two = make_invocation_id(1, 2), make_invocation_id(1, 3)
    assert (trace_of(one), invocation_span(one), ingress_span(one)) == (
        0x5925E9EC15A528820150DAEDB829AC12,
        0x1C7494370B80EEAC,
        0x70AC0209D89B0C74,
    )
    ids = {make(which) for which in (one, two) for make in (invocation_span, ingress_span)}
    assert len(ids) == 4
    assert all(0 < number < 1 << 64 for number in ids)
    assert 0 < trace_of(two) < 1 << 128


def test_a_span_becomes_what_exporters_take() -> None:
    exporter = InMemorySpanExporter()
    sink = OtlpSink(SimpleSpanProcessor(exporter), {"service.name": "perdure"})
    wanted = Span(
        name="run first",
        kind=SpanKind.CLIENT,
        context=Context(1, 2, True, "vendor=1"),
        parent_id=3,
        start_ns=1_000,
        end_ns=2_000,
        attributes={"text": "a", "number": 7},
        events=(SpanEvent("Call", 1_500, {}),),
        error="out of stock",
    )
    sink.emit(wanted)
    (span,) = exporter.get_finished_spans()
    assert span.name == "run first"
    assert span.context is not None
    assert span.parent is not None
    assert (span.context.trace_id, span.context.span_id, span.parent.span_id) == (1, 2, 3)
    assert span.context.trace_state.get("vendor") == "1"
    assert (span.start_time, span.end_time) == (1_000, 2_000)
    assert span.attributes == {"text": "a", "number": 7}
    assert [event.name for event in span.events] == ["Call", "exception"]
    assert (span.status.status_code, span.status.description) == (StatusCode.ERROR, "out of stock")
    assert span.resource.attributes == {"service.name": "perdure"}
    sink.close()


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "perdure.node.traces.otlp")
    monkeypatch.delattr(traces, "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    for name in [name for name in sys.modules if name.startswith("opentelemetry.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(InvalidConfiguration, match=r"pip install 'perdure\[traces\]'"):
        start_tracing("http://127.0.0.1:4318/", (), {})


class _NanosecondClock:
    """One true time, told by the wall in whole milliseconds and by the monotonic clock exactly."""

    def __init__(self, now_ns: int) -> None:
        self.true_ns = now_ns

    def now_ms(self) -> int:
        return self.true_ns // 1_000_000

    def monotonic(self) -> float:
        return (self.true_ns % 10**12) / 1e9


@given(st.integers(0, 10**9), st.lists(st.integers(0, 10**8)))
def test_no_moment_is_before_the_milliseconds_it_falls_in(offset: int, steps: list[int]) -> None:
    clock = _NanosecondClock(1_795_530_000_000_000_000 + offset)
    tracer = Tracer(lambda span: None, clock, SystemEntropy())
    for step in steps:
        before = tracer.now_ns()
        clock.true_ns += step
        assert clock.now_ms() * 1_000_000 <= tracer.now_ns() <= clock.true_ns + 2_000_000
        assert before <= tracer.now_ns()
