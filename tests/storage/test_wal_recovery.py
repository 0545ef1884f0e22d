"""Opening a log: what is intact comes back, a torn tail ends it, damage is refused by name."""

import re

import pytest
from tests.sim.disk import SimDisk
from tests.storage import logs
from tests.storage.logs import Reading, checkpoint, new_disk, open_log, store, write

from perdure.core.errors import DataDirectoryForeign, DataDirectoryTooNew, LogDamaged
from perdure.core.limits import SECTOR_BYTES
from perdure.storage.wal import WalIdentity, WalSizes, file_name, index_name
from perdure.storage.wal_format import (
    FLAG_GROUP_END,
    FRAME_HEADER_BYTES,
    FileHeader,
    Frame,
    encode_file_header,
    encode_frame_header,
)

FIRST = file_name(1)
BODIES = [b"one" * 50, b"two" * 7, b"three" * 120, b"four"]


def _small_log(*, marked: bool) -> SimDisk:
    """Three groups: [one], [two three], [four]; then a MARK, if it is to have one."""
    disk = new_disk()
    wal = open_log(disk).wal
    write(wal, [store(0, BODIES[0])])
    write(wal, [store(1, BODIES[1]), store(2, BODIES[2])])
    write(wal, [store(3, BODIES[3])])
    if marked:
        write(wal, [wal.mark_frame()])
    return disk


def _positions(disk: SimDisk) -> list[int]:
    """Where groups start."""
    reading = open_log(disk.copy())
    return [position for _, position, _, _ in reading.frames if position % SECTOR_BYTES == 0]


def test_an_empty_directory_becomes_a_log() -> None:
    disk = new_disk()
    assert open_log(disk).frames == []
    assert open_log(disk).recovered.torn_at is None


def test_what_was_written_comes_back() -> None:
    reading = open_log(_small_log(marked=True))
    assert reading.bodies == BODIES
    assert reading.recovered.torn_at is None
    write(reading.wal, [store(4, b"five")])


def test_a_log_goes_on_where_it_was() -> None:
    disk = _small_log(marked=False)
    for number in range(20):
        reading = open_log(disk, seed=number)
        assert reading.bodies[4:] == [b"%d" % again for again in range(number)]
        write(reading.wal, [store(4 + number, b"%d" % number)])


def _outcome(disk: SimDisk) -> Reading | LogDamaged | DataDirectoryTooNew:
    try:
        return open_log(disk)
    except (LogDamaged, DataDirectoryTooNew) as error:
        return error


@pytest.mark.parametrize("mask", [0x01, 0x80])
def test_every_changed_byte_of_a_marked_log_is_refused_by_name(mask: int) -> None:
    pristine = _small_log(marked=True)
    groups = _positions(pristine)
    end = groups[-1]
    for position in range(end):
        disk = pristine.copy()
        disk.flip(FIRST, position, mask)
        outcome = _outcome(disk)
        if isinstance(outcome, Reading):
            # Nothing but the zeros between two groups, and behind the file's header.
            assert outcome.bodies == BODIES, position
            assert disk.read_file(FIRST)[position] ^ mask == 0
        else:
            assert isinstance(outcome, LogDamaged)
            start = max([at for at in (0, *groups) if at <= position])
            assert f"{FIRST} is damaged at byte {start}:" in outcome.message, position


def test_changes_in_the_last_group_are_a_torn_tail() -> None:
    pristine = _small_log(marked=False)
    last = _positions(pristine)[-1]
    used = last + FRAME_HEADER_BYTES + len(BODIES[3])
    for position in range(last, used):
        disk = pristine.copy()
        disk.flip(FIRST, position, 0x04)
        reading = open_log(disk)
        assert reading.bodies == BODIES[:3], position
        write(reading.wal, [store(3, b"again")])
        assert open_log(disk).bodies == [*BODIES[:3], b"again"]


def test_a_torn_tail_is_named() -> None:
    disk = _small_log(marked=False)
    last = _positions(disk)[-1]
    disk.flip(FIRST, last + FRAME_HEADER_BYTES, 0xFF)
    assert open_log(disk).recovered.torn_at == f"{FIRST} byte {last}"


