"""Handlers calling handlers, sends, idempotency, attaching."""

import time

import pytest
from tests.conformance.client import wait_until
from tests.conformance.world import World, unique


def test_a_call_returns_the_result_of_the_callee(world: World) -> None:
    key = unique("object")

    assert world.value("Calls/service", "you") == "hello you"
    assert world.value("Calls/object", {"key": key, "amount": 4}) == 4
    assert world.value("Store/total", key=key) == 4


def test_a_call_raises_the_terminal_error_of_the_callee(world: World) -> None:
    failure = {"code": 451, "message": "not for you"}

    assert world.value("Calls/failing", failure) == failure


def test_calls_in_parallel(world: World) -> None:
    assert world.value("Calls/fan_out", {"key": unique("fan"), "count": 25}) == 25


def test_a_callee_sees_the_headers_of_the_call_and_no_others(world: World) -> None:
    headers = world.value("Calls/headers", {"x-given": "1", "another": "two words"})

    assert isinstance(headers, dict)
    assert headers["x-given"] == "1"
    assert headers["another"] == "two words"
    assert "x-restate-ingress-path" not in headers


def test_two_calls_with_one_idempotency_key_are_one(world: World) -> None:
    key = unique("idempotent")
    answers = world.value("Calls/idempotent", {"key": key, "idempotency_key": key})

    assert answers == ["first", "first"]
    assert world.ledger.count(key) == 1


def test_a_one_way_call_gives_its_id_and_is_executed(world: World) -> None:
    key = unique("sent")
    invocation = world.value("Calls/send", {"key": key, "amount": 3, "delay_ms": 0})

    assert isinstance(invocation, str)
    assert world.result(invocation) == 3


def test_a_delayed_one_way_call_waits(world: World) -> None:
    key, started = unique("delayed"), time.monotonic()
    invocation = world.value("Calls/send", {"key": key, "amount": 3, "delay_ms": 400})
    assert isinstance(invocation, str)
    assert world.value("Store/total", key=key) == 0

    assert world.result(invocation) == 3
    assert time.monotonic() - started >= 0.4


def test_a_delayed_send_from_the_ingress(world: World) -> None:
    key, started = unique("delayed"), time.monotonic()
    invocation = world.start("Store/add", 1, key, delay="PT0.3S")
    assert world.value("Store/total", key=key) == 0

    assert world.result(invocation) == 1
    assert time.monotonic() - started >= 0.3


def test_attaching_from_a_handler(world: World) -> None:
    key = unique("attach")
    running = world.start("Suspending/awakeable", key)
    attached = world.start("Calls/attach", running)
    world.ingress.resolve(world.await_entry(key), "late")

    assert world.result(attached) == {"value": {"value": "late"}}
    assert world.value("Calls/attach", running) == {"value": {"value": "late"}}


def test_attaching_from_a_handler_to_nothing(world: World) -> None:
    missing = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"

    assert world.value("Calls/attach", missing) == {"code": 404}


def test_output_and_attach_over_http(world: World) -> None:
    key = unique("output")
    invocation = world.start("Suspending/awakeable", key)
    name = world.await_entry(key)
    assert world.ingress.output(invocation).status == 470
    world.ingress.resolve(name, 1)

    attached = world.ingress.attach(invocation)
    output = world.ingress.output(invocation)

    assert attached.json() == output.json() == {"value": 1}
    assert output.invocation_id == invocation
    assert "idempotency-expires" in output.headers


def test_attach_gives_a_failure_like_the_call_did(world: World) -> None:
    invocation = world.start("Failing/terminally", {"code": 418, "message": "teapot"})
    answer = world.ingress.attach(invocation)

    assert answer.status == 418
    assert answer.headers["x-restate-error-source"] == "invocation"


@pytest.mark.parametrize("state", ["live", "suspended", "completed"])
def test_an_idempotent_duplicate_gets_the_first_result(world: World, state: str) -> None:
    key = unique("duplicate")
    service = "Waiting" if state == "live" else "Suspending"
    first = world.start(f"{service}/awakeable", key, idempotency_key=key)
    name = world.await_entry(key)
    if state == "completed":
        world.ingress.resolve(name, "done")
        world.result(first)

    duplicate = world.start(f"{service}/awakeable", "another body", idempotency_key=key)
    world.ingress.resolve(name, "done")
    answer = world.call(f"{service}/awakeable", key, idempotency_key=key)

    assert duplicate == answer.invocation_id == first
    assert answer.json() == {"value": "done"}
    assert world.ledger.count("another body") == 0
    attempts = world.ledger.entries(key)
    assert set(attempts) == {name}


def test_an_idempotent_duplicate_of_a_scheduled_invocation(world: World) -> None:
    key = unique("scheduled")
    first = world.start("Store/add", 1, key, idempotency_key=key, delay="PT0.3S")
    second = world.start("Store/add", 10, key, idempotency_key=key)

    assert second == first
    assert world.result(first) == 1


def test_an_idempotent_duplicate_of_an_inboxed_invocation(world: World) -> None:
    key, held = unique("inboxed"), unique("hold")
    world.start("Queue/hold", held, key)
    name = world.await_entry(held)
    first = world.start("Queue/pass_through", "a", key, idempotency_key=key)
    second = world.start("Queue/pass_through", "b", key, idempotency_key=key)
    world.ingress.resolve(name, "free")

    assert second == first
    assert world.result(first) == 1
    entries = world.ledger.entries(f"queue {key}")
    assert set(entries) == {"enter a", "leave a"}
    assert entries.count("leave a") == 1


def test_attaching_by_idempotency_key(world: World) -> None:
    key = unique("byname")
    first = world.start("Runs/once", {"key": key, "value": "v"}, idempotency_key=key)
    path = f"/restate/invocation/{world.name('Runs')}/once/{key}/attach"

    answer = world.ingress.get(path)

    assert answer.json() == "v"
    assert answer.invocation_id == first


def test_a_send_is_answered_before_it_is_done(world: World) -> None:
    key = unique("send")
    invocation = world.start("Store/add", 2, key)

    wait_until(lambda: world.value("Store/total", key=key) == 2, "the send executed")
    assert world.result(invocation) == 2
