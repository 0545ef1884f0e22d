"""Many invocations at once: slots and their queue, slow closing, taking away, stopping."""

import gc
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from tests.engine.world import FIRST_MS
from tests.golden.playbook import Playbook

from perdure.core.limits import (
    EFFECTS_PER_RECORD_MAX,
    HELD_EFFECTS_MAX,
    PIECE_BYTES,
    RUN_HOLD_MS,
)
from perdure.engine.commands import Kill
from perdure.node.invoker.gate import Place
from perdure.node.invoker.invoker import Invoker
from perdure.node.registry.effective import Defaults
from perdure.proto.frames import MessageType
from perdure.storage.tables.futures import Combinator, Future

SLOTS = 2


@pytest.fixture
def book() -> Iterator[Playbook]:
    with closing(Playbook(SLOTS)) as playbook:
        playbook.run("deploy dp_1 S/h S/i O/add:exclusive version=6 inactivity=1000 abort=2000", [])
        yield playbook


def say(book: Playbook, name: str, *frames: str) -> list[str]:
    return book.run(f"say {name}", list(frames))


OUTPUT = ('Output value { content: "ok" }', "End")


def requests(lines: list[str]) -> list[str]:
    """Which attempts were begun."""
    return [line.split()[1] for line in lines if " <- POST " in line]


# --- Slots ---------------------------------------------------------------------------------------


def test_queue_behind_the_slots_is_served_in_order(book: Playbook) -> None:
    begun = [requests(book.run(f"invoke {name} S/h", [])) for name in "abcd"]
    assert begun == [["a/1"], ["b/1"], [], []]
    statistics = book.stage.invoker.statistics()
    assert (statistics.running, statistics.queued) == (2, 2)
    assert requests(say(book, "b", *OUTPUT)) == ["c/1"]
    assert requests(say(book, "a", *OUTPUT)) == ["d/1"]


def test_suspended_and_paused_hold_no_slot_and_back_off_does(book: Playbook) -> None:
    for name in "abcd":
        book.run(f"invoke {name} S/h", [])
    assert requests(say(book, "a", "Suspension waiting_signals: 17")) == ["c/1"]
    book.run("pause b", [])
    assert requests(say(book, "b", "Suspension waiting_signals: 1")) == ["d/1"]
    book.run("hang-up b", [])
    say(book, "c", 'Error code: 500 message: "no"')
    book.run("hang-up c", [])
    assert book.stage.invoker.statistics().backing_off == 1
    assert requests(book.run("resume b", [])) == []
    assert requests(say(book, "d", *OUTPUT)) == ["b/2"]


def test_queued_invocation_that_was_killed_never_runs(book: Playbook) -> None:
    for name in "abcd":
        book.run(f"invoke {name} S/h", [])
    book.run("kill c", [])
    assert requests(say(book, "a", *OUTPUT)) == ["d/1"]


def test_queued_invocation_that_was_paused_and_resumed_runs_once(book: Playbook) -> None:
    for name in "abc":
        book.run(f"invoke {name} S/h", [])
    book.run("pause c", [])
    assert book.stage.world.status(book.stage.names["c"]) == "paused"  # it waits for no slot
    book.run("resume c", [])
    assert requests(say(book, "a", *OUTPUT)) == ["c/1"]
    assert requests(say(book, "b", *OUTPUT)) == []


def test_queued_invocation_pauses_also_when_the_log_takes_nothing_then(book: Playbook) -> None:
    for name in "abc":
        book.run(f"invoke {name} S/h", [])
    book.run("log refuses", [])
    book.run("pause c", [])
    book.run("log takes", [])
    assert requests(say(book, "a", *OUTPUT)) == []
    assert book.stage.world.status(book.stage.names["c"]) == "paused"


def test_pause_of_one_that_backs_off_is_tried_again_while_the_log_takes_nothing(
    book: Playbook,
) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", 'Error code: 500 message: "no"')
    book.run("hang-up a", [])
    book.run("log refuses", [])
    book.run("pause a", [])
    book.run("wait 2500", [])
    assert book.stage.world.status(book.stage.names["a"]) == "invoked"
    book.run("log takes", [])
    assert requests(book.run("wait 1000", [])) == []
    assert book.stage.world.status(book.stage.names["a"]) == "paused"


