"""Each command's effect, its entry, and the completions that directly follow it."""

import pytest
from tests.engine.entries import (
    DAY_MS,
    OTHER,
    call,
    clear_all_state,
    clear_state,
    exclusive,
    get_eager_state,
    get_state,
    get_state_keys,
    output,
    output_failure,
    run,
    run_failure,
    run_result,
    send,
    set_state,
    shared,
    sleep,
)
from tests.engine.world import PIN, World, any_of, result_text

from perdure.core.ids import format_invocation_id
from perdure.core.invariant import InvariantViolation
from perdure.engine.actions import NoOutput, Recorded, Stale
from perdure.engine.commands import (
    Append,
    AttemptFailed,
    Effects,
    End,
    Kill,
    PauseAttempt,
    Suspend,
)
from perdure.engine.invoke import start_scheduled
from perdure.engine.turn import Turn
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import Failure, Pin, Success
from perdure.storage.tables.journal import AttemptFailure, EventKind


def test_entries_and_completions_of_one_record_keep_their_order() -> None:
    world = World()
    counter = world.invoke(exclusive("k"))
    recorded = world.effects(
        counter,
        get_state(1, b"a"),
        run(2),
        set_state(b"a", b"1"),
        get_state(3, b"a"),
        run_result(2, b"r"),
    )
    assert recorded == Recorded((1, 3, 4, 5, 7), (1, 0, 0, 1, 0), 8, True)
    assert world.journal(counter) == [
        "Input",
        "GetLazyState(1)",
        "GetLazyStateCompletion(1)",
        "Run(2)",
        "SetState",
        "GetLazyState(3)",
        "GetLazyStateCompletion(3)",
        "RunCompletion(2)",
    ]
    assert result_text(world.notification(counter, 2)) == "void"
    assert result_text(world.notification(counter, 6)) == "value 1"
    # Commands and entries are counted apart.
    progress = world.started(counter).progress
    assert (progress.journal_length, progress.command_count) == (8, 5)
    world.check()


def test_payload_is_stored_as_it_came_even_with_unknown_fields() -> None:
    world = World()
    invocation = world.invoke()
    unknown = bytes.fromhex("fa0603616263")  # field 111, length-delimited
    entry = run(1, "step")
    world.effects(invocation, Append(entry.type_code, entry.payload + unknown))
    _, stored = world.entries(invocation)[1]
    assert stored.payload == entry.payload + unknown


def test_first_stored_entry_pins_and_nothing_else_does() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, AttemptFailed(AttemptFailure(500, "no")))
    assert world.started(invocation).progress.pin is None
    world.suspend(invocation, "#1")
    assert world.started(invocation).progress.pin is None
    world.signal(invocation, 1)
    first, second = Pin("dp_first", 6), Pin("dp_second", 7)
    world.effects(invocation, run(1), pin=first)
    world.effects(invocation, run(2), pin=second)
    assert world.started(invocation).progress.pin == first


def test_run_proposal_pins_too() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, run_result(1, b"x"))
    assert world.started(invocation).progress.pin == PIN


def test_failed_attempt_does_not_touch_the_modification_time() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, run(1))
    modified = world.started(invocation).progress.modified_at_ms
    world.now_ms += 500
    world.effects(invocation, AttemptFailed(AttemptFailure(500, "no")))
    assert world.started(invocation).progress.modified_at_ms == modified
    world.effects(invocation, run_result(1, b""))
    assert world.started(invocation).progress.modified_at_ms == world.now_ms


def test_same_failure_in_a_row_is_one_event() -> None:
    world = World()
    invocation = world.invoke()
    same, other = AttemptFailure(500, "no"), AttemptFailure(500, "not now")
    for failure in (same, same, other, same):
        world.effects(invocation, AttemptFailed(failure))
    world.effects(invocation, run(1), AttemptFailed(same))
    events = [event for _, event in world.of(invocation).store.events.scan(invocation)]
    assert [(event.after_index, event.failure) for event in events] == [
        (0, same),
        (0, other),
        (0, same),
        (1, same),
    ]
    assert {event.kind for event in events} == {EventKind.TRANSIENT_ERROR}


def test_run_completions_come_in_any_order() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, run(1), run(2))
    world.effects(invocation, run_failure(2, 500, "bad"))
    world.effects(invocation, run_result(1, b""))
    assert world.journal(invocation)[3:] == ["RunCompletion(2)", "RunCompletion(1)"]
    assert result_text(world.notification(invocation, 3)) == "failure 500 bad"
    assert result_text(world.notification(invocation, 4)) == "value"


# --- State ---------------------------------------------------------------------------------------


