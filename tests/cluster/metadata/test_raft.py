"""A hardened member: what it survives, what it refuses, and each rule in a story of its own."""

# pyright: reportPrivateUsage=false

import shutil
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.cluster.metadata.trio import SMALL, Trio
from tests.sim.raft_mutations import STORIES, mutated

from perdure.cluster.metadata import raft, raft_serializer
from perdure.cluster.metadata.provision import count_start, provision, read_identity
from perdure.cluster.metadata.raft import RaftMember, check_files, load_library
from perdure.cluster.metadata.raft_journal import NAME as JOURNAL
from perdure.cluster.metadata.raft_links import Frame, MemberIdentity
from perdure.cluster.metadata.raft_messages import (
    Append,
    DumpPiece,
    Forward,
    Heartbeat,
    Placed,
    Position,
    RequestVote,
)
from perdure.cluster.metadata.raft_serializer import NAME as DUMP
from perdure.cluster.metadata.raft_state import Barrier, Cas, Conflicting, Written, encode_command
from perdure.cluster.metadata.store import Versioned
from perdure.core.errors import DataDirectoryDamaged, DataDirectoryForeign, UnauditedLibrary
from perdure.core.invariant import InvariantViolation


def _hand(member: RaftMember, peer: int, message: Any) -> None:
    """A message as if it came over the connection with a peer."""
    member._connections[peer]._hooks.on_message(message)


# --- Together -------------------------------------------------------------------------------------


def test_what_was_acknowledged_survives_the_power_loss_of_all() -> None:
    trio = Trio()
    leader = trio.leader()
    for version in range(1, 40):
        outcome = trio.cas(leader, "p/1", version - 1 or None, b"%d" % version)
        assert outcome == Written(version)
    for node in list(trio.members):
        trio.kill(node, power=True)
    for node in trio.storages:
        trio.boot(node)
    trio.cas(trio.leader(), "other", None, b"")
    trio.run(0.2)
    for member in trio.members.values():
        assert member.state.registers["p/1"] == Versioned(39, b"39")


def test_any_member_takes_a_write() -> None:
    trio = Trio()
    leader = trio.leader()
    follower = next(at for at in trio.members.values() if at is not leader)
    assert trio.cas(follower, "a", None, b"1") == Written(1)
    assert trio.cas(follower, "a", None, b"2") == Conflicting(1)


def test_a_minority_acknowledges_nothing_and_comes_back() -> None:
    trio = Trio()
    leader = trio.leader()
    node = leader.identity.node
    trio.isolate(node)
    assert trio.cas(leader, "a", None, b"old") is None
    trio.run(4)
    assert not leader.status().is_leader
    other = next(at for at in trio.members.values() if at.status().is_leader)
    assert trio.cas(other, "a", None, b"new") == Written(1)
    trio.cuts.clear()
    trio.run(3)
    assert leader.state.registers["a"] == Versioned(1, b"new")


def test_a_member_that_missed_everything_is_sent_a_dump() -> None:
    trio = Trio()
    leader = trio.leader()
    behind = next(node for node in trio.members if node != leader.identity.node)
    trio.isolate(behind)
    for number in range(60):
        assert trio.cas(leader, f"k/{number}", None, b"x" * 3_000) == Written(1)
    assert trio.members[behind].state.registers == {}
    assert leader._journal[0][1] > 20
    trio.cuts.clear()
    trio.run(5)
    assert trio.members[behind].state.encode() == leader.state.encode()
    assert trio.disks[behind].exists(DUMP)


def test_a_single_member_is_a_quorum() -> None:
    trio = Trio(1)
    assert trio.cas(trio.leader(), "a", None, b"1") == Written(1)
    trio.kill(1, power=True)
    assert trio.boot(1).state.registers == {}  # commits are learned again …
    trio.leader()
    assert trio.members[1].state.registers == {"a": Versioned(1, b"1")}  # … with the next term


# --- What it refuses ------------------------------------------------------------------------------


