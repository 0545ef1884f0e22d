"""Accepting invocations: dedup by id, delays, retention, what a duplicate is told in each state."""

import pytest
from tests.engine.entries import (
    DAY_MS,
    OTHER,
    SERVICE,
    call,
    exclusive,
    output,
    send,
    sleep,
    workflow,
)
from tests.engine.world import World

from perdure.core.ids import InvocationId
from perdure.engine.actions import Accepted, Existing, InvocationEnded, SetTimer, StartAttempt
from perdure.engine.commands import Kill
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import Failure, Invoked, Scheduled, Success


def test_accepted_invocation_runs_at_once() -> None:
    world = World()
    invocation = world.new_id()
    assert world.submit(SERVICE, invocation, body=b"in") == Accepted(0)
    row = world.row(invocation)
    assert isinstance(row, Invoked)
    # Entry 0 is the Input; the session is the record's LSN.
    assert (row.progress.journal_length, row.progress.command_count) == (1, 1)
    assert row.session == row.spec.accepted_lsn == 1
    assert world.take_actions() == [StartAttempt(invocation, 1)]
    world.check()


def test_input_entry_always_has_a_value() -> None:
    world = World()
    invocation = world.invoke(body=b"")
    _, entry = world.entries(invocation)[0]
    assert entry.payload == bytes.fromhex("7200")


@pytest.mark.parametrize("delay_ms", [-5_000, 1, 60_000])
def test_execution_time_schedules_even_in_the_past(delay_ms: int) -> None:
    world = World()
    at_ms = world.now_ms + delay_ms
    invocation = world.new_id()
    assert world.submit(SERVICE, invocation, execute_at_ms=at_ms) == Accepted(at_ms)
    assert isinstance(world.row(invocation), Scheduled)
    assert world.journal(invocation) == ["Input"]
    assert [type(action) for action in world.take_actions()] == [SetTimer]
    world.advance(max(delay_ms, 0) - 1)
    assert world.status(invocation) == ("scheduled" if delay_ms > 0 else "invoked")
    world.advance(1)
    assert world.status(invocation) == "invoked"
    world.check()


def test_scheduled_object_call_joins_the_inbox_when_its_time_comes() -> None:
    world = World()
    later = world.invoke(exclusive("k"), execute_at_ms=world.now_ms + 10)
    holder = world.invoke(exclusive("k"))
    assert world.status(holder) == "invoked"
    world.advance(10)
    assert world.status(later) == "inboxed"
    world.end(holder, output())
    assert world.status(later) == "invoked"
    world.check()


def _in_state(world: World, state: str) -> InvocationId:
    """An idempotent call in some state; its id."""
    held = exclusive("k")
    match state:
        case "scheduled":
            return world.invoke(held, execute_at_ms=world.now_ms + 1000, idempotency_key="i")
        case "inboxed":
            world.invoke(held)
            return world.invoke(held, idempotency_key="i")
        case _:
            pass
    invocation = world.invoke(held, idempotency_key="i")
    match state:
        case "suspended":
            world.effects(invocation, sleep(1, world.now_ms + 1000))
            world.suspend(invocation, 1)
        case "paused":
            world.pause(invocation)
        case "completed":
            world.end(invocation, output(b"done"))
        case _:
            assert state == "invoked"
    assert world.status(invocation) == state
    return invocation


STATES = ("scheduled", "inboxed", "invoked", "suspended", "paused", "completed")


@pytest.mark.parametrize("state", STATES)
def test_duplicate_creates_nothing_in_any_state(state: str) -> None:
    world = World()
    invocation = _in_state(world, state)
    before = world.row(invocation)
    assert before is not None
    later_at = world.now_ms + 5000
    told = world.submit(
        exclusive("k"),
        invocation,
        body=b"another body",
        execute_at_ms=later_at,
    )
    assert isinstance(told, Existing)
    # The first one's time and input count.
    assert told.execute_at_ms == before.spec.execute_at_ms
    assert world.row(invocation) == before
    if state == "completed":
        assert told.result == Success(b"done")
        assert told.expires_at_ms == world.now_ms + DAY_MS
    else:
        assert told.result is None
    world.check()


@pytest.mark.parametrize("state", STATES)
def test_calling_service_joins_an_existing_call_in_any_state(state: str) -> None:
    world = World()
    invocation = _in_state(world, state)
    caller = world.invoke(OTHER)
    world.effects(caller, call(2, invocation, exclusive("k"), idempotency_key="i"))
    if state == "completed":
        assert world.last(caller) == "value done"
    else:
        assert world.journal(caller)[-1] == "CallInvocationIdCompletion(1)"
        world.operate(Kill, invocation)
        assert world.last(caller) == "failure 409 killed"
    world.check()