def test_state_writes_are_visible_at_once_and_survive_failure() -> None:
    world = World()
    writer, reader = world.invoke(exclusive("k")), world.invoke(shared("k"))
    world.effects(writer, set_state(b"a", b"1"))
    world.effects(reader, get_state(1, b"a"))
    assert world.last(reader) == "value 1"
    world.operate(Kill, writer)
    world.effects(reader, get_state(2, b"a"))
    assert world.last(reader) == "value 1"
    world.check()


def test_empty_value_is_a_value() -> None:
    world = World()
    counter = world.invoke(exclusive("k"))
    world.effects(counter, set_state(b"a", b""), get_state(1, b"a"))
    message = world.notification(counter, 3)
    assert message.WhichOneof("result") == "value"
    world.effects(counter, clear_state(b"a"), get_state(2, b"a"))
    assert world.last(counter) == "void"


def test_keys_are_listed_in_byte_order_and_cleared_together() -> None:
    world = World()
    counter = world.invoke(exclusive("k"))
    long = b"k" * 400
    keys = [b"b", b"a", b"\xc3\xa9", b"B", long, long + b"0"]
    world.effects(counter, *(set_state(key, b"v") for key in keys), get_state_keys(1))
    message = world.notification(counter, len(keys) + 2)
    assert list(message.state_keys.keys) == sorted(keys)
    world.effects(counter, clear_all_state(), get_state_keys(2))
    assert world.last(counter) == "keys []"
    assert world.notification(
        counter, -1 + world.started(counter).progress.journal_length
    ).HasField("state_keys")
    world.check()


def test_keys_of_two_objects_are_apart() -> None:
    world = World()
    one, two = world.invoke(exclusive("a")), world.invoke(exclusive("b"))
    world.effects(one, set_state(b"x", b"1"))
    world.effects(two, get_state(1, b"x"))
    assert world.last(two) == "void"


def test_eager_reads_are_only_recorded() -> None:
    world = World()
    counter = world.invoke(exclusive("k"))
    recorded = world.effects(counter, get_eager_state(b"a", None), get_eager_state(b"b", b""))
    assert recorded == Recorded((1, 2), (0, 0), 3, True)


@pytest.mark.parametrize("command", [set_state(b"k", b""), clear_all_state(), get_state(1, b"k")])
def test_state_of_a_plain_service_halts(command: Append) -> None:
    """Leaders refuse it; if one slips through, clearing "its" state would clear everybody's."""
    world = World()
    invocation = world.invoke()
    with pytest.raises(InvariantViolation, match="only keyed handlers"):
        world.effects(invocation, command)


# --- Sleep and timers ----------------------------------------------------------------------------


@pytest.mark.parametrize("until_ms", [0, 1, 1_700_000_000_000])
def test_sleep_until_the_past_is_due_at_once(until_ms: int) -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, sleep(1, until_ms))
    assert world.journal(invocation) == ["Input", "Sleep(1)"]
    assert world.advance(0) == 1
    assert world.journal(invocation) == ["Input", "Sleep(1)", "SleepCompletion(1)"]
    assert world.last(invocation) == "void"


def test_sleep_for_ever_is_legal() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, sleep(1, 2**64 - 1))
    assert world.advance(10**15) == 0
    world.check()


def test_retention_beyond_the_last_moment_is_kept_for_ever() -> None:
    world = World()
    invocation = world.invoke(retention=(2**64 - 1, 2**64 - 1))
    world.end(invocation, output())
    assert world.advance(10**15) == 0
    world.check()


def test_timer_of_an_ended_invocation_is_ignored() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, sleep(1, world.now_ms + 10))
    world.operate(Kill, invocation)
    assert world.advance(10) == 1
    assert world.journal(invocation) == ["Input", "Sleep(1)"]


def test_timer_fires_once() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, sleep(1, world.now_ms + 10), sleep(2, world.now_ms + 10))
    assert world.advance(10) == 2
    assert world.advance(10) == 0
    assert world.journal(invocation)[3:] == ["SleepCompletion(1)", "SleepCompletion(2)"]


def test_start_of_nothing_scheduled_is_ignored() -> None:
    world = World()
    partition = world.partitions[0]
    turn = Turn(partition.store, partition.machine._partition, 1, 1, 0)  # pyright: ignore[reportPrivateUsage]
    start_scheduled(turn, world.new_id(), 1)
    assert turn.actions == []


# --- Calls ---------------------------------------------------------------------------------------


def test_call_tells_the_id_before_the_result() -> None:
    world = World()
    caller, child = world.invoke(), world.new_id()
    recorded = world.effects(caller, call(2, child, OTHER))
    assert recorded == Recorded((1,), (1,), 3, True)
    assert world.last(caller) == f"id {format_invocation_id(child)}"
    world.end(child, output_failure(418, "teapot", kind="blue"))
    message = world.notification(caller, 3)
    assert result_text(message) == "failure 418 teapot"
    assert [(m.key, m.value) for m in message.failure.metadata] == [("kind", "blue")]
    world.check()


