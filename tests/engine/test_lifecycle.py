"""What operators may do, by state: the whole matrix, and what each request leaves behind."""

import pytest
from tests.engine.entries import (
    OTHER,
    call,
    exclusive,
    output,
    run,
    run_result,
    send,
    send_signal,
    sleep,
)
from tests.engine.world import World, invoked, tree

from perdure.core.ids import InvocationId
from perdure.core.limits import (
    EVENT_AWAITED_MAX,
    EVENT_TEXT_CHARACTERS_MAX,
    EVENTS_PER_INVOCATION_MAX,
)
from perdure.engine.actions import (
    AbortAttempt,
    InvocationEnded,
    Recorded,
    SetTimer,
    StartAttempt,
    Verdict,
    WindDown,
)
from perdure.engine.commands import (
    AttemptFailed,
    Cancel,
    Fail,
    Kill,
    Pause,
    PauseAttempt,
    Purge,
    PurgeJournal,
    Resume,
    Yield,
)
from perdure.storage.partition_store import TableId
from perdure.storage.tables.futures import Combinator
from perdure.storage.tables.invocations import (
    Failure,
    Invoked,
    Paused,
    Success,
    split_target_key,
)
from perdure.storage.tables.journal import AttemptFailure, EventKind

STATES = ("free", "scheduled", "inboxed", "invoked", "suspended", "paused", "completed")
Operation = type[Cancel | Kill | Purge | PurgeJournal | Pause | Resume]


def bring(world: World, state: str) -> InvocationId:
    """An invocation in the given state."""
    match state:
        case "free":
            return world.new_id()
        case "scheduled":
            return world.invoke(execute_at_ms=world.now_ms + 1000)
        case "inboxed":
            world.invoke(exclusive("k"))
            return world.invoke(exclusive("k"))
        case _:
            pass
    invocation = world.invoke()
    match state:
        case "suspended":
            world.effects(invocation, sleep(1, world.now_ms + 1000))
            world.suspend(invocation, 1, "#1")
        case "paused":
            world.pause(invocation)
        case "completed":
            world.end(invocation, output(b"done"))
        case _:
            pass
    return invocation


V = Verdict
# Per operation: verdict and new state, by state.
MATRIX: dict[Operation, dict[str, tuple[Verdict, str]]] = {
    Cancel: {
        "free": (V.NOT_FOUND, "free"),
        "scheduled": (V.DONE, "free"),
        "inboxed": (V.DONE, "free"),
        "invoked": (V.ACCEPTED, "invoked"),
        "suspended": (V.ACCEPTED, "invoked"),
        "paused": (V.ACCEPTED, "invoked"),
        "completed": (V.COMPLETED, "completed"),
    },
    Kill: {
        "free": (V.NOT_FOUND, "free"),
        "scheduled": (V.DONE, "free"),
        "inboxed": (V.DONE, "free"),
        "invoked": (V.DONE, "completed"),
        "suspended": (V.DONE, "completed"),
        "paused": (V.DONE, "completed"),
        "completed": (V.COMPLETED, "completed"),
    },
    Purge: {
        "free": (V.NOT_FOUND, "free"),
        "scheduled": (V.NOT_COMPLETED, "scheduled"),
        "inboxed": (V.NOT_COMPLETED, "inboxed"),
        "invoked": (V.NOT_COMPLETED, "invoked"),
        "suspended": (V.NOT_COMPLETED, "suspended"),
        "paused": (V.NOT_COMPLETED, "paused"),
        "completed": (V.DONE, "free"),
    },
    PurgeJournal: {
        "free": (V.NOT_FOUND, "free"),
        "scheduled": (V.NOT_COMPLETED, "scheduled"),
        "inboxed": (V.NOT_COMPLETED, "inboxed"),
        "invoked": (V.NOT_COMPLETED, "invoked"),
        "suspended": (V.NOT_COMPLETED, "suspended"),
        "paused": (V.NOT_COMPLETED, "paused"),
        "completed": (V.DONE, "completed"),
    },
    Pause: {
        "free": (V.NOT_FOUND, "free"),
        "scheduled": (V.NOT_STARTED, "scheduled"),
        "inboxed": (V.NOT_STARTED, "inboxed"),
        "invoked": (V.ACCEPTED, "invoked"),  # until its attempt is over
        "suspended": (V.ACCEPTED, "paused"),
        "paused": (V.DONE, "paused"),
        "completed": (V.COMPLETED, "completed"),
    },
    Resume: {
        "free": (V.NOT_FOUND, "free"),
        "scheduled": (V.NOT_STARTED, "scheduled"),
        "inboxed": (V.NOT_STARTED, "inboxed"),
        "invoked": (V.DONE, "invoked"),
        "suspended": (V.DONE, "invoked"),
        "paused": (V.DONE, "invoked"),
        "completed": (V.COMPLETED, "completed"),
    },
}


