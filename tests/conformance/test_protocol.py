"""The service protocol spoken by hand: versions 5 to 7, order, acknowledgements, suspension."""

import base64

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import Options, wait_until
from tests.conformance.conftest import Deploy
from tests.conformance.raw import Attempt, frame, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

from perdure.proto import service_pb2 as pb

VERSIONS = pytest.mark.parametrize("version", [5, 6, 7])


@VERSIONS
def test_the_highest_common_version_is_spoken(server: Server, deploy: Deploy, version: int) -> None:
    name = unique("Versions")

    async def script(attempt: Attempt) -> None:
        start, entries = await say.replay(attempt)
        assert attempt.headers["content-type"] == f"application/vnd.restate.invocation.v{version}"
        assert attempt.headers["accept"] == attempt.headers["content-type"]
        assert start.debug_id == attempt.invocation_id
        assert len(start.id) == 24
        assert (start.key, start.partial_state, len(start.state_map)) == ("", True, 0)
        assert start.random_seed != 0
        assert start.retry_count_since_last_stored_entry == 0
        assert say.kinds(entries) == [say.INPUT]
        await say.finish(attempt, entries[0].parse(pb.InputCommandMessage).value.content)

    discovery = manifest([service(name, "echo")], protocol=(5, version))
    endpoint = deploy(discovery, {f"{name}/echo": script})
    answer = server.ingress.call(name, "echo", "hello")

    assert (answer.status, answer.body) == (200, b'"hello"')
    (attempt,) = endpoint.attempts_of(answer.invocation_id)
    assert attempt.path == f"/invoke/{name}/echo"
    assert "x-restate-service-key" not in attempt.headers


@VERSIONS
def test_acknowledgements_and_their_order(server: Server, deploy: Deploy, version: int) -> None:
    """One stream: a run, a sleep long over, a call, each asking for its acknowledgement."""
    name = unique("Order")

    async def caller(attempt: Attempt) -> None:
        start, entries = await say.replay(attempt)
        if attempt.number == 1:
            assert start.known_entries == 1
            await _ask_for_everything(attempt, name, version)
            attempt.send(say.ERROR, say.error("once more"))
            attempt.end()
            return
        kinds = say.kinds(entries)
        assert kinds[:2] == [say.INPUT, say.RUN]
        assert sorted(kinds[2:]) == sorted(
            [say.SLEEP, say.SLEEP_DONE, say.RUN_DONE, say.CALL, say.CALL_ID, say.CALL_DONE]
        )
        for earlier, later in (
            (say.SLEEP, say.SLEEP_DONE),
            (say.RUN, say.RUN_DONE),
            (say.CALL_ID, say.CALL_DONE),
        ):
            assert kinds.index(earlier) < kinds.index(later)
        assert kinds.index(say.CALL_ID) == kinds.index(say.CALL) + 1
        assert all(entry.flags == 0 for entry in entries)
        run_done = entries[kinds.index(say.RUN_DONE)].parse(pb.NotificationMessage)
        assert run_done.value.content == b"step"
        await say.finish(attempt, b'"done"')

    async def callee(attempt: Attempt) -> None:
        await say.replay(attempt)
        await say.finish(attempt, b'"called"')

    discovery = manifest([service(name, "caller", "callee")], protocol=(5, version))
    deploy(discovery, {f"{name}/caller": caller, f"{name}/callee": callee})

    assert server.ingress.call(name, "caller", "x").json() == "done"


async def _ask_for_everything(attempt: Attempt, name: str, version: int) -> None:
    attempt.send(say.RUN, say.run(1), ack=True)
    assert (await attempt.expect(say.COMMAND_ACK, pb.CommandAckMessage)).command_index == 1
    attempt.send(say.PROPOSE_RUN, say.proposal(1, b"step"), ack=True)
    if version == 7:
        ack = await attempt.expect(say.PROPOSE_RUN_ACK, pb.ProposeRunCompletionAckMessage)
        assert ack.completion_id == 1
    else:
        done = await attempt.expect(say.RUN_DONE, pb.NotificationMessage)
        assert (done.completion_id, done.value.content) == (1, b"step")
    attempt.send(say.SLEEP, say.sleep(2))
    slept = await attempt.expect(say.SLEEP_DONE, pb.NotificationMessage)
    assert (slept.completion_id, slept.WhichOneof("result")) == (2, "void")
    call = pb.CallCommandMessage(
        service_name=name,
        handler_name="callee",
        parameter=b"1",
        invocation_id_notification_idx=3,
        result_completion_id=4,
    )
    attempt.send(say.CALL, call, ack=True)
    named = await attempt.expect(say.CALL_ID, pb.NotificationMessage)
    assert named.invocation_id.startswith("inv_1")
    assert (await attempt.expect(say.COMMAND_ACK, pb.CommandAckMessage)).command_index == 3
    result = await attempt.expect(say.CALL_DONE, pb.NotificationMessage)
    assert (result.completion_id, result.value.content) == (4, b'"called"')


