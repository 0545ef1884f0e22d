"""Records in order, epochs and time that don't fall, messages between partitions once each."""

import pytest
from tests.engine.entries import OTHER, SERVICE, call, output, send
from tests.engine.world import FIRST_MS, PIN, Partition, World, outgoing_count

from perdure.core.invariant import InvariantViolation
from perdure.engine.actions import LeaderAnnounced, MessageApplied
from perdure.engine.apply import Origin
from perdure.engine.commands import (
    Announce,
    Cancel,
    Complete,
    Effects,
    End,
    Signal,
    TrimOutbox,
    decode_command,
    encode_command,
)
from perdure.engine.notifications import void
from perdure.storage.keys import outbox_key
from perdure.storage.tables.invocations import CallerSink
from perdure.storage.tables.timers import inbound_counter, outbox_counter


def test_records_are_applied_in_order() -> None:
    partition = Partition(0, 1)
    command = Announce(1, 1, 1, 1, "perdure")
    partition.machine.apply(1, 1, FIRST_MS, command)
    for lsn in (1, 3):
        with pytest.raises(InvariantViolation, match="in order"):
            partition.machine.apply(lsn, 1, FIRST_MS, command)


def test_epochs_do_not_fall() -> None:
    partition = Partition(0, 1)
    partition.machine.apply(1, 5, FIRST_MS, Announce(5, 1, 1, 1, ""))
    with pytest.raises(InvariantViolation, match="epochs"):
        partition.machine.apply(2, 4, FIRST_MS, Announce(4, 1, 1, 1, ""))


def test_time_of_a_partition_never_steps_back() -> None:
    world = World()
    first = world.invoke()
    world.now_ms -= 60_000
    second = world.invoke()
    assert world.started(first).spec.created_at_ms == FIRST_MS
    assert world.started(second).spec.created_at_ms == FIRST_MS
    world.check()


def test_announcement_is_told_to_the_leader() -> None:
    partition = Partition(0, 1)
    _, actions = partition.machine.apply(1, 7, FIRST_MS, Announce(7, 1, 2, 99, ""))
    assert actions == [LeaderAnnounced(7, 99)]


def test_every_command_survives_its_encoding() -> None:
    world = World()
    child = world.new_id()
    caller = world.invoke()
    world.effects(caller, call(2, child, OTHER, b"p", headers=(("a", "b"),)))
    for command in (
        Effects(caller, 1, PIN, [output(b""), End()]),
        Signal(caller, None, "name", b"payload", True),
        Complete(CallerSink(caller, 1, 2, 0x800D), b"payload", False),
        Cancel(caller),
        Announce(1, 2, 3, 4, "x"),
    ):
        assert decode_command(encode_command(command)) == command


def test_message_to_another_partition_goes_through_the_outbox_once() -> None:
    world = World(partition_count=3)
    caller, child = world.new_id(0), world.new_id(2)
    world.invoke(id=caller)
    source = world.of(caller)
    outcome = source.machine.apply(
        source.store.applied_lsn + 1,
        1,
        world.now_ms,
        Effects(caller, world.session(caller), PIN, [send(1, child, OTHER)]),
    )
    assert outcome[0] is not None
    assert world.status(child) == "free"
    assert outgoing_count(source) == 1
    ((_, message),) = source.store.outbox.scan(b"", 10)
    command, origin = decode_command(message.payload), Origin(0, 1)
    target = world.partitions[2]
    world.propose(command, target, origin)
    assert world.status(child) == "invoked"
    session = world.session(child)
    # Sent again after a restart of the source: dropped, and reported as applied.
    target.actions.clear()
    world.propose(command, target, origin)
    assert world.session(child) == session
    assert target.actions == [MessageApplied(0, 1)]
    assert target.store.sequences.get(inbound_counter(0)) == 1


def test_gap_between_messages_halts() -> None:
    world = World(partition_count=2)
    with pytest.raises(InvariantViolation, match="dense"):
        world.propose(Cancel(world.new_id(1)), world.partitions[1], Origin(0, 2))


def test_old_repeat_reports_the_latest_sequence() -> None:
    world = World(partition_count=2)
    target = world.partitions[1]
    for sequence in (1, 2, 3):
        world.propose(Cancel(world.new_id(1)), target, Origin(0, sequence))
    target.actions.clear()
    world.propose(Cancel(world.new_id(1)), target, Origin(0, 1))
    assert target.actions == [MessageApplied(0, 3)]


def test_trim_removes_all_messages_up_to_a_sequence() -> None:
    world = World(partition_count=2)
    caller = world.invoke(id=world.new_id(0))
    source = world.of(caller)
    sends = [send(number, world.new_id(1), OTHER) for number in range(1, 6)]
    source.machine.apply(
        source.store.applied_lsn + 1,
        1,
        world.now_ms,
        Effects(caller, world.session(caller), PIN, list(sends)),
    )
    assert outgoing_count(source) == 5
    world.propose(TrimOutbox(1, 3), source)
    assert [key for key, _ in source.store.outbox.scan(b"", 10)] == [
        outbox_key(1, 4),
        outbox_key(1, 5),
    ]
    world.propose(TrimOutbox(1, 2), source)  # late: nothing left to do
    world.propose(TrimOutbox(1, 5), source)
    assert outgoing_count(source) == 0
    # Sequences go on where they were: the receiver's dedup depends on it.
    assert source.store.sequences.get(outbox_counter(1)) == 5


def test_call_and_answer_cross_partitions() -> None:
    world = World(partition_count=2)
    caller = world.invoke(SERVICE, id=world.new_id(0))
    child = world.new_id(1)
    world.effects(caller, call(2, child, OTHER, b"in"))
    assert world.status(child) == "invoked"
    world.end(child, output(b"out"))
    assert world.journal(caller) == [
        "Input",
        "Call(2)",
        "CallInvocationIdCompletion(1)",
        "CallCompletion(2)",
    ]
    assert world.last(caller) == "value out"
    assert all(outgoing_count(partition) == 0 for partition in world.partitions)
    world.check()


def test_completion_is_void_of_anything_but_its_id() -> None:
    assert void(3) == bytes.fromhex("08032200")
