"""Signals and awakeables by state, suspension and what wakes it, named signals used as a queue."""

import pytest
from tests.engine.entries import (
    OTHER,
    call,
    exclusive,
    fail_signal,
    output,
    reject_awakeable,
    resolve_awakeable,
    run,
    run_result,
    send_signal,
    sleep,
)
from tests.engine.world import World, any_of, invoked, tree

from perdure.core.ids import InvocationId, format_awakeable_id
from perdure.engine.actions import JournalGrew, Recorded, StartAttempt
from perdure.engine.commands import Kill, Suspend
from perdure.storage.tables.futures import Combinator
from perdure.storage.tables.invocations import Suspended


def test_signal_to_a_running_invocation_is_appended_and_forwarded() -> None:
    world = World()
    invocation = world.invoke()
    world.take_actions()
    world.signal(invocation, 17, b"v")
    assert world.journal(invocation) == ["Input", "Signal(#17)"]
    assert world.last(invocation) == "value v"
    assert world.take_actions() == [JournalGrew(invocation, 2)]
    world.check()


def test_equal_signals_are_all_kept_in_order() -> None:
    world = World()
    invocation = world.invoke()
    for value in (b"1", b"2", b"3"):
        world.signal(invocation, 17, value)
        world.signal_by_name(invocation, "n", value)
    assert world.journal(invocation)[1:] == ["Signal(#17)", "Signal(n)"] * 3
    values = [world.notification(invocation, index).value.content for index in (1, 3, 5)]
    assert values == [b"1", b"2", b"3"]


@pytest.mark.parametrize("state", ["scheduled", "inboxed", "completed", "unknown"])
def test_signal_to_what_does_not_run_is_dropped(state: str) -> None:
    world = World()
    match state:
        case "scheduled":
            target = world.invoke(execute_at_ms=world.now_ms + 10)
        case "inboxed":
            world.invoke(exclusive("k"))
            target = world.invoke(exclusive("k"))
        case "completed":
            target = world.invoke()
            world.end(target, output())
        case _:
            target = world.new_id()
    before = world.journal(target)
    world.signal(target, 17)
    world.signal_by_name(target, "n")
    assert world.journal(target) == before
    world.check()


def test_results_of_signals_travel_as_they_are() -> None:
    world = World(partition_count=2)
    target, sender = world.invoke(id=world.new_id(1)), world.invoke(id=world.new_id(0))
    awakeable = format_awakeable_id(target, 18)
    for effect, told in (
        (send_signal(target, 17), "void"),
        (send_signal(target, "n", b""), "value"),
        (fail_signal(target, 17, 418, "teapot"), "failure 418 teapot"),
        (resolve_awakeable(awakeable, b""), "value"),
        (resolve_awakeable(awakeable, b"x"), "value x"),
        (reject_awakeable(awakeable, 500, "no"), "failure 500 no"),
    ):
        world.effects(sender, effect)
        assert world.last(target) == told
    # Resolving twice delivers twice; the SDK takes the first.
    assert world.journal(target)[-3:] == ["Signal(#18)"] * 3


def test_awakeable_of_an_old_journal_is_ignored() -> None:
    world = World()
    sender, target = world.invoke(), world.invoke()
    old = format_awakeable_id(target, 3).replace("sign_", "prom_")
    recorded = world.effects(sender, resolve_awakeable(old, b"x"))
    assert recorded == Recorded((1,), (0,), 2, True)
    assert world.journal(target) == ["Input"]


def test_signal_to_oneself() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, send_signal(invocation, 17, b"me"))
    assert world.journal(invocation) == ["Input", "SendSignal", "Signal(#17)"]


# --- Suspension -----------------------------------------------------------------------------------


def _wait_for(world: World, waits: tuple[int | str, ...]) -> InvocationId:
    invocation = world.invoke()
    world.effects(invocation, sleep(1, world.now_ms + 100), run(2))
    world.suspend(invocation, *waits, delivered=3)
    return invocation


def test_any_listed_completion_resumes() -> None:
    world = World()
    invocation = _wait_for(world, (1, 9, "#1"))
    assert world.status(invocation) == "suspended"
    world.take_actions()
    world.advance(100)
    assert world.take_actions() == [StartAttempt(invocation, world.session(invocation))]
    world.check()


