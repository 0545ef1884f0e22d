"""The disk port: the real one and the simulated one keep the same promises."""

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.sim.disk import PowerLoss, SimDisk

from perdure.storage.disk import Disk, DiskFullError, FolderLock, OsDisk, make_durable_folder


@pytest.fixture(params=["real", "simulated"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Disk:
    if request.param == "real":
        return OsDisk(tmp_path)
    return SimDisk(random.Random(1))


def test_writes_are_read_where_they_went(disk: Disk) -> None:
    disk.make_folder("a/b")
    file = disk.create_zeroed("a/b/file", 2000)
    assert file.read(5000, 0) == bytes(2000)
    file.write([b"one", b"", b"two"], 100)
    file.sync_data()
    assert file.size() == 2000
    assert file.read(6, 100) == b"onetwo"
    assert file.read(100, 1990) == bytes(10)
    file.close()
    again = disk.open("a/b/file")
    assert again.read(8, 99) == b"\0onetwo\0"
    again.close()


def test_many_parts_are_one_write(disk: Disk) -> None:
    file = disk.create_zeroed("file", 4096)
    parts = [b"%04d" % number for number in range(1300)]
    file.write(parts, 7)
    assert file.read(5200, 7) == b"".join(parts)
    file.close()


def test_folders_list_their_entries_in_order(disk: Disk) -> None:
    disk.make_folder("a")
    disk.make_folder("a")
    for name in ("a/z", "a/b", "a/m"):
        disk.replace(name, b"")
    assert disk.list_folder("a") == ["b", "m", "z"]
    assert disk.exists("a/z")
    assert not disk.exists("a/y")
    with pytest.raises(FileNotFoundError):
        disk.list_folder("b")


def test_replace_is_whole(disk: Disk) -> None:
    disk.replace("name", b"old and long")
    disk.replace("name", b"new")
    assert disk.read_file("name") == b"new"
    assert not disk.exists("name.tmp")


def test_names_move_and_go(disk: Disk) -> None:
    disk.replace("one", b"1")
    disk.replace("two", b"2")
    disk.rename("one", "two")
    disk.sync_folder("")
    assert disk.read_file("two") == b"1"
    assert not disk.exists("one")
    disk.remove("two")
    assert not disk.exists("two")


def test_new_files_take_no_existing_name(disk: Disk) -> None:
    disk.create_zeroed("file", 512).close()
    with pytest.raises(FileExistsError):
        disk.create_zeroed("file", 512)
    with pytest.raises(FileExistsError):
        disk.allocate("file", 512)


def test_allocated_bytes_are_taken(disk: Disk) -> None:
    before = disk.free_bytes()
    disk.allocate("reserve", 1 << 20)
    assert disk.exists("reserve")
    if isinstance(disk, SimDisk):
        assert disk.free_bytes() == before - (1 << 20)


def test_a_full_disk_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    disk = SimDisk(random.Random(1), capacity=1000)
    disk.replace("kept", b"x" * 600)
    for fill in (
        lambda: disk.create_zeroed("file", 512),
        lambda: disk.allocate("file", 512),
        lambda: disk.replace("kept", b"y" * 512),
    ):
        with pytest.raises(DiskFullError):
            fill()
    assert disk.list_folder("") == ["kept"]
    assert disk.read_file("kept") == b"x" * 600


def test_a_real_full_disk_says_so_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """More than any file system has: the real error, without filling the machine."""
    disk = OsDisk(tmp_path)
    with pytest.raises(OSError, match=r"(?i)space|large|invalid") as failure:
        disk.allocate("file", 1 << 60)
    assert isinstance(failure.value, DiskFullError) or failure.value.errno
    assert disk.list_folder("") == []


def test_folders_are_made_with_their_parents(tmp_path: Path) -> None:
    make_durable_folder(tmp_path / "a" / "b" / "c")
    make_durable_folder(tmp_path / "a" / "b" / "c")
    assert (tmp_path / "a" / "b" / "c").is_dir()


def test_a_folder_is_locked_once(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path), FolderLock(tmp_path)
    assert first.try_acquire()
    assert not second.try_acquire()
    assert second.holder().isdigit()
    first.release()
    assert second.try_acquire()
    second.release()


# --- What only the simulated disk does ------------------------------------------------------------


def _survivors(write: Callable[[SimDisk], None], name: str, seeds: int = 60) -> set[bytes]:
    """What a file may hold after power was lost right after ``write``; b"" when it is gone."""
    found: set[bytes] = set()
    for seed in range(seeds):
        disk = SimDisk(random.Random(seed))
        disk.create_zeroed("file", 1024).close()
        write(disk)
        disk.lose_power()
        found.add(disk.read_file(name) if disk.exists(name) else b"")
    return found


def test_unsynced_sectors_survive_in_any_combination() -> None:
    def write(disk: SimDisk) -> None:
        disk.open("file").write([b"A" * 512, b"B" * 512], 0)

    zeros = bytes(512)
    assert _survivors(write, "file") == {
        zeros + zeros,
        b"A" * 512 + zeros,
        zeros + b"B" * 512,
        b"A" * 512 + b"B" * 512,
    }


def test_synced_sectors_survive() -> None:
    def write(disk: SimDisk) -> None:
        file = disk.open("file")
        file.write([b"A" * 512], 0)
        file.sync_data()
        file.write([b"B" * 512], 512)

    assert _survivors(write, "file") == {b"A" * 512 + bytes(512), b"A" * 512 + b"B" * 512}


def test_names_survive_their_folder_s_sync() -> None:
    content = b"x" * 1024

    def write(disk: SimDisk) -> None:
        disk.replace("old", content)
        disk.rename("old", "new")

    assert _survivors(write, "new") == {b"", content}
    assert _survivors(write, "old") == {b"", content}

    def write_and_sync(disk: SimDisk) -> None:
        write(disk)
        disk.sync_folder("")

    assert _survivors(write_and_sync, "new") == {content}


def test_a_failed_sync_hides_the_loss_until_the_power_goes() -> None:
    seen: set[bytes] = set()
    for seed in range(30):
        disk = SimDisk(random.Random(seed))
        file = disk.create_zeroed("file", 512)
        file.write([b"A" * 512], 0)
        disk.sync_failure_at = 0
        with pytest.raises(OSError, match="sync failure"):
            file.sync_data()
        file.sync_data()
        assert file.read(512, 0) == b"A" * 512
        disk.lose_power()
        seen.add(disk.read_file("file"))
    assert seen == {bytes(512), b"A" * 512}


def test_handles_die_with_their_life() -> None:
    disk = SimDisk(random.Random(1))
    file = disk.create_zeroed("file", 512)
    disk.kill()
    with pytest.raises(PowerLoss):
        file.write([b"x"], 0)
    disk.power_loss_at = disk.steps + 1
    with pytest.raises(PowerLoss):
        disk.replace("file", b"y")
