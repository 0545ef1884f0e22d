"""The open log: groups, files that roll and are recycled, and a disk that fills up."""

import errno

import pytest
from tests.sim.disk import SimDisk
from tests.storage.logs import SIZES, checkpoint, new_disk, open_log, store, write

from perdure.core.errors import DiskFull, LogDamaged
from perdure.core.invariant import InvariantViolation
from perdure.storage.disk import DiskFullError
from perdure.storage.wal import (
    RESERVE,
    Wal,
    WalFile,
    WalSizes,
    decode_index,
    encode_index,
    file_name,
    index_name,
)
from perdure.storage.wal_format import FrameType


def _names(disk: SimDisk, ending: str) -> list[str]:
    return [name for name in disk.list_folder("wal") if name.endswith(ending)]


def _spares(disk: SimDisk) -> list[str]:
    return [name for name in disk.list_folder("wal") if name.startswith("spare-")]


def _roll(wal: Wal, offset: int = 0) -> int:
    """Write until a new file has begun; returns the next offset."""
    files = wal.statistics().files
    while wal.statistics().files == files:
        write(wal, [store(offset, b"x" * 400)])
        offset += 1
    return offset


def test_a_new_file_asks_for_a_checkpoint() -> None:
    wal = open_log(new_disk()).wal
    assert wal.wants_checkpoint
    write(wal, [store(0, b"one"), checkpoint()])
    assert not wal.wants_checkpoint
    _roll(wal, 1)
    assert wal.wants_checkpoint


def test_only_dead_files_below_a_synced_checkpoint_are_recycled() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    offset = _roll(wal, _roll(wal))
    assert wal.recycle(lambda segment, end: True) == 0
    wal.append([checkpoint()])
    assert wal.recycle(lambda segment, end: True) == 0
    wal.sync()
    assert wal.recycle(lambda segment, end: False) == 0
    assert wal.recycle(lambda segment, end: end < offset) == 2
    assert _names(disk, ".log") == [file_name(3).removeprefix("wal/")]
    assert _names(disk, ".idx") == []


def test_the_oldest_file_goes_first_whatever_the_disk_keeps() -> None:
    """Power goes while files are recycled: what is left is a log without a missing file."""
    for step in range(1, 40):
        disk = new_disk()
        wal = open_log(disk).wal
        _roll(wal, _roll(wal, _roll(wal)))
        write(wal, [checkpoint()])
        disk.power_loss_at = disk.steps + step
        with pytest.raises(SystemExit):
            while True:
                wal.recycle(lambda segment, end: True)
                disk.step()
        disk.lose_power()
        open_log(disk)


def test_a_recycled_file_is_the_next_spare() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    offset = _roll(wal)
    write(wal, [checkpoint()])
    wal.recycle(lambda segment, end: True)
    (spare,) = _spares(disk)
    before = disk.read_file(f"wal/{spare}")
    assert any(before)
    _roll(wal, offset)
    assert _spares(disk) == []
    assert open_log(disk).bodies.count(b"x" * 400) == len(open_log(disk).bodies)


def test_a_spare_waits_for_the_roll_and_survives_a_restart() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    wal.ensure_spare()
    wal.ensure_spare()
    assert wal.statistics().spares == len(_spares(disk)) == 1
    wal = open_log(disk).wal
    assert wal.statistics().spares == 1
    _roll(wal)
    assert wal.statistics().spares == 0


def test_the_sidecar_tells_of_the_full_file() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    offset = _roll(wal)
    content = disk.read_file(index_name(1))
    assert decode_index(content, 1) == {(1, 0): offset - 1}
    assert decode_index(content, 2) is None
    file = WalFile(5, 1, 4096, disk.open(file_name(1)))
    file.index.extents = {(3, 1): 9, (2, 7): 4}
    assert decode_index(encode_index(file), 5) == {(2, 7): 4, (3, 1): 9}