@VERSIONS
def test_caller_and_callee_suspend_and_resume(server: Server, deploy: Deploy, version: int) -> None:
    """The server ends its side when nothing happens; both say what they wait for and come back."""
    name = unique("Suspend")

    async def caller(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        if attempt.number == 1:
            call = pb.CallCommandMessage(
                service_name=name,
                handler_name="callee",
                parameter=b"3",
                invocation_id_notification_idx=1,
                result_completion_id=2,
            )
            attempt.send(say.CALL, call)
            await attempt.expect(say.CALL_ID, pb.NotificationMessage)
            assert await attempt.receive() is None
            attempt.send(say.SUSPENSION, say.suspension(version, [2], [1]))
            attempt.end()
            return
        assert say.kinds(entries) == [say.INPUT, say.CALL, say.CALL_ID, say.CALL_DONE]
        await say.finish(attempt, entries[3].parse(pb.NotificationMessage).value.content)

    async def callee(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        if attempt.number == 1:
            attempt.send(say.RUN, say.run(1))
            assert await attempt.receive() is None
            attempt.send(say.SUSPENSION, say.suspension(version, [], [17, 1]))
            attempt.end()
            return
        assert say.kinds(entries) == [say.INPUT, say.RUN, say.SIGNAL]
        signal = entries[2].parse(pb.NotificationMessage)
        assert signal.signal_idx == 17
        await say.finish(attempt, signal.value.content)

    options = {"inactivityTimeout": 50}
    services = [service(name, "caller", "callee", **options)]
    endpoint = deploy(
        manifest(services, protocol=(5, version)),
        {f"{name}/caller": caller, f"{name}/callee": callee},
    )
    sent = server.ingress.send(name, "caller", "x")
    callee_attempt = endpoint.await_attempt(f"/invoke/{name}/callee", ended=True)
    answer = server.ingress.resolve(awakeable(callee_attempt, 17), "woken")
    assert answer.status == 202

    assert server.ingress.attach(sent.invocation_id).json() == "woken"
    assert len(endpoint.attempts_of(sent.invocation_id)) == 2
    assert len(endpoint.attempts_of(callee_attempt.invocation_id)) == 2


def awakeable(attempt: Attempt, index: int) -> str:
    """The id of the invocation's awakeable, put together as SDKs do."""
    start = attempt.received[0].parse(pb.StartMessage)
    raw = start.id + index.to_bytes(4, "big")
    return "sign_1" + base64.urlsafe_b64encode(raw).decode().rstrip("=")


def test_what_arrived_before_the_suspension_resumes_at_once(server: Server, deploy: Deploy) -> None:
    """The sleep is over before the endpoint, which reads nothing, says that it waits for it."""
    name = unique("Race")

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        if attempt.number == 1:
            attempt.send(say.SLEEP, say.sleep(1))
            attempt.send(say.SUSPENSION, say.suspension(6, [1], [1]))
            attempt.end()
            return
        assert say.kinds(entries) == [say.INPUT, say.SLEEP, say.SLEEP_DONE]
        await say.finish(attempt, b"1")

    deploy(manifest([service(name, "go")], protocol=(5, 6)), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == 1


@VERSIONS
def test_a_suspension_that_waits_for_nothing_is_refused(
    server: Server, deploy: Deploy, version: int
) -> None:
    name = unique("Empty")

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        if attempt.number == 1:
            # Empty, or in version 7 the older shape, whose fields it no longer reads.
            wrong = say.suspension(6, [], []) if version < 7 else say.suspension(6, [1], [1])
            attempt.send(say.SUSPENSION, wrong)
            attempt.end()
            return
        await say.finish(attempt, b'"retried"')

    deploy(manifest([service(name, "go")], protocol=(5, version)), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == "retried"


def test_side_effects_of_version_seven(server: Server, deploy: Deploy) -> None:
    """Hints are ignored, an own awakeable comes back as a signal, a proposal as an ack."""
    name = unique("Seven")

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        if attempt.number == 2:
            expected = [say.INPUT, say.RUN, say.RUN_DONE, say.COMPLETE_AWAKEABLE, say.SIGNAL]
            assert say.kinds(entries) == expected
            await say.finish(attempt, entries[4].parse(pb.NotificationMessage).value.content)
            return
        attempt.send(say.RUN, say.run(1, "side"))
        attempt.send(say.PROPOSE_RUN, say.proposal(1, b"x"), ack=True)
        await attempt.expect(say.PROPOSE_RUN_ACK, pb.ProposeRunCompletionAckMessage)
        hint = pb.AwaitingOnMessage(awaiting_on=say.suspension(7, [1], [1]).awaiting_on)
        attempt.send(say.AWAITING_ON, hint)
        own = pb.CompleteAwakeableCommandMessage(
            awakeable_id=awakeable(attempt, 17), value=say.value(b'"mine"')
        )
        attempt.send(say.COMPLETE_AWAKEABLE, own)
        attempt.send(say.AWAITING_ON, hint)
        signal = await attempt.expect(say.SIGNAL, pb.NotificationMessage)
        assert (signal.signal_idx, signal.value.content) == (17, b'"mine"')
        attempt.send(say.ERROR, say.error("again"))
        attempt.end()

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == "mine"


def test_a_cancelled_caller_cancels_its_child_by_a_signal(server: Server, deploy: Deploy) -> None:
    name = unique("Cancel")
    cancelled = pb.OutputCommandMessage(failure=pb.Failure(code=409, message="cancelled"))

    async def caller(attempt: Attempt) -> None:
        await say.replay(attempt)
        call = pb.CallCommandMessage(
            service_name=name,
            handler_name="callee",
            invocation_id_notification_idx=1,
            result_completion_id=2,
        )
        attempt.send(say.CALL, call)
        child = (await attempt.expect(say.CALL_ID, pb.NotificationMessage)).invocation_id
        signal = await attempt.expect(say.SIGNAL, pb.NotificationMessage)
        assert (signal.signal_idx, signal.WhichOneof("result")) == (1, "void")
        passed_on = pb.SendSignalCommandMessage(target_invocation_id=child, idx=1, void=pb.Void())
        attempt.send(say.SEND_SIGNAL, passed_on)
        attempt.send(say.OUTPUT, cancelled)
        await say.close(attempt, say.END)

    async def callee(attempt: Attempt) -> None:
        await say.replay(attempt)
        signal = await attempt.expect(say.SIGNAL, pb.NotificationMessage)
        assert signal.signal_idx == 1
        attempt.send(say.OUTPUT, cancelled)
        await say.close(attempt, say.END)

    scripts = {f"{name}/caller": caller, f"{name}/callee": callee}
    endpoint = deploy(manifest([service(name, "caller", "callee")]), scripts)
    sent = server.ingress.send(name, "caller", "x").invocation_id
    endpoint.await_attempt(f"/invoke/{name}/callee")

    assert server.admin.cancel(sent).status == 202

    answer = server.ingress.attach(sent)
    assert (answer.status, answer.json()["message"]) == (409, "cancelled")
    child = endpoint.await_attempt(f"/invoke/{name}/callee").invocation_id
    assert server.ingress.attach(child).status == 409


def test_retry_counters_and_delays_for_failing_steps(server: Server, deploy: Deploy) -> None:
    """The SDK's own retries of a step: its delay is kept, the count and the duration grow."""
    name = unique("Counters")
    seen: list[tuple[int, int, int]] = []

    async def script(attempt: Attempt) -> None:
        start, entries = await say.replay(attempt)
        count = start.retry_count_since_last_stored_entry
        duration = start.duration_since_last_stored_entry
        seen.append((start.known_entries, count, duration))
        if attempt.number == 1:
            attempt.send(say.RUN, say.run(1, "bad"))
        if attempt.number < 3:
            attempt.send(say.ERROR, say.error("no luck", delay_ms=100 * attempt.number))
            attempt.end()
            return
        assert say.kinds(entries) == [say.INPUT, say.RUN]
        attempt.send(say.PROPOSE_RUN, say.proposal(1, b"x"), ack=True)
        await attempt.expect(say.PROPOSE_RUN_ACK, pb.ProposeRunCompletionAckMessage)
        await say.finish(attempt, b"3")

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == 3
    assert [(known, count) for known, count, _ in seen] == [(1, 0), (2, 1), (2, 2)]
    # Timers count whole milliseconds: one may end that much early.
    assert 99 <= seen[1][2] < seen[2][2]
    assert seen[2][2] >= 300


@pytest.mark.parametrize(("behavior", "status"), [(pb.FAIL, 403), (pb.PAUSE, 200)])
def test_an_error_may_say_what_is_to_happen(
    server: Server, deploy: Deploy, behavior: "pb.ErrorBehavior", status: int
) -> None:
    name = unique("Behavior")

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        if attempt.number == 1:
            attempt.send(say.ERROR, pb.ErrorMessage(code=403, message="no", behavior=behavior))
            attempt.end()
            return
        await say.finish(attempt, b"2")

    endpoint = deploy(manifest([service(name, "go")]), {f"{name}/go": script})
    sent = server.ingress.send(name, "go", "x").invocation_id
    if behavior == pb.PAUSE:
        wait_until(lambda: server.admin.pause(sent).status == 200, "the invocation is paused")
        assert len(endpoint.attempts_of(sent)) == 1
        assert server.admin.resume(sent).status == 200

    assert server.ingress.attach(sent).status == status


def test_the_last_output_counts_and_what_follows_the_end_does_not(
    server: Server, deploy: Deploy
) -> None:
    name = unique("Last")

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        attempt.send(say.OUTPUT, say.output(b"1"))
        attempt.send(say.OUTPUT, say.output(b"2"))
        attempt.send(say.END)
        attempt.send(say.OUTPUT, say.output(b"3"))
        attempt.send(say.ERROR, say.error("too late"))
        attempt.end()

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == 2


def test_replayed_commands_are_the_bytes_that_came(server: Server, deploy: Deploy) -> None:
    """Fields that the server doesn't know survive; SDKs compare what is replayed."""
    name = unique("Bytes")
    payload = say.run(1, "a step").SerializeToString() + b"\xca\x3e\x03new"

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        if attempt.number == 1:
            attempt.send_bytes(frame(say.RUN, payload))
            attempt.send(say.ERROR, say.error("again"))
            attempt.end()
            return
        assert entries[1].payload == payload
        await say.finish(attempt, b"1")

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == 1


def test_a_killed_invocation_loses_its_stream(server: Server, deploy: Deploy) -> None:
    name = unique("Kill")

    async def script(attempt: Attempt) -> None:
        await say.replay(attempt)
        await attempt.wait_reset()

    endpoint = deploy(manifest([service(name, "go")]), {f"{name}/go": script})
    sent = server.ingress.send(name, "go", "x").invocation_id
    attempt = endpoint.await_attempt(f"/invoke/{name}/go")

    assert server.admin.kill(sent).status == 200

    assert server.ingress.attach(sent).status == 409
    wait_until(lambda: attempt.is_reset, "the stream is reset")


def test_keys_and_state_of_an_object(server: Server, deploy: Deploy) -> None:
    """Eager state comes with every start, sorted; the key travels escaped; writes come back."""
    name = unique("Object")
    key = "k é/1"

    async def script(attempt: Attempt) -> None:
        start, _ = await say.replay(attempt)
        assert attempt.headers["x-restate-service-key"] == "k%20%C3%A9%2F1"
        assert start.key == key
        assert not start.partial_state
        state = [(entry.key, entry.value) for entry in start.state_map]
        if not state:
            for letter in (b"b", b"a"):
                write = pb.SetStateCommandMessage(key=letter, value=say.value(letter * 2))
                attempt.send(say.SET_STATE, write)
            attempt.send(
                say.GET_STATE, pb.GetLazyStateCommandMessage(key=b"a", result_completion_id=1)
            )
            read = await attempt.expect(say.STATE_DONE, pb.NotificationMessage)
            assert read.value.content == b"aa"
        else:
            assert state == [(b"a", b"aa"), (b"b", b"bb")]
        await say.finish(attempt, b"%d" % len(state))

    entry = {"name": name, "ty": "VIRTUAL_OBJECT", "handlers": [{"name": "go"}]}
    deploy(manifest([entry]), {f"{name}/go": script})

    results = [server.ingress.call(name, "go", "x", Options(key=key)).json() for _ in range(2)]
    assert results == [0, 2]


def test_a_turn_by_turn_endpoint_over_http2_gets_no_notifications(
    server: Server, deploy: Deploy
) -> None:
    name = unique("Turns")

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        assert await attempt.receive() is None
        if attempt.number == 1:
            attempt.send(say.SLEEP, say.sleep(1))
            attempt.send(say.SUSPENSION, say.suspension(7, [1], [1]))
            attempt.end()
            return
        assert say.kinds(entries) == [say.INPUT, say.SLEEP, say.SLEEP_DONE]
        await say.finish(attempt, b"1")

    deploy(
        manifest([service(name, "go")], mode="REQUEST_RESPONSE"),
        {f"{name}/go": script},
    )

    assert server.ingress.call(name, "go", "x").json() == 1
