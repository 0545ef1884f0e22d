"""What a partition's tables say of themselves."""

import msgspec


class Meta(msgspec.Struct, frozen=True, array_like=True):
    """Written with every flush: identity, and how far the tables are."""

    format: int
    fingerprint: bytes
    partition: int
    applied_lsn: int
    applied_epoch: int
    time_ms: int
