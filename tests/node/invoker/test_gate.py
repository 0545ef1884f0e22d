"""Attempts wait for those that keep their service busy, and for nothing else."""

from collections.abc import Iterator
from contextlib import closing

import pytest
from tests.golden.playbook import Playbook

from perdure.core.limits import ATTEMPTS_BUSY_SILENCE_MS_MAX, ATTEMPTS_BUSY_SILENCE_MS_MIN

BUSY_MAX = 2
OUTPUT = ('Output value { content: "ok" }', "End")


@pytest.fixture
def book() -> Iterator[Playbook]:
    with closing(Playbook(busy_max=BUSY_MAX)) as playbook:
        playbook.run("deploy dp_1 S/h S/i version=6 inactivity=60000 abort=60000", [])
        yield playbook


def say(book: Playbook, name: str, *frames: str) -> list[str]:
    return book.run(f"say {name}", list(frames))


def invoke(book: Playbook, names: str) -> list[str]:
    return [line for name in names for line in requests(book.run(f"invoke {name} S/h", []))]


def requests(lines: list[str]) -> list[str]:
    """Which attempts were begun."""
    return [line.split()[1] for line in lines if " <- POST " in line]


def wait(book: Playbook, duration_ms: int) -> list[str]:
    return requests(book.run(f"wait {duration_ms}", []))


def waiting(book: Playbook) -> int:
    return book.stage.ports.gates.waiting_count


def test_starts_wait_for_ends_in_order(book: Playbook) -> None:
    assert invoke(book, "abcde") == ["a/1", "b/1"]
    assert waiting(book) == 3
    statistics = book.stage.invoker.statistics()
    assert (statistics.running, statistics.held_back, statistics.queued) == (5, 3, 0)
    assert requests(say(book, "b", *OUTPUT)) == ["c/1"]
    assert requests(say(book, "a", *OUTPUT)) == ["d/1"]
    assert requests(say(book, "c", "Suspension waiting_signals: 17")) == ["e/1"]
    assert waiting(book) == 0


def test_attempt_that_fails_or_is_lost_makes_room(book: Playbook) -> None:
    assert invoke(book, "abcd") == ["a/1", "b/1"]
    assert requests(say(book, "a", 'Error code: 500 message: "no"')) == ["c/1"]
    assert "d/1" in requests(book.run("lose b lost", []))


def test_attempt_that_was_killed_makes_room(book: Playbook) -> None:
    assert invoke(book, "abc") == ["a/1", "b/1"]
    assert requests(book.run("kill a", [])) == ["c/1"]


