"""The log on the real file system: what the simulated disk stands for."""

import random
from pathlib import Path

from tests.storage.logs import Reading, checkpoint, open_log, store, write

from perdure.storage.disk import OsDisk
from perdure.storage.wal import RESERVE, WalSizes

SIZES = WalSizes(first_file=8192, file=16384, free_min=0, reserve=4096)
GOLDEN = Path(__file__).parent / "golden" / "log_1.txt"


def test_groups_files_and_spares_on_a_real_disk(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)
    bodies: list[bytes] = []
    dice = random.Random(3)
    for life in range(6):
        reading = open_log(disk, SIZES, seed=life)
        assert reading.bodies == bodies
        wal = reading.wal
        for _ in range(12):
            group = [dice.randbytes(dice.randint(0, 900)) for _ in range(dice.randint(1, 4))]
            frames = [store(len(bodies) + n, body) for n, body in enumerate(group)]
            write(wal, [*frames, checkpoint()] if wal.wants_checkpoint else frames)
            bodies += group
        wal.ensure_spare()
        wal.close()
    assert disk.exists(RESERVE)
    wal = open_log(disk, SIZES).wal
    write(wal, [store(len(bodies), b"end"), checkpoint()])
    assert wal.recycle(lambda segment, end: True) > 0
    wal.close()
    assert open_log(disk, SIZES).bodies[-1] == b"end"


def test_a_log_of_format_one_is_read_as_ever(tmp_path: Path) -> None:
    """A log file written by the first release: a golden file that never changes."""
    (tmp_path / "wal").mkdir()
    (tmp_path / "wal" / "0000000000000001.log").write_bytes(read_golden())
    reading = open_log(OsDisk(tmp_path), SIZES)
    kinds = [header.type for _, _, header, _ in reading.frames]
    assert kinds == [1, 8, 1, 1, 3, 10]
    assert reading.bodies == [b"first", b"second" * 90, b"third"]
    assert [position for _, position, _, _ in reading.frames] == [512, 595, 1024, 1642, 2048, 2560]
    reading.wal.close()


def read_golden() -> bytes:
    """Lines of ``offset: bytes in hexadecimal``; what is not listed is zero."""
    content = bytearray(SIZES.first_file)
    for line in GOLDEN.read_text().splitlines():
        if not line.startswith("#"):
            offset, _, data = line.partition(": ")
            raw = bytes.fromhex(data)
            content[int(offset) : int(offset) + len(raw)] = raw
    return bytes(content)


def write_golden(root: Path) -> str:
    """What ``GOLDEN`` was made with, once."""
    disk = OsDisk(root)
    wal = open_log(disk, SIZES).wal
    seal = store(3, (9).to_bytes(8, "little"))._replace(type=3, record_count=0)
    write(
        wal,
        [store(0, b"first"), checkpoint()],
        [store(1, b"second" * 90), store(2, b"third")],
        [seal],
    )
    write(wal, [wal.mark_frame()])
    wal.close()
    content = (root / "wal" / "0000000000000001.log").read_bytes()
    lines = ["# A log file of format 1. These lines never change.\n"]
    for offset in range(0, len(content), 64):
        if any(data := content[offset : offset + 64]):
            lines.append(f"{offset}: {data.hex()}\n")
    return "".join(lines)


def test_the_golden_log_is_what_this_release_writes(tmp_path: Path) -> None:
    assert write_golden(tmp_path) == GOLDEN.read_text()


def test_opening_leaves_the_golden_log_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "wal").mkdir()
    path = tmp_path / "wal" / "0000000000000001.log"
    path.write_bytes(read_golden())
    reading: Reading = open_log(OsDisk(tmp_path), SIZES)
    reading.wal.close()
    assert path.read_bytes() == read_golden()