def test_matrix_is_complete() -> None:
    assert {tuple(sorted(row)) for row in MATRIX.values()} == {tuple(sorted(STATES))}


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("operation", MATRIX)
def test_verdict_and_next_state(operation: Operation, state: str) -> None:
    world = World()
    invocation = bring(world, state)
    verdict, after = MATRIX[operation][state]
    assert world.status(invocation) == state
    assert world.operate(operation, invocation) == verdict
    assert world.status(invocation) == after
    world.advance(2000)
    world.check()


# --- Cancel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["invoked", "suspended", "paused"])
def test_cancel_appends_the_signal(state: str) -> None:
    world = World()
    invocation = bring(world, state)
    world.operate(Cancel, invocation)
    assert world.journal(invocation)[-1] == "Signal(#1)"
    assert world.last(invocation) == "void"
    _, entry = world.entries(invocation)[-1]
    assert entry.payload == bytes.fromhex("10012200")


def test_several_cancels_are_several_signals() -> None:
    world = World()
    invocation = bring(world, "invoked")
    for _ in range(3):
        world.operate(Cancel, invocation)
    assert world.journal(invocation)[1:] == ["Signal(#1)"] * 3


def test_cancel_does_not_wake_who_does_not_wait_for_it() -> None:
    world = World()
    invocation = world.invoke()
    world.suspend(invocation, "#17")
    assert world.operate(Cancel, invocation) == Verdict.ACCEPTED
    assert world.status(invocation) == "suspended"
    assert world.journal(invocation) == ["Input", "Signal(#1)"]


@pytest.mark.parametrize("state", ["scheduled", "inboxed"])
@pytest.mark.parametrize(("operation", "text"), [(Cancel, "canceled"), (Kill, "killed")])
def test_what_never_started_leaves_nothing(
    state: str, operation: type[Cancel | Kill], text: str
) -> None:
    world = World()
    caller = world.invoke(OTHER)
    if state == "inboxed":
        world.invoke(exclusive("k"))
    child = world.new_id()
    if state == "inboxed":
        world.effects(caller, call(2, child, exclusive("k")))
    else:
        world.invoke(id=child, execute_at_ms=world.now_ms + 1000)
        world.effects(caller, call(2, child, OTHER))
    assert world.status(child) == state
    world.take_actions()
    world.operate(operation, child)
    assert world.last(caller) == f"failure 409 {text}"
    assert InvocationEnded(child, Failure(409, text)) in world.take_actions()
    assert (world.row(child), world.entries(child), world.result(child)) == (None, [], None)
    # The same id can be submitted again.
    world.invoke(id=child)
    assert world.status(child) == "invoked"
    world.check()


def test_cancel_from_a_service_is_the_same_cancel() -> None:
    world = World()
    sender, waiting, paused = world.invoke(), bring(world, "inboxed"), bring(world, "paused")
    world.effects(sender, send_signal(waiting, 1), send_signal(paused, 1, b"ignored"))
    assert world.status(waiting) == "free"
    assert world.status(paused) == "invoked"
    assert world.last(paused) == "void"


def test_server_does_not_cancel_children() -> None:
    world = World()
    caller, child = world.invoke(), world.new_id()
    world.effects(caller, call(2, child, OTHER))
    world.operate(Cancel, caller)
    assert world.journal(child) == ["Input"]


# --- Kill ----------------------------------------------------------------------------------------


def test_kill_takes_all_that_was_called_along() -> None:
    world = World(partition_count=3)
    ids = [world.new_id(number % 3) for number in range(6)]
    caller, called, sent, delayed, done, grandchild = ids
    world.invoke(id=caller)
    world.effects(
        caller,
        call(2, called, OTHER),
        send(3, sent, OTHER),
        send(4, delayed, OTHER, invoke_time=world.now_ms + 5000),
        call(6, done, OTHER),
    )
    world.effects(called, call(2, grandchild, OTHER))
    world.end(done, output(b"kept"))
    world.operate(Kill, caller)
    statuses = {name: world.status(id) for name, id in zip("csdxg", ids[1:], strict=True)}
    assert statuses == {
        "c": "completed",
        "s": "completed",
        "d": "free",
        "x": "completed",
        "g": "completed",
    }
    assert world.result(called) == world.result(grandchild) == Failure(409, "killed")
    assert world.result(done) == Success(b"kept")
    world.advance(10_000)
    world.check()