def test_another_version_of_the_library_is_refused(tmp_path: Path) -> None:
    source = Path(load_library().__file__).parent
    folder = tmp_path / "pysyncobj"
    shutil.copytree(source, folder)
    check_files(folder)
    for name in raft.AUDITED:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        with pytest.raises(UnauditedLibrary, match=name):
            check_files(folder)
        path.unlink()
        with pytest.raises(UnauditedLibrary, match=name):
            check_files(folder)
        path.write_bytes(content)


def test_a_member_whose_storage_was_made_again_is_a_stranger() -> None:
    trio = Trio()
    trio.leader()
    victim = 3
    trio.kill(victim)
    for name in (JOURNAL, "member"):
        trio.disks[victim].remove(name)
    known, trio.storages = trio.storages, {**trio.storages, victim: "f" * 32}
    provision(trio.disks[victim], trio.identity(victim), trio.entropy, SMALL.journal_bytes)
    stranger = trio.boot(victim)
    trio.storages = known
    trio.run(5)
    assert stranger.status().connected == ()
    assert stranger.status().applied_index == 1
    for node in (1, 2):
        assert victim not in trio.members[node].status().connected


@pytest.mark.parametrize("is_mutated", [False, True])
def test_a_member_that_lost_its_memory_elects_nobody(is_mutated: bool) -> None:
    """What 1 and 2 acknowledged, 2 has forgotten and 3 never heard: the two must not go on."""
    name = "a member without its memory is let in"
    with mutated(STORIES[name] if is_mutated else lambda stack: None):
        trio = Trio()
        trio.leader()
        trio.isolate(3)
        writer = next(at for at in trio.members.values() if at.identity.node != 3)
        trio.run(4)
        assert trio.cas(writer, "a", None, b"acknowledged") == Written(1)
        trio.kill(1)
        trio.kill(2)
        for file in trio.disks[2].list_folder(""):
            trio.disks[2].remove(file)
        known, trio.storages = trio.storages, {**trio.storages, 2: "f" * 32}
        provision(trio.disks[2], trio.identity(2), trio.entropy, SMALL.journal_bytes)
        trio.boot(2)
        trio.storages = known
        trio.cuts.clear()
        trio.run(8)
        survivors = [member for member in trio.members.values() if member.status().is_leader]
        assert bool(survivors) == is_mutated
        for member in survivors:
            assert "a" not in member.state.registers  # the damage


def test_members_of_another_cluster_are_strangers() -> None:
    trio = Trio()
    trio.kill(1)
    trio.disks[1].remove("member")
    trio.disks[1].remove(JOURNAL)
    other = MemberIdentity("another cluster", 1, trio.storages)
    provision(trio.disks[1], other, trio.entropy, SMALL.journal_bytes)
    identity, trio.identity = trio.identity, lambda node: other  # type: ignore[method-assign]
    member = trio.boot(1)
    trio.identity = identity  # type: ignore[method-assign]
    trio.run(4)
    assert member.status().connected == ()


def test_storage_is_made_once() -> None:
    trio = Trio()
    disk = trio.disks[1]
    provision(disk, trio.identity(1), trio.entropy)
    assert read_identity(disk) == trio.identity(1)
    with pytest.raises(DataDirectoryForeign):
        provision(disk, MemberIdentity("cluster", 2, trio.storages), trio.entropy)
    assert [count_start(disk) for _ in range(3)] == [1, 2, 3]


@pytest.mark.parametrize("name", ["member", "starts"])
def test_every_changed_byte_of_small_files_is_refused(name: str) -> None:
    disk = Trio().disks[1]
    count_start(disk)
    content = disk.read_file(name)
    for position in range(len(content) - 1):
        disk.flip(name, position, 0x04)
        with pytest.raises(DataDirectoryDamaged):
            read_identity(disk) if name == "member" else count_start(disk)
        disk.flip(name, position, 0x04)


def _lived_in() -> Trio:
    trio = Trio()
    leader = trio.leader()
    for number in range(30):
        trio.cas(leader, f"k/{number}", None, b"value")
    return trio


