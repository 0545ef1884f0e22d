"""Endpoints that are slow, silent, elsewhere, or behind headers; what is said of their failures."""

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import wait_until
from tests.conformance.conftest import Deploy
from tests.conformance.raw import Attempt, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

from perdure.proto import service_pb2 as pb

AN_HOUR_MS = 3_600_000
STEPS, STEP_BYTES = 100, 100_000
STREAM_WINDOW_BYTES = 65_535
GET_OUTPUT, GET_OUTPUT_DONE = 0x0413, 0x8013
MISSING = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"


async def finish(attempt: Attempt) -> None:
    await say.replay(attempt)
    await say.finish(attempt, b'"done"')


async def record_steps(attempt: Attempt) -> None:
    """Ten megabytes of steps, and then a failure."""
    await say.replay(attempt)
    for number in range(1, STEPS + 1):
        attempt.send(say.RUN, say.run(number))
        attempt.send(say.PROPOSE_RUN, say.proposal(number, bytes([number]) * STEP_BYTES), ack=True)
    for _ in range(STEPS):
        await attempt.expect(say.PROPOSE_RUN_ACK, pb.ProposeRunCompletionAckMessage)
    attempt.send(say.ERROR, say.error("again", delay_ms=1))
    attempt.end()


@pytest.mark.slow
def test_a_slow_reader_gets_ten_megabytes_and_delays_nobody(server: Server, deploy: Deploy) -> None:
    name = unique("Slow")
    is_stalled, may_read = threading.Event(), threading.Event()

    async def slow(attempt: Attempt) -> None:
        if attempt.number == 1:
            await record_steps(attempt)
            return
        start = await attempt.expect(say.START, pb.StartMessage)
        await _until(attempt, lambda: attempt.unread_bytes == STREAM_WINDOW_BYTES)
        is_stalled.set()
        await _until(attempt, may_read.is_set)
        assert attempt.unread_bytes == STREAM_WINDOW_BYTES, "not a byte more than was let in"
        attempt.catch_up()
        attempt.respond()
        entries = [await attempt.receive() for _ in range(start.known_entries)]
        results = {
            message.completion_id: message.value.content
            for entry in entries
            if entry is not None and entry.code == say.RUN_DONE
            for message in [entry.parse(pb.NotificationMessage)]
        }
        assert results == {n: bytes([n]) * STEP_BYTES for n in range(1, STEPS + 1)}
        await say.finish(attempt, b'"read"')

    scripts = {f"{name}/slow": slow, f"{name}/quick": finish}
    endpoint = deploy(manifest([service(name, "slow", "quick")]), scripts)
    endpoint.is_slow = lambda attempt: attempt.path.endswith("/slow") and attempt.number == 2
    invocation = server.ingress.send(name, "slow", "x").invocation_id

    assert is_stalled.wait(20)
    for _ in range(20):
        assert server.ingress.call(name, "quick", "x").json() == "done"
    may_read.set()

    assert server.ingress.attach(invocation).json() == "read"


async def _until(attempt: Attempt, condition: Callable[[], bool]) -> None:
    """Looks every few milliseconds; the test's own deadline bounds it."""
    while not condition():
        assert not attempt.is_reset
        await asyncio.sleep(0.005)


