"""The data directory's marker and lock: whose it is, and that only one process has it."""

import contextlib
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from tests.sim.disk import SimDisk

from perdure.core.errors import (
    DataDirectoryDamaged,
    DataDirectoryForeign,
    DataDirectoryLocked,
    DataDirectoryTooNew,
    DiskFull,
)
from perdure.storage.data_directory import (
    MARKER,
    Marker,
    check_owner,
    lock_folder,
    open_disk,
    read_marker,
    write_marker,
)

OURS = Marker(
    format=1,
    cluster="prod",
    fingerprint="00" * 16,
    node_id=1,
    node="n1",
    storage_uuid="11" * 16,
    generation=4,
)


def test_an_unused_directory_has_no_marker(tmp_path: Path) -> None:
    assert read_marker(open_disk(tmp_path)) is None


def test_the_marker_comes_back(tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    write_marker(disk, OURS)
    write_marker(disk, replace(OURS, generation=5))
    assert read_marker(disk) == replace(OURS, generation=5)


def test_the_marker_is_the_old_or_the_new_after_a_power_loss() -> None:
    found: set[int] = set()
    for step in range(1, 12):
        for seed in range(8):
            disk = SimDisk(random.Random(seed))
            write_marker(disk, OURS)
            disk.power_loss_at = disk.steps + step
            with contextlib.suppress(SystemExit):
                write_marker(disk, replace(OURS, generation=5))
            disk.lose_power()
            marker = read_marker(disk)
            assert marker is not None
            found.add(marker.generation)
    assert found == {4, 5}


def test_a_full_disk_keeps_the_old_marker() -> None:
    disk = SimDisk(random.Random(1))
    write_marker(disk, OURS)
    disk.capacity -= disk.free_bytes()
    with pytest.raises(DiskFull, match=MARKER):
        write_marker(disk, replace(OURS, generation=5))
    assert read_marker(disk) == OURS


def test_a_newer_directory_is_refused_by_its_version(tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    disk.replace(MARKER, json.dumps({"format": 2, "whatever": "comes"}).encode())
    with pytest.raises(DataDirectoryTooNew, match="format 2"):
        read_marker(disk)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff\xfe", b'{"format": 1}', b"1"])
def test_an_unreadable_marker_is_damage(tmp_path: Path, content: bytes) -> None:
    disk = open_disk(tmp_path)
    disk.replace(MARKER, content)
    with pytest.raises(DataDirectoryDamaged, match=MARKER):
        read_marker(disk)


def test_every_changed_byte_of_the_marker_is_noticed(tmp_path: Path) -> None:
    disk = open_disk(tmp_path)
    write_marker(disk, OURS)
    content = disk.read_file(MARKER)
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0x01
        disk.replace(MARKER, bytes(changed))
        with contextlib.suppress(DataDirectoryDamaged, DataDirectoryTooNew):
            assert read_marker(disk) == OURS  # white space


@pytest.mark.parametrize("folder", ["wal", "partitions"])
def test_data_without_a_marker_is_damage(tmp_path: Path, folder: str) -> None:
    disk = open_disk(tmp_path)
    disk.make_folder(folder)
    with pytest.raises(DataDirectoryDamaged, match="no MARKER"):
        read_marker(disk)


def test_another_owner_is_named() -> None:
    check_owner(OURS, "prod", "n1")
    for cluster, node in (("dev", "n1"), ("prod", "n2")):
        with pytest.raises(DataDirectoryForeign, match=rf"'n1' of cluster 'prod'.*'{node}'"):
            check_owner(OURS, cluster, node)


def test_a_second_lock_is_refused_and_names_the_holder(tmp_path: Path) -> None:
    lock = lock_folder(tmp_path / "base" / "n1")
    with pytest.raises(DataDirectoryLocked, match=r"in use by process \d+"):
        lock_folder(tmp_path / "base" / "n1")
    lock.release()
    lock_folder(tmp_path / "base" / "n1").release()


@pytest.mark.slow
def test_the_lock_ends_with_the_process(tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from pathlib import Path\n"
        "from perdure.storage.data_directory import lock_folder\n"
        f"lock = lock_folder(Path({str(tmp_path)!r}))\n"
        "print('locked', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"locked\n"
        with pytest.raises(DataDirectoryLocked, match=str(other.pid)):
            lock_folder(tmp_path)
        other.kill()
        other.wait()
        lock_folder(tmp_path).release()
