"""State after a record is a function of the records so far: random histories, rebuilt and compared.

Random commands hit invocations in every state; afterwards the tables are rebuilt from the log from
scratch, with flushes in between, and from any checkpoint, and must be the same bytes.
"""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import entries as e
from tests.engine.memory_env import MemoryEnv
from tests.engine.world import (
    PIN,
    Partition,
    World,
    any_of,
    check_indexes,
    invoked,
    outgoing_count,
)

from perdure.core.ids import InvocationId
from perdure.engine.commands import (
    AttemptFailed,
    Cancel,
    Effect,
    Effects,
    End,
    Fail,
    Kill,
    Pause,
    PauseAttempt,
    Purge,
    PurgeJournal,
    Resume,
    Suspend,
)
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.invocations import (
    Completed,
    Failure,
    Inboxed,
    Invoked,
    Scheduled,
    Target,
)
from perdure.storage.tables.journal import AttemptFailure

TARGETS: tuple[Target, ...] = (
    e.SERVICE,
    e.exclusive("a"),
    e.exclusive("b"),
    e.shared("a"),
    e.workflow("w"),
    e.workflow_shared("w"),
)
_FAILURE = AttemptFailure(500, "no")
Choice = tuple[int, int, int]
_KEYED_ONLY = range(4, 9)  # state and promises: leaders refuse them from plain services


def _effect(world: World, ids: list[InvocationId], choice: Choice, is_keyed: bool) -> Effect:
    what, which, number = choice
    if not is_keyed and what % 21 in _KEYED_ONLY:
        what = 1
    other = ids[which % len(ids)]
    target = TARGETS[number % len(TARGETS)]
    makers: tuple[Callable[[], Effect], ...] = (
        e.output,
        lambda: e.run(number),
        lambda: e.run_result(number, b"r"),
        lambda: e.sleep(number, world.now_ms + number),
        lambda: e.set_state(b"k%d" % number, b"v"),
        lambda: e.get_state(number, b"k1"),
        e.clear_all_state,
        lambda: e.get_promise(number, "p"),
        lambda: e.resolve_promise(number, "p", b"x"),
        lambda: e.call(number + 1, other, target),
        lambda: e.send(number, other, target, invoke_time=number % 2 and world.now_ms + 5),
        lambda: e.send_signal(other, 17),
        lambda: e.send_signal(other, 1),
        lambda: e.send_signal(other, "name", b"v"),
        lambda: e.attach(number, other),
        lambda: e.get_output(number, other),
        lambda: AttemptFailed(_FAILURE),
        lambda: Suspend(any_of(number, "#17", "name"), number),
        End,
        lambda: Fail(Failure(418, "teapot")),
        lambda: PauseAttempt(_FAILURE),
    )
    return makers[what % len(makers)]()


@dataclass(frozen=True)
class Submit:
    choice: Choice


@dataclass(frozen=True)
class Attempt:
    choices: tuple[Choice, ...]


@dataclass(frozen=True)
class Operate:
    choice: Choice


@dataclass(frozen=True)
class Wait:
    duration_ms: int


Step = Submit | Attempt | Operate | Wait

_CHOICE: st.SearchStrategy[Choice] = st.tuples(
    st.integers(0, 20), st.integers(0, 9), st.integers(1, 9)
)
_STEP: st.SearchStrategy[Step] = st.one_of(
    st.builds(Submit, _CHOICE),
    st.builds(Attempt, st.lists(_CHOICE, min_size=1, max_size=4).map(tuple)),
    st.builds(Operate, _CHOICE),
    st.builds(Wait, st.integers(0, 2000)),
)
OPERATIONS = (Cancel, Kill, Purge, PurgeJournal, Pause, Resume)