def test_every_cut_leaves_a_prefix_of_groups() -> None:
    """The disk kept the first bytes of what was written: whole groups come back, in order."""
    pristine = _small_log(marked=True)
    content = pristine.read_file(FIRST)
    groups = _positions(pristine)
    intact = {groups[1]: 1, groups[2]: 3, groups[3]: 4}
    for cut in range(SECTOR_BYTES, groups[-1] + SECTOR_BYTES):
        disk = pristine.copy()
        disk.overwrite(FIRST, content[:cut].ljust(len(content), b"\0"))
        reading = open_log(disk)
        count = len(reading.bodies)
        assert reading.bodies == BODIES[:count], cut
        assert count >= max([n for at, n in intact.items() if at <= cut], default=0), cut
        write(reading.wal, [store(count, b"again")])
        assert open_log(disk).bodies == [*BODIES[:count], b"again"]


def test_lost_sectors_of_the_last_group_are_torn_and_of_others_damage() -> None:
    pristine = _small_log(marked=False)
    content = pristine.read_file(FIRST)
    groups = _positions(pristine)
    for sector in range(SECTOR_BYTES, groups[-1] + SECTOR_BYTES, SECTOR_BYTES):
        disk = pristine.copy()
        lost = content[:sector] + bytes(SECTOR_BYTES) + content[sector + SECTOR_BYTES :]
        disk.overwrite(FIRST, lost)
        if sector >= groups[-1]:
            assert open_log(disk).bodies == BODIES[:3]
        else:
            with pytest.raises(LogDamaged, match=re.escape(FIRST)):
                open_log(disk)


def test_what_a_torn_group_left_behind_is_never_read_again() -> None:
    """A long group is torn; shorter ones take its place and end in the middle of its remains."""
    disk = new_disk()
    wal = open_log(disk, WalSizes(first_file=16384, file=16384)).wal
    write(wal, *([store(number, body)] for number, body in enumerate(BODIES)))
    write(wal, [store(4 + number, b"old" * 60) for number in range(12)])
    start = _positions(disk)[4]
    disk.flip(FIRST, start + 10, 0xFF)
    for number in range(4):
        reading = open_log(disk)
        assert reading.bodies[4:] == [b"%d" % again for again in range(number)]
        write(reading.wal, [store(4 + number, b"%d" % number)])


def test_the_last_group_is_written_again_before_anybody_relies_on_it() -> None:
    """A sync failed, so the kernel took the pages for clean; the process starts again."""
    disk = new_disk()
    wal = open_log(disk).wal
    write(wal, [store(0, b"safe")])
    wal.append([store(1, b"seen, not stored")])
    disk.sync_failure_at = 0
    with pytest.raises(OSError, match="sync failure"):
        wal.sync()
    disk.kill()
    assert open_log(disk).bodies == [b"safe", b"seen, not stored"]
    disk.lose_power()
    assert open_log(disk).bodies == [b"safe", b"seen, not stored"]


def test_a_killed_process_loses_nothing_that_it_wrote() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    wal.append([store(0, b"unsynced")])
    disk.kill()
    assert open_log(disk).bodies == [b"unsynced"]


# --- Several files --------------------------------------------------------------------------------


def _fill(wal_disk: SimDisk, files: int) -> Reading:
    reading = open_log(wal_disk)
    number = 0
    while reading.wal.statistics().files < files:
        write(reading.wal, [store(number, b"x" * 400, partition=1 + number % 2)])
        number += 1
    return reading


def test_files_are_read_in_order() -> None:
    disk = new_disk()
    count = _fill(disk, 4).wal.statistics().frames
    reading = open_log(disk)
    assert len(reading.frames) == count
    assert [seq for seq, _, _, _ in reading.frames] == sorted(s for s, _, _, _ in reading.frames)
    assert reading.wal.statistics().files == 4


def test_a_missing_file_is_named() -> None:
    disk = new_disk()
    _fill(disk, 4)
    disk.remove(file_name(2))
    with pytest.raises(LogDamaged, match=re.escape(file_name(4))):
        open_log(disk)


def test_a_file_that_ends_early_is_damage() -> None:
    disk = new_disk()
    _fill(disk, 3)
    last = max(position for seq, position, _, _ in open_log(disk.copy()).frames if seq == 2)
    disk.flip(file_name(2), last, 0x01)
    with pytest.raises(LogDamaged, match=f"{re.escape(file_name(2))} is damaged at byte {last}:"):
        open_log(disk)


