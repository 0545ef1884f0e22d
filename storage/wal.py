"""The write-ahead log of a node: one sequence of frames for all its replicas.

Called by the log writer (cluster/wal_writer.py), one call at a time; ``ensure_spare`` and
``recycle`` may run beside it on another thread. Files are zero-filled once and recycled, because
syncing an overwritten block is several times cheaper than syncing a new one.

Invariants: group k+1 is written only after the sync of group k returned · nothing is acknowledged
before its sync · a failed write or sync is never retried (the caller stops for good) · a file is
recycled only when every extent in it is dead and a younger file holds a synced checkpoint.
"""

import errno
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import msgspec

from perdure.core.entropy import Entropy
from perdure.core.errors import LogDamaged
from perdure.core.failpoint import failpoint
from perdure.core.invariant import invariant
from perdure.core.limits import (
    DISK_FREE_BYTES_MIN,
    DISK_RESERVE_BYTES,
    SECTOR_BYTES,
    WAL_FILE_BYTES,
    WAL_FIRST_FILE_BYTES,
)
from perdure.core.telemetry import logger
from perdure.storage.disk import Disk, DiskFullError, File
from perdure.storage.wal_format import (
    FLAG_GROUP_END,
    FRAME_HEADER_BYTES,
    FileHeader,
    Frame,
    FrameHeader,
    FrameType,
    decode_frame_header,
    encode_file_header,
    encode_frame_header,
    padding,
)
from perdure.storage.wal_index import FrameIndex, Held, Search

FOLDER = "wal"
RESERVE = f"{FOLDER}/reserve"
_SPARE_PREFIX = "spare-"
_SPARES_MAX = 1
# Sequence number of the file; partition, segment and end of each extent in it.
_Index = tuple[int, list[tuple[int, int, int]]]
_CHANGED = "a frame that was intact is not so any more"

log = logger("wal")

SegmentKey = tuple[int, int]
"""Partition and segment index."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WalIdentity:
    """Whose log this is; stamped into each file."""

    fingerprint: bytes
    storage_uuid: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class WalSizes:
    """Sizes of files in bytes; tests make them small."""

    first_file: int = WAL_FIRST_FILE_BYTES
    file: int = WAL_FILE_BYTES
    free_min: int = DISK_FREE_BYTES_MIN
    reserve: int = DISK_RESERVE_BYTES

    def __post_init__(self) -> None:
        invariant(
            self.first_file % SECTOR_BYTES == 0 and self.file % SECTOR_BYTES == 0,
            "files are whole sectors",
            sizes=self,
        )


@dataclass(slots=True)
class WalFile:
    """A live file, and where the records in it are."""

    seq: int
    nonce: int
    size: int
    file: File
    index: FrameIndex = field(default_factory=FrameIndex)

    @property
    def extents(self) -> dict[SegmentKey, int]:
        """Highest offset end per segment of the records in it."""
        return self.index.extents


class WalTail(NamedTuple):
    """Where the next group goes and what it continues. Offsets in bytes."""

    position: int
    frame_seq: int
    prev_crc: int
    group_id: int


@dataclass(frozen=True, slots=True)
class WalStatistics:
    """Counters since the log was opened. ``disk_bytes``: of all files, spare ones too, now."""

    files: int
    spares: int
    groups: int
    frames: int
    bytes_written: int
    disk_bytes: int = 0


def file_name(seq: int) -> str:
    """Path of log file ``seq`` on the disk."""
    return f"{FOLDER}/{seq:016d}.log"


def index_name(seq: int) -> str:
    """Path of the sidecar that lists a full file's extents."""
    return f"{FOLDER}/{seq:016d}.idx"


