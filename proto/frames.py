"""The frame codec of the service protocol: sans-IO, bytes in, frames out.

A frame is an 8-byte header (u16 type, u16 flags, u32 payload length, big-endian) and a payload.
Frames may be cut anywhere by the transport; the length is checked against the limit on the header,
before any payload is buffered.
"""

import struct
from enum import IntEnum
from typing import NamedTuple

HEADER_BYTES = 8
REQUESTED_ACK = 0x8000
_HEADER = struct.Struct(">HHI")


class MessageType(IntEnum):
    """Type codes of the service protocol, versions 5 to 7."""

    START = 0x0000
    SUSPENSION = 0x0001
    ERROR = 0x0002
    END = 0x0003
    COMMAND_ACK = 0x0004
    PROPOSE_RUN_COMPLETION = 0x0005
    AWAITING_ON = 0x0006
    PROPOSE_RUN_COMPLETION_ACK = 0x0007

    INPUT_COMMAND = 0x0400
    OUTPUT_COMMAND = 0x0401
    GET_LAZY_STATE_COMMAND = 0x0402
    SET_STATE_COMMAND = 0x0403
    CLEAR_STATE_COMMAND = 0x0404
    CLEAR_ALL_STATE_COMMAND = 0x0405
    GET_LAZY_STATE_KEYS_COMMAND = 0x0406
    GET_EAGER_STATE_COMMAND = 0x0407
    GET_EAGER_STATE_KEYS_COMMAND = 0x0408
    GET_PROMISE_COMMAND = 0x0409
    PEEK_PROMISE_COMMAND = 0x040A
    COMPLETE_PROMISE_COMMAND = 0x040B
    SLEEP_COMMAND = 0x040C
    CALL_COMMAND = 0x040D
    ONE_WAY_CALL_COMMAND = 0x040E
    SEND_SIGNAL_COMMAND = 0x0410
    RUN_COMMAND = 0x0411
    ATTACH_INVOCATION_COMMAND = 0x0412
    GET_INVOCATION_OUTPUT_COMMAND = 0x0413
    COMPLETE_AWAKEABLE_COMMAND = 0x0414

    GET_LAZY_STATE_COMPLETION = 0x8002
    GET_LAZY_STATE_KEYS_COMPLETION = 0x8006
    GET_PROMISE_COMPLETION = 0x8009
    PEEK_PROMISE_COMPLETION = 0x800A
    COMPLETE_PROMISE_COMPLETION = 0x800B
    SLEEP_COMPLETION = 0x800C
    CALL_COMPLETION = 0x800D
    CALL_INVOCATION_ID_COMPLETION = 0x800E
    RUN_COMPLETION = 0x8011
    ATTACH_INVOCATION_COMPLETION = 0x8012
    GET_INVOCATION_OUTPUT_COMPLETION = 0x8013
    SIGNAL_NOTIFICATION = 0xFBFF


COMMAND_FIRST = 0x0400
NOTIFICATION_FIRST = 0x8000
CUSTOM_FIRST = 0xFC00


def is_command(type_code: int) -> bool:
    """Commands count for the command index; notifications don't."""
    return COMMAND_FIRST <= type_code < NOTIFICATION_FIRST


class Frame(NamedTuple):
    """One message: its type code, its raw flags, its serialized payload."""

    type: int
    flags: int
    payload: bytes


class Oversize(NamedTuple):
    """A header announced a payload at or over the limit."""

    type: int
    length: int


def encode_frame(type_code: int, payload: bytes, flags: int = 0) -> bytes:
    """Header and payload in one piece."""
    return _HEADER.pack(type_code, flags, len(payload)) + payload


def encode_header(type_code: int, length: int, flags: int = 0) -> bytes:
    """A header alone, for payloads that are sent without being copied."""
    return _HEADER.pack(type_code, flags, length)


class FrameReader:
    """Cuts a byte stream into frames; keeps at most one incomplete frame."""

    __slots__ = ("_limit", "_missing", "_parts", "_size", "oversize")

    def __init__(self, limit_bytes: int) -> None:
        self._limit = limit_bytes
        self._parts: list[bytes] = []
        self._size = 0
        self._missing = HEADER_BYTES
        self.oversize: Oversize | None = None

    @property
    def is_between_frames(self) -> bool:
        """Whether everything fed so far came out: ending here cuts no frame."""
        return self._size == 0

    def feed(self, chunk: bytes) -> list[Frame]:
        """The frames that ``chunk`` completes.

        A header that announces ``limit_bytes`` or more sets ``oversize``; the frames before it
        still come out, and nothing after it ever does.
        """
        if self.oversize is not None:
            return []
        if self._parts:
            self._parts.append(chunk)
            self._size += len(chunk)
            if self._size < self._missing:
                return []
            chunk = b"".join(self._parts)
            self._parts.clear()
            self._size = 0
        return self._cut(chunk)

    def _cut(self, chunk: bytes) -> list[Frame]:
        frames: list[Frame] = []
        position, end = 0, len(chunk)
        while end - position >= HEADER_BYTES:
            type_code, flags, length = _HEADER.unpack_from(chunk, position)
            if length >= self._limit:
                self.oversize = Oversize(type_code, length)
                return frames
            after = position + HEADER_BYTES + length
            if after > end:
                self._missing = HEADER_BYTES + length
                break
            frames.append(Frame(type_code, flags, chunk[position + HEADER_BYTES : after]))
            position = after
        else:
            self._missing = HEADER_BYTES
        if position < end:
            rest = chunk[position:] if position else chunk
            self._parts.append(rest)
            self._size = len(rest)
        return frames