def test_attempts_that_wait_let_others_start_within_a_moment(book: Playbook) -> None:
    assert invoke(book, "abcdef") == ["a/1", "b/1"]
    assert wait(book, ATTEMPTS_BUSY_SILENCE_MS_MAX // 2) == []
    begun: list[str] = []
    for _ in range(2):
        begun += wait(book, 2 * ATTEMPTS_BUSY_SILENCE_MS_MAX)
    assert begun == ["c/1", "d/1", "e/1", "f/1"]


def test_callers_on_all_places_are_answered(book: Playbook) -> None:
    """Nested calls of one service can't lock each other out."""
    assert invoke(book, "ab") == ["a/1", "b/1"]
    call = 'Call service_name: "S" handler_name: "i"'
    ids = "invocation_id_notification_idx: 1 result_completion_id: 2"
    assert requests(say(book, "a", f"{call} {ids}")) == ["i/1"], "at once"
    assert requests(say(book, "b", f"{call} {ids}")) == ["i2/1"]
    assert invoke(book, "c") == [], "the called are busy"
    assert "a/1 <- CallCompletion" in "".join(say(book, "i", *OUTPUT))
    assert "b/1 <- CallCompletion" in "".join(say(book, "i2", *OUTPUT))


def test_called_waits_for_the_busy_but_not_for_its_caller(book: Playbook) -> None:
    assert invoke(book, "abc") == ["a/1", "b/1"]
    call = 'Call service_name: "S" handler_name: "i"'
    ids = "invocation_id_notification_idx: 1 result_completion_id: 2"
    assert requests(say(book, "a", f"{call} {ids}")) == ["c/1"], "who came first"
    assert requests(say(book, "b", *OUTPUT)) == ["i/1"]
    say(book, "i", *OUTPUT)
    assert invoke(book, "d") == [], "a got its result and goes on"


def test_attempt_that_says_it_waits_makes_room_but_not_for_its_own_step() -> None:
    with closing(Playbook(busy_max=1)) as book:
        book.run("deploy dp_1 S/h version=7", [])
        assert invoke(book, "ab") == ["a/1"]
        awaiting = (
            "AwaitingOn awaiting_on { waiting_completions: 1 combinator_type: FIRST_COMPLETED }"
        )
        assert requests(say(book, "a", "Run result_completion_id: 1", awaiting)) == []
        done = 'ProposeRunCompletion result_completion_id: 1 value: "v"'
        assert requests(say(book, "a", done)) == []
        signal = "AwaitingOn awaiting_on { waiting_signals: 17 combinator_type: FIRST_COMPLETED }"
        assert requests(say(book, "a", signal)) == ["b/1"]


def test_attempt_that_moves_again_counts_again(book: Playbook) -> None:
    assert invoke(book, "a") == ["a/1"]
    wait(book, 2 * ATTEMPTS_BUSY_SILENCE_MS_MAX)
    assert invoke(book, "bc") == ["b/1", "c/1"]  # a waits
    say(book, "a", "Run result_completion_id: 1")
    say(book, "b", *OUTPUT)
    assert invoke(book, "d") == [], "a and c"
    assert requests(say(book, "a", *OUTPUT)) == ["d/1"]


def test_what_moves_keeps_its_place(book: Playbook) -> None:
    assert invoke(book, "abc") == ["a/1", "b/1"]
    for number in range(10):
        for name in "ab":
            assert requests(say(book, name, f"Run result_completion_id: {number + 1}")) == []
        assert wait(book, ATTEMPTS_BUSY_SILENCE_MS_MAX // 2) == []


def test_service_that_answers_fast_is_known_to_wait_sooner(book: Playbook) -> None:
    for number in range(100):
        name = f"n{number}"
        assert requests(book.run(f"invoke {name} S/h", [])) == [f"{name}/1"]
        say(book, name, *OUTPUT)
    assert invoke(book, "abcd") == ["a/1", "b/1"]
    assert wait(book, 2 * ATTEMPTS_BUSY_SILENCE_MS_MIN) == ["c/1", "d/1"]


def test_waiting_invocation_that_is_killed_or_paused_never_starts(book: Playbook) -> None:
    assert invoke(book, "abcdef") == ["a/1", "b/1"]
    book.run("kill c", [])
    book.run("pause d", [])
    assert book.stage.world.status(book.stage.names["d"]) == "paused"
    assert waiting(book) == 2
    assert requests(say(book, "a", *OUTPUT)) == ["e/1"]
    assert requests(say(book, "b", *OUTPUT)) == ["f/1"]
    assert requests(book.run("resume d", [])) == []
    assert requests(say(book, "e", *OUTPUT)) == ["d/1"]


def test_what_came_while_waiting_is_replayed(book: Playbook) -> None:
    assert invoke(book, "abc") == ["a/1", "b/1"]
    book.run("signal c 17 hello", [])
    lines = say(book, "a", *OUTPUT)
    assert requests(lines) == ["c/1"]
    assert "known 2" in "".join(lines)


def test_waiting_for_a_start_is_no_attempt(book: Playbook) -> None:
    invoke(book, "abc")
    run = book.stage.invoker.run_of(book.stage.names["c"])
    assert run is not None
    assert (run.attempt_count, run.statistics().is_running) == (0, False)


def test_stopped_invoker_starts_nobody(book: Playbook) -> None:
    invoke(book, "abc")
    book.stage.inside(book.stage.invoker.stop)
    assert waiting(book) == 0
    assert wait(book, 10 * ATTEMPTS_BUSY_SILENCE_MS_MAX) == []
