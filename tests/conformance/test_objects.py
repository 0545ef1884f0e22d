"""Virtual objects: state, eager and lazy; one at a time and in order."""

from concurrent.futures import ThreadPoolExecutor
from itertools import groupby
from typing import cast

import pytest
from tests.conformance.client import wait_until
from tests.conformance.world import World, unique

STORES = pytest.mark.parametrize("store", ["Store", "LazyStore"])


@STORES
def test_state_outlives_the_invocation(world: World, store: str) -> None:
    key = unique("counter")

    assert world.value(f"{store}/total", key=key) == 0
    assert [world.value(f"{store}/add", n, key) for n in (1, 2, 3)] == [1, 3, 6]
    assert world.value(f"{store}/total", key=key) == 6
    assert world.value(f"{store}/total", key=unique("other")) == 0


@STORES
def test_entries_are_written_listed_cleared(world: World, store: str) -> None:
    key = unique("entries")
    entries = {"b": [1, {"x": None}], "a": "text", "ü": 3.5, "empty": ""}
    world.value(f"{store}/write", entries, key)

    assert sorted(list_names(world, store, key)) == sorted(entries)
    for name, value in entries.items():
        assert world.value(f"{store}/read", name, key) == value

    world.value(f"{store}/clear", "b", key)
    assert world.value(f"{store}/read", "b", key) is None
    assert sorted(list_names(world, store, key)) == ["a", "empty", "ü"]

    world.value(f"{store}/clear_all", key=key)
    assert list_names(world, store, key) == []


def list_names(world: World, store: str, key: str) -> list[str]:
    return cast(list[str], world.value(f"{store}/names", key=key))


@STORES
def test_a_handler_sees_its_own_writes_and_so_does_its_replay(world: World, store: str) -> None:
    key = unique("everything")
    seen = world.value(f"{store}/everything", key, key)

    assert seen == [None, [], 1, ["a", "b"], None, "two", None, []]
    assert world.ledger.count(key) == 2
    assert world.value(f"{store}/read", "c", key) == [3]
    assert list_names(world, store, key) == ["c"]


@STORES
def test_an_empty_value_is_not_an_absent_one(world: World, store: str) -> None:
    key = unique("empty")

    assert world.value(f"{store}/read_length", "empty", key) == -1
    world.value(f"{store}/write_empty", key=key)
    assert world.value(f"{store}/read_length", "empty", key) == 0


@STORES
def test_writes_before_a_terminal_error_stay(world: World, store: str) -> None:
    key = unique("failed")

    assert world.call(f"{store}/write_then_fail", 7, key).status == 418
    assert world.value(f"{store}/total", key=key) == 7


@pytest.mark.parametrize("key", ["a/b", "a b+c", "ключ", "%41", "", "x" * 400])
def test_keys_of_every_kind(world: World, key: str) -> None:
    before = world.value("Store/total", key=key)
    assert isinstance(before, int)

    assert world.value("Store/add", 5, key) == before + 5
    assert world.value("Store/total", key=key) == before + 5


@pytest.mark.slow
def test_fifty_at_once_on_one_key_pass_one_by_one(world: World) -> None:
    key, count = unique("hot"), 50
    labels = [f"{index:03d}" for index in range(count)]
    with ThreadPoolExecutor(count) as pool:
        jobs = [pool.submit(world.value, "Queue/pass_through", label, key) for label in labels]
        passed = [job.result() for job in jobs]

    assert sorted(passed, key=str) == sorted(range(1, count + 1), key=str)
    order = order_of_passing(world, key)
    assert sorted(order) == labels
    # The order of passing is the order of counting: nobody overtook.
    assert [passed[int(label)] for label in order] == list(range(1, count + 1))


def test_sends_from_one_handler_arrive_in_order(world: World) -> None:
    key, count = unique("sent"), 20
    world.value("Calls/send_in_order", {"key": key, "count": count})

    wait_until(lambda: world.value("Queue/passed", key=key) == count, "all sends passed")
    assert world.value("Queue/pass_through", "last", key) == count + 1
    assert order_of_passing(world, key) == [f"{index:03d}" for index in range(count)] + ["last"]


def order_of_passing(world: World, key: str) -> list[str]:
    """The labels in the order in which they passed.

    Where each attempt is one turn, a label enters again for every turn; another label must never
    come in between, and the step of leaving is executed once.
    """
    events = [entry.split() for entry in world.ledger.entries(f"queue {key}")]
    left = [label for event, label in events if event == "leave"]
    assert [label for label, _ in groupby(label for _, label in events)] == left
    return left


def test_a_locked_key_keeps_exclusive_callers_waiting_and_lets_shared_ones_in(
    world: World,
) -> None:
    key, held = unique("held"), unique("hold")
    holder = world.start("Queue/hold", held, key)
    awakeable = world.await_entry(held)
    waiter = world.start("Queue/pass_through", "waiter", key)

    assert world.value("Queue/passed", key=key) == 0
    assert world.ingress.output(waiter).status == 470
    world.ingress.resolve(awakeable, "free")

    assert world.result(holder) == "free"
    assert world.result(waiter) == 1


@pytest.mark.slow
def test_a_thousand_keys_at_once(world: World) -> None:
    prefix, count = unique("many"), 1_000

    def start(key: str) -> str:
        return world.start("Store/add", 1, key)

    with ThreadPoolExecutor(32) as pool:
        keys = [f"{prefix}-{index}" for index in range(count)]
        ids = list(pool.map(start, keys))
        results = list(pool.map(world.result, ids))

    assert results == [1] * count
    assert len(set(ids)) == count
