"""The bytes of the log: golden bytes, round trips, and what is not taken for a record."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.core.limits import SECTOR_BYTES
from perdure.storage.wal_format import (
    FLAG_GROUP_END,
    FRAME_HEADER_BYTES,
    FileHeader,
    Frame,
    FrameType,
    ProducerKind,
    Record,
    RecordDamaged,
    decode_file_header,
    decode_frame_header,
    decode_record,
    encode_file_header,
    encode_frame_header,
    encode_record,
    padding,
)

GOLDEN = Path(__file__).parent / "golden" / "wal_format.txt"
U64 = st.integers(0, 2**64 - 1)

FILE_HEADER = FileHeader(
    file_seq=7,
    nonce=0x01020304,
    file_bytes=64 * 1024 * 1024,
    first_frame_seq=1234,
    prev_crc=0xDEADBEEF,
    first_group_id=55,
    fingerprint=bytes(range(16)),
    storage_uuid=bytes(range(100, 116)),
)
OWN_RECORD = Record(41, 3, 1, 1_700_000_000_123, ProducerKind.OWN, 0, 0, 0x1122334455667788, b"own")
SENT_RECORD = Record(42, 3, 1, 1_700_000_000_124, ProducerKind.PARTITION, 5, 17, 9, b"sent\x00")


def _frame(records: tuple[bytes, ...]) -> Frame:
    return Frame(FrameType.STORE, 2, 4, 3, 0xABCDEF, 40, len(records), 39, records)


def _written() -> dict[str, bytes]:
    records = (encode_record(OWN_RECORD), encode_record(SENT_RECORD))
    header, crc = encode_frame_header(
        _frame(records), flags=0, frame_seq=1234, prev_crc=0xDEADBEEF, group=(55, 1), nonce=9
    )
    seal = Frame(FrameType.SEAL, 2, 4, 3, 0xABCDEF, 42, 0, 42, ((4).to_bytes(8, "little"),))
    last, _ = encode_frame_header(
        seal, flags=FLAG_GROUP_END, frame_seq=1235, prev_crc=crc, group=(55, 2), nonce=9
    )
    return {
        "file header": encode_file_header(FILE_HEADER).rstrip(b"\0"),
        "record of the leader": records[0],
        "record of another partition": records[1],
        "store frame header": header,
        "seal frame header": last,
    }


def test_format_one_is_written_as_ever() -> None:
    golden = dict(
        line.split(": ") for line in GOLDEN.read_text().splitlines() if not line.startswith("#")
    )
    assert {name: data.hex() for name, data in _written().items()} == golden


def test_format_one_is_read_as_ever() -> None:
    golden = {
        name: bytes.fromhex(text)
        for name, text in (
            line.split(": ") for line in GOLDEN.read_text().splitlines() if line[0] != "#"
        )
    }
    sector = golden["file header"].ljust(SECTOR_BYTES, b"\0")
    assert decode_file_header(sector) == FILE_HEADER
    own = golden["record of the leader"]
    assert decode_record(own, 0) == (OWN_RECORD, len(own))
    sent = golden["record of another partition"]
    assert decode_record(sent, 0) == (SENT_RECORD, len(sent))
    header = decode_frame_header(golden["store frame header"])
    assert header is not None
    assert header.version == 1
    assert (header.type, header.flags) == (FrameType.STORE, 0)
    assert (header.frame_seq, header.prev_crc) == (1234, 0xDEADBEEF)
    assert (header.group_id, header.group_count, header.nonce) == (55, 1, 9)
    assert (header.partition, header.segment) == (2, 4)
    assert (header.epoch, header.incarnation) == (3, 0xABCDEF)
    assert (header.first_offset, header.record_count, header.kgt) == (40, 2, 39)
    assert header.body_length == len(own) + len(sent)
    seal = decode_frame_header(golden["seal frame header"])
    assert seal is not None
    assert (seal.type, seal.flags) == (FrameType.SEAL, FLAG_GROUP_END)
    assert seal.prev_crc == header.header_crc


RECORDS = st.one_of(
    [
        st.builds(
            Record,
            lsn=U64,
            epoch=U64,
            kind=st.integers(0, 2**16 - 1),
            created_at_ms=U64,
            producer_kind=st.just(int(kind)),
            producer_id=U64 if kind is ProducerKind.PARTITION else st.just(0),
            producer_seq=U64,
            key_hash=U64,
            payload=st.binary(max_size=200),
        )
        for kind in ProducerKind
    ]
)


@given(RECORDS, st.binary(max_size=20), st.binary(max_size=20))
def test_records_come_back(record: Record, before: bytes, behind: bytes) -> None:
    encoded = encode_record(record)
    found, end = decode_record(before + encoded + behind, len(before))
    assert found == record
    assert end == len(before) + len(encoded)


@pytest.mark.parametrize("record", [OWN_RECORD, SENT_RECORD])
def test_no_changed_or_cut_record_is_taken(record: Record) -> None:
    encoded = encode_record(record)
    for position in range(len(encoded)):
        with pytest.raises(RecordDamaged):
            decode_record(encoded[:position], 0)
        for bit in range(8):
            changed = bytearray(encoded)
            changed[position] ^= 1 << bit
            with pytest.raises(RecordDamaged):
                decode_record(bytes(changed), 0)


def test_zeros_are_no_record() -> None:
    with pytest.raises(RecordDamaged):
        decode_record(bytes(200), 0)


def test_no_changed_header_is_taken() -> None:
    sector = encode_file_header(FILE_HEADER)
    header, _ = encode_frame_header(
        _frame(()), flags=0, frame_seq=1, prev_crc=0, group=(1, 1), nonce=1
    )
    used = len(sector.rstrip(b"\0"))
    for position in range(used):
        changed = bytearray(sector)
        changed[position] ^= 0x10
        assert decode_file_header(bytes(changed)) is None
    for position in range(FRAME_HEADER_BYTES):
        damaged = bytearray(header)
        damaged[position] ^= 0x10
        assert decode_frame_header(bytes(damaged)) is None
    assert decode_frame_header(header[:-1]) is None
    assert decode_file_header(sector[: used - 1]) is None


@given(st.integers(0, 10_000))
def test_padding_reaches_the_next_sector(size: int) -> None:
    padded = size + len(padding(size))
    assert padded % SECTOR_BYTES == 0
    assert 0 <= padded - size < SECTOR_BYTES
