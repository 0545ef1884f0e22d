"""Frames: what went in comes out, once and in order, or the wire is given up."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.framing import (
    PIECE_HEADER_BYTES,
    SEAL_BYTES,
    BadFrame,
    Op,
    Sealer,
    Unsealer,
    pieces_of,
)
from perdure.core import limits

KEY = b"k" * 32
Said = tuple[Op, int, int, bytes]

said = st.tuples(
    st.sampled_from([op for op in Op if op is not Op.PART]),
    st.integers(0, 0xFFFF),
    st.integers(0, 0xFFFF_FFFF),
    st.binary(max_size=100),
)


def frame_of(messages: list[Said], sealer: Sealer) -> bytes:
    parts = [part for message in messages for piece in pieces_of(*message) for part in piece]
    return sealer.frame(parts)


def read(frame: bytes, unsealer: Unsealer) -> list[Said]:
    found = unsealer.messages(frame)
    return [(op, kind, number, bytes(payload)) for op, kind, number, payload in found]


@given(frames=st.lists(st.lists(said)), key=st.sampled_from([None, KEY]))
def test_what_went_in_comes_out(frames: list[list[Said]], key: bytes | None) -> None:
    sealer, unsealer = Sealer(key), Unsealer(key)
    for messages in frames:
        assert read(frame_of(messages, sealer), unsealer) == messages


@pytest.mark.parametrize("extra", [-1, 0, 1, limits.FABRIC_PIECE_BYTES_MAX])
def test_long_messages_travel_in_pieces(extra: int) -> None:
    payload = bytes(range(256)) * (limits.FABRIC_PIECE_BYTES_MAX // 256) + b"x" * extra
    payload = payload[: limits.FABRIC_PIECE_BYTES_MAX + extra]
    pieces = pieces_of(Op.SAY, 7, 9, payload)
    assert all(len(body) <= limits.FABRIC_PIECE_BYTES_MAX for _, body in pieces)
    unsealer, found = Unsealer(None), list[Said]()
    for piece in pieces:
        found += read(Sealer(None).frame(piece), unsealer)
    assert found == [(Op.SAY, 7, 9, payload)]


@given(st.lists(said, min_size=1), st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(messages: list[Said], at: int, change: int) -> None:
    frame = bytearray(frame_of(messages, Sealer(KEY)))
    frame[at % len(frame)] ^= change
    with pytest.raises(BadFrame):
        read(bytes(frame), Unsealer(KEY))


def test_frames_are_taken_once_and_in_order() -> None:
    sealer = Sealer(KEY)
    first, second = (frame_of([(Op.SAY, 1, 0, text)], sealer) for text in (b"a", b"b"))
    for wrong in ([second], [first, first], [first, second, first]):
        unsealer = Unsealer(KEY)
        with pytest.raises(BadFrame):
            for frame in wrong:
                read(frame, unsealer)
    with pytest.raises(BadFrame):
        read(first, Unsealer(b"another key" * 3))
    with pytest.raises(BadFrame):
        read(first[:-SEAL_BYTES], Unsealer(KEY))


@given(st.binary(max_size=300))
def test_garbage_is_messages_or_refused(frame: bytes) -> None:
    try:
        found = read(frame, Unsealer(None))
    except BadFrame:
        return
    assert len(frame) >= len(found) * PIECE_HEADER_BYTES


def test_a_message_without_an_end_is_given_up() -> None:
    unsealer = Unsealer(None)
    part = pieces_of(Op.SAY, 1, 0, bytes(limits.FABRIC_PIECE_BYTES_MAX + 1))[0]
    frame = Sealer(None).frame(part)
    with pytest.raises(BadFrame):
        for _ in range(limits.FABRIC_MESSAGE_BYTES_MAX // limits.FABRIC_PIECE_BYTES_MAX + 2):
            read(frame, unsealer)


def test_empty_pieces_do_not_pile_up() -> None:
    header = pieces_of(Op.SAY, 1, 0, b"")[0][0]
    empty_part = header[:4] + bytes([Op.PART]) + header[5:]
    with pytest.raises(BadFrame):
        read(empty_part, Unsealer(None))


def test_a_frame_over_the_limit_is_not_looked_at() -> None:
    with pytest.raises(BadFrame):
        read(bytes(limits.FABRIC_FRAME_BYTES_MAX + 1), Unsealer(None))