def test_kill_aborts_the_attempt_and_answers() -> None:
    world = World()
    invocation = bring(world, "invoked")
    world.take_actions()
    world.operate(Kill, invocation)
    actions = world.take_actions()
    assert [action for action in actions if not isinstance(action, SetTimer)] == [
        AbortAttempt(invocation),
        InvocationEnded(invocation, Failure(409, "killed")),
    ]
    assert invoked(world) == []


def test_failing_attempt_does_not_kill_children() -> None:
    world = World()
    caller, child = world.invoke(), world.new_id()
    world.effects(caller, call(2, child, OTHER))
    failure = AttemptFailure(500, "gave up")
    world.effects(caller, Fail(Failure(500, "gave up"), failure))
    assert world.result(caller) == Failure(500, "gave up")
    assert world.status(child) == "invoked"
    (event,) = [event for _, event in world.of(caller).store.events.scan(caller)]
    assert event.failure == failure


# --- Pause and resume ----------------------------------------------------------------------------


def pausing(world: World) -> InvocationId:
    """An invocation whose attempt goes on while a pause is asked for."""
    invocation = world.invoke()
    session = world.session(invocation)
    world.take_actions()
    assert world.operate(Pause, invocation) is Verdict.ACCEPTED
    assert world.take_actions() == [WindDown(invocation, session)]
    return invocation


def events_of(world: World, invocation: InvocationId) -> list[tuple[EventKind, str | None]]:
    rows = world.of(invocation).store.events.scan(invocation)
    return [
        (EventKind(event.kind), event.failure.message if event.failure is not None else None)
        for _, event in rows
    ]


def test_pause_waits_for_the_attempt_and_loses_nothing_of_it() -> None:
    world = World()
    invocation = pausing(world)
    world.effects(invocation, run(1), run_result(1, b"x"))
    world.signal(invocation, 17)
    world.operate(Pause, invocation)  # again: as before
    assert world.status(invocation) == "invoked"
    world.suspend(invocation, 1, "#1")  # resolved: paused all the same
    assert world.status(invocation) == "paused"
    assert world.journal(invocation) == ["Input", "Run(1)", "RunCompletion(1)", "Signal(#17)"]
    assert events_of(world, invocation) == [(EventKind.PAUSED, None)]
    assert invoked(world) == []
    world.check()


def test_attempt_that_fails_while_a_pause_is_asked_for_pauses() -> None:
    world = World()
    invocation = pausing(world)
    outcome = world.effects(invocation, run(1), Yield(AttemptFailure(500, "broken")))
    assert isinstance(outcome, Recorded)
    assert not outcome.is_running
    assert world.status(invocation) == "paused"
    assert events_of(world, invocation) == [(EventKind.PAUSED, "broken")]


def test_attempt_that_ends_while_a_pause_is_asked_for_completes() -> None:
    world = World()
    invocation = pausing(world)
    world.end(invocation, output(b"done"))
    assert world.result(invocation) == Success(b"done")
    assert events_of(world, invocation) == []


@pytest.mark.parametrize("operation", [Cancel, Resume])
def test_pause_is_taken_back(operation: Operation) -> None:
    world = World()
    invocation = pausing(world)
    session = world.session(invocation)
    world.operate(operation, invocation)
    outcome = world.effects(invocation, Yield(AttemptFailure(500, "meanwhile")))
    assert isinstance(outcome, Recorded)
    assert outcome.is_running
    assert world.session(invocation) == session
    assert events_of(world, invocation) == [(EventKind.TRANSIENT_ERROR, "meanwhile")]
    world.suspend(invocation, "#1")
    assert world.status(invocation) == ("invoked" if operation is Cancel else "suspended")
    world.check()


def test_suspension_is_shown_with_what_it_waits_for() -> None:
    world = World()
    invocation = world.invoke()
    world.effects(invocation, sleep(1, world.now_ms + 5), run(2), run_result(2, b"x"))
    both = tree(Combinator.ALL_COMPLETED, 1, 2)
    world.suspend_on(invocation, both)
    ((_, event),) = world.of(invocation).store.events.scan(invocation)
    assert (event.kind, event.after_index) == (EventKind.SUSPENDED, 3)
    assert event.awaiting == tree(Combinator.ALL_COMPLETED, 1)
    world.advance(5)
    world.suspend_on(invocation, both)  # resolved at once: nobody waits
    world.suspend(invocation, *range(100, 100 + EVENT_AWAITED_MAX))
    kinds = [event for _, event in world.of(invocation).store.events.scan(invocation)]
    assert [event.awaiting is None for event in kinds] == [False, True]
    world.check()