def test_what_is_not_listed_is_stored_and_wakes_nobody() -> None:
    world = World()
    invocation = _wait_for(world, (1,))
    world.signal(invocation, 17)
    world.signal(invocation, 1)
    assert world.status(invocation) == "suspended"
    assert world.journal(invocation)[-2:] == ["Signal(#17)", "Signal(#1)"]


def test_notification_that_came_first_is_not_lost() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, sleep(1, world.now_ms + 100))
    world.advance(100)
    old = world.session(invocation)
    world.take_actions()
    # The service decided to suspend before it saw the completion.
    world.suspend(invocation, 1, "#1", delivered=2)
    assert world.status(invocation) == "invoked"
    assert world.session(invocation) != old
    assert world.take_actions() == [StartAttempt(invocation, world.session(invocation))]
    world.check()


def test_completion_in_the_very_record_of_the_suspension() -> None:
    world = World()
    invocation, child = world.invoke(), world.invoke(OTHER)
    world.end(child, output(b"done"))
    world.effects(
        invocation, call(2, child, OTHER), Suspend(any_of(2), 0)
    )  # answered at once, within the record
    assert world.status(invocation) == "invoked"
    assert world.last(invocation) == "value done"


def test_suspension_stores_what_remains() -> None:
    world = World()
    invocation = world.invoke()
    both = tree(Combinator.ALL_COMPLETED, 1, 2, "n")
    world.effects(invocation, run(1), sleep(2, world.now_ms + 50))
    world.effects(invocation, run_result(1, b""))
    world.suspend_on(invocation, both, delivered=4)
    row = world.row(invocation)
    assert isinstance(row, Suspended)
    assert row.awaiting == tree(Combinator.ALL_COMPLETED, 2, "n")
    world.advance(50)
    assert world.status(invocation) == "suspended"
    world.signal_by_name(invocation, "n")
    assert world.status(invocation) == "invoked"
    world.check()


def test_failure_ends_an_all_succeeded_wait() -> None:
    world = World()
    invocation, child = world.invoke(), world.new_id()
    world.effects(invocation, call(2, child, OTHER), sleep(3, world.now_ms + 10**6))
    world.suspend_on(invocation, tree(Combinator.ALL_SUCCEEDED_OR_FIRST_FAILED, 2, 3))
    world.operate(Kill, child)
    assert world.status(invocation) == "invoked"


def test_suspension_frees_the_slot_and_keeps_nothing_to_run() -> None:
    world = World()
    invocation = world.invoke()
    world.suspend(invocation, "#17")
    assert invoked(world) == []
    world.signal(invocation, 17)
    assert invoked(world) == [(invocation, world.session(invocation))]


# --- A named signal used as a queue (no hot loop) -------------------------------------------------


def test_consumed_signal_does_not_resume_a_second_wait() -> None:
    world = World()
    invocation = world.invoke()
    world.suspend(invocation, "queue", delivered=1)
    world.signal_by_name(invocation, "queue", b"1")
    assert world.status(invocation) == "invoked"
    # The next attempt was sent both entries, consumed the signal, and waits for another.
    world.suspend(invocation, "queue", delivered=2)
    assert world.status(invocation) == "suspended"
    world.signal_by_name(invocation, "queue", b"2")
    assert world.status(invocation) == "invoked"
    world.suspend(invocation, "queue", delivered=3)
    assert world.status(invocation) == "suspended"
    world.check()


def test_signal_that_the_attempt_was_not_sent_resumes() -> None:
    world = World()
    invocation = world.invoke()
    world.signal_by_name(invocation, "queue", b"1")
    world.signal_by_name(invocation, "queue", b"2")
    world.suspend(invocation, "queue", delivered=2)
    assert world.status(invocation) == "invoked"


def test_suspension_before_the_request_was_closed_sees_everything() -> None:
    world = World()
    invocation = world.invoke()
    world.signal(invocation, 17, b"1")
    world.suspend(invocation, "#17", delivered=0)
    assert world.status(invocation) == "invoked"


def test_completions_count_wherever_they_stand() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, run(1), run_result(1, b""))
    world.suspend(invocation, 1, delivered=3)
    assert world.status(invocation) == "invoked"


def test_paused_and_resumed_invocation_waits_anew() -> None:
    world = World()
    invocation = world.invoke()
    world.suspend(invocation, "#17")
    world.pause(invocation)
    world.signal(invocation, 17)
    assert world.status(invocation) == "paused"
    world.signal(invocation, 1)
    assert world.status(invocation) == "invoked"
