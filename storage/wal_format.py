"""Bytes of the write-ahead log: file header, frame header, record. Pure; golden files in tests.

A *file* is one sector of header, then groups. A *group* is what one write and one sync cover: its
frames back to back, starting on a sector, zero bytes up to the next. A *frame* is a 78-byte header
and a body; a STORE body is records back to back. Little-endian throughout.

Every frame header carries the CRC of the header before it (a chain over the whole log, across
files), a dense sequence number, and the nonce of its file, so that neither the old content of a
recycled file nor the rest of a torn group can pass for a continuation.
"""

import struct
import zlib
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from perdure.core.limits import SECTOR_BYTES

WAL_FORMAT_VERSION = 1
FRAME_VERSION = 1
FRAME_MAGIC = b"PDFR"
FILE_MAGIC = b"PDWAL\r\n\x1a"

# magic, version, type, flags, frame seq, previous header CRC, group id, group count, file nonce,
# partition, segment, epoch, incarnation, first offset, count, kgt, body length, body CRC.
_FRAME = struct.Struct("<4sBBHQIIHIIIQQIIIII")
_U32 = struct.Struct("<I")
FRAME_HEADER_BYTES = _FRAME.size + _U32.size
# magic, format, flags, file seq, nonce, file size, first frame seq, previous header CRC,
# first group id, fingerprint, storage uuid.
_FILE = struct.Struct("<8sHHQIQQII16s16s")
# length, flags, kind, lsn, epoch, created at (ms), producer kind, then the producer's id.
_RECORD_HEAD = struct.Struct("<IHHQQQB")
# producer sequence, key hash.
_RECORD_TAIL = struct.Struct("<QQ")

FLAG_GROUP_END = 0x0001


class FrameType(IntEnum):
    """What a frame does to the replica named in its header. Numbers are never reused."""

    STORE = 1
    REPAIR = 2
    SEAL = 3
    TRIM = 4
    CLOSE = 5
    PIN = 6
    KGT = 7
    CHECKPOINT = 8
    NOOP = 9
    MARK = 10  # names the last synced group, see storage/DESIGN.md


class Frame(NamedTuple):
    """What the replica core asks to be written; the log adds sequence, chain and checksums.

    ``kgt``, ``first_offset`` and ``record_count`` are u32 loglet offsets; ``body`` parts are
    joined.
    """

    type: int
    partition: int
    segment: int
    epoch: int
    incarnation: int
    first_offset: int
    record_count: int
    kgt: int
    body: tuple[bytes, ...]


class FrameHeader(NamedTuple):
    """A frame header as read back; ``version`` may be one that this release can't read."""

    version: int
    type: int
    flags: int
    frame_seq: int
    prev_crc: int
    group_id: int
    group_count: int
    nonce: int
    partition: int
    segment: int
    epoch: int
    incarnation: int
    first_offset: int
    record_count: int
    kgt: int
    body_length: int
    body_crc: int
    header_crc: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FileHeader:
    """The first sector of a log file."""

    format: int = WAL_FORMAT_VERSION
    file_seq: int
    nonce: int
    file_bytes: int
    first_frame_seq: int
    prev_crc: int
    first_group_id: int
    fingerprint: bytes
    storage_uuid: bytes


class ProducerKind(IntEnum):
    """Who asked for a record; decides how repeats are recognised."""

    OWN = 0  # the partition's own leader: the record names what it refers to
    PARTITION = 1  # another partition's outbox: dense sequence per source


class Record(NamedTuple):
    """One record of a log: the payload is opaque here. The CRC travels with it end to end."""

    lsn: int
    epoch: int
    kind: int
    created_at_ms: int
    producer_kind: int
    producer_id: int
    producer_seq: int
    key_hash: int
    payload: bytes


def encode_file_header(header: FileHeader) -> bytes:
    """One sector."""
    packed = _FILE.pack(
        FILE_MAGIC,
        header.format,
        0,
        header.file_seq,
        header.nonce,
        header.file_bytes,
        header.first_frame_seq,
        header.prev_crc,
        header.first_group_id,
        header.fingerprint,
        header.storage_uuid,
    )
    packed += _U32.pack(zlib.crc32(packed))
    return packed.ljust(SECTOR_BYTES, b"\0")


def decode_file_header(sector: bytes) -> FileHeader | None:
    """The header, or None when the sector is not one that was written whole.

    Later formats keep these fields and this checksum where they are and add behind them, so the
    ``format`` of any release can be read.
    """
    if len(sector) < _FILE.size + 4 or sector[: len(FILE_MAGIC)] != FILE_MAGIC:
        return None
    if _U32.unpack_from(sector, _FILE.size)[0] != zlib.crc32(sector[: _FILE.size]):
        return None
    _, version, _, seq, nonce, size, first, prev, group, fingerprint, uuid = _FILE.unpack_from(
        sector
    )
    return FileHeader(
        format=version,
        file_seq=seq,
        nonce=nonce,
        file_bytes=size,
        first_frame_seq=first,
        prev_crc=prev,
        first_group_id=group,
        fingerprint=fingerprint,
        storage_uuid=uuid,
    )