def test_a_damaged_file_header_is_named() -> None:
    disk = new_disk()
    _fill(disk, 2)
    disk.flip(file_name(2), 20, 0x01)
    with pytest.raises(LogDamaged, match=f"{re.escape(file_name(2))} is damaged at byte 0"):
        open_log(disk)


def test_dead_files_are_passed_over_below_a_checkpoint_only() -> None:
    disk = new_disk()
    reading = _fill(disk, 3)
    dead = ((1, 0), (2, 0))
    assert {seq for seq, _, _, _ in open_log(disk.copy(), dead=dead).frames} == {1, 2, 3}
    write(reading.wal, [checkpoint()])
    assert {seq for seq, _, _, _ in open_log(disk.copy(), dead=dead).frames} == {3}
    assert {seq for seq, _, _, _ in open_log(disk.copy(), dead=((1, 0),)).frames} == {1, 2, 3}


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"nonsense"])
def test_a_bad_sidecar_means_that_the_file_is_read(content: bytes) -> None:
    disk = new_disk()
    write(_fill(disk, 3).wal, [checkpoint()])
    disk.overwrite(index_name(1), content)
    disk.remove(index_name(2))
    dead = ((1, 0), (2, 0))
    assert {seq for seq, _, _, _ in open_log(disk, dead=dead).frames} == {1, 2, 3}


def test_a_creation_cut_short_is_repeated() -> None:
    disk = new_disk()
    open_log(disk)
    disk.rename(FIRST, "wal/spare-first")
    disk.overwrite("wal/spare-other", b"half")
    reading = open_log(disk)
    write(reading.wal, [store(0, b"one")])
    assert open_log(disk).bodies == [b"one"]


# --- Whose log, and which format --------------------------------------------------------------


def test_another_cluster_or_disk_is_refused() -> None:
    for identity in (
        WalIdentity(fingerprint=bytes(16), storage_uuid=logs.IDENTITY.storage_uuid),
        WalIdentity(fingerprint=logs.IDENTITY.fingerprint, storage_uuid=bytes(16)),
    ):
        disk = _small_log(marked=True)
        with pytest.raises(DataDirectoryForeign, match=re.escape(FIRST)):
            open_log(disk, identity=identity)


def test_a_newer_file_format_is_refused() -> None:
    disk = new_disk()
    open_log(disk)
    header = FileHeader(
        format=2,
        file_seq=1,
        nonce=1,
        file_bytes=4096,
        first_frame_seq=1,
        prev_crc=0,
        first_group_id=1,
        fingerprint=logs.IDENTITY.fingerprint,
        storage_uuid=logs.IDENTITY.storage_uuid,
    )
    content = disk.read_file(FIRST)
    disk.overwrite(FIRST, encode_file_header(header) + content[SECTOR_BYTES:])
    with pytest.raises(DataDirectoryTooNew, match=f"{re.escape(FIRST)} has log format 2"):
        open_log(disk)


def test_a_frame_of_the_future_is_refused_and_not_cut_off() -> None:
    """A log that a later release wrote is not a torn one."""
    disk = _small_log(marked=True)
    reading = open_log(disk)
    future = Frame(77, 1, 0, 3, 99, 4, 0, 0, (b"?",))
    write(reading.wal, [future])
    with pytest.raises(DataDirectoryTooNew, match="type 77 at byte"):
        open_log(disk)


def test_a_frame_version_of_the_future_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    monkeypatch.setattr("perdure.storage.wal_format.FRAME_VERSION", 2)
    write(wal, [store(0, b"from later")])
    with pytest.raises(DataDirectoryTooNew, match="version 2"):
        open_log(disk)


def test_frames_of_another_file_don_t_continue_this_one() -> None:
    """A recycled file holds intact frames of its past; their nonce is not the file's."""
    disk = new_disk()
    wal = open_log(disk).wal
    write(wal, [store(0, b"one")])
    frame = store(1, b"past")
    seq, at, last, _ = open_log(disk.copy()).frames[-1]
    header, _ = encode_frame_header(
        frame,
        flags=FLAG_GROUP_END,
        frame_seq=last.frame_seq + 1,
        prev_crc=last.header_crc,
        group=(last.group_id + 1, 1),
        nonce=last.nonce + 1,
    )
    content = bytearray(disk.read_file(file_name(seq)))
    position = at + SECTOR_BYTES
    content[position : position + len(header) + 4] = header + b"past"
    disk.overwrite(file_name(seq), bytes(content))
    assert open_log(disk).bodies == [b"one"]