def test_a_damaged_or_missing_file_is_refused() -> None:
    trio = _lived_in()
    trio.kill(1)
    disk = trio.disks[1]
    for name in (JOURNAL, DUMP):
        content = disk.read_file(name)
        disk.flip(name, 600 if name == JOURNAL else 40, 0x10)
        with pytest.raises(DataDirectoryDamaged):
            trio.boot(1)
        disk.remove(name)
        with pytest.raises(DataDirectoryDamaged):
            trio.boot(1)
        disk.overwrite(name, content)
    trio.boot(1)


def test_a_dump_older_than_the_journal_is_refused() -> None:
    trio = Trio()
    leader = trio.leader()
    number = 0
    while not trio.disks[1].exists(DUMP):
        trio.cas(leader, f"k/{(number := number + 1)}", None, b"value")
    old = trio.disks[1].read_file(DUMP)
    for _ in range(60):
        trio.cas(leader, f"k/{(number := number + 1)}", None, b"value")
    trio.kill(1)
    trio.disks[1].overwrite(DUMP, old)
    with pytest.raises(DataDirectoryDamaged, match="journal starts at"):
        trio.boot(1)


def test_nothing_is_said_after_a_failed_sync() -> None:
    trio = Trio()
    leader = trio.leader()
    told = trio.submit(leader, Cas(1, 1, 0, "a", None, b"1"))
    disk = trio.disks[leader.identity.node]
    disk.sync_failure_at = 0
    with pytest.raises(OSError, match="sync failure"):
        leader.tick()
    for _ in range(3):
        with pytest.raises(OSError, match="can't be trusted"):
            leader.tick()
    assert told == []
    sent = [
        pair for pair, queue in trio.queues.items() if pair[0] == leader.identity.node and queue
    ]
    frames = [
        msgspec.msgpack.decode(frame, type=Frame) for pair in sent for frame in trio.queues[pair]
    ]
    assert not [at for at in frames if isinstance(getattr(at, "message", None), Append)]


# --- The rules, one by one ------------------------------------------------------------------------


def _with_unreplicated_entry() -> tuple[Trio, RaftMember, int, int]:
    """A leader that holds an entry nobody else has; its index; a follower."""
    trio = Trio()
    leader = trio.leader()
    follower = next(node for node in trio.members if node != leader.identity.node)
    trio.isolate(leader.identity.node)
    trio.submit(leader, Cas(1, 1, 0, "a", None, b"1"))
    leader.tick()
    index = leader._journal[-1][1]
    assert leader.commit_index() == index - 1
    return trio, leader, index, follower


@pytest.mark.parametrize("is_mutated", [False, True])
def test_an_answer_of_another_term_commits_nothing(is_mutated: bool) -> None:
    _, leader, index, follower = _with_unreplicated_entry()
    stale = Position(leader.term() - 1, index + 1, reset=False, success=True)
    with mutated(STORIES["answers of another term count"] if is_mutated else lambda stack: None):
        _hand(leader, follower, stale)
        leader.tick()
    assert leader.commit_index() == (index if is_mutated else index - 1)


def test_an_answer_of_this_term_commits() -> None:
    _, leader, index, follower = _with_unreplicated_entry()
    _hand(leader, follower, Position(leader.term(), index + 1, reset=False, success=True))
    leader.tick()
    assert leader.commit_index() == index


@pytest.mark.parametrize("is_mutated", [False, True])
def test_a_stale_question_brings_no_second_dump(is_mutated: bool) -> None:
    trio = _lived_in()
    leader = trio.leader()
    follower = next(node for node in trio.members if node != leader.identity.node)
    assert leader._journal[0][1] > 2
    trio.queues.clear()
    with mutated(STORIES["stale resets are believed"] if is_mutated else lambda stack: None):
        _hand(leader, follower, Position(leader.term(), 2, reset=True, success=False))
        trio.clock.now += 0.06
        leader.tick()
    sent = [
        getattr(msgspec.msgpack.decode(frame, type=Frame), "message", None)
        for frame in trio.queues[leader.identity.node, follower]
    ]
    assert any(isinstance(message, DumpPiece) for message in sent) == is_mutated