def encode_frame_header(
    frame: Frame, *, flags: int, frame_seq: int, prev_crc: int, group: tuple[int, int], nonce: int
) -> tuple[bytes, int]:
    """The 78 bytes in front of ``frame.body``, and their CRC for the next frame's chain.

    ``group`` is (group id, number of frames in the group); the number counts on the last frame.
    """
    body_crc = 0
    body_length = 0
    for part in frame.body:
        body_crc = zlib.crc32(part, body_crc)
        body_length += len(part)
    packed = _FRAME.pack(
        FRAME_MAGIC,
        FRAME_VERSION,
        frame.type,
        flags,
        frame_seq,
        prev_crc,
        group[0],
        group[1],
        nonce,
        frame.partition,
        frame.segment,
        frame.epoch,
        frame.incarnation,
        frame.first_offset,
        frame.record_count,
        frame.kgt,
        body_length,
        body_crc,
    )
    crc = zlib.crc32(packed)
    return packed + _U32.pack(crc), crc


def decode_frame_header(buffer: bytes, offset: int = 0) -> FrameHeader | None:
    """The header at ``offset``, or None when there is no intact one."""
    if len(buffer) - offset < FRAME_HEADER_BYTES or buffer[offset : offset + 4] != FRAME_MAGIC:
        return None
    crc = _U32.unpack_from(buffer, offset + _FRAME.size)[0]
    if crc != zlib.crc32(buffer[offset : offset + _FRAME.size]):
        return None
    _, *fields = _FRAME.unpack_from(buffer, offset)
    return FrameHeader._make((*fields, crc))


def encode_record(record: Record) -> bytes:
    """The record with its length in front and its CRC behind."""
    producer_bytes = 8 if record.producer_kind == ProducerKind.PARTITION else 0
    length = _RECORD_HEAD.size + producer_bytes + _RECORD_TAIL.size + len(record.payload)
    head = _RECORD_HEAD.pack(
        length,  # what follows the length field: head without it (-4), CRC (+4)
        0,
        record.kind,
        record.lsn,
        record.epoch,
        record.created_at_ms,
        record.producer_kind,
    )
    if producer_bytes:
        head += record.producer_id.to_bytes(8, "little")
    head += _RECORD_TAIL.pack(record.producer_seq, record.key_hash)
    crc = zlib.crc32(record.payload, zlib.crc32(head))
    return b"".join((head, record.payload, _U32.pack(crc)))


class RecordDamaged(ValueError):
    """A record's checksum or length is wrong."""


def decode_record(buffer: bytes, offset: int) -> tuple[Record, int]:
    """The record at ``offset`` and the offset behind it.

    Raises:
        RecordDamaged: cut short, or the checksum doesn't match.
    """
    if len(buffer) - offset < _RECORD_HEAD.size + _RECORD_TAIL.size + 4:
        raise RecordDamaged(f"record at byte {offset} is cut short")
    fields = _RECORD_HEAD.unpack_from(buffer, offset)
    length, _, kind, lsn, epoch, created_at_ms, producer_kind = fields
    end = offset + 4 + length
    producer_bytes = 8 if producer_kind == ProducerKind.PARTITION else 0
    smallest = _RECORD_HEAD.size + producer_bytes + _RECORD_TAIL.size
    if end > len(buffer) or length < smallest:
        raise RecordDamaged(f"record at byte {offset} is cut short")
    if zlib.crc32(buffer[offset : end - 4]) != _U32.unpack_from(buffer, end - 4)[0]:
        raise RecordDamaged(f"record at byte {offset} has a wrong checksum")
    position = offset + _RECORD_HEAD.size
    producer_id = 0
    if producer_bytes:
        producer_id = int.from_bytes(buffer[position : position + 8], "little")
        position += producer_bytes
    producer_seq, key_hash = _RECORD_TAIL.unpack_from(buffer, position)
    payload = buffer[position + _RECORD_TAIL.size : end - 4]
    record = Record(
        lsn,
        epoch,
        kind,
        created_at_ms,
        producer_kind,
        producer_id,
        producer_seq,
        key_hash,
        payload,
    )
    return record, end


def padding(size: int) -> bytes:
    """Zero bytes that bring ``size`` to the next sector."""
    return bytes(-size % SECTOR_BYTES)