def test_one_way_call_has_no_answer() -> None:
    world = World()
    caller, child = world.invoke(), world.new_id()
    world.effects(caller, send(1, child, OTHER))
    world.end(child, output())
    assert world.journal(caller) == ["Input", "OneWayCall", "CallInvocationIdCompletion(1)"]


@pytest.mark.parametrize("offset_ms", [-1000, 1000])
def test_delayed_send_waits_even_for_the_past(offset_ms: int) -> None:
    world = World()
    caller, child = world.invoke(), world.new_id()
    world.effects(caller, send(1, child, OTHER, invoke_time=world.now_ms + offset_ms))
    assert world.status(child) == "scheduled"
    world.advance(max(offset_ms, 0))
    assert world.status(child) == "invoked"


def test_calls_to_one_object_are_queued_in_the_order_they_were_made() -> None:
    world = World()
    caller = world.invoke()
    children = [world.new_id() for _ in range(3)]
    target = exclusive("k")
    world.effects(
        caller,
        call(2, children[0], target),
        send(3, children[1], target),
        call(5, children[2], target),
    )
    for position, child in enumerate(children):
        waiting = children[position + 1 :]
        assert [world.status(each) for each in waiting] == ["inboxed"] * len(waiting)
        world.end(child, output())
    world.check()


def test_answer_for_a_caller_that_ended_is_dropped() -> None:
    world = World()
    caller, child = world.invoke(), world.new_id()
    world.effects(caller, call(2, child, OTHER))
    world.end(caller, output())
    before = world.journal(caller)
    world.end(child, output())
    assert world.journal(caller) == before


def test_answer_for_an_earlier_caller_under_the_same_id_is_dropped() -> None:
    world = World()
    child = world.new_id()
    caller = world.invoke(retention=(10, 10), idempotency_key="i")
    world.effects(caller, call(2, child, OTHER))
    world.end(caller, output())
    world.advance(10)
    world.invoke(id=caller)
    world.end(child, output(b"late"))
    assert world.journal(caller) == ["Input"]


# --- The end -------------------------------------------------------------------------------------


def test_last_output_wins() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, output(b"of an attempt that died"))
    world.end(invocation, output(b"final"))
    assert world.result(invocation) == Success(b"final")


def test_output_of_an_earlier_attempt_counts() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, output(b"kept"), run(1))
    world.end(invocation)
    assert world.result(invocation) == Success(b"kept")


def test_end_without_output_is_a_failed_attempt() -> None:
    world = World()
    invocation = world.invoke()
    outcome = world.end(invocation, run(1))
    assert outcome == NoOutput(Recorded((1,), (0,), 2, False))
    # The entries stay, and so does the session: the attempt is simply tried again.
    assert world.journal(invocation) == ["Input", "Run(1)"]
    world.end(invocation, output(b"at last"))
    assert world.result(invocation) == Success(b"at last")
    world.check()


def test_failure_code_beyond_16_bits_becomes_500() -> None:
    world = World()
    invocation = world.invoke()
    world.end(invocation, output_failure(70_000, "odd"))
    assert world.result(invocation) == Failure(500, "odd")


def test_effects_of_an_old_session_are_stale() -> None:
    world = World()
    invocation = world.invoke()
    old = world.session(invocation)
    world.suspend(invocation, "#17")
    world.signal(invocation, 17)
    assert world.session(invocation) != old
    before = world.journal(invocation)
    assert world.effects(invocation, run(1), End(), session=old) == Stale()
    assert world.journal(invocation) == before


@pytest.mark.parametrize("state", ["completed", "free", "suspended", "paused"])
def test_effects_without_a_running_session_are_stale(state: str) -> None:
    world = World()
    invocation = world.invoke(retention=(0, 0) if state == "free" else (DAY_MS, DAY_MS))
    session = world.session(invocation)
    match state:
        case "suspended":
            world.suspend(invocation, "#17")
        case "paused":
            world.effects(invocation, PauseAttempt(AttemptFailure(500, "stop")))
        case _:
            world.end(invocation, output())
    assert world.status(invocation) == state
    world.take_actions()
    for effect in (run(1), output(), Suspend(any_of(1), 0), End()):
        command = Effects(invocation, session, PIN, [effect])
        assert world.propose(command, world.of(invocation)) == Stale()
    assert world.take_actions() == []


def test_effects_after_a_terminal_one_do_not_exist() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, output(b"x"), End())
    message = pb.OutputCommandMessage.FromString(world.entries(invocation)[-1][1].payload)
    assert message.value.content == b"x"
