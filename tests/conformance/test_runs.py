"""Durable steps: each is executed once, whatever happens around it."""

import pytest
from tests.conformance.world import World, unique


def test_a_step_is_executed_once_and_its_value_returned(world: World) -> None:
    key = unique("once")

    assert world.value("Runs/once", {"key": key, "value": "v"}) == "v"
    assert world.ledger.count(key) == 1


def test_a_failing_step_is_retried_until_it_succeeds(world: World) -> None:
    key = unique("retried")

    assert world.value("Runs/retried", {"key": key, "times": 2}) == 3
    assert world.ledger.count(key) == 3


def test_a_terminal_error_of_a_step_is_recorded_and_raised(world: World) -> None:
    key = unique("terminal")
    answer = world.value("Runs/terminal", {"key": key, "code": 403, "message": "no"})

    assert answer == {"code": 403, "message": "no"}
    assert world.ledger.count(key) == 1


@pytest.mark.parametrize("attempts", [1, 3])
def test_a_step_gives_up_after_its_attempts(world: World, attempts: int) -> None:
    key = unique("exhausted")
    answer = world.value("Runs/exhausted", {"key": key, "max_attempts": attempts})

    assert answer == {"code": 500, "attempts": attempts}
    assert world.ledger.count(key) == attempts


def test_parallel_steps_each_run_once(world: World) -> None:
    key = unique("parallel")
    answer = world.value("Runs/parallel", {"key": key, "count": 20})

    assert answer == [index * index for index in range(20)]
    assert sorted(world.ledger.entries(key), key=int) == [str(index) for index in range(20)]


@pytest.mark.slow
def test_a_journal_of_a_thousand_entries_replays(world: World) -> None:
    """500 steps of 20 KB are 1,000 entries and 10 MB; the last attempt replays them all.

    Turn by turn, every step ends an attempt and all before it are replayed: smaller steps there.
    """
    key, count, size = unique("steps"), 500, 20_000 if world.kind.streams else 2_000
    answer = world.value("Runs/steps", {"key": key, "count": count, "size": size})

    assert answer == count * size
    assert world.ledger.count(f"{key} attempt") == 2
    assert world.ledger.entries(f"{key} step") == [str(index) for index in range(count)]


def test_changed_code_is_refused_until_it_changes_back(world: World) -> None:
    """The second attempt leaves the journal's path: a mismatch, retried; the third finishes."""
    key = unique("changing")

    assert world.value("Runs/changing", key) == "attempt 1"
    assert world.ledger.count(key) == 3


def test_uuid_random_and_time_are_the_same_on_every_attempt(world: World) -> None:
    key = unique("chance")
    drawn = world.value("Runs/chance", key)

    # A failed attempt, one that sleeps and suspends, and the one that is resumed.
    assert world.ledger.count(key) == 3
    assert set(world.ledger.entries(key)) == {drawn}


def test_dice_thrown_in_a_step_are_thrown_once(world: World) -> None:
    key = unique("dice")
    value = world.value("Runs/recorded_chance", key)

    assert [float(text) for text in world.ledger.entries(key)] == [value, value]
    assert world.ledger.count(f"{key} more") == 1
