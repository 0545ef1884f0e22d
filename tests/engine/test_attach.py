"""Waiting for the result of another invocation, or looking at it: by id, by key, by state."""

import pytest
from tests.engine.entries import (
    SERVICE,
    attach,
    attach_workflow,
    exclusive,
    get_output,
    get_output_of,
    output,
    workflow,
)
from tests.engine.test_lifecycle import bring
from tests.engine.world import World, result_text

from perdure.engine.commands import Kill
from perdure.engine.journal import idempotent_invocation_id, workflow_invocation_id


@pytest.mark.parametrize(
    ("entry", "kind"), [(attach, "AttachInvocation"), (get_output, "GetInvocationOutput")]
)
def test_results_of_others(entry: type, kind: str) -> None:
    world = World(partition_count=2)
    done, broken, unknown = (
        world.invoke(id=world.new_id(1)),
        world.invoke(id=world.new_id(0)),
        world.new_id(1),
    )
    world.end(done, output(b"done"))
    world.fail(broken, 418, "teapot")
    caller = world.invoke(id=world.new_id(0))
    world.effects(caller, entry(1, done), entry(2, broken), entry(3, unknown))
    found = {
        message.completion_id: result_text(message)
        for message in (world.notification(caller, index) for index in (4, 5, 6))
    }
    assert found == {1: "value done", 2: "failure 418 teapot", 3: "failure 404 not found"}
    assert sorted(world.journal(caller)[4:]) == [f"{kind}Completion({n})" for n in (1, 2, 3)]
    world.check()


def test_attach_waits_and_get_output_does_not() -> None:
    world = World()
    target, caller = world.invoke(), world.invoke()
    world.effects(caller, attach(1, target), get_output(2, target))
    assert world.journal(caller)[3:] == ["GetInvocationOutputCompletion(2)"]
    assert world.last(caller) == "void"
    world.end(target, output(b"now"))
    assert world.journal(caller)[-1] == "AttachInvocationCompletion(1)"
    assert world.last(caller) == "value now"
    world.check()


def test_targets_are_found_by_key() -> None:
    world = World()
    flow = world.invoke(workflow("k"), id=workflow_invocation_id("Signup", "k"))
    keyed = exclusive("kk")
    named = world.invoke(keyed, id=idempotent_invocation_id("Counter", "kk", "add", "i"))
    plain = world.invoke(id=idempotent_invocation_id("Svc", None, "greet", "i"))
    for position, invocation in enumerate((flow, named, plain)):
        world.end(invocation, output(b"%d" % position))
    caller = world.invoke()
    world.effects(caller, attach_workflow(1, "Signup", "k"))
    assert world.last(caller) == "value 0"
    world.effects(caller, get_output_of(2, keyed, "i"))
    assert world.last(caller) == "value 1"
    world.effects(caller, get_output_of(3, SERVICE, "i"))
    assert world.last(caller) == "value 2"


def test_key_that_is_empty_differs_from_none() -> None:
    with_key = idempotent_invocation_id("S", "", "h", "i")
    assert with_key != idempotent_invocation_id("S", None, "h", "i")


@pytest.mark.parametrize(
    ("state", "attached", "output_now"),
    [
        ("free", "failure 404 not found", "failure 404 not found"),
        ("scheduled", None, "void"),
        ("inboxed", None, "void"),
        ("invoked", None, "void"),
        ("suspended", None, "void"),
        ("paused", None, "void"),
        ("completed", "value done", "value done"),
    ],
)
def test_attach_and_get_output_by_state(state: str, attached: str | None, output_now: str) -> None:
    world = World()
    target, caller = bring(world, state), world.invoke()
    world.effects(caller, get_output(1, target))
    assert world.last(caller) == output_now
    before = world.journal(caller)
    world.effects(caller, attach(2, target))
    if attached is None:
        assert world.journal(caller) == [*before, "AttachInvocation(2)"]
        world.operate(Kill, target)
        assert world.last(caller) == "failure 409 killed"
    else:
        assert world.last(caller) == attached
    world.check()
