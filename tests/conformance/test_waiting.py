"""Sleeping, awakeables and signals; waiting live and waiting suspended."""

import time

import pytest
from tests.conformance.world import World, unique

SERVICES = pytest.mark.parametrize("service", ["Waiting", "Suspending"])


@SERVICES
@pytest.mark.parametrize("ms", [0, 1, 300])
def test_a_sleep_ends_not_before_its_time(world: World, service: str, ms: int) -> None:
    key, started = unique("sleep"), time.monotonic()

    assert world.value(f"{service}/sleep", {"key": key, "ms": ms}) == "slept"
    assert time.monotonic() - started >= ms / 1000


def test_who_waits_long_is_suspended_and_resumed(world: World) -> None:
    key = unique("suspended")

    assert world.value("Suspending/sleep", {"key": key, "ms": 400}) == "slept"
    assert world.ledger.count(key) == 2


def test_who_waits_live_is_not_replayed(world: World) -> None:
    key = unique("live")

    assert world.value("Waiting/sleep", {"key": key, "ms": 100}) == "slept"
    assert world.ledger.count(key) == (1 if world.kind.streams else 2)


@SERVICES
@pytest.mark.parametrize("value", ["text", None, 0, {"a": [1, 2]}])
def test_an_awakeable_is_resolved_over_http(world: World, service: str, value: object) -> None:
    key = unique("awakeable")
    invocation = world.start(f"{service}/awakeable", key)
    name = world.await_entry(key)
    assert name.startswith("sign_1")

    answer = world.ingress.resolve(name, value)

    assert (answer.status, answer.body) == (202, b"")
    assert world.result(invocation) == {"value": value}


@SERVICES
def test_an_awakeable_is_rejected_over_http(world: World, service: str) -> None:
    key = unique("awakeable")
    invocation = world.start(f"{service}/awakeable", key)

    answer = world.ingress.reject(world.await_entry(key), "not today")

    assert (answer.status, answer.body) == (202, b"")
    assert world.result(invocation) == {"code": 500, "message": "not today"}


@SERVICES
def test_an_awakeable_is_resolved_and_rejected_by_handlers(world: World, service: str) -> None:
    resolved, rejected = unique("resolved"), unique("rejected")
    first = world.start(f"{service}/awakeable", resolved)
    second = world.start(f"{service}/awakeable", rejected)

    world.value("Waiting/resolve", {"id": world.await_entry(resolved), "value": [1]})
    world.value("Waiting/reject", {"id": world.await_entry(rejected), "reason": "no"})

    assert world.result(first) == {"value": [1]}
    assert world.result(second) == {"code": 500, "message": "no"}


def test_the_first_resolution_of_an_awakeable_counts(world: World) -> None:
    key = unique("twice")
    invocation = world.start("Suspending/awakeable", key)
    name = world.await_entry(key)

    assert world.ingress.resolve(name, "first").status == 202
    assert world.ingress.resolve(name, "second").status == 202
    assert world.ingress.reject(name, "third").status == 202

    assert world.result(invocation) == {"value": "first"}


@SERVICES
def test_two_awakeables_in_the_other_order(world: World, service: str) -> None:
    key = unique("two")
    invocation = world.start(f"{service}/two", key)
    first, second = world.await_entry(key).split()

    world.ingress.resolve(second, "b")
    world.ingress.resolve(first, "a")

    assert world.result(invocation) == ["a", "b"]


@SERVICES
def test_a_race_is_won_by_what_comes_first(world: World, service: str) -> None:
    lost, won = unique("race"), unique("race")

    assert world.value(f"{service}/race", {"key": lost, "ms": 150}) == "timeout"
    invocation = world.start(f"{service}/race", {"key": won, "ms": 60_000})
    world.ingress.resolve(world.await_entry(won), "in time")
    assert world.result(invocation) == "in time"


@SERVICES
def test_named_signals_arrive_in_order(world: World, service: str) -> None:
    key = unique("signal")
    invocation = world.start(f"{service}/signal", {"key": key, "name": "go", "times": 3})
    assert world.await_entry(key) == invocation

    target = {"id": invocation, "name": "go"}
    world.value("Waiting/resolve_signal", {**target, "value": "one"})
    world.value("Waiting/reject_signal", {**target, "reason": "two"})
    world.value("Waiting/resolve_signal", {"id": invocation, "name": "other", "value": "not me"})
    world.value("Waiting/resolve_signal", {**target, "value": {"three": 3}})

    assert world.result(invocation) == ["one", "500 two", {"three": 3}]
