"""Reading a segment's records back from log files, by offset.

Per file and segment a sparse index keeps where frames start, at most one entry per 64 KiB of file,
so that it stays small while the frames of dozens of segments alternate. Repairs are rare, come in
any order, and are all listed.

Invariant: a frame of a segment lies within ``SPACING_BYTES`` behind an entry of that segment, or
has an entry of its own.
"""

import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from perdure.storage.disk import File
from perdure.storage.wal_format import (
    FRAME_HEADER_BYTES,
    Frame,
    FrameHeader,
    FrameType,
    decode_frame_header,
)

SPACING_BYTES = 64 * 1024
_WINDOW_BYTES = 64 * 1024
_POSITION_BITS = 32
_POSITION_MASK = (1 << _POSITION_BITS) - 1

SegmentKey = tuple[int, int]


@dataclass(slots=True)
class FrameIndex:
    """Where the record frames of one file are. ``extents``: highest offset end per segment."""

    extents: dict[SegmentKey, int] = field(default_factory=dict[SegmentKey, int])
    entries: dict[SegmentKey, "array[int]"] = field(default_factory=dict[SegmentKey, "array[int]"])
    repairs: dict[SegmentKey, list[tuple[int, int]]] = field(
        default_factory=dict[SegmentKey, list[tuple[int, int]]]
    )

    def note(self, frame: Frame | FrameHeader, position: int) -> None:
        """Take a frame at ``position`` into account; in the order of the file."""
        if frame.type == FrameType.STORE:
            key = (frame.partition, frame.segment)
            end = frame.first_offset + frame.record_count
            if end > self.extents.get(key, 0):
                self.extents[key] = end
            entries = self.entries.get(key)
            if entries is None:
                entries = self.entries[key] = array("Q")
            elif position - (entries[-1] & _POSITION_MASK) < SPACING_BYTES:
                return
            entries.append(frame.first_offset << _POSITION_BITS | position)
        elif frame.type == FrameType.REPAIR:
            key = (frame.partition, frame.segment)
            end = frame.first_offset + frame.record_count
            self.extents[key] = max(end, self.extents.get(key, 0))
            self.repairs.setdefault(key, []).append((frame.first_offset, position))

    def places(self, key: SegmentKey, lower: int) -> Iterator[tuple[int, int]]:
        """Stretches ``[start, end)`` of the file where STORE frames of the segment that reach
        above ``lower`` begin."""
        entries = self.entries.get(key)
        if entries is None:
            return
        known = len(entries)  # the writer may add more meanwhile
        first = bisect_right(entries, lower << _POSITION_BITS | _POSITION_MASK, 0, known) - 1
        for number in range(max(first, 0), known):
            start = entries[number] & _POSITION_MASK
            following = entries[number + 1] & _POSITION_MASK if number + 1 < known else None
            end = start + SPACING_BYTES
            yield start, end if following is None else min(end, following)


def frames_in(
    handle: File, nonce: int, start: int, end: int, size: int
) -> Iterator[tuple[int, FrameHeader]]:
    """Intact frame headers of the file that begin in ``[start, end)``; ``size`` bounds the file."""
    position = start
    window, window_at = b"", 0
    while position < end and position + FRAME_HEADER_BYTES <= size:
        offset = position - window_at
        if offset < 0 or offset + FRAME_HEADER_BYTES > len(window):
            window = handle.read(min(_WINDOW_BYTES, size - position), position)
            window_at, offset = position, 0
        header = decode_frame_header(window, offset)
        if header is None or header.nonce != nonce:
            # The padding behind a group; the next one starts on a sector.
            following = position + -position % 512
            if following == position:
                return
            position = following
            continue
        yield position, header
        position += FRAME_HEADER_BYTES + header.body_length


def body_of(handle: File, position: int, header: FrameHeader) -> bytes | None:
    """The body of a frame; None when it isn't intact."""
    body = handle.read(header.body_length, position + FRAME_HEADER_BYTES)
    return body if zlib.crc32(body) == header.body_crc else None


def split_records(body: bytes) -> list[bytes]:
    """The records of a STORE or REPAIR body."""
    records: list[bytes] = []
    position = 0
    while position < len(body):
        end = position + 4 + int.from_bytes(body[position : position + 4], "little")
        records.append(body[position:end])
        position = end
    return records


@dataclass(frozen=True, slots=True)
class Held:
    """Records from ``first_offset`` on, without a gap; none: the next that are here start there,
    or nowhere (None)."""

    first_offset: int | None
    records: Sequence[bytes]


class Search:
    """Collects a segment's records from one file after the other."""

    def __init__(self, key: SegmentKey, lower: int, upper: int, bytes_max: int) -> None:
        self._key = key
        self._lower = self._expected = lower
        self._upper = upper
        self._bytes_left = bytes_max
        self._records: list[bytes] = []
        self._following: int | None = None  # the first offset here behind a hole
        self._damaged_at: int | None = None

    @property
    def is_full(self) -> bool:
        return self._expected >= self._upper or (self._bytes_left <= 0 and bool(self._records))

    def visit(self, index: FrameIndex, handle: File, nonce: int, size: int) -> int | None:
        """Look into the next file; where a frame in it is damaged, if one is.

        Stores ascend within a file and from file to file; repairs may lie anywhere.
        """
        repairs = sorted(index.repairs.get(self._key, ()))
        for start, end in index.places(self._key, self._lower):
            for position, header in frames_in(handle, nonce, start, end, size):
                if header.type != FrameType.STORE or not self._is_mine(header):
                    continue
                self._take_repairs(repairs, handle)
                self._take(handle, position, header)
                is_past = header.first_offset >= self._upper
                if is_past or self.is_full or self._damaged_at is not None:
                    break
            if self.is_full or self._damaged_at is not None:
                return self._damaged_at
        self._take_repairs(repairs, handle)
        return self._damaged_at

    def found(self) -> Held:
        if self._records:
            return Held(self._lower, self._records)
        return Held(self._following, ())

    def _is_mine(self, header: FrameHeader) -> bool:
        return (header.partition, header.segment) == self._key

    def _take_repairs(self, repairs: list[tuple[int, int]], handle: File) -> None:
        for first, position in repairs:
            if first > self._expected:
                self._note(first)
                continue
            header = decode_frame_header(handle.read(FRAME_HEADER_BYTES, position))
            if header is None:
                self._damaged_at = position
                return
            self._take(handle, position, header)

    def _take(self, handle: File, position: int, header: FrameHeader) -> None:
        end = header.first_offset + header.record_count
        if end <= self._expected or self.is_full:
            return
        if header.first_offset > self._expected:
            self._note(header.first_offset)
            return
        body = body_of(handle, position, header)
        if body is None:
            self._damaged_at = position
            return
        records = split_records(body)[self._expected - header.first_offset :]
        for record in records[: self._upper - self._expected]:
            if self.is_full:
                break
            self._records.append(record)
            self._bytes_left -= len(record)
            self._expected += 1

    def _note(self, offset: int) -> None:
        if offset < self._upper and (self._following is None or offset < self._following):
            self._following = offset
