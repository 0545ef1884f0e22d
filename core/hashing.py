"""Hashes that clients and replicas must agree on, byte for byte.

Partition keys are XXH3-64 over a stream in which a string is its UTF-8 bytes and one 0xFF, and a
u64 is eight little-endian bytes. Deterministic invocation uuids are the head of a SHA-256. The
random seed of an invocation is SipHash-1-3 under the zero key. Golden vectors: tests/core.
"""

import _imp
import hashlib
import struct
from collections.abc import Callable

import xxhash

_U64 = 0xFFFF_FFFF_FFFF_FFFF
_SEPARATOR = b","
_SERVICE_BUCKETS = 512
_SERVICE_DOMAIN = "unscoped/service"
_SEED_PREFIX = (24).to_bytes(8, "little")


def hash_parts(*parts: str | int) -> int:
    """The u64 partition hash of strings and u64s in sequence."""
    stream = b"".join(
        part.encode() + b"\xff" if isinstance(part, str) else part.to_bytes(8, "little")
        for part in parts
    )
    return xxhash.xxh3_64_intdigest(stream)


def key_partition_key(key: str) -> int:
    """Partition key of a keyed target: the service name has no part in it."""
    return xxhash.xxh3_64_intdigest(key.encode() + b"\xff")


def idempotent_service_partition_key(service: str, idempotency_key: str) -> int:
    """Partition key of a plain service call under an idempotency key."""
    return service_bucket_partition_key(service, hash_parts(idempotency_key))


def service_bucket_partition_key(service: str, bucket: int) -> int:
    """Partition key of one of a plain service's 512 buckets; ``bucket`` is taken modulo 512."""
    return hash_parts(service, _SERVICE_DOMAIN, bucket % _SERVICE_BUCKETS)


def workflow_uuid(service: str, key: str) -> int:
    """The u128 uuid of a workflow's run: one per service and key, whatever the handler's name."""
    return _sha_uuid("wf", service, key)


def idempotent_uuid(service: str, key: str | None, handler: str, idempotency_key: str) -> int:
    """The u128 uuid of a call under an idempotency key; ``key`` is None for plain services."""
    if key is None:
        return _sha_uuid("ik", service, handler, idempotency_key)
    return _sha_uuid("ik", service, key, handler, idempotency_key)


def random_seed(invocation_id: bytes) -> int:
    """The u64 seed that SDKs draw their deterministic randomness from."""
    return _fast_siphash13(_SEED_PREFIX + invocation_id)


def siphash13(message: bytes) -> int:
    """SipHash-1-3 under the zero key (Aumasson and Bernstein, 2012)."""
    v0, v1, v2, v3 = (
        0x736F6D6570736575,
        0x646F72616E646F6D,
        0x6C7967656E657261,
        0x7465646279746573,
    )
    whole = len(message) & ~7
    words = list(struct.unpack_from(f"<{whole // 8}Q", message))
    words.append(int.from_bytes(message[whole:], "little") | (len(message) & 0xFF) << 56)
    for word in words:
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3 ^ word)
        v0 ^= word
    v2 ^= 0xFF
    for _ in range(3):
        v0, v1, v2, v3 = _sip_round(v0, v1, v2, v3)
    return v0 ^ v1 ^ v2 ^ v3


def _sip_round(v0: int, v1: int, v2: int, v3: int) -> tuple[int, int, int, int]:
    v0 = (v0 + v1) & _U64
    v1 = ((v1 << 13) & _U64 | v1 >> 51) ^ v0
    v0 = (v0 << 32) & _U64 | v0 >> 32
    v2 = (v2 + v3) & _U64
    v3 = ((v3 << 16) & _U64 | v3 >> 48) ^ v2
    v0 = (v0 + v3) & _U64
    v3 = ((v3 << 21) & _U64 | v3 >> 43) ^ v0
    v2 = (v2 + v1) & _U64
    v1 = ((v1 << 17) & _U64 | v1 >> 47) ^ v2
    v2 = (v2 << 32) & _U64 | v2 >> 32
    return v0, v1, v2, v3


def _sha_uuid(*parts: str) -> int:
    digest = hashlib.sha256(_SEPARATOR.join(part.encode() for part in parts)).digest()
    return int.from_bytes(digest[:16])


def _native_siphash13(message: bytes) -> int:
    """As ``siphash13``, by what CPython hashes source files with: every attempt starts with one."""
    return int.from_bytes(_imp.source_hash(0, message), "little")


def _choose_siphash13() -> Callable[[bytes], int]:
    """The native one, if this interpreter's is of the same kind."""
    samples = (b"", b"perdure", bytes(range(32)))
    try:
        is_same = all(_native_siphash13(each) == siphash13(each) for each in samples)
    except (AttributeError, TypeError, ValueError):
        is_same = False  # nobody promises that it stays
    return _native_siphash13 if is_same else siphash13


_fast_siphash13 = _choose_siphash13()
