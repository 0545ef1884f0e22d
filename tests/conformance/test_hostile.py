"""Endpoints that misbehave: the attempt fails, what was recorded stays, the next one goes on."""

import json
from collections.abc import Callable

import pytest
from tests.conformance import dialogue as say
from tests.conformance.conftest import Deploy
from tests.conformance.raw import Attempt, Discovery, RawEndpoint, frame, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

from perdure.proto import service_pb2 as pb

Misdeed = Callable[[Attempt], None]


def _end_after(content: bytes) -> Misdeed:
    def do(attempt: Attempt) -> None:
        attempt.send_bytes(content)
        attempt.end()

    return do


def _cut_off(attempt: Attempt) -> None:
    attempt.send_bytes(frame(say.OUTPUT, b"x" * 100)[:50])
    attempt.drop_connection()


AFTER_A_STEP: dict[str, Misdeed] = {
    "no terminal frame": _end_after(b""),
    "half a header": _end_after(b"\x04\x01\x00"),
    "half a frame": _end_after(frame(say.OUTPUT, b"x" * 100)[:50]),
    "noise": _end_after(bytes(range(256))),
    "an unknown control frame": _end_after(frame(0x03FF, b"abc")),
    "a start": _end_after(frame(say.START, b"")),
    "a notification": _end_after(frame(say.SLEEP_DONE, b"\x08\x01\x22\x00")),
    "an acknowledgement": _end_after(frame(say.COMMAND_ACK, b"\x08\x01")),
    "a payload that is no message": _end_after(frame(say.SLEEP, b"\xff\xff\xff\xff")),
    "a proposal without a result": _end_after(frame(say.PROPOSE_RUN, b"\x08\x01")),
    "a frame of 4 GiB": _end_after(b"\x04\x01\x00\x00\xff\xff\xff\xff"),
    "an error": _end_after(frame(say.ERROR, say.error("bad luck").SerializeToString())),
    "an error of code 570": _end_after(frame(say.ERROR, say.error("x", 570).SerializeToString())),
    "a reset": Attempt.reset,
    "a dropped connection": Attempt.drop_connection,
    "a connection dropped within a frame": _cut_off,
}


@pytest.mark.parametrize("misdeed", AFTER_A_STEP.values(), ids=AFTER_A_STEP.keys())
def test_a_failed_attempt_keeps_what_was_recorded(
    server: Server, deploy: Deploy, misdeed: Misdeed
) -> None:
    name = unique("Hostile")

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        if attempt.number == 1:
            attempt.send(say.RUN, say.run(1, "step"))
            attempt.send(say.PROPOSE_RUN, say.proposal(1, b"kept"))
            await attempt.expect(say.RUN_DONE, pb.NotificationMessage)
            misdeed(attempt)
            return
        assert say.kinds(entries) == [say.INPUT, say.RUN, say.RUN_DONE]
        assert entries[2].parse(pb.NotificationMessage).value.content == b"kept"
        await say.finish(attempt, b'"went on"')

    deploy(manifest([service(name, "go")], protocol=(5, 6)), {f"{name}/go": script})
    answer = server.ingress.call(name, "go", "x")

    assert (answer.status, answer.json()) == (200, "went on")


HEADS: dict[str, tuple[int, dict[str, str]]] = {
    "404": (404, {}),
    "500": (500, {}),
    "503 with a delay": (503, {"retry-after": "0"}),
    "429": (429, {}),
    "415": (415, {}),
    "413": (413, {}),
    "a redirect": (302, {"location": "/elsewhere"}),
    "204": (204, {}),
    "no content type": (200, {}),
    "JSON": (200, {"content-type": "application/json"}),
    "another version": (200, {"content-type": "application/vnd.restate.invocation.v4"}),
    "a parameter": (200, {"content-type": "application/vnd.restate.invocation.v7; a=b"}),
}


@pytest.mark.parametrize(("status", "headers"), HEADS.values(), ids=HEADS.keys())
def test_a_wrong_response_head_is_retried(
    server: Server, deploy: Deploy, status: int, headers: dict[str, str]
) -> None:
    name = unique("Heads")

    async def script(attempt: Attempt) -> None:
        if attempt.number == 1:
            attempt.respond(status, headers)
            attempt.end()
            return
        await say.replay(attempt)
        await say.finish(attempt, b'"went on"')

    endpoint = deploy(manifest([service(name, "go")]), {f"{name}/go": script})
    answer = server.ingress.call(name, "go", "x")

    assert answer.json() == "went on"
    assert len(endpoint.attempts_of(answer.invocation_id)) == 2