def play(world: World, steps: list[Step]) -> None:
    """Apply a random history."""
    count = world.partition_count
    ids = [world.new_id(number % count) for number in range(8)]
    for step in steps:
        match step:
            case Submit((a, b, c)):
                delay = 0 if a % 3 else world.now_ms + c
                kept = (1000 * (b % 3), 500 * (b % 2))
                world.submit(TARGETS[c % 6], ids[b % 8], execute_at_ms=delay, retention=kept)
            case Attempt(choices):
                running = [id for id in ids if isinstance(world.row(id), Invoked)]
                if running:
                    id = running[choices[0][1] % len(running)]
                    is_keyed = world.started(id).spec.target.key is not None
                    effects = [_effect(world, ids, choice, is_keyed) for choice in choices]
                    session = world.session(id)
                    world.propose(Effects(id, session, PIN, effects), world.of(id))
            case Operate((a, b, _)):
                world.operate(OPERATIONS[a % 6], ids[b % 8])
            case Wait(duration_ms):
                world.advance(duration_ms)
        world.shuffle()
        for partition in world.partitions:
            check_tables(partition)


def check_tables(partition: Partition) -> None:
    """What holds between any two records."""
    store = partition.store
    for key, row in store.invocations.scan(b"", 1000):
        id = InvocationId(key)
        match row:
            case Invoked():
                assert len(store.journal.scan(id)) == row.progress.journal_length
            case Inboxed():
                assert row.spec.target.kind == e.exclusive("").kind
            case Completed():
                assert store.results.get(key) is not None
                assert len(store.journal.scan(id)) == row.progress.journal_length
            case Scheduled():
                assert len(store.journal.scan(id)) == 1
            case _:
                assert len(store.journal.scan(id)) == row.progress.journal_length
        has_attachers = getattr(row, "has_attachers", False) or (
            not isinstance(row, Scheduled | Inboxed | Completed) and row.progress.has_attachers
        )
        assert bool(store.attachers.scan(id)) == has_attachers
    check_indexes(store)
    _check_locks(store)


def _check_locks(store: PartitionStore) -> None:
    for _, lock in store.locks.scan(b"", 1000):
        holder = store.invocations.get(lock.holder)
        assert holder is not None
        assert not isinstance(holder, Scheduled | Inboxed | Completed)
        assert lock.head <= lock.tail


@pytest.mark.slow
@given(st.lists(_STEP, max_size=60), st.integers(1, 3))
@settings(max_examples=120, deadline=None)
def test_tables_are_a_function_of_the_log(steps: list[Step], partition_count: int) -> None:
    world = World(partition_count)
    play(world, steps)
    assert all(outgoing_count(partition) == 0 for partition in world.partitions)
    world.check()


@pytest.mark.slow
@given(st.lists(_STEP, min_size=5, max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_replay_from_any_checkpoint_is_the_same(steps: list[Step], data: st.DataObject) -> None:
    world = World()
    play(world, steps)
    (original,) = world.partitions
    cut = data.draw(st.integers(0, len(original.log)))
    head = Partition(0, 1)
    for record in original.log[:cut]:
        head.apply(record)
    checkpoint = head.tables() if cut else {}
    # A new process: nothing but the disk and the rest of the log.
    tail = Partition(0, 1, MemoryEnv(checkpoint))
    assert tail.store.applied_lsn == cut
    for record in original.log[cut:]:
        tail.apply(record)
    assert tail.tables() == original.tables()


def test_new_leader_finds_all_work_in_the_tables() -> None:
    """What a leader is told by actions, a later one finds by scanning: nothing is missed."""
    world = World(partition_count=2)
    running = world.invoke(id=world.new_id(0))
    asleep = world.invoke(id=world.new_id(0))
    world.effects(asleep, e.sleep(1, world.now_ms + 50))
    world.suspend(asleep, 1)
    later = world.invoke(id=world.new_id(0), execute_at_ms=world.now_ms + 50)
    child = world.new_id(1)
    command = Effects(running, world.session(running), PIN, [e.send(1, child, e.OTHER)])
    world.propose(command, world.partitions[0])  # in the outbox, not carried yet
    disk = MemoryEnv(world.partitions[0].tables())
    world.partitions[0] = reopened = Partition(0, 2, disk)
    assert invoked(world) == [(running, world.session(running))]
    assert len(reopened.store.timers.scan(b"", 10)) == 2
    assert outgoing_count(reopened) == 1
    world.shuffle()
    assert world.status(child) == "invoked"
    world.advance(50)
    assert (world.status(asleep), world.status(later)) == ("invoked", "invoked")
    world.effects(running, e.run_result(2, b"x"))
    world.end(running, e.output(b"after the restart"))
    assert world.status(running) == "completed"
