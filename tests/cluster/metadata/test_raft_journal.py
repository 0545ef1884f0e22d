"""The journal: whole groups or nothing, damage refused, what was torn gone for good."""

# pyright: reportPrivateUsage=false

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.disk import PowerLoss, SimDisk
from tests.sim.ports import SimEntropy

from perdure.cluster.metadata.raft_journal import NAME, DurableJournal, create_journal
from perdure.core.errors import DataDirectoryDamaged

_FILE_BYTES = 4096


def _disk(seed: int = 1) -> SimDisk:
    disk = SimDisk(random.Random(seed))
    create_journal(disk, SimEntropy(random.Random(seed)), _FILE_BYTES)
    return disk


def _open(disk: SimDisk) -> DurableJournal:
    return DurableJournal(disk, SimEntropy(random.Random(disk.steps)), _FILE_BYTES)


def _content(journal: DurableJournal) -> tuple[object, ...]:
    return journal[:], journal.getCurrentTerm(), journal.getVotedForNodeId()


def test_what_passed_a_barrier_is_read_back() -> None:
    disk = _disk()
    journal = _open(disk)
    journal.add(b"a", 1, 0)
    journal.add(b"b", 2, 1)
    journal.setCurrentTerm(3, 2)
    journal.barrier()
    journal.add(b"never synced", 3, 1)
    disk.kill()
    again = _open(disk)
    assert _content(again) == ([(b"a", 1, 0), (b"b", 2, 1)], 3, 2)
    assert again.entries_bytes == 2
    assert again.getRaftCommitIndex() == 1


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.binary(max_size=300)),
        st.tuples(st.just("cut"), st.integers(0, 20)),
        st.tuples(st.just("drop"), st.integers(0, 20)),
        st.tuples(st.just("clear"), st.integers(1, 100)),
        st.tuples(st.just("vote"), st.integers(0, 9)),
        st.tuples(st.just("barrier"), st.none()),
    ),
    max_size=40,
)


def _do(journal: DurableJournal, kind: str, argument: object) -> None:
    count = len(journal)
    if kind == "add":
        assert isinstance(argument, bytes)
        journal.add(argument, journal[-1][1] + 1 if count else 1, 7)
    elif kind == "vote":
        assert isinstance(argument, int)
        journal.setCurrentTerm(journal.getCurrentTerm() + 1, argument or None)
    elif kind == "clear":
        assert isinstance(argument, int)
        journal.clear()
        journal.add(b"dumped", argument, 1)
    elif kind == "cut":
        assert isinstance(argument, int)
        journal.deleteEntriesFrom(argument)
    elif kind == "drop" and count:
        assert isinstance(argument, int)
        journal.deleteEntriesTo(argument % count)


@given(STEPS, st.integers(0, 60), st.integers(0, 1000))
@settings(deadline=None)
def test_a_power_loss_leaves_the_state_of_a_barrier(
    steps: list[tuple[str, object]], lost_after: int, seed: int
) -> None:
    disk = _disk(seed)
    journal = _open(disk)
    durable = [_content(journal)]
    disk.power_loss_at = disk.steps + 1 + lost_after
    try:
        for kind, argument in steps:
            if kind == "barrier":
                durable.append(_content(journal))
                journal.barrier()
                del durable[:-1]
            else:
                _do(journal, kind, argument)
    except PowerLoss:
        pass
    disk.lose_power()
    again = _open(disk)
    assert _content(again) in durable
    again.barrier()
    _do(again, "add", b"more")
    again.barrier()
    assert _content(_open(disk)) == _content(again)


def test_a_full_file_is_replaced_by_what_is_needed() -> None:
    disk = _disk()
    journal = _open(disk)
    for index in range(1, 60):
        journal.add(b"x" * 200, index, 1)
        journal.barrier()
        if index > 5:
            journal.deleteEntriesTo(1)
    assert disk.open(NAME).size() == _FILE_BYTES
    assert _content(_open(disk))[0] == journal[:] or journal._staged
    for index in range(60, 90):
        journal.add(b"x" * 200, index, 1)
        journal.barrier()
    assert disk.open(NAME).size() > _FILE_BYTES
    assert _content(_open(disk)) == _content(journal)


def test_a_flipped_bit_before_the_end_is_refused() -> None:
    disk = _disk()
    journal = _open(disk)
    for index in range(1, 4):
        journal.add(b"entry", index, 1)
        journal.barrier()
    content = disk.read_file(NAME)
    used = list(range(20))  # the header; then the first group (empty), two of the three groups
    for start in (512, 1024, 1536):
        used += range(start, start + 20 + int.from_bytes(content[start + 4 : start + 8], "little"))
    for position in used:
        disk.flip(NAME, position, 0x01)
        with pytest.raises(DataDirectoryDamaged):
            _open(disk)
        disk.flip(NAME, position, 0x01)
    assert len(_open(disk)) == 3


def test_what_was_torn_never_shows_up_again() -> None:
    """A torn group may hold bytes that look like a group; they must not count later."""
    seen = 0
    for seed in range(60):
        disk = _disk(seed)
        journal = _open(disk)
        journal.add(b"kept", 1, 1)
        journal.barrier()
        journal.add(b"y" * 1500, 2, 1)
        disk.power_loss_at = disk.steps + 1
        with pytest.raises(PowerLoss):
            journal.barrier()
        disk.lose_power()
        again = _open(disk)
        if len(again) == 1:
            rest = disk.read_file(NAME)[again._end :]
            assert not any(rest)
            seen += 1
    assert seen > 10


def test_a_missing_or_foreign_file_is_refused() -> None:
    disk = SimDisk(random.Random(1))
    with pytest.raises(DataDirectoryDamaged, match="missing"):
        _open(disk)
    disk.overwrite(NAME, b"something else entirely")
    with pytest.raises(DataDirectoryDamaged, match="header"):
        _open(disk)


def test_a_group_of_another_file_is_refused() -> None:
    """The salt: groups that an earlier file left in the same blocks don't count."""
    one, two = _disk(1), _disk(2)
    journal = _open(one)
    journal.add(b"a", 1, 1)
    journal.barrier()
    mixed = bytearray(two.read_file(NAME))
    mixed[512 * 2 :] = one.read_file(NAME)[512 * 2 :]
    two.overwrite(NAME, bytes(mixed))
    assert len(_open(two)) == 0
