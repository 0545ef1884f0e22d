"""Frames of a wire: messages of one turn of the loop behind each other, sealed if there is a key.

A frame is a row of pieces, each ``length u32 | op u8 | kind u16 | number u32 | payload``, and then,
where messages are sealed, 16 bytes: BLAKE2b under the session's key for this direction over the
frame's number and its pieces. Frames are counted on both sides, so one that was changed, repeated,
left out or moved doesn't fit. A message that is longer than a piece goes out as PART pieces; the
last piece tells what it is.
"""

import hmac
from collections.abc import Iterator, Sequence
from enum import IntEnum
from hashlib import blake2b
from struct import Struct

from perdure.core import limits

_PIECE = Struct("<IBHI")
_COUNT = Struct("<Q")
PIECE_HEADER_BYTES = _PIECE.size
SEAL_BYTES = 16

Payload = bytes | memoryview
Piece = tuple[bytes, Payload]
"""A header and what follows it."""


class Op(IntEnum):
    """What a message is to its session."""

    SAY = 0  # one way; ``number``: 0
    ASK = 1  # ``number`` will be named by the answer
    ANSWER = 2
    FAILED = 3  # answer to an ASK, or end of a stream: an error
    PING = 4  # nothing, so that the other side hears something
    PART = 5
    CREDIT = 6  # stream: ``number`` more bytes may come
    END = 7  # stream: that was all


_OPS = {int(op): op for op in Op}


class BadFrame(Exception):
    """Not what a node sends: garbage, too long, or with a seal that doesn't fit."""


def pieces_of(op: Op, kind: int, number: int, payload: bytes) -> list[Piece]:
    """A message as one or more pieces."""
    size = limits.FABRIC_PIECE_BYTES_MAX
    if len(payload) <= size:
        return [(_PIECE.pack(len(payload), op, kind, number), payload)]
    view = memoryview(payload)
    last = (len(payload) - 1) // size * size
    pieces: list[Piece] = [
        (_PIECE.pack(size, Op.PART, 0, 0), view[at : at + size]) for at in range(0, last, size)
    ]
    rest = view[last:]
    pieces.append((_PIECE.pack(len(rest), op, kind, number), rest))
    return pieces


class Sealer:
    """Makes frames of one direction. Without a key they are as they are."""

    __slots__ = ("_count", "_key")

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self._count = 0

    def frame(self, parts: Sequence[Payload]) -> bytes:
        """The next frame."""
        if self._key is None:
            return b"".join(parts)
        body = b"".join(parts)
        seal = _seal(self._key, self._count, body)
        self._count += 1
        return body + seal


class Unsealer:
    """Takes frames of one direction apart; the only judge of what comes in."""

    __slots__ = ("_count", "_held", "_key", "_parts")

    def __init__(self, key: bytes | None) -> None:
        self._key = key
        self._count = 0
        self._parts: list[bytes] = []
        self._held = 0

    def messages(self, frame: bytes) -> Iterator[tuple[Op, int, int, Payload]]:
        """Operation, kind, number and payload of each message; payloads live as long as the frame.

        Raises:
            BadFrame: the wire can't be trusted any more.
        """
        end = len(frame)
        if end > limits.FABRIC_FRAME_BYTES_MAX:
            raise BadFrame(f"a frame of {end} bytes")
        if self._key is not None:
            end -= SEAL_BYTES
            if end < 0 or not hmac.compare_digest(
                frame[end:], _seal(self._key, self._count, memoryview(frame)[:end])
            ):
                raise BadFrame("a frame without a proper seal")
            self._count += 1
        view, at = memoryview(frame), 0
        while at < end:
            start = at + PIECE_HEADER_BYTES
            if start > end:
                raise BadFrame("half a header")
            length, code, kind, number = _PIECE.unpack_from(frame, at)
            at = start + length
            op = _OPS.get(code)
            if at > end or op is None:
                raise BadFrame("a piece that is none")
            if op is Op.PART:
                self._hold(view[start:at])
            elif self._parts:
                self._hold(view[start:at])
                whole, self._parts, self._held = b"".join(self._parts), [], 0
                yield op, kind, number, whole
            else:
                yield op, kind, number, view[start:at]

    def _hold(self, part: memoryview) -> None:
        self._held += len(part)
        if self._held > limits.FABRIC_MESSAGE_BYTES_MAX or not part:
            raise BadFrame(f"a message of more than {limits.FABRIC_MESSAGE_BYTES_MAX} bytes")
        self._parts.append(bytes(part))


def _seal(key: bytes, count: int, body: Payload) -> bytes:
    digest = blake2b(_COUNT.pack(count), key=key, digest_size=SEAL_BYTES)
    digest.update(body)
    return digest.digest()