def test_sidecars_without_a_log_file_are_removed() -> None:
    disk = new_disk()
    open_log(disk)
    disk.overwrite(index_name(99), b"old")
    disk.overwrite("wal/0000000000000001.idx.tmp", b"half")
    open_log(disk)
    assert _names(disk, ".idx") == _names(disk, ".tmp") == []


def test_a_group_larger_than_a_file_is_a_bug() -> None:
    wal = open_log(new_disk()).wal
    with pytest.raises(InvariantViolation, match="fits into a file"):
        wal.append([store(0, b"x" * 5000)])


def test_a_frame_that_changed_since_it_was_read_is_damage() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    write(wal, [store(0, b"one")])
    ((seq, position, _, _),) = open_log(disk.copy()).frames
    header, body = wal.read_frame(seq, position)
    assert (header.type, body) == (FrameType.STORE, b"one")
    disk.flip(file_name(1), position + 78, 1)
    with pytest.raises(LogDamaged, match=f"{file_name(1)} is damaged at byte {position}"):
        wal.read_frame(seq, position)


# --- A full disk ----------------------------------------------------------------------------------


def test_a_full_disk_refuses_the_roll_and_nothing_else() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    disk.capacity -= disk.free_bytes()
    offset = 0
    with pytest.raises(DiskFullError):
        while True:
            write(wal, [store(offset, b"x" * 400)])
            offset += 1
    assert offset > 2
    with pytest.raises(DiskFullError):
        write(wal, [store(offset, b"x" * 400)])
    disk.capacity = 1 << 30
    write(wal, [store(offset, b"x" * 400)], [store(offset + 1, b"last")])
    assert len(open_log(disk).bodies) == offset + 2


def test_the_reserve_is_given_up_when_the_disk_is_full_and_taken_again() -> None:
    disk = new_disk()
    sizes = WalSizes(first_file=4096, file=4096, free_min=2048, reserve=1024)
    wal = open_log(disk, sizes).wal
    wal.ensure_spare()
    assert disk.exists(RESERVE)
    _roll(wal)
    disk.capacity -= disk.free_bytes()
    with pytest.raises(DiskFullError):
        wal.ensure_spare()
    assert not disk.exists(RESERVE)
    assert disk.free_bytes() == 1024
    disk.capacity = 1 << 30
    wal.ensure_spare()
    assert disk.exists(RESERVE)
    assert wal.statistics().spares == 1


def test_the_log_leaves_room_for_the_tables() -> None:
    disk = new_disk()
    sizes = WalSizes(first_file=4096, file=4096, free_min=10_000, reserve=1024)
    wal = open_log(disk, sizes).wal
    disk.capacity -= disk.free_bytes() - 14_000
    with pytest.raises(DiskFullError):
        wal.ensure_spare()
    disk.capacity += 96
    wal.ensure_spare()
    assert not disk.exists(RESERVE)


def test_no_room_for_a_sidecar_is_no_reason_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    replace = disk.replace

    def full(name: str, content: bytes) -> None:
        if name.endswith(".idx"):
            raise DiskFullError(errno.ENOSPC, "full")
        replace(name, content)

    monkeypatch.setattr(disk, "replace", full)
    _roll(wal)
    assert not disk.exists(index_name(1))
    assert open_log(disk).wal.statistics().files == 2


def test_a_new_log_needs_room() -> None:
    disk = new_disk()
    disk.capacity = 1000
    with pytest.raises(DiskFull, match="4096 bytes and there are 1000"):
        open_log(disk)


def test_a_failed_sync_is_told() -> None:
    disk = new_disk()
    wal = open_log(disk).wal
    wal.append([store(0, b"one")])
    disk.sync_failure_at = 0
    with pytest.raises(OSError, match="sync failure") as failure:
        wal.sync()
    assert failure.value.errno == errno.EIO


def test_sizes_are_whole_sectors() -> None:
    with pytest.raises(InvariantViolation):
        WalSizes(first_file=1000)
    assert SIZES.file % 512 == 0
