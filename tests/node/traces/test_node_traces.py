"""A node with a real SDK service and a real exporter: which spans come, and how they belong."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest
from tests.node.metrics.world import Stage, World, ask
from tests.node.traces.collector import TracedStage

from perdure.core.ids import format_awakeable_id, parse_invocation_id
from perdure.node.traces.spans import ingress_span, invocation_span, trace_of

pytestmark = pytest.mark.slow

CALLER_SPAN = 0x00F067AA0BA902B7


def caller(trace_id: int, flags: str = "01") -> dict[str, str]:
    return {"traceparent": f"00-{trace_id:032x}-{CALLER_SPAN:016x}-{flags}"}


def test_a_call_is_a_request_an_invocation_and_an_attempt(stage: TracedStage) -> None:
    async def scenario() -> None:
        answer = await stage.world.call("/Probe/hello?x=1", "you")
        invocation = parse_invocation_id(answer.headers["x-restate-id"])
        spans = await stage.collector.wait_trace(trace_of(invocation), 3)
        request = spans["ingress call"]
        whole, attempt = spans["invoke Probe/hello"], spans["attempt Probe/hello"]
        assert (request.kind, whole.kind, attempt.kind) == ("SERVER", "INTERNAL", "CLIENT")
        assert request.parent_id == 0
        assert request.span_id == whole.parent_id == ingress_span(invocation)
        assert whole.span_id == attempt.parent_id == invocation_span(invocation)
        assert request.start_ns <= attempt.start_ns <= attempt.end_ns <= request.end_ns
        assert whole.start_ns <= attempt.start_ns
        assert attempt.end_ns <= whole.end_ns
        assert {span.error for span in spans.values()} == {None}
        assert request.attributes == {
            "http.request.method": "POST",
            "url.path": "/Probe/hello",
            "http.response.status_code": 200,
            "restate.invocation.id": answer.headers["x-restate-id"],
        }
        assert whole.attributes["restate.invocation.target"] == "Probe/hello"
        assert attempt.attributes["restate.attempt.outcome"] == "completed"
        assert str(attempt.attributes["restate.deployment.id"]).startswith("dp_")
        assert whole.resource["service.name"] == "perdure"
        assert whole.resource["service.namespace"] == "testing"
        assert whole.resource["service.instance.id"] == "one"
        assert stage.collector.headers[0][b"x-token"] == b"secret"

    stage.run(scenario())


def test_a_callers_trace_goes_on_to_the_service(stage: TracedStage) -> None:
    async def scenario() -> None:
        trace_id = 0x0AF7651916CD43DD8448EB211C80319C
        answer = await stage.world.call(
            "/Probe/attempt_headers", **caller(trace_id), tracestate="vendor=1"
        )
        spans = await stage.collector.wait_trace(trace_id, 3)
        attempt = spans["attempt Probe/attempt_headers"]
        assert spans["ingress call"].parent_id == CALLER_SPAN
        assert answer.json() == {
            "traceparent": f"00-{trace_id:032x}-{attempt.span_id:016x}-01",
            "tracestate": "vendor=1",
        }
        assert {span.state for span in spans.values()} == {"vendor=1"}

    stage.run(scenario())


def test_an_unwanted_trace_is_passed_on_and_not_kept(stage: TracedStage) -> None:
    async def scenario() -> None:
        world = stage.world
        answer = await world.call("/Probe/attempt_headers", **caller(0xBAD, "00"))
        _, trace, _, flags = answer.json()["traceparent"].split("-")
        assert (int(trace, 16), flags) == (0xBAD, "00")
        await world.call("/Probe/hello", "later", **caller(0x600D))
        await stage.collector.wait_spans(0x600D, 3)
        assert not [span for span in stage.collector.spans if span.trace_id == 0xBAD]

    stage.run(scenario())


def test_steps_and_callees_are_children_of_the_attempt(stage: TracedStage) -> None:
    async def scenario() -> None:
        trace_id = 0x57E9
        assert (await stage.world.call("/Probe/steps", "go", **caller(trace_id))).status == 200
        spans = await stage.collector.wait_trace(trace_id, 7)
        attempt = spans["attempt Probe/steps"]
        first, second = spans["run first"], spans["run second"]
        assert first.parent_id == second.parent_id == attempt.span_id
        assert first.error is None
        assert attempt.start_ns <= first.start_ns <= first.end_ns
        assert first.end_ns <= second.start_ns <= second.end_ns <= attempt.end_ns
        target = attempt.attributes["restate.invocation.target"]
        assert first.attributes["restate.invocation.target"] == target == "Probe/steps"
        assert attempt.events == ["Call"]
        callee = spans["invoke Probe/hello"]
        assert callee.parent_id == attempt.span_id
        assert spans["attempt Probe/hello"].parent_id == callee.span_id

    stage.run(scenario())


def test_failures_say_why(stage: TracedStage) -> None:
    async def scenario() -> None:
        world, collector = stage.world, stage.collector
        await world.call("/Probe/stumble", "traces", **caller(0xFA11))
        *_, first, second, _, _ = await collector.wait_spans(0xFA11, 4)
        assert (first.name, second.name) == ("attempt Probe/stumble",) * 2
        assert first.attributes["restate.attempt.outcome"] == "retried"
        assert first.error is not None
        assert "stumbled" in first.error
        assert second.error is None
        assert second.attributes["restate.attempt.failures"] == 1
        assert first.parent_id == second.parent_id

        assert (await world.call("/Probe/broken_step", **caller(0xB0))).status == 409
        spans = await collector.wait_trace(0xB0, 4)
        assert spans["run reserve"].error == "out of stock"
        assert spans["invoke Probe/broken_step"].error == "out of stock"
        assert spans["attempt Probe/broken_step"].error is None

        assert (await world.call("/Probe/fall", **caller(0xFA112))).status == 500
        names = [span.name for span in await collector.wait_spans(0xFA112, 4)]
        assert names.count("attempt Probe/fall") == 2

    stage.run(scenario())


def test_a_repeated_request_joins_the_trace(stage: TracedStage) -> None:
    async def scenario() -> None:
        key = {"idempotency-key": "again"}
        answers = [await stage.world.call("/Probe/hello", "you", **key) for _ in range(2)]
        invocation = parse_invocation_id(answers[0].headers["x-restate-id"])
        assert answers[1].headers["x-restate-id"] == answers[0].headers["x-restate-id"]
        spans = await stage.collector.wait_spans(trace_of(invocation), 4)
        requests = [span for span in spans if span.name == "ingress call"]
        assert len({span.span_id for span in requests}) == 2
        assert ingress_span(invocation) in {span.span_id for span in requests}

    stage.run(scenario())


def test_a_restart_changes_nothing_in_the_trace(tmp_path: Path, service: str) -> None:
    stage = TracedStage(tmp_path)

    async def scenario() -> None:
        world, trace_id = stage.world, 0x5E57A27
        await world.register(service)
        answer = await world.call("/Probe/await_word/send", **caller(trace_id))
        text = answer.json()["invocationId"]
        invocation = parse_invocation_id(text)
        await stage.collector.wait_spans(trace_id, 2)  # the send, and the attempt that suspended
        await world.restart()
        path = f"/restate/awakeables/{format_awakeable_id(invocation, 17)}/resolve"
        typed = {"content-type": "application/json"}
        body = json.dumps("word").encode()
        answer = await ask(world.info.ingress_url, "POST", path, body, typed)
        assert answer.status == 202
        spans = await stage.collector.wait_spans(trace_id, 4)
        attempts = [span for span in spans if span.name == "attempt Probe/await_word"]
        outcomes = [span.attributes["restate.attempt.outcome"] for span in attempts]
        assert outcomes == ["suspended", "completed"]
        whole = spans[-1]
        assert whole.name == "invoke Probe/await_word"
        assert {span.parent_id for span in attempts} == {whole.span_id}
        assert whole.parent_id == spans[0].span_id == ingress_span(invocation)

    try:
        stage.run(scenario())
    finally:
        stage.close()


def test_without_tracing_nothing_is_added(tmp_path: Path, service: str) -> None:
    stage = Stage(World(tmp_path))

    async def scenario() -> None:
        await stage.world.register(service)
        answer = await stage.world.call("/Probe/attempt_headers", **caller(0xAB5E27))
        assert answer.json() == {}

    try:
        stage.run(scenario())
    finally:
        stage.close()


def test_a_collector_that_is_away_is_missed_by_nobody(tmp_path: Path, service: str) -> None:
    world = World(tmp_path)
    world.config = replace(world.config, tracing_endpoint="http://127.0.0.1:1/")
    stage = Stage(world)

    async def scenario() -> None:
        await world.register(service)
        for _ in range(3):
            assert (await world.call("/Probe/hello", "you")).status == 200
        async with asyncio.timeout(8):
            await world.restart()
        assert (await world.call("/Probe/hello", "you")).status == 200

    try:
        stage.run(scenario())
    finally:
        stage.close()
