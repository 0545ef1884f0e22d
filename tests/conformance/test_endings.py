"""Cancelling, killing, pausing: what ends an invocation from outside."""

import pytest
from tests.conformance.client import wait_until
from tests.conformance.world import World, unique


def test_a_cancelled_parent_cancels_its_child(world: World) -> None:
    key = unique("family")
    parent = world.start("Families/parent", key)
    child, _ = world.await_entry(f"{key} child").split()

    assert world.admin.cancel(parent).status == 202

    assert world.ingress.attach(parent).status == 409
    assert world.ingress.attach(child).status == 409
    assert world.await_entry(f"{key} child failed") == "409"
    assert world.await_entry(f"{key} parent failed") == "409"


def test_a_handler_cancels_another(world: World) -> None:
    key = unique("child")
    child = world.start("Families/child", key)
    world.await_entry(f"{key} child")

    world.value("Calls/cancel", child)

    assert world.ingress.attach(child).status == 409
    assert world.await_entry(f"{key} child failed") == "409"


def test_a_cancellation_may_be_survived(world: World) -> None:
    key = unique("stubborn")
    invocation = world.start("Families/stubborn", key)
    first = world.await_entry(key)

    world.admin.cancel(invocation)
    wait_until(lambda: len(set(world.ledger.entries(key))) > 1, "the handler goes on")
    second = (set(world.ledger.entries(key)) - {first}).pop()
    world.ingress.resolve(second, "finished")

    assert world.result(invocation) == "409 finished"


def test_a_kill_takes_the_children_along(world: World) -> None:
    key = unique("killed")
    parent = world.start("Families/parent", key)
    child, _ = world.await_entry(f"{key} child").split()

    assert world.admin.kill(parent).status == 200

    assert world.ingress.attach(parent).status == 409
    assert world.ingress.attach(child).status == 409
    assert world.ledger.count(f"{key} parent failed") == 0
    assert world.ledger.count(f"{key} child failed") == 0


def test_a_kill_frees_the_key(world: World) -> None:
    key, held = unique("locked"), unique("hold")
    holder = world.start("Queue/hold", held, key)
    world.await_entry(held)
    waiter = world.start("Queue/pass_through", "next", key)

    world.admin.kill(holder)

    assert world.ingress.attach(holder).status == 409
    assert world.result(waiter) == 1


@pytest.mark.parametrize("ending", ["cancel", "kill"])
def test_what_has_not_begun_is_ended_and_forgotten(world: World, ending: str) -> None:
    key, held = unique("inboxed"), unique("hold")
    holder = world.start("Queue/hold", held, key)
    name = world.await_entry(held)
    inboxed = world.start("Queue/pass_through", "never", key)
    scheduled = world.start("Store/add", 1, key, delay="1h")

    for invocation in (inboxed, scheduled):
        assert world.admin.request("PATCH", f"/invocations/{invocation}/{ending}").status == 200
        assert world.ingress.output(invocation).status == 404
        assert world.ingress.attach(invocation).status == 404
    world.ingress.resolve(name, "free")

    assert world.result(holder) == "free"
    assert world.value("Queue/pass_through", "next", key) == 1
    assert world.value("Store/total", key=key) == 0


def test_ending_what_has_ended(world: World) -> None:
    invocation = world.start("Basics/greet", "you")
    world.result(invocation)

    assert world.admin.cancel(invocation).status == 409
    assert world.admin.kill(invocation).status == 409
    assert world.admin.resume(invocation).status == 409
    assert world.admin.purge(invocation).status == 200
    wait_until(lambda: world.ingress.output(invocation).status == 404, "the result is forgotten")
    assert world.admin.cancel(invocation).status == 404


def test_a_paused_invocation_keeps_what_arrives_and_goes_on_when_resumed(world: World) -> None:
    key = unique("paused")
    invocation = world.start("Failing/until_healed_pause", key)
    world.await_entry(key, 2)
    wait_until(lambda: world.admin.pause(invocation).status == 200, "the invocation is paused")
    assert world.ledger.count(key) == 3

    world.ledger.add(f"{key} healed")
    assert world.admin.resume(invocation).status == 200

    assert world.result(invocation) == 4


def test_cancelling_a_paused_invocation_resumes_it(world: World) -> None:
    key = unique("paused")
    invocation = world.start("Failing/until_healed_pause", key)
    world.await_entry(key, 2)
    wait_until(lambda: world.admin.pause(invocation).status == 200, "the invocation is paused")
    world.ledger.add(f"{key} healed")

    assert world.admin.cancel(invocation).status == 202

    # The handler awaits nothing, so it never notices the cancellation and simply succeeds.
    assert world.result(invocation) == 4