class Wal:
    """An open log positioned at its tail. Make one with ``open_wal`` (wal_recovery.py)."""

    def __init__(
        self,
        disk: Disk,
        identity: WalIdentity,
        sizes: WalSizes,
        entropy: Entropy,
        files: list[WalFile],
        tail: WalTail,
    ) -> None:
        self._disk = disk
        self._identity = identity
        self._sizes = sizes
        self._entropy = entropy
        self._files = files
        self._tail = tail
        self._spares: list[tuple[str, int]] = []
        self._housekeeping = threading.Lock()
        self._reading = threading.Lock()
        self._groups = self._frames = self._bytes = 0
        self._synced_group = (tail.group_id - 1) & 0xFFFF_FFFF
        self._checkpoint_file_seq = -1  # of the youngest synced checkpoint
        self._checkpoint_written = -1
        self.wants_checkpoint = True
        live = {index_name(file.seq) for file in files}
        for name in disk.list_folder(FOLDER):
            path = f"{FOLDER}/{name}"
            if name.startswith(_SPARE_PREFIX):
                self._adopt_spare(path)
            elif name.endswith(".tmp") or (name.endswith(".idx") and path not in live):
                disk.remove(path)

    def append(self, frames: Sequence[Frame]) -> None:
        """Write one group; it is durable after the next ``sync``.

        Raises:
            DiskFullError: a new file is needed and there is no room; nothing was written.
            OSError: the write failed; the log must not be used again.
        """
        sizes = [FRAME_HEADER_BYTES + sum(map(len, frame.body)) for frame in frames]
        size = sum(sizes)
        file = self._files[-1]
        if self.must_roll(size):
            invariant(
                SECTOR_BYTES + size <= self._sizes.file, "a group fits into a file", size=size
            )
            file = self._roll()
        tail = self._tail
        parts: list[bytes] = []
        frame_seq, prev_crc, last = tail.frame_seq, tail.prev_crc, len(frames) - 1
        position = tail.position
        for number, frame in enumerate(frames):
            header, prev_crc = encode_frame_header(
                frame,
                flags=FLAG_GROUP_END if number == last else 0,
                frame_seq=frame_seq,
                prev_crc=prev_crc,
                group=(tail.group_id, number + 1),
                nonce=file.nonce,
            )
            frame_seq += 1
            parts.append(header)
            parts.extend(frame.body)
            file.index.note(frame, position)
            position += sizes[number]
            if frame.type == FrameType.CHECKPOINT:
                self._checkpoint_written = file.seq
                self.wants_checkpoint = False
        parts.append(padding(size))
        failpoint("wal.before_write")
        file.file.write(parts, tail.position)
        self._groups += 1
        self._frames += len(frames)
        self._bytes += size
        self._tail = WalTail(
            position=tail.position + size + len(parts[-1]),
            frame_seq=frame_seq,
            prev_crc=prev_crc,
            group_id=(tail.group_id + 1) & 0xFFFF_FFFF,
        )

    def sync(self) -> None:
        """Make everything appended durable.

        Raises:
            OSError: the log must not be used again: a retried sync proves nothing.
        """
        failpoint("wal.before_sync")
        self._files[-1].file.sync_data()
        failpoint("wal.after_sync")
        self._synced_group = (self._tail.group_id - 1) & 0xFFFF_FFFF
        self._checkpoint_file_seq = self._checkpoint_written

    def mark_frame(self) -> Frame:
        """A MARK frame that names the last synced group, so that it can't pass for a torn tail."""
        name = self._synced_group.to_bytes(4, "little")
        return Frame(FrameType.MARK, 0, 0, 0, 0, 0, 0, 0, (name,))

    @property
    def has_spare(self) -> bool:
        """Whether the next file is ready."""
        return bool(self._spares)

    def must_roll(self, size: int) -> bool:
        """Whether a group of ``size`` bytes needs a new file, which takes several syncs."""
        return self._tail.position + size > self._files[-1].size

    def recycle(self, is_dead: Callable[[SegmentKey, int], bool]) -> int:
        """Turn the oldest files into spares while all they hold is dead; returns how many.

        ``is_dead(segment, offset end)``: every record of the segment below the end is durable in
        its partition store.
        """
        freed = 0
        with self._housekeeping:
            while len(self._files) > 1 and self._files[0].seq < self._checkpoint_file_seq:
                file = self._files[0]
                if not all(is_dead(segment, end) for segment, end in file.extents.items()):
                    break
                with self._reading:
                    del self._files[0]
                    file.file.close()
                self._retire(file)
                self._disk.sync_folder(FOLDER)  # one by one: the oldest file goes first
                freed += 1
            if freed:
                log.debug("wal.files.recycled", count=freed, oldest_seq=self._files[0].seq)
        return freed

    def ensure_spare(self) -> None:
        """Have a zero-filled file ready for the next roll, and a reserve beside it.

        Raises:
            DiskFullError: no room for the file; the reserve was given up, so that tables can
                still be flushed and free the files they hold up.
        """
        with self._housekeeping:
            if len(self._spares) < _SPARES_MAX:
                name, file = self._create_spare()
                file.close()
                self._spares.append((name, self._sizes.file))
            if not self._disk.exists(RESERVE) and self._has_room(self._sizes.reserve):
                try:
                    self._disk.allocate(RESERVE, self._sizes.reserve)
                except DiskFullError:
                    log.debug("wal.reserve.skipped")  # somebody else was faster

    def read_frame(self, file_seq: int, position: int) -> tuple[FrameHeader, bytes]:
        """A frame that recovery has seen at this place, checked again.

        Raises:
            LogDamaged: it has changed since; names file and byte.
        """
        file = next(item for item in self._files if item.seq == file_seq)
        header = decode_frame_header(file.file.read(FRAME_HEADER_BYTES, position))
        if header is not None:
            body = file.file.read(header.body_length, position + FRAME_HEADER_BYTES)
            if zlib.crc32(body) == header.body_crc:
                return header, body
        raise damage(file_seq, position, _CHANGED)

    def read_records(self, key: SegmentKey, lower: int, upper: int, bytes_max: int) -> Held:
        """Records of a segment in ``[lower, upper)``, at least one if ``lower`` is here, otherwise
        where the next one is. Everything below ``upper`` that is here must have been synced.

        May run on any thread. Raises LogDamaged: what was intact is not so any more.
        """
        search = Search(key, lower, upper, bytes_max)
        with self._reading:
            for file in self._files:
                if search.is_full:
                    break
                if file.index.extents.get(key, 0) > lower:
                    position = search.visit(file.index, file.file, file.nonce, file.size)
                    if position is not None:
                        raise damage(file.seq, position, _CHANGED)
        return search.found()

    def statistics(self) -> WalStatistics:
        spares = self._spares
        disk_bytes = sum(file.size for file in self._files) + sum(size for _, size in spares)
        return WalStatistics(
            len(self._files), len(spares), self._groups, self._frames, self._bytes, disk_bytes
        )

    def close(self) -> None:
        for file in self._files:
            file.file.close()

    def _roll(self) -> WalFile:
        with self._housekeeping:
            old = self._files[-1]
            if self._spares:
                name, size = self._spares.pop()
                handle = self._disk.open(name)
            else:
                name, handle = self._create_spare()
                size = self._sizes.file
            header = self._header(old.seq + 1, size)
            file = activate(self._disk, name, handle, header)
            self._files.append(file)
            try:
                self._disk.replace(index_name(old.seq), encode_index(old))
            except DiskFullError:
                log.debug("wal.index.skipped", seq=old.seq)  # opening reads the file instead
        self._tail = WalTail(
            position=SECTOR_BYTES,
            frame_seq=self._tail.frame_seq,
            prev_crc=self._tail.prev_crc,
            group_id=self._tail.group_id,
        )
        self.wants_checkpoint = True
        log.debug("wal.file.rolled", seq=file.seq)
        return file

    def _has_room(self, size: int) -> bool:
        return self._disk.free_bytes() >= size + self._sizes.free_min

    def _create_spare(self) -> tuple[str, File]:
        name = f"{FOLDER}/{_SPARE_PREFIX}{self._entropy.bits(64):016x}"
        try:
            if not self._has_room(self._sizes.file):
                raise DiskFullError(errno.ENOSPC, f"{self._disk.free_bytes()} bytes free")
            return name, self._disk.create_zeroed(name, self._sizes.file)
        except DiskFullError:
            if self._disk.exists(RESERVE):
                self._disk.remove(RESERVE)
            raise

    def _header(self, seq: int, size: int) -> FileHeader:
        return FileHeader(
            file_seq=seq,
            nonce=self._entropy.bits(32),
            file_bytes=size,
            first_frame_seq=self._tail.frame_seq,
            prev_crc=self._tail.prev_crc,
            first_group_id=self._tail.group_id,
            fingerprint=self._identity.fingerprint,
            storage_uuid=self._identity.storage_uuid,
        )

    def _retire(self, file: WalFile) -> None:
        if self._disk.exists(index_name(file.seq)):
            self._disk.remove(index_name(file.seq))
        if file.size == self._sizes.file and len(self._spares) < _SPARES_MAX:
            spare = f"{FOLDER}/{_SPARE_PREFIX}{self._entropy.bits(64):016x}"
            self._disk.rename(file_name(file.seq), spare)
            self._spares.append((spare, file.size))
        else:
            self._disk.remove(file_name(file.seq))

    def _adopt_spare(self, name: str) -> None:
        file = self._disk.open(name)
        size = file.size()
        file.close()
        if size == self._sizes.file and len(self._spares) < _SPARES_MAX:
            self._spares.append((name, size))
        else:
            self._disk.remove(name)


