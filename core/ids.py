"""Identifiers: their raw form (bytes, in tables and on the wire) and their text form (for people).

Text is ``<prefix>_1<payload>``; the payload is base 62 (digits, lower case, upper case) of the
integer read little-endian from its big-endian bytes, padded to a fixed width, or, for awakeables,
unpadded base64url. Golden vectors: tests/core/test_ids.py.
"""

import base64
import binascii
from functools import lru_cache
from typing import NewType

InvocationId = NewType("InvocationId", bytes)
"""24 raw bytes: partition key u64 BE, uuid u128 BE. SDKs slice it, so the layout is a contract."""

PartitionId = NewType("PartitionId", int)
"""Number of a partition, from 0."""

INVOCATION_ID_BYTES = 24
_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
_DIGITS = {letter: value for value, letter in enumerate(_ALPHABET)}
# Two letters at a time halve the divisions of the hottest encoder.
_PAIRS = [high + low for high in _ALPHABET for low in _ALPHABET]
_WIDTH_U64 = 11
_WIDTH_U128 = 22
_VERSION = "1"
_RESOURCES = frozenset({"inv", "dp", "sub", "snap", "mut", "sign", "prom", "vq"})


class IdError(ValueError):
    """A text is not the identifier it should be; the message is the reason, fit for users."""


def make_invocation_id(partition_key: int, uuid: int) -> InvocationId:
    """The raw id of a u64 partition key and a u128 uuid."""
    return InvocationId(partition_key.to_bytes(8) + uuid.to_bytes(16))


def partition_key_of(invocation_id: InvocationId) -> int:
    """The u64 that decides which partition holds the invocation."""
    return int.from_bytes(invocation_id[:8])


def partition_of(partition_key: int, partition_count: int) -> PartitionId:
    """The partition of a key: ``partition_count`` equal contiguous ranges of the u64 space."""
    return PartitionId(partition_key * partition_count >> 64)


@lru_cache(maxsize=1024)
def format_invocation_id(invocation_id: InvocationId) -> str:
    """``inv_1…``, 38 characters. An invocation's id is wanted several times in a short while."""
    return f"inv_{_VERSION}{_b62(invocation_id[:8])}{_b62(invocation_id[8:])}"


def parse_invocation_id(text: str) -> InvocationId:
    """The raw id of ``inv_1…``.

    Raises:
        IdError: not an invocation id.
    """
    payload = _payload(text, "inv", _WIDTH_U64 + _WIDTH_U128)
    return InvocationId(_unb62(payload[:_WIDTH_U64], 8) + _unb62(payload[_WIDTH_U64:], 16))


def format_deployment_id(ulid: int) -> str:
    """``dp_1…``, 26 characters."""
    return f"dp_{_VERSION}{_b62(ulid.to_bytes(16))}"


def parse_deployment_id(text: str) -> int:
    """The u128 of ``dp_1…``.

    Raises:
        IdError: not a deployment id.
    """
    return int.from_bytes(_unb62(_payload(text, "dp", _WIDTH_U128), 16))


def format_awakeable_id(invocation_id: InvocationId, signal_index: int) -> str:
    """``sign_1…``: the raw invocation id and the signal's u32 index, as SDKs write it."""
    raw = invocation_id + signal_index.to_bytes(4)
    return f"sign_{_VERSION}{base64.urlsafe_b64encode(raw).decode().rstrip('=')}"


def parse_awakeable_id(text: str) -> tuple[InvocationId, int] | None:
    """The target and signal index of an awakeable id.

    Returns None for ``prom_1…``, the form of journals older than protocol 4, which nothing here
    can wait for.

    Raises:
        IdError: not an awakeable id.
    """
    prefix = text.partition("_")[0]
    payload = _payload(text, "prom" if prefix == "prom" else "sign", None).rstrip("=")
    try:
        raw = base64.b64decode(payload + "=" * (-len(payload) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise IdError("bad base64") from error
    if len(raw) != INVOCATION_ID_BYTES + 4:
        raise IdError("bad length")
    if prefix == "prom":
        return None
    return InvocationId(raw[:INVOCATION_ID_BYTES]), int.from_bytes(raw[INVOCATION_ID_BYTES:])


def _payload(text: str, resource: str, width: int | None) -> str:
    prefix, underscore, rest = text.partition("_")
    if not underscore:
        raise IdError("bad format")
    if prefix not in _RESOURCES:
        raise IdError(f"unrecognized resource type: {prefix}")
    if prefix != resource:
        raise IdError("id doesn't match the expected type")
    if not rest.startswith(_VERSION):
        raise IdError("unrecognized codec version" if rest else "bad length")
    if width is not None and len(rest) != 1 + width:
        raise IdError("bad length")
    return rest[1:]


def _b62(big_endian: bytes) -> str:
    number = int.from_bytes(big_endian, "little")
    pairs: list[str] = []
    base = len(_PAIRS)
    # 8 bytes are 11 letters (six pairs, the first letter always 0); 16 bytes are 22.
    for _ in range(6 if len(big_endian) == 8 else 11):
        number, pair = divmod(number, base)
        pairs.append(_PAIRS[pair])
    pairs.reverse()
    text = "".join(pairs)
    return text[1:] if len(big_endian) == 8 else text


def _unb62(text: str, width: int) -> bytes:
    number = 0
    try:
        for letter in text:
            number = number * 62 + _DIGITS[letter]
        return number.to_bytes(width, "little")
    except (KeyError, OverflowError) as error:
        raise IdError("base62 decode error") from error