@pytest.mark.slow
def test_who_neither_suspends_nor_ends_is_aborted(server: Server, deploy: Deploy) -> None:
    name = unique("Silent")

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        if attempt.number == 1:
            assert await attempt.receive() is None, "it is asked to suspend first"
            await attempt.wait_reset()
            return
        await say.finish(attempt, b'"at last"')

    options = {"inactivityTimeout": 50, "abortTimeout": 100}
    deploy(manifest([service(name, "go", **options)]), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == "at last"


def test_a_base_path_with_a_query(server: Server, deploy: Deploy) -> None:
    name = unique("Path")
    endpoint = deploy(manifest([service(name, "go")]), {f"{name}/go": finish})
    uri = f"{endpoint.uri}/some/base?tenant=a&b=c"

    answer = server.admin.register(uri)
    assert answer.status == 201, answer.body
    assert endpoint.discoveries[-1].path == "/some/base/discover?tenant=a&b=c"
    assert server.ingress.call(name, "go", "x").json() == "done"
    assert endpoint.attempts[-1].path == f"/some/base/invoke/{name}/go?tenant=a&b=c"


def test_additional_headers_travel_with_every_request(server: Server, deploy: Deploy) -> None:
    name = unique("Headers")
    endpoint = deploy(manifest([service(name, "go")]), {f"{name}/go": finish})
    headers = {"x-Gateway": "internal", "authorization": "Bearer token"}
    body = {"uri": f"{endpoint.uri}/gated", "additional_headers": headers}

    answer = server.admin.send_json("POST", "/deployments", body)
    assert answer.status == 201, answer.body
    assert server.ingress.call(name, "go", "x").json() == "done"

    for request in (endpoint.discoveries[-1], endpoint.attempts[-1]):
        assert request.path.startswith("/gated/")
        assert request.headers["x-gateway"] == "internal"
        assert request.headers["authorization"] == "Bearer token"


def test_asking_for_the_output_of_another_invocation(server: Server, deploy: Deploy) -> None:
    name = unique("Output")
    done = unique("unset")

    async def waits(attempt: Attempt) -> None:
        await say.replay(attempt)
        await attempt.wait_reset()

    async def asks(attempt: Attempt) -> None:
        await say.replay(attempt)
        for index, invocation in enumerate((done, running, MISSING), start=1):
            question = pb.GetInvocationOutputCommandMessage(
                invocation_id=invocation, result_completion_id=index
            )
            attempt.send(GET_OUTPUT, question)
        answers = [await attempt.expect(GET_OUTPUT_DONE, pb.NotificationMessage) for _ in range(3)]
        by_id = {answer.completion_id: answer for answer in answers}
        assert by_id[1].value.content == b'"done"'
        assert by_id[2].WhichOneof("result") == "void"
        assert by_id[3].failure.code == 404
        await say.finish(attempt, b'"asked"')

    scripts = {f"{name}/waits": waits, f"{name}/asks": asks, f"{name}/finishes": finish}
    endpoint = deploy(manifest([service(name, "waits", "asks", "finishes")]), scripts)
    done = server.ingress.call(name, "finishes", "x").invocation_id
    running = server.ingress.send(name, "waits", "x").invocation_id
    endpoint.await_attempt(f"/invoke/{name}/waits")

    assert server.ingress.call(name, "asks", "x").json() == "asked"
    assert server.admin.kill(running).status == 200


@pytest.mark.parametrize(
    ("failure", "code"),
    [
        (say.error("the code has changed", 570, AN_HOUR_MS), "RT0016"),
        (say.error("broken", 500, AN_HOUR_MS), "RT0007"),
    ],
)
def test_the_last_failure_is_shown_with_its_code(
    server: Server, deploy: Deploy, failure: pb.ErrorMessage, code: str
) -> None:
    invocation = _failing(server, deploy, failure)
    columns = "retry_count, last_failure, last_failure_error_code"
    query = f"select {columns} from sys_invocation where id = '{invocation}'"
    (row,) = server.admin.query(query)

    assert row["retry_count"] >= 1
    assert failure.message in row["last_failure"]
    assert row["last_failure_error_code"] == code
    assert server.admin.kill(invocation).status == 200


@pytest.mark.differs("reads invocations, journals and state")
def test_a_mismatch_is_shown_with_its_code(server: Server, deploy: Deploy) -> None:
    invocation = _failing(server, deploy, say.error("the code has changed", 570, AN_HOUR_MS))
    shown: dict[str, Any] = server.admin.get(f"/perdure/invocations/{invocation}").json()

    assert "RT0016" in str(shown["last_failure"])
    assert "RT0016" in str(shown["events"])
    assert server.admin.kill(invocation).status == 200


def _failing(server: Server, deploy: Deploy, failure: pb.ErrorMessage) -> str:
    """An invocation that has failed once and backs off for long."""
    name = unique("Failing")

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        attempt.send(say.ERROR, failure)
        attempt.end()

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})
    invocation = server.ingress.send(name, "go", "x").invocation_id
    wait_until(lambda: server.admin.status(invocation) == "backing-off", "it has failed")
    return invocation
