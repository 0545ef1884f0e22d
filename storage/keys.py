"""The ordered key codec: byte strings that sort as the tuples they stand for. Pure.

A pair of texts is escaped (0x00 becomes 0x00FF) and terminated (0x0000), so that pairs sort as
tuples and none is a prefix of another. LMDB keys are short: what would exceed the room keeps its
head and ends in a SHA-256 of the whole, which preserves uniqueness, and order up to the head. In a
group, 0x0001 stands between the two: no escaped text has it, so a group in full, whatever its text,
is never a prefix of a hashed one.
"""

import hashlib

from perdure.core.ids import INVOCATION_ID_BYTES, InvocationId
from perdure.core.limits import LMDB_KEY_BYTES_MAX

GROUP_BYTES_MAX = 248
SUFFIX_BYTES_MAX = 248  # and one byte more where kinds of suffixes share a table
_HASH_BYTES = 32
_UUID_BYTES = 16
_PARTITION_KEY_BYTES = INVOCATION_ID_BYTES - _UUID_BYTES
_TERMINATOR = b"\x00\x00"
_HASHED = b"\x00\x01"

# One byte of table number goes in front of group and suffix.
assert 1 + GROUP_BYTES_MAX + SUFFIX_BYTES_MAX + 1 <= LMDB_KEY_BYTES_MAX


def object_group(service: str, key: str) -> bytes:
    """The group of everything that belongs to one virtual object or workflow key."""
    encoded = _escape(service) + _escape(key)
    if len(encoded) < GROUP_BYTES_MAX:
        return encoded
    room = GROUP_BYTES_MAX - len(_HASHED) - _HASH_BYTES
    # An escape cut in half could join up with the marker.
    head = encoded[:room].rstrip(b"\x00")
    marker = _HASHED.ljust(len(_HASHED) + room - len(head), b"\x01")
    return head + marker + hashlib.sha256(encoded).digest()


def split_object_group(group: bytes) -> tuple[str, str] | None:
    """Service and key of a group; None when it ends in a hash and can't tell."""
    if is_hashed_group(group):
        return None
    service, end = _unescape(group, 0)
    if service is None:
        return None
    key, end = _unescape(group, end)
    if key is None or end != len(group):
        return None
    return service, key


def is_hashed_group(group: bytes) -> bool:
    """Whether the group lost its names: plain ones are shorter than the room."""
    return len(group) == GROUP_BYTES_MAX


def group_bytes(key: bytes) -> int:
    """How long the group is that a key of an object's row begins with."""
    position = -1
    terminators = 0
    while terminators < 2:
        position = key.find(b"\x00", position + 1)
        follower = key[position + 1 : position + 2]
        if position < 0 or follower == _HASHED[1:]:
            return GROUP_BYTES_MAX
        position += 1
        terminators += follower == b"\x00"
    return position + 1


def service_prefix(service: str) -> bytes:
    """What the groups of a service's objects begin with."""
    encoded = _escape(service)
    room = GROUP_BYTES_MAX - len(_HASHED) - _HASH_BYTES
    # A head that is cut just behind the terminator loses it.
    return encoded if len(encoded) + 2 <= room else encoded[:room].rstrip(b"\x00")


def text_suffix(text: str) -> bytes:
    """A promise's name below its workflow's group."""
    return _fit(text.encode(), SUFFIX_BYTES_MAX)


def state_suffix(key: bytes) -> bytes:
    """A state key below its object's group."""
    return _fit(key, SUFFIX_BYTES_MAX)


def index_suffix(index: int) -> bytes:
    """A u32 ordinal below an invocation."""
    return index.to_bytes(4)


def sequence_suffix(sequence: int) -> bytes:
    """A u64 ordinal below an object."""
    return sequence.to_bytes(8)


def invocation_key(invocation_id: InvocationId | bytes) -> bytes:
    """What the rows of an invocation are filed under: its uuid, then its partition key.

    The uuids of fresh invocations begin with their time, so what is new stands side by side. See
    DESIGN.md.
    """
    return invocation_id[_PARTITION_KEY_BYTES:] + invocation_id[:_PARTITION_KEY_BYTES]


def split_invocation_key(key: bytes) -> InvocationId:
    """The invocation that a key in the tables begins with."""
    return InvocationId(key[_UUID_BYTES:INVOCATION_ID_BYTES] + key[:_UUID_BYTES])


def timer_key(fire_at_ms: int, kind: int, invocation_id: InvocationId, number: int) -> bytes:
    """Timers sort by time (u64 ms); then kind (u8), invocation and number (u32) tell them apart."""
    filed = invocation_key(invocation_id)
    return b"".join((fire_at_ms.to_bytes(8), kind.to_bytes(1), filed, number.to_bytes(4)))


def split_timer_key(key: bytes) -> tuple[int, int, InvocationId, int]:
    """Time in ms, kind, invocation and number of a timer."""
    return (
        int.from_bytes(key[:8]),
        key[8],
        split_invocation_key(key[9:33]),
        int.from_bytes(key[33:37]),
    )


def outbox_key(target_partition: int, sequence: int) -> bytes:
    """Messages to one partition sort by their sequence."""
    return target_partition.to_bytes(4) + sequence.to_bytes(8)


def split_outbox_key(key: bytes) -> tuple[int, int]:
    """Target partition and sequence of an outbox message."""
    return int.from_bytes(key[:4]), int.from_bytes(key[4:12])


def after_prefix(prefix: bytes) -> bytes:
    """The smallest key behind every key that starts with ``prefix``."""
    head = prefix.rstrip(b"\xff")
    if not head:
        return b"\xff" * (LMDB_KEY_BYTES_MAX + 1)
    return head[:-1] + bytes((head[-1] + 1,))


def _escape(text: str) -> bytes:
    return text.encode().replace(b"\x00", b"\x00\xff") + _TERMINATOR


def _unescape(buffer: bytes, start: int) -> tuple[str | None, int]:
    position = start
    while True:
        position = buffer.find(b"\x00", position)
        if position < 0 or position + 1 >= len(buffer):
            return None, 0
        if buffer[position + 1] == 0:
            break
        position += 2
    try:
        text = buffer[start:position].replace(b"\x00\xff", b"\x00").decode()
    except UnicodeDecodeError:
        return None, 0
    return text, position + 2


def _fit(encoded: bytes, room: int) -> bytes:
    if len(encoded) < room:
        return encoded
    return encoded[: room - _HASH_BYTES] + hashlib.sha256(encoded).digest()