Command = pb.CallCommandMessage | pb.SetStateCommandMessage | pb.GetPromiseCommandMessage
REFUSED: dict[str, Command] = {
    "a key for a service": pb.CallCommandMessage(
        service_name="SELF", handler_name="go", key="k", result_completion_id=2
    ),
    "an empty idempotency key": pb.CallCommandMessage(
        service_name="SELF", handler_name="go", idempotency_key="", result_completion_id=2
    ),
    "state of a service": pb.SetStateCommandMessage(key=b"k", value=say.value(b"v")),
    "a promise of a service": pb.GetPromiseCommandMessage(key="p", result_completion_id=2),
}
_TYPES = {
    pb.CallCommandMessage: say.CALL,
    pb.SetStateCommandMessage: say.SET_STATE,
    pb.GetPromiseCommandMessage: 0x0409,
}


@pytest.mark.parametrize("command", REFUSED.values(), ids=REFUSED.keys())
def test_a_command_that_makes_no_sense_fails_the_attempt_and_is_not_recorded(
    server: Server,
    deploy: Deploy,
    command: Command,
) -> None:
    name = unique("Refused")
    if isinstance(command, pb.CallCommandMessage):
        own = pb.CallCommandMessage()
        own.CopyFrom(command)
        own.service_name = name
        command = own

    async def script(attempt: Attempt) -> None:
        _, entries = await say.replay(attempt)
        assert say.kinds(entries) == [say.INPUT]
        if attempt.number == 1:
            attempt.send(_TYPES[type(command)], command)
            assert await attempt.receive() is None
            attempt.end()
            return
        await say.finish(attempt, b"2")

    deploy(manifest([service(name, "go")]), {f"{name}/go": script})

    assert server.ingress.call(name, "go", "x").json() == 2


def test_a_call_waits_for_its_callee_to_be_registered(server: Server, deploy: Deploy) -> None:
    name, missing = unique("Early"), unique("Late")

    async def caller(attempt: Attempt) -> None:
        await say.replay(attempt)
        call = pb.CallCommandMessage(
            service_name=missing,
            handler_name="go",
            invocation_id_notification_idx=1,
            result_completion_id=2,
        )
        attempt.send(say.CALL, call)
        if await attempt.receive() is None:
            attempt.end()
            return
        result = await attempt.expect(say.CALL_DONE, pb.NotificationMessage)
        await say.finish(attempt, result.value.content)

    async def callee(attempt: Attempt) -> None:
        await say.replay(attempt)
        await say.finish(attempt, b'"at last"')

    endpoint = deploy(manifest([service(name, "go")]), {f"{name}/go": caller})
    sent = server.ingress.send(name, "go", "x").invocation_id
    endpoint.await_attempt(f"/invoke/{name}/go")
    deploy(manifest([service(missing, "go")]), {f"{missing}/go": callee})

    assert server.ingress.attach(sent).json() == "at last"


def _document(**changes: object) -> bytes:
    whole: dict[str, object] = {
        "protocolMode": "BIDI_STREAM",
        "minProtocolVersion": 5,
        "maxProtocolVersion": 7,
        "services": [service("Lying", "go")],
        **changes,
    }
    return json.dumps({name: value for name, value in whole.items() if value is not None}).encode()


MANIFESTS: dict[str, Discovery] = {
    "not JSON": Discovery(b"{"),
    "another document": Discovery(b"[]"),
    "another content type": Discovery(_document(), content_type="application/json"),
    "an unknown version": Discovery(
        _document(), content_type="application/vnd.restate.endpointmanifest.v99+json"
    ),
    "404": Discovery(_document(), status=404),
    "a redirect": Discovery(_document(), status=302),
    "no mode": Discovery(_document(protocolMode=None)),
    "an unknown mode": Discovery(_document(protocolMode="CARRIER_PIGEON")),
    "no services": Discovery(_document(services=None)),
    "versions too old": Discovery(_document(minProtocolVersion=1, maxProtocolVersion=4)),
    "versions too new": Discovery(_document(minProtocolVersion=8, maxProtocolVersion=9)),
    "versions reversed": Discovery(_document(minProtocolVersion=7, maxProtocolVersion=5)),
    "a reserved name": Discovery(_document(services=[service("RestateThings", "go")])),
    "a name that is no name": Discovery(_document(services=[service("no name", "go")])),
    "a handler that is no name": Discovery(_document(services=[service("Lying", "a b")])),
    "an unknown service type": Discovery(_document(services=[service("Lying", ty="OTHER")])),
    "an exclusive service handler": Discovery(
        _document(
            services=[service("Lying", handlers=[{"name": "go", "ty": "EXCLUSIVE"}])],
        )
    ),
}


@pytest.mark.parametrize("discovery", MANIFESTS.values(), ids=MANIFESTS.keys())
def test_a_lying_manifest_registers_nothing(server: Server, discovery: Discovery) -> None:
    endpoint = RawEndpoint(discovery)
    endpoint.start()
    try:
        answer = server.admin.register(endpoint.uri)
    finally:
        endpoint.stop()

    assert 400 <= answer.status < 600
    assert answer.json()["message"]
    assert server.ingress.call("Lying", "go", "x").status == 404


def test_nobody_listens(server: Server) -> None:
    endpoint = RawEndpoint(manifest([]))

    answer = server.admin.register(endpoint.uri)

    assert answer.status == 500
    assert answer.json()["message"]
