"""Reading a segment's records back by offset, against a dictionary of what was written."""

import random
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.disk import SimDisk
from tests.sim.ports import SimEntropy
from tests.storage.logs import IDENTITY

from perdure.core.errors import LogDamaged
from perdure.storage import wal_index
from perdure.storage.wal import Wal, WalSizes, file_name
from perdure.storage.wal_format import Frame, FrameType, Record, encode_record
from perdure.storage.wal_recovery import open_wal

SIZES = WalSizes(first_file=8 * 1024, file=8 * 1024, free_min=0, reserve=1024)
KEYS = [(0, 0), (0, 1), (3, 0)]


def _open(disk: SimDisk) -> Wal:
    return open_wal(
        disk,
        IDENTITY,
        SimEntropy(random.Random(disk.life)),
        lambda _seq, _position, _header, _body: None,
        lambda _segment, _end: False,
        SIZES,
    ).wal


def _record(key: tuple[int, int], offset: int) -> bytes:
    payload = b"%d.%d.%d " % (*key, offset) * (1 + offset % 7)
    return encode_record(Record(offset + 1, 1, 1, 0, 0, 0, 0, 0, payload))


def _frame(kind: FrameType, key: tuple[int, int], first: int, count: int) -> Frame:
    records = tuple(_record(key, offset) for offset in range(first, first + count))
    return Frame(kind, *key, 1, 7, first, count, 0, records)


def _checkpoint() -> Frame:
    return Frame(FrameType.CHECKPOINT, 0, 0, 0, 0, 0, 0, 0, (b"nothing",))


Write = tuple[str, int, int, int]
WRITES = st.lists(
    st.tuples(
        st.sampled_from(["store", "skip", "repair"]),
        st.integers(0, 2),
        st.integers(1, 6),
        st.integers(0, 60),
    ),
    max_size=60,
)


class _Written:
    """A log, and what is in it."""

    def __init__(self, disk: SimDisk) -> None:
        self.wal = _open(disk)
        self.held: dict[tuple[int, int], set[int]] = {key: set() for key in KEYS}
        self.tails = dict.fromkeys(KEYS, 0)

    def write(self, kind: str, number: int, count: int, place: int) -> None:
        key = KEYS[number]
        frames: list[Frame] = [_checkpoint()] if self.wal.wants_checkpoint else []
        if kind == "repair":
            first = place
            frames.append(_frame(FrameType.REPAIR, key, first, count))
        else:
            first = self.tails[key] + (3 if kind == "skip" else 0)
            frames.append(_frame(FrameType.STORE, key, first, count))
            self.tails[key] = first + count
        self.held[key].update(range(first, first + count))
        self.wal.append(frames)
        self.wal.sync()

    def pieces(self, key: tuple[int, int], upper: int, size: int) -> Iterator[tuple[int, bytes]]:
        """All that can be read, piece by piece, over holes."""
        lower = 0
        while lower < upper:
            found = self.wal.read_records(key, lower, upper, size)
            if not found.records:
                if found.first_offset is None:
                    return
                assert lower < found.first_offset < upper
                lower = found.first_offset
                continue
            assert found.first_offset == lower
            for record in found.records:
                yield lower, record
                lower += 1


@given(WRITES, st.sampled_from([1, 200, 10_000]), st.integers(0, 80))
@settings(max_examples=150, deadline=None)
def test_what_was_written_is_read_whatever_lies_between(
    writes: list[Write], size: int, upper: int
) -> None:
    disk = SimDisk(random.Random(1))
    written = _Written(disk)
    for write in writes:
        written.write(*write)
    for _ in range(2):
        for key in KEYS:
            expected = [(o, _record(key, o)) for o in sorted(written.held[key]) if o < upper]
            assert list(written.pieces(key, upper, size)) == expected
        disk.kill()
        written.wal = _open(disk)  # and once more from what recovery finds


def test_the_index_is_sparse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal_index, "SPACING_BYTES", 2048)
    disk = SimDisk(random.Random(1))
    written = _Written(disk)
    for number in range(300):
        written.write("store", number % 3, 1 + number % 4, 0)
    for key in KEYS:
        found = list(written.pieces(key, 10_000, 500))
        assert [offset for offset, _ in found] == sorted(written.held[key])
    entries = sum(
        len(entries)
        for file in written.wal._files  # pyright: ignore[reportPrivateUsage]
        for entries in file.index.entries.values()
    )
    assert entries < 250  # of 300 frames: a file holds some 16 groups


def test_a_large_segment_among_others_is_found_by_its_entries() -> None:
    disk = SimDisk(random.Random(1))
    written = _Written(disk)
    for number in range(400):
        written.write("store", 0 if number % 50 else 1, 3, 0)
    rare = written.held[KEYS[1]]
    assert [offset for offset, _ in written.pieces(KEYS[1], 10_000, 100)] == sorted(rare)


def test_damage_is_told_with_its_place() -> None:
    disk = SimDisk(random.Random(1))
    written = _Written(disk)
    written.write("store", 0, 4, 0)
    name = file_name(1)
    content = bytearray(disk.read_file(name))
    place = content.index(b"0.0.2 ")
    content[place] ^= 1
    written.wal._files[0].file.write([bytes(content)], 0)  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(LogDamaged, match=name):
        written.wal.read_records(KEYS[0], 0, 4, 1000)


def test_nothing_is_found_where_nothing_was_written() -> None:
    written = _Written(SimDisk(random.Random(1)))
    assert written.wal.read_records(KEYS[0], 0, 5, 100).first_offset is None
    written.write("store", 0, 2, 0)
    assert written.wal.read_records(KEYS[0], 2, 5, 100).first_offset is None
    assert written.wal.read_records(KEYS[1], 0, 5, 100).first_offset is None
