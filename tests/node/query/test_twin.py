"""Statements against what the tables say when they are read directly, under random histories."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.test_replay import TARGETS, Attempt, Choice, Operate, Step, Submit, Wait, play
from tests.engine.world import World
from tests.node.query.rig import Row, ask

from perdure.core.ids import InvocationId, format_invocation_id
from perdure.storage.keys import object_group, split_object_group
from perdure.storage.tables.invocations import Completed, Failure, Inboxed, Invocation, Scheduled
from perdure.storage.tables.objects import WaitingInvocation

CHOICE: st.SearchStrategy[Choice] = st.tuples(
    st.integers(0, 20), st.integers(0, 9), st.integers(1, 9)
)
STEP: st.SearchStrategy[Step] = st.one_of(
    st.builds(Submit, CHOICE),
    st.builds(Attempt, st.lists(CHOICE, min_size=1, max_size=4).map(tuple)),
    st.builds(Operate, CHOICE),
    st.builds(Wait, st.integers(0, 2000)),
)
LIMIT = 10_000


def invocations(world: World) -> dict[InvocationId, Invocation]:
    return {
        InvocationId(key): row
        for partition in world.partitions
        for key, row in partition.store.invocations.scan(b"", LIMIT)
    }


def status_of(row: Invocation) -> str:
    return type(row).__name__.lower()


def expected(world: World, id: InvocationId, row: Invocation) -> Row:
    shown: Row = {
        "id": format_invocation_id(id),
        "status": status_of(row),
        "target": row.spec.target.text(),
        "target_service_name": row.spec.target.service,
        "target_handler_name": row.spec.target.handler,
    }
    if row.spec.target.key is not None:
        shown["target_service_key"] = row.spec.target.key
    if not isinstance(row, Scheduled | Inboxed):
        shown["journal_size"] = row.progress.journal_length
        if row.progress.pin is not None:
            shown["pinned_deployment_id"] = row.progress.pin.deployment_id
    if isinstance(row, Completed):
        shown["completion_result"] = "success" if row.is_success else "failure"
        result = world.result(id)
        if isinstance(result, Failure):
            shown["completion_failure"] = f"[{result.code}] {result.message}"
    return shown


_COLUMNS = (
    "id, status, target, target_service_name, target_handler_name, target_service_key, "
    "journal_size, pinned_deployment_id, completion_result, completion_failure"
)


def check_invocations(world: World) -> None:
    rows = invocations(world)
    table = {format_invocation_id(id): expected(world, id, row) for id, row in rows.items()}
    asked = ask(world, f"select {_COLUMNS} from sys_invocation_status")
    assert {row["id"]: row for row in asked.rows} == table
    for status in {row["status"] for row in table.values()}:
        asked = ask(world, f"select id from sys_invocation_status where status = '{status}'")
        ids = {row["id"] for row in table.values() if row["status"] == status}
        assert {row["id"] for row in asked.rows} == ids
    for target in TARGETS:
        # Not by key: the ids of this world are not those of its keys.
        asked = ask(world, f"select id from sys_invocation where target = '{target.text()}'")
        assert {row["id"] for row in asked.rows} == {
            format_invocation_id(id) for id, row in rows.items() if row.spec.target == target
        }
    asked = ask(
        world,
        "select target_service_name, count(1) as n from sys_invocation group by 1 order by 1",
    )
    names = [row.spec.target.service for row in rows.values()]
    assert [(row["target_service_name"], row["n"]) for row in asked.rows] == [
        (name, names.count(name)) for name in sorted(set(names))
    ]


def check_journals(world: World) -> None:
    for id in invocations(world):
        text = format_invocation_id(id)
        entries = world.entries(id)
        asked = ask(
            world,
            f"select index, raw, raw_length from sys_journal where id = '{text}' "
            "order by index desc",
        )
        assert [(row["index"], row["raw"], row["raw_length"]) for row in asked.rows] == [
            (int.from_bytes(key), entry.payload.hex(), len(entry.payload))
            for key, entry in reversed(entries)
        ]
        # Nothing but the invocation's own rows is read.
        assert asked.rows_read == len(entries)
        asked = ask(world, f"select * from sys_invocation_status where id = '{text}'")
        assert asked.rows_read <= 2  # its row, and the result when it failed
        events = world.of(id).store.events.scan(id)
        asked = ask(world, f"select event_type from sys_journal_events where id = '{text}'")
        assert len(asked.rows) == asked.rows_read == len(events)


def check_objects(world: World) -> None:
    stores = [partition.store for partition in world.partitions]
    state: set[tuple[str, str, str, str]] = set()
    holders: set[tuple[str, str, str]] = set()
    inbox: set[str] = set()
    promises: set[tuple[str, str, str, bool]] = set()
    groups = {(target.service, target.key): world.partitions for target in TARGETS if target.key}
    for service, key in groups:
        group = object_group(service, key)
        for store in stores:
            for _, entry in store.state.scan(group):
                state.add((service, key, entry.key.decode(), entry.value.hex()))
            for _, waiting in store.inbox.scan(group):
                if isinstance(waiting, WaitingInvocation):
                    inbox.add(format_invocation_id(waiting.id))
            for _, promise in store.promises.scan(group):
                promises.add((service, key, promise.name, promise.result is not None))
    for store in stores:
        for group, lock in store.locks.scan(b"", LIMIT):
            names = split_object_group(group)
            assert names is not None
            holders.add((*names, format_invocation_id(lock.holder)))
    found = ask(world, "select * from state").rows
    keys = ("service_name", "service_key", "key", "value")
    assert {tuple(row[key] for key in keys) for row in found} == state
    found = ask(world, "select * from sys_keyed_service_status").rows
    columns = ("service_name", "service_key", "invocation_id")
    assert {tuple(row[column] for column in columns) for row in found} == holders
    assert {row["id"] for row in ask(world, "select id from sys_inbox").rows} == inbox
    found = ask(world, "select * from sys_promise").rows
    keys = ("service_name", "service_key", "key", "completed")
    assert {tuple(row[key] for key in keys) for row in found} == promises
    if world.partition_count > 1:
        return  # the objects of this world are not where their keys belong
    for service, key in groups:
        found = ask(
            world,
            f"select key, value from state where service_name = '{service}' "
            f"and service_key = '{key}'",
        ).rows
        wanted = {(name, value) for s, k, name, value in state if (s, k) == (service, key)}
        assert {(row["key"], row["value"]) for row in found} == wanted


@pytest.mark.slow
@given(st.lists(STEP, min_size=5, max_size=40), st.integers(1, 3))
@settings(max_examples=25, deadline=None)
def test_statements_say_what_the_tables_say(steps: list[Step], partition_count: int) -> None:
    world = World(partition_count)
    play(world, steps)
    check_invocations(world)
    check_journals(world)
    check_objects(world)