def activate(disk: Disk, spare: str, handle: File, header: FileHeader) -> WalFile:
    """Turn a spare into log file ``header.file_seq``: header first, then the name, both durable."""
    handle.write([encode_file_header(header)], 0)
    handle.sync_data()
    disk.rename(spare, file_name(header.file_seq))
    disk.sync_folder(FOLDER)
    return WalFile(header.file_seq, header.nonce, header.file_bytes, handle)


def encode_index(file: WalFile) -> bytes:
    """The sidecar of a full file: its extents and a CRC."""
    extents = sorted((*segment, end) for segment, end in file.extents.items())
    body = msgspec.msgpack.encode((file.seq, extents))
    return zlib.crc32(body).to_bytes(4, "little") + body


def decode_index(content: bytes, seq: int) -> dict[SegmentKey, int] | None:
    """The extents in a sidecar; None when it isn't intact or of another file."""
    if len(content) <= 4 or int.from_bytes(content[:4], "little") != zlib.crc32(content[4:]):
        return None
    written_for, extents = msgspec.msgpack.decode(content[4:], type=_Index)
    if written_for != seq:
        return None
    return {(partition, segment): end for partition, segment, end in extents}


def damage(seq: int, position: int, reason: str) -> LogDamaged:
    """The error that names the place of damage."""
    return LogDamaged(
        f"{file_name(seq)} is damaged at byte {position}: {reason}. Synced records are lost, so "
        "this node refuses to start; restore the data directory from a backup or wipe it"
    )


def iterate_names(disk: Disk) -> Iterator[int]:
    """Sequence numbers of the log files on the disk, ascending."""
    for name in disk.list_folder(FOLDER):
        stem, dot, kind = name.partition(".")
        if dot and kind == "log" and stem.isdigit():
            yield int(stem)
