"""Opening the write-ahead log: walk it, tell a torn tail from damage, stand at its end.

A group is valid as a whole or not at all. An invalid group with nothing valid of a *later* group
behind it was never synced: a torn tail, and the log ends before it. An invalid group that is
followed by a later one was synced before: damage, and the node refuses to start.

The last valid group may stand in the page cache only: its process was killed before the sync, or
the sync failed and the kernel took the pages for clean. It is written again and synced before
anybody relies on it. What a torn group left behind the tail needs no erasing: its frames carry a
group id that nothing after the tail will expect.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass

from perdure.core.entropy import Entropy
from perdure.core.errors import DataDirectoryForeign, DataDirectoryTooNew, DiskFull, LogDamaged
from perdure.core.limits import SECTOR_BYTES
from perdure.core.telemetry import logger
from perdure.storage.disk import Disk, DiskFullError, File
from perdure.storage.wal import (
    FOLDER,
    SegmentKey,
    Wal,
    WalFile,
    WalIdentity,
    WalSizes,
    WalTail,
    activate,
    damage,
    decode_index,
    file_name,
    index_name,
    iterate_names,
)
from perdure.storage.wal_format import (
    FLAG_GROUP_END,
    FRAME_HEADER_BYTES,
    FRAME_MAGIC,
    FRAME_VERSION,
    WAL_FORMAT_VERSION,
    FileHeader,
    FrameHeader,
    FrameType,
    decode_file_header,
    decode_frame_header,
)

_WINDOW_BYTES = 1024 * 1024
_SERIAL_HALF = 1 << 31
_FRAME_TYPES = frozenset(FrameType)

log = logger("wal")

_Group = list[tuple[int, FrameHeader, bytes]]
"""Position, header and body of each frame."""

FrameVisitor = Callable[[int, int, FrameHeader, bytes], None]
"""Called with file seq, position of the frame in it, header, body, for each frame in order."""


@dataclass(frozen=True, slots=True)
class Recovered:
    """What ``open_wal`` found. ``torn_at`` names the place of a torn tail, if there was one."""

    wal: Wal
    frames: int
    torn_at: str | None


def open_wal(
    disk: Disk,
    identity: WalIdentity,
    entropy: Entropy,
    visit: FrameVisitor,
    is_dead: Callable[[SegmentKey, int], bool],
    sizes: WalSizes | None = None,
) -> Recovered:
    """Open or create the log below ``disk`` and stand at its tail, after syncing what is there.

    Files whose sidecar shows only dead extents are not read (``is_dead`` as in ``Wal.recycle``),
    provided that a younger file holds a checkpoint: what else they tell is in that.

    Raises:
        LogDamaged: synced bytes are missing or changed; names file and byte.
        DataDirectoryForeign: a file of another cluster or disk lies here.
        DataDirectoryTooNew: a file in a format of the future.
        DiskFull: no room for the first file of a new log.
    """
    sizes = sizes or WalSizes()
    disk.make_folder(FOLDER)
    seqs = list(iterate_names(disk))
    if not seqs:
        return Recovered(_create(disk, identity, entropy, sizes), 0, None)
    if seqs != list(range(seqs[0], seqs[-1] + 1)):
        raise LogDamaged(
            f"log files are missing between {file_name(seqs[0])} and {file_name(seqs[-1])}: "
            "restore them, or wipe the data directory and rejoin"
        )
    walk = _Walk(disk, identity, visit)
    checkpoint_seq = walk.find_checkpoint(seqs)
    for seq in seqs:
        walk.enter(seq, skip_if_dead=is_dead if seq < checkpoint_seq else None)
    tail = walk.finish()
    walk.rewrite_last_group()
    wal = Wal(disk, identity, sizes, entropy, walk.files, tail)
    return Recovered(wal, walk.frame_count, walk.torn_at)


def _create(disk: Disk, identity: WalIdentity, entropy: Entropy, sizes: WalSizes) -> Wal:
    for name in disk.list_folder(FOLDER):
        disk.remove(f"{FOLDER}/{name}")  # spares of a creation that was cut short
    name = f"{FOLDER}/spare-first"
    try:
        handle = disk.create_zeroed(name, sizes.first_file)
    except DiskFullError as error:
        raise DiskFull(
            f"a new log needs {sizes.first_file} bytes and there are {disk.free_bytes()}: "
            "free some space"
        ) from error
    header = FileHeader(
        file_seq=1,
        nonce=entropy.bits(32),
        file_bytes=sizes.first_file,
        first_frame_seq=1,
        prev_crc=0,
        first_group_id=1,
        fingerprint=identity.fingerprint,
        storage_uuid=identity.storage_uuid,
    )
    file = activate(disk, name, handle, header)
    tail = WalTail(position=SECTOR_BYTES, frame_seq=1, prev_crc=0, group_id=1)
    return Wal(disk, identity, sizes, entropy, [file], tail)


class _Walk:
    """Reads files in order; holds what the next frame must continue."""

    def __init__(self, disk: Disk, identity: WalIdentity, visit: FrameVisitor) -> None:
        self._disk = disk
        self._identity = identity
        self._visit = visit
        self.files: list[WalFile] = []
        self.frame_count = 0
        self.torn_at: str | None = None
        self._frame_seq = 0
        self._prev_crc = 0
        self._group_id = 1
        self._position = SECTOR_BYTES
        self._last_group: tuple[int, int] | None = None  # its place in the last file
        self._is_whole = True  # whether the file before was read rather than skipped

    def find_checkpoint(self, seqs: list[int]) -> int:
        """The youngest file with an intact checkpoint; 0 when there is none."""
        for seq in reversed(seqs):
            handle = self._disk.open(file_name(seq))
            try:
                header = self._check_header(seq, handle)
                reader = _GroupReader(handle, header)
                position = SECTOR_BYTES
                expected = header.first_frame_seq, header.prev_crc, header.first_group_id
                while (group := reader.read(position, *expected)) is not None:
                    if any(frame.type == FrameType.CHECKPOINT for _, frame, _ in group):
                        return seq
                    position, expected = _behind(group)
            finally:
                handle.close()
        return 0

    def enter(self, seq: int, skip_if_dead: Callable[[SegmentKey, int], bool] | None) -> None:
        """Read file ``seq``, or pass over it when its sidecar shows that nobody needs it."""
        handle = self._disk.open(file_name(seq))
        header = self._check_header(seq, handle)
        file = WalFile(seq, header.nonce, header.file_bytes, handle)
        self._check_continues(header, seq)
        self.files.append(file)
        self._frame_seq, self._prev_crc = header.first_frame_seq, header.prev_crc
        self._group_id = header.first_group_id
        extents = self._read_index(seq) if skip_if_dead else None
        if extents is not None and skip_if_dead is not None:
            file.index.extents = extents
            if all(skip_if_dead(segment, end) for segment, end in extents.items()):
                self._is_whole = False
                return
            file.index.extents = {}
        self._is_whole = True
        self._position = SECTOR_BYTES
        self._last_group = None
        reader = _GroupReader(handle, header)
        while (end := self._read_group(file, reader)) is not None:
            self._last_group = (self._position, end)
            self._position = end

    def finish(self) -> WalTail:
        """Decide what ends the last file: its room, a torn tail, or damage."""
        file = self.files[-1]
        later = _find_later_group(file, self._position, self._group_id)
        if later is not None:
            raise damage(file.seq, self._position, f"intact later data at byte {later}")
        torn = decode_frame_header(file.file.read(FRAME_HEADER_BYTES, self._position))
        if torn is not None and torn.nonce == file.nonce:
            self.torn_at = f"{file_name(file.seq)} byte {self._position}"
            log.debug("wal.tail.cut", file=file_name(file.seq), position=self._position)
        return WalTail(
            position=self._position,
            frame_seq=self._frame_seq,
            prev_crc=self._prev_crc,
            group_id=self._group_id,
        )

    def rewrite_last_group(self) -> None:
        """Make what the log ends with durable, whatever became of the sync it was written for."""
        file = self.files[-1].file
        if self._last_group is not None:
            start, end = self._last_group
            file.write([file.read(end - start, start)], start)
        file.sync_data()

    def _check_header(self, seq: int, handle: File) -> FileHeader:
        header = decode_file_header(handle.read(SECTOR_BYTES, 0))
        if header is None or header.file_seq != seq:
            raise damage(seq, 0, "the file header is not intact")
        if header.format > WAL_FORMAT_VERSION:
            raise DataDirectoryTooNew(
                f"{file_name(seq)} has log format {header.format}, this release reads up to "
                f"{WAL_FORMAT_VERSION}: start the release that wrote it"
            )
        if header.fingerprint != self._identity.fingerprint:
            raise DataDirectoryForeign(f"{file_name(seq)} belongs to another cluster")
        if header.storage_uuid != self._identity.storage_uuid:
            raise DataDirectoryForeign(f"{file_name(seq)} was written on another disk")
        return header

    def _check_continues(self, header: FileHeader, seq: int) -> None:
        if not self.files or not self._is_whole:
            return
        expected = (self._frame_seq, self._prev_crc, self._group_id)
        if (header.first_frame_seq, header.prev_crc, header.first_group_id) != expected:
            raise damage(
                self.files[-1].seq, self._position, f"{file_name(seq)} continues a longer file"
            )

    def _read_index(self, seq: int) -> dict[SegmentKey, int] | None:
        if not self._disk.exists(index_name(seq)):
            return None
        return decode_index(self._disk.read_file(index_name(seq)), seq)

    def _read_group(self, file: WalFile, reader: "_GroupReader") -> int | None:
        group = reader.read(self._position, self._frame_seq, self._prev_crc, self._group_id)
        if group is None:
            return None
        for position, header, body in group:
            if header.version != FRAME_VERSION or header.type not in _FRAME_TYPES:
                raise DataDirectoryTooNew(
                    f"{file_name(file.seq)} has a frame of version {header.version}, type "
                    f"{header.type} at byte {position}, which this release doesn't know: start "
                    "the release that wrote it"
                )
            file.index.note(header, position)
            self._visit(file.seq, position, header, body)
        self.frame_count += len(group)
        end, (self._frame_seq, self._prev_crc, self._group_id) = _behind(group)
        return end


def _behind(group: _Group) -> tuple[int, tuple[int, int, int]]:
    """Where the group after ``group`` starts, and the frame seq, CRC and id it continues with."""
    position, last, _ = group[-1]
    end = position + FRAME_HEADER_BYTES + last.body_length
    following = last.frame_seq + 1, last.header_crc, (last.group_id + 1) & 0xFFFF_FFFF
    return end + -end % SECTOR_BYTES, following


class _GroupReader:
    """Parses groups out of one file through a read window."""

    def __init__(self, handle: File, header: FileHeader) -> None:
        self._handle = handle
        self._header = header
        self._window = b""
        self._window_at = 0

    def read(self, position: int, frame_seq: int, prev_crc: int, group_id: int) -> _Group | None:
        """The frames of the group at ``position``; None unless all of it is intact and next."""
        frames: _Group = []
        while True:
            header = decode_frame_header(self._bytes(position, FRAME_HEADER_BYTES))
            if header is None or header.nonce != self._header.nonce:
                return None
            expected = (frame_seq, prev_crc, group_id)
            if (header.frame_seq, header.prev_crc, header.group_id) != expected:
                return None
            end = position + FRAME_HEADER_BYTES + header.body_length
            if end > self._header.file_bytes:
                return None
            body = self._bytes(position + FRAME_HEADER_BYTES, header.body_length)
            if zlib.crc32(body) != header.body_crc:
                return None
            frames.append((position, header, body))
            if header.group_count != len(frames):
                return None
            if header.flags & FLAG_GROUP_END:
                return frames
            position, frame_seq, prev_crc = end, frame_seq + 1, header.header_crc

    def _bytes(self, position: int, size: int) -> bytes:
        start = position - self._window_at
        if start < 0 or start + size > len(self._window):
            self._window = self._handle.read(max(_WINDOW_BYTES, size), position)
            self._window_at, start = position, 0
        return self._window[start : start + size]


def _find_later_group(file: WalFile, position: int, expected: int) -> int | None:
    """Where behind ``position`` an intact frame of a group after ``expected`` starts, if any."""
    while position < file.size:
        window = file.file.read(_WINDOW_BYTES, position)
        start = window.find(FRAME_MAGIC)
        while start >= 0:
            if start % SECTOR_BYTES == 0:
                header = decode_frame_header(window, start)
                if header is not None and header.nonce == file.nonce:
                    distance = (header.group_id - expected) & 0xFFFF_FFFF
                    if 0 < distance < _SERIAL_HALF:
                        return position + start
            start = window.find(FRAME_MAGIC, start + 1)
        position += _WINDOW_BYTES
    return None