def test_new_leader_pauses_what_was_asked_to(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    book.run("pause a", [])
    stage = book.stage
    id = stage.names["a"]
    session = stage.world.session(id)
    stage.invoker.stop()
    stage.invoker = stage.inside(lambda: Invoker(stage.ports))
    stage.inside(lambda: stage.invoker.start(id, session))
    assert requests(book.run("wait 0", [])) == []
    assert stage.world.status(id) == "paused"


# --- Streams that close slowly -------------------------------------------------------------------


def test_next_attempt_waits_until_the_old_stream_is_gone(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", "Suspension waiting_signals: 17")
    assert requests(book.run("signal a 17 x", [])) == []
    assert requests(book.run("hang-up a", [])) == ["a/2"]


def test_stream_that_never_closes_is_dropped_after_five_seconds(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", "Suspension waiting_signals: 17")
    book.run("signal a 17 x", [])
    assert book.run("wait 4999", []) == []
    lines = book.run("wait 1", [])
    assert lines[0].split(maxsplit=1)[1] == "a/1 <- reset"
    assert requests(lines) == ["a/2"]


def test_ended_invocation_needs_no_drain_to_be_answered(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    lines = [line.split(maxsplit=1)[1] for line in say(book, "a", *OUTPUT)]
    assert lines == ["a/1 <- end of request", "a ended: value ok"]
    assert [line.split(maxsplit=1)[1] for line in book.run("wait 5000", [])] == ["a/1 <- reset"]


@pytest.mark.parametrize(
    "ending",
    [
        ["say a", "hang-up a"],
        ["suspend a", "hang-up a"],
        ["say a", "wait 5000"],
        ["kill a"],
        ["hang-up a", "kill a"],
    ],
)
def test_attempts_leave_no_cycles(book: Playbook, ending: list[str]) -> None:
    """What is over is freed at once: the garbage collector would stop the loop to find it."""
    book.run("invoke a S/h", [])
    (run,) = book.stage.invoker.runs()
    gone: list[weakref.ref[Any]] = [weakref.ref(run), weakref.ref(run.live)]
    del run
    gc.disable()
    try:
        for line in ending:
            match line:
                case "say a":
                    say(book, "a", *OUTPUT)
                case "suspend a":
                    say(book, "a", "Suspension waiting_signals: 17")
                case _:
                    book.run(line, [])
        book.run("wait 1000", [])
        book.stage.streams.clear()
        assert [ref() for ref in gone] == [None, None]
    finally:
        gc.enable()


def test_resume_while_the_paused_attempts_stream_closes(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", 'Error code: 500 message: "stop" behavior: PAUSE')
    assert requests(book.run("resume a", [])) == []
    book.run("pause a", [])
    book.run("resume a", [])
    assert requests(book.run("hang-up a", [])) == ["a/2"]


def test_statistics_of_a_session(book: Playbook) -> None:
    book.run("deploy dp_7 S/seven version=7", [])
    book.run("invoke a S/seven", [])
    say(book, "a", "Run result_completion_id: 1", 'Error code: 500 message: "no"')
    book.run("hang-up a", [])
    id = book.stage.names["a"]
    run = book.stage.invoker.run_of(id)
    assert run is not None
    found = run.statistics()
    assert found.failure is not None
    assert (found.is_backing_off, found.attempts, found.retries) == (True, 1, 1)
    assert (found.failures_since_command, found.failure.message) == (1, "no")
    assert found.next_retry_at_ms == FIRST_MS + 100
    book.run("wait 100", [])
    say(book, "a", "AwaitingOn awaiting_on { combinator_type: ALL_COMPLETED waiting_signals: 17 }")
    found = run.statistics()
    assert (found.is_running, found.attempts, found.next_retry_at_ms) == (True, 2, 0)
    assert found.awaiting_on == Future(Combinator.ALL_COMPLETED, (), (17,))
    assert (found.deployment_id, found.last_start_at_ms) == ("dp_7", FIRST_MS + 100)
    say(book, "a", "Run result_completion_id: 2")
    assert run.statistics().awaiting_on is None


def test_failure_that_the_server_found_names_the_command(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", 'SetState key: "k" value { content: "1" }')
    run = book.stage.invoker.run_of(book.stage.names["a"])
    assert run is not None
    failure = run.statistics().failure
    assert failure is not None
    assert (failure.command_index, failure.command_type) == (1, MessageType.SET_STATE_COMMAND)


# --- Taking away ---------------------------------------------------------------------------------


def test_kill_and_proposals_in_one_turn_of_the_loop(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    stage = book.stage
    id = stage.names["a"]
    session = stage.world.session(id)
    stream = stage.streams["a"]
    book.run("answer a 200 content-type=application/vnd.restate.invocation.v6", [])
    stage.propose(Kill(id))
    stage.loop.call_soon(stream.listener.on_body, bytes.fromhex("0411000000000000"))
    book.run("wait 0", [])
    assert stage.world.status(id) == "completed"
    assert stage.world.journal(id) == ["Input"]
    assert session == 1


def test_invocation_that_is_told_and_killed_in_one_record() -> None:
    """It waits for its own ancestor: its journal grew and is gone when the leader acts."""
    with closing(Playbook()) as book:
        book.stage.defaults = Defaults(journal_retention_ms=0)
        book.run("deploy dp_1 S/h S/i version=6", [])
        book.run("invoke a S/h", [])
        for caller in ("a", "i"):
            fields = "invocation_id_notification_idx: 1 result_completion_id: 2"
            say(book, caller, f'Call service_name: "S" handler_name: "i" {fields}')
        say(book, "i2", 'AttachInvocation invocation_id: "<a>" result_completion_id: 1')
        lines = [line.split(maxsplit=1)[1] for line in book.run("kill a", [])]
        assert lines == [
            "a/1 <- reset",
            "a ended: failure 409 killed",
            "i/1 <- reset",
            "i ended: failure 409 killed",
            "i2/1 <- reset",
            "i2 ended: failure 409 killed",
        ]
        names = book.stage.names
        assert book.stage.world.status(names["i2"]) == "free"


def test_stopping_drops_every_stream(book: Playbook) -> None:
    for name in "abc":
        book.run(f"invoke {name} S/h", [])
    say(book, "a", "Suspension waiting_signals: 17")  # its stream still closes
    book.stage.invoker.stop()
    lines = [line.split(maxsplit=1)[1] for line in book.run("wait 10000", [])]
    assert sorted(lines) == ["a/1 <- reset", "b/1 <- reset", "c/1 <- reset"]
    assert book.stage.invoker.statistics().running == 0


# --- One piece of body, many records -------------------------------------------------------------


def test_many_effects_of_one_piece_make_several_records(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    count = EFFECTS_PER_RECORD_MAX * 2 + 10
    before = book.stage.world.partitions[0].store.applied_lsn
    frames = [f"Run result_completion_id: {number}" for number in range(1, count + 1)]
    say(book, "a", *frames, *OUTPUT)
    store = book.stage.world.partitions[0].store
    assert store.applied_lsn - before == 3
    assert len(book.stage.world.journal(book.stage.names["a"])) == count + 2
    assert book.stage.world.status(book.stage.names["a"]) == "completed"


# --- Commands of runs, held for what follows ------------------------------------------------------

RUN = "Run result_completion_id: 1"
PROPOSAL = 'ProposeRunCompletion result_completion_id: 1 value: "x"'


def records(book: Playbook) -> int:
    return book.stage.world.partitions[0].store.applied_lsn


def journal(book: Playbook) -> list[str]:
    return book.stage.world.journal(book.stage.names["a"])


def test_run_and_its_result_are_one_record(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    before = records(book)
    say(book, "a", RUN)
    assert (records(book), journal(book)) == (before, ["Input"])
    lines = say(book, "a", PROPOSAL)
    assert records(book) == before + 1
    assert journal(book) == ["Input", "Run(1)", "RunCompletion(1)"]
    assert "RunCompletion" in lines[0]  # the service is told


def test_run_that_takes_its_time_is_recorded_without_its_result(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", RUN)
    book.run(f"wait {RUN_HOLD_MS - 1}", [])
    assert journal(book) == ["Input"]
    book.run("wait 2", [])
    assert journal(book) == ["Input", "Run(1)"]
    say(book, "a", PROPOSAL, "Run result_completion_id: 2")
    assert journal(book) == ["Input", "Run(1)", "RunCompletion(1)", "Run(2)"]


def test_run_that_asks_for_an_ack_is_not_held(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", RUN + " +ack")
    assert journal(book) == ["Input", "Run(1)"]


def test_run_whose_stream_breaks_is_recorded(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", RUN)
    book.run("hang-up a", [])
    assert journal(book) == ["Input", "Run(1)"]


def test_runs_are_recorded_when_too_many_are_held(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    for number in range(1, HELD_EFFECTS_MAX + 1):
        say(book, "a", f"Run result_completion_id: {number}")
    assert journal(book) == ["Input"]
    say(book, "a", f"Run result_completion_id: {HELD_EFFECTS_MAX + 1}")
    assert journal(book) == ["Input", *(f"Run({n})" for n in range(1, HELD_EFFECTS_MAX + 2))]


def test_held_run_of_a_killed_invocation_is_forgotten(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    say(book, "a", RUN)
    book.run("kill a", [])
    book.run(f"wait {2 * RUN_HOLD_MS}", [])
    assert book.stage.world.status(book.stage.names["a"]) == "completed"
    assert journal(book) == ["Input"]


def test_log_that_refuses_the_end_is_asked_again(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    book.run("log refuses", [])
    lines = say(book, "a", *OUTPUT)
    assert [line.split(maxsplit=1)[1] for line in lines] == [
        "a/1 <- end of request",
        "a/1 <- reset",
    ]
    book.run("log takes", [])
    assert requests(book.run("wait 1000", [])) == ["a/2"]
    assert say(book, "a", *OUTPUT)[-1].endswith("a ended: value ok")


# --- Start ---------------------------------------------------------------------------------------


def test_long_journal_is_replayed_once_and_in_order(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    frames = [f"Run result_completion_id: {number}" for number in range(1, 1001)]
    say(book, "a", *frames)
    lines = book.run("lose a lost", [])
    assert lines[1].split(maxsplit=1)[1] == "a/2 <- Start {known 1001, partial}"
    replayed = [line for line in lines if " <- Run {" in line]
    assert replayed == [
        f"     0 a/2 <- Run {{result_completion_id: {number}}}" for number in range(1, 1001)
    ]


@pytest.mark.parametrize(
    ("limit", "told"),
    [
        (0, "known 3, partial"),
        (3, "known 3, partial"),
        (4, "known 3, partial, a=123"),
        (7, "known 3, partial, a=123"),
        (8, "known 3, a=123, b=123"),
    ],
)
def test_eager_state_is_a_prefix_under_the_limit(book: Playbook, limit: int, told: str) -> None:
    book.stage.defaults = Defaults(eager_state_bytes_max=limit)
    book.run("deploy dp_1 O/add:exclusive version=6", [])
    book.run("invoke a O/add key=k", [])
    state = [f'SetState key: "{key}" value {{ content: "123" }}' for key in "ba"]
    say(book, "a", *state)
    lines = book.run("lose a lost", [])
    assert lines[1].endswith(f"Start {{{told}}}")


@pytest.mark.parametrize(
    ("header", "delay_ms"),
    [("7", 7000), ("Tue,_14_Nov_2023_22:13:30_GMT", 10_000)],
)
def test_retry_after(book: Playbook, header: str, delay_ms: int) -> None:
    book.run("invoke a S/h", [])
    value = header.replace("_", " ")
    stream = book.stage.streams["a"]
    book.stage.loop.call_soon(stream.listener.on_response, 429, [(b"retry-after", value.encode())])
    book.run("wait 0", [])
    book.run("hang-up a", [])
    assert FIRST_MS == 1_700_000_000_000  # a Tuesday, at 22:13:20
    assert book.run(f"wait {delay_ms - 1}", []) == []
    assert requests(book.run("wait 1", [])) == ["a/2"]


@pytest.mark.parametrize("header", [b"", b"soon", b"-1", b"\xb2", b"Tue, 14 Nov 2000 22:13:30 GMT"])
def test_senseless_retry_after_leaves_it_to_the_policy(book: Playbook, header: bytes) -> None:
    book.run("invoke a S/h", [])
    stream = book.stage.streams["a"]
    book.stage.loop.call_soon(stream.listener.on_response, 503, [(b"retry-after", header)])
    book.run("wait 0", [])
    book.run("hang-up a", [])
    assert requests(book.run("wait 100", [])) == ["a/2"]


# --- Writes --------------------------------------------------------------------------------------


def test_start_is_one_write(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    assert len(book.stage.streams["a"].sizes) == 1


def test_journal_is_replayed_in_few_writes(book: Playbook) -> None:
    book.run("invoke a S/h body=12345", [])
    for number in range(1, 201):
        proposal = f'ProposeRunCompletion result_completion_id: {number} value: "{"x" * 100}"'
        say(book, "a", f"Run result_completion_id: {number}", proposal)
    book.run("lose a lost", [])
    book.run("wait 0", [])
    sizes = book.stage.streams["a"].sizes
    assert sum(sizes) > 200 * 100
    assert len(sizes) <= sum(sizes) // PIECE_BYTES + 1


def test_large_entry_is_written_by_itself(book: Playbook) -> None:
    """So that it needn't be copied."""
    body = "x" * PIECE_BYTES
    book.run(f"invoke a S/h body={body}", [])
    first, last = book.stage.streams["a"].sizes
    assert first < 1024 < PIECE_BYTES <= last


class Doubt:
    """A node that doesn't know whether it leads still."""

    def __init__(self) -> None:
        self.places: list[Place] = []

    def is_fresh(self) -> bool:
        return False

    def wait(self, start: Callable[[], None]) -> Place:
        self.places.append(Place(start))
        return self.places[-1]


def test_a_node_that_may_lead_no_more_tells_nothing(book: Playbook) -> None:
    book.run("invoke a S/h", [])
    doubt = book.stage.fence = Doubt()
    # What it had recorded before is applied now: others may have gone on from there long ago.
    assert "RunCompletion" not in " ".join(say(book, "a", RUN, PROPOSAL))
    assert journal(book) == ["Input", "Run(1)", "RunCompletion(1)"]
    say(book, "a", "Run result_completion_id: 2")
    (place,) = doubt.places
    book.stage.fence = None
    book.stage.inside(place.take)
    assert "RunCompletion" in " ".join(book.run("wait 1", []))