def test_events_are_bounded_in_number_and_size() -> None:
    world = World()
    invocation = world.invoke()
    for number in range(EVENTS_PER_INVOCATION_MAX + 3):
        failure = AttemptFailure(500, f"{number} " + "x" * 100_000, "y" * 100_000)
        world.effects(invocation, AttemptFailed(failure), AttemptFailed(failure))
    rows = [event.failure for _, event in world.of(invocation).store.events.scan(invocation)]
    assert len(rows) == EVENTS_PER_INVOCATION_MAX
    for number, kept in enumerate(rows, 3):
        assert kept is not None
        assert kept.message.startswith(f"{number} x")
        assert len(kept.message) == len(kept.stacktrace) == EVENT_TEXT_CHARACTERS_MAX
    world.end(invocation, output())
    world.operate(Purge, invocation)
    assert world.of(invocation).store.events.scan(invocation) == []
    world.check()


def test_attempt_that_gives_up_pauses_with_its_failure() -> None:
    world = World()
    invocation = bring(world, "invoked")
    failure = AttemptFailure(500, "tried often")
    world.effects(invocation, run(1), PauseAttempt(failure))
    assert isinstance(world.row(invocation), Paused)
    (event,) = [event for _, event in world.of(invocation).store.events.scan(invocation)]
    assert (event.kind, event.failure) == (EventKind.PAUSED, failure)


def test_paused_collects_notifications_and_stays() -> None:
    world = World()
    invocation, child = world.invoke(), world.new_id()
    world.effects(invocation, call(2, child, OTHER), sleep(3, world.now_ms + 10))
    world.pause(invocation)
    world.end(child, output())
    world.advance(10)
    world.signal(invocation, 17)
    assert world.status(invocation) == "paused"
    assert world.journal(invocation)[-3:] == [
        "CallCompletion(2)",
        "SleepCompletion(3)",
        "Signal(#17)",
    ]
    world.operate(Resume, invocation)
    assert world.status(invocation) == "invoked"
    world.check()


def test_resume_starts_a_new_session() -> None:
    world = World()
    invocation = bring(world, "paused")
    world.now_ms += 700
    world.take_actions()
    world.operate(Resume, invocation)
    row = world.row(invocation)
    assert isinstance(row, Invoked)
    assert world.take_actions() == [StartAttempt(invocation, row.session)]
    assert row.progress.modified_at_ms == world.now_ms


def test_resume_of_a_running_invocation_cuts_its_back_off_short() -> None:
    world = World()
    invocation = bring(world, "invoked")
    session = world.session(invocation)
    world.take_actions()
    world.operate(Resume, invocation)
    assert world.take_actions() == [StartAttempt(invocation, session)]
    assert world.session(invocation) == session


# --- Purge ---------------------------------------------------------------------------------------


def test_targets_are_written_at_both_ends_of_a_life_only() -> None:
    world = World()
    first = world.invoke(exclusive("k"))
    queued = world.invoke(exclusive("k"))
    partition = world.partitions[0]
    written = partition.store.active.rows[TableId.TARGETS]
    assert {split_target_key(key)[2] for key in written} == {first, queued}
    partition.flush()
    world.suspend(first, "#17")
    world.signal(first, 17)
    world.pause(first)
    world.operate(Resume, first)
    world.end(first, output())
    world.end(queued, output())
    assert world.status(queued) == "completed"
    assert not partition.store.active.rows[TableId.TARGETS]
    world.operate(Purge, first)
    deleted = partition.store.active.rows[TableId.TARGETS]
    assert [split_target_key(key)[2] for key in deleted] == [first]
    world.check()


def test_purge_leaves_nothing_and_late_timers_do_no_harm() -> None:
    world = World()
    invocation = bring(world, "completed")
    world.operate(Purge, invocation)
    assert (world.row(invocation), world.entries(invocation)) == (None, [])
    assert world.result(invocation) is None
    world.invoke(id=invocation)
    world.advance(10**9)
    assert world.status(invocation) == "invoked"
    world.check()


def test_purge_of_the_journal_keeps_the_result() -> None:
    world = World()
    invocation = bring(world, "completed")
    world.operate(PurgeJournal, invocation)
    assert world.entries(invocation) == []
    assert world.result(invocation) == Success(b"done")
    row = world.row(invocation)
    assert row is not None
    assert row.progress.journal_length == 0  # type: ignore[union-attr]