@pytest.mark.parametrize("is_mutated", [False, True])
def test_a_dump_begins_again_with_each_connection(
    is_mutated: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(raft_serializer, "METADATA_DUMP_PIECE_BYTES", 10)
    trio = _lived_in()
    leader = trio.leader()
    follower = next(node for node in trio.members if node != leader.identity.node)
    serializer, peer = leader._serializer, leader._nodes[follower]
    first = [serializer.getTransmissionData(peer) for _ in range(3)]
    assert [piece[1] for piece in first if piece] == [True, False, False]
    name = "a dump goes on where another connection left it"
    with mutated(STORIES[name] if is_mutated else lambda stack: None):
        leader.disconnect(follower)
        for _ in range(60):
            trio.turn()
    following = serializer.getTransmissionData(peer)
    assert following is not None
    assert following[1] is not is_mutated


@pytest.mark.parametrize("is_mutated", [False, True])
def test_an_outcome_is_believed_only_by_whom_it_names(is_mutated: bool) -> None:
    """A leader answers a restarted member's old question, whose number a new one has again."""
    trio = Trio()
    leader = trio.leader()
    node = next(node for node in trio.members if node != leader.identity.node)
    with mutated(STORIES["whose outcome it is isn't asked"] if is_mutated else lambda stack: None):
        trio.kill(node)
        member = trio.boot(node)
        trio.run(1)
        leader = trio.leader()
        assert leader is not member
        old = encode_command(Cas(8, 1, 0, "old", None, b""))
        told = trio.submit(member, Barrier(9, 1))
        member.tick()  # forwarded under number 1; the answer below is to the earlier life's 1
        trio.queues.clear()
        leader._core._applyCommand(b"\0" + old, None)
        leader.tick()
        _hand(member, leader.identity.node, Placed(1, leader._journal[-1][1], leader.term()))
        trio.run(0.5)
    assert len(told) == 1
    assert (told[0] is not None) == is_mutated


@pytest.mark.parametrize("is_mutated", [False, True])
def test_nobody_is_elected_while_a_leader_is_heard(is_mutated: bool) -> None:
    trio = Trio()
    leader = trio.leader()
    term = leader.term()
    follower = next(at for at in trio.members.values() if at is not leader)
    other = next(node for node in trio.members if trio.members[node] not in (leader, follower))
    trio.run(0.1)
    campaign = RequestVote(term + 1, 10_000, term + 1)
    name = "anybody may campaign at any time"
    with mutated(STORIES[name] if is_mutated else lambda stack: None):
        _hand(follower, other, campaign)
    assert follower.term() == (term + 1 if is_mutated else term)
    trio.isolate(leader.identity.node)
    trio.clock.now += 0.6
    _hand(follower, other, RequestVote(term + 2, 10_000, term + 1))
    assert follower.term() == term + 2


def test_what_was_applied_is_never_contradicted() -> None:
    trio = Trio()
    leader = trio.leader()
    trio.cas(leader, "a", None, b"1")
    trio.run(0.2)
    follower = next(at for at in trio.members.values() if at is not leader)
    applied = follower.applied_index()
    term = follower.entry_term(applied)
    lie = Append(leader.term(), applied, 1, 0, [(b"\0", 2, leader.term() + 1)])
    with pytest.raises(InvariantViolation, match=r"cuts applied entries off|contradicts"):
        _hand(follower, leader.identity.node, lie)
    assert follower.entry_term(applied) == term


def test_entries_that_members_don_t_forward_are_dropped() -> None:
    trio = Trio()
    leader = trio.leader()
    follower = next(node for node in trio.members if node != leader.identity.node)
    before = leader._journal[-1][1]
    for kind in (b"\1", b"\2", b"\3", b""):
        _hand(leader, follower, Forward(kind + b"(lp0\n.", 5))
    leader.tick()
    assert leader._journal[-1][1] == before


def test_a_heartbeat_without_a_check_commits_nothing() -> None:
    trio = Trio()
    leader = trio.leader()
    follower = next(at for at in trio.members.values() if at is not leader)
    commit_index = follower.commit_index()
    follower._journal.add(b"\0", follower._journal[-1][1] + 1, leader.term())
    _hand(follower, leader.identity.node, Heartbeat(leader.term(), commit_index + 1))
    assert follower.commit_index() == commit_index
