"""Payloads, headers, outcomes and visibility, in both languages and both modes."""

import pytest
from tests.conformance.client import Options
from tests.conformance.services import KINDS, OLDER_KINDS
from tests.conformance.world import World, unique

MIB = 1024 * 1024


def test_json_in_and_out(world: World) -> None:
    answer = world.call("Basics/greet", "you")

    assert answer.status == 200
    assert answer.json() == "hello you"
    assert answer.headers["content-type"] == "application/json"
    assert answer.invocation_id.startswith("inv_1")


def test_no_output_is_no_body_and_no_content_type(world: World) -> None:
    answer = world.call("Basics/nothing")

    assert (answer.status, answer.body) == (200, b"")
    assert "content-type" not in answer.headers
    assert answer.invocation_id in world.ledger.entries("nothing")


@pytest.mark.parametrize("body", [b"\x00", b"\xff\xfe not utf-8 \x00", bytes(range(256)) * 64])
def test_bytes_come_back_as_they_went(world: World, body: bytes) -> None:
    answer = world.call("Basics/echo", body)

    assert (answer.status, answer.body) == (200, body)


def test_an_empty_body_stays_empty(world: World) -> None:
    answer = world.call("Basics/echo")

    assert (answer.status, answer.body) == (200, b"")


@pytest.mark.slow
@pytest.mark.parametrize("size", [MIB, 10 * MIB], ids=["1 MiB", "10 MiB"])
def test_large_payloads(world: World, size: int) -> None:
    body = bytes(range(251)) * (size // 251 + 1)
    answer = world.call("Basics/echo", body[:size])

    assert answer.status == 200
    assert answer.body == body[:size]


def test_request_headers_reach_the_handler(world: World) -> None:
    options = Options(headers={"X-Custom": "a value", "Authorization": "Bearer x"})
    answer = world.ingress.call(world.name("Basics"), "headers", None, options)

    seen = answer.json()
    assert seen["x-custom"] == "a value"
    assert seen["authorization"] == "Bearer x"
    assert seen["x-restate-ingress-path"] == f"/{world.name('Basics')}/headers"
    assert "host" not in seen
    assert "connection" not in seen


@pytest.mark.parametrize(("code", "status"), [(418, 418), (200, 200), (409, 409), (1000, 500)])
def test_terminal_errors_keep_their_code(world: World, code: int, status: int) -> None:
    answer = world.call("Failing/terminally", {"code": code, "message": "so be it"})

    assert answer.status == status
    assert answer.headers["x-restate-error-source"] == "invocation"
    body = answer.json()
    assert (body["code"], body["message"], body["source"]) == (code, "so be it", "invocation")
    assert "metadata" not in body


# Failures have metadata from version 6 on; an older SDK refuses to send one.
WITH_METADATA = [kind for kind in (*KINDS, *OLDER_KINDS) if kind.version_max >= 6]


@pytest.mark.parametrize(
    "kind", WITH_METADATA, indirect=True, ids=lambda kind: kind.name, scope="session"
)
def test_terminal_errors_keep_their_metadata(world: World) -> None:
    failure = {"code": 422, "message": "refused", "metadata": {"field": "name", "why": "empty"}}
    answer = world.call("Failing/terminally", failure)

    assert answer.status == 422
    assert answer.json()["metadata"] == {"field": "name", "why": "empty"}


def test_other_errors_are_retried(world: World) -> None:
    key = unique("at_first")

    assert world.value("Failing/at_first", {"key": key, "times": 3}) == 4
    assert world.ledger.count(key) == 4


def test_exhausted_retries_kill_when_asked_to(world: World) -> None:
    key = unique("kill")
    answer = world.call("Failing/until_healed_kill", key)

    assert answer.status == 500
    assert answer.headers["x-restate-error-source"] == "invocation"
    assert "not healed yet" in answer.json()["message"]
    assert world.ledger.count(key) == 3


def test_exhausted_retries_pause_until_resumed(world: World) -> None:
    key, control = unique("pause"), unique("control")
    invocation = world.start("Failing/until_healed_pause", key)
    world.await_entry(key, 2)
    # A neighbour with the same pace needs many more attempts: the paused one would have had them.
    world.value("Failing/at_first", {"key": control, "times": 10})
    assert world.ledger.count(key) == 3
    assert world.ingress.output(invocation).status == 470

    world.ledger.add(f"{key} healed")
    assert world.admin.resume(invocation).status == 200

    assert world.result(invocation) == 4


def test_private_handlers_are_for_handlers_only(world: World) -> None:
    for service, handler in (("Basics", "private"), ("Hidden", "greet")):
        answer = world.ingress.call(world.name(service), handler, "x")
        assert answer.status == 400
        assert answer.headers["x-restate-error-source"] == "ingress"

    assert world.value("Basics/call_private", "x") == "private x"