def test_several_callers_wait_for_one_call() -> None:
    world = World()
    callers = [world.invoke(OTHER) for _ in range(3)]
    child = world.new_id()
    for caller in callers:
        world.effects(caller, call(2, child, SERVICE, idempotency_key="i"))
    assert world.status(child) == "invoked"
    world.end(child, output(b"one answer"))
    assert [world.last(caller) for caller in callers] == ["value one answer"] * 3
    world.check()


def test_second_call_of_a_workflow_run_is_refused_whatever_its_state() -> None:
    world = World()
    run = world.new_id()
    first, second, third = (world.invoke(OTHER) for _ in range(3))
    world.effects(first, call(2, run, workflow("k")))
    world.effects(second, call(2, run, workflow("k")))
    assert world.last(second) == "failure 409 the workflow method was already invoked"
    world.end(run, output(b"signed up"))
    assert world.last(first) == "value signed up"
    world.effects(third, call(2, run, workflow("k")))
    assert world.last(third) == "failure 409 the workflow method was already invoked"
    world.check()


def test_second_send_to_a_workflow_run_is_ignored() -> None:
    world = World()
    run, caller = world.new_id(), world.invoke(OTHER)
    world.effects(caller, send(1, run, workflow("k")), send(2, run, workflow("k")))
    assert world.journal(caller)[-2:] == ["OneWayCall", "CallInvocationIdCompletion(2)"]
    assert world.runs().count(run) == 1
    world.check()


def test_idempotency_key_of_a_call_to_a_workflow_run_is_ignored() -> None:
    world = World()
    run, caller = world.new_id(), world.invoke(OTHER)
    world.effects(caller, call(2, run, workflow("k"), idempotency_key="i"))
    assert world.started(run).spec.idempotency_key is None


def test_headers_of_a_call_reach_the_callee_in_order_with_repeats() -> None:
    world = World()
    headers = (("x", "1"), ("a", "2"), ("x", "3"))
    caller, child = world.invoke(), world.new_id()
    world.effects(caller, call(2, child, OTHER, b"p", headers=headers))
    _, entry = world.entries(child)[0]
    message = pb.InputCommandMessage.FromString(entry.payload)
    assert [(header.key, header.value) for header in message.headers] == list(headers)
    assert message.value.content == b"p"


def test_retention_zero_forgets_at_the_end() -> None:
    world = World()
    invocation = world.invoke(retention=(0, 0))
    world.take_actions()
    world.end(invocation, output(b"gone"))
    assert world.status(invocation) == "free"
    assert world.entries(invocation) == []
    assert InvocationEnded(invocation, Success(b"gone")) in world.take_actions()
    assert world.advance(10 * DAY_MS) == 0
    world.check()


def test_completion_outlives_a_journal_without_retention() -> None:
    world = World()
    invocation = world.invoke(retention=(1000, 0))
    world.end(invocation, output(b"kept"))
    assert (world.status(invocation), world.entries(invocation)) == ("completed", [])
    assert world.result(invocation) == Success(b"kept")
    world.advance(999)
    assert world.status(invocation) == "completed"
    world.advance(1)
    assert world.status(invocation) == "free"
    assert world.result(invocation) is None
    world.check()


def test_journal_expires_before_the_completion() -> None:
    world = World()
    invocation = world.invoke(retention=(1000, 400))
    world.end(invocation, output(b"kept"))
    world.advance(400)
    assert (world.status(invocation), world.entries(invocation)) == ("completed", [])
    world.advance(600)
    assert world.status(invocation) == "free"
    world.check()


def test_key_can_be_used_again_after_expiry_and_old_timers_do_no_harm() -> None:
    world = World()
    invocation = world.invoke(retention=(1000, 1000), idempotency_key="i")
    world.effects(invocation, sleep(1, world.now_ms + 5000))
    world.end(invocation, output(b"first"))
    world.advance(1000)
    assert world.submit(SERVICE, invocation, retention=(9000, 9000)) == Accepted(0)
    world.advance(5000)  # the first one's sleep is due: it is nobody's
    assert world.journal(invocation) == ["Input"]
    world.end(invocation, output(b"second"))
    assert world.result(invocation) == Success(b"second")
    world.check()


def test_failure_output_is_the_result() -> None:
    world = World()
    invocation = world.invoke()
    world.fail(invocation, 418, "teapot")
    assert world.result(invocation) == Failure(418, "teapot")


def test_a_command_that_arrives_twice_is_its_own_repeat_and_no_second_call() -> None:
    world = World()
    plain, keyed, run = world.new_id(), world.new_id(), world.new_id()

    def ask(request: int) -> list[bool]:
        outcomes = [
            world.submit(SERVICE, plain, request=request),
            world.submit(SERVICE, keyed, idempotency_key="once", request=request),
            world.submit(workflow("k"), run, request=request),
        ]
        return [outcome.is_repeat for outcome in outcomes if isinstance(outcome, Existing)]

    assert ask(1) == []
    # Nobody else can name an id that was drawn at random; a key may be anybody's.
    assert ask(1) == [True, True, True]
    assert ask(2) == [True, False, False]
