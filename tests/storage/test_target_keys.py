"""Keys of ``targets`` are on disks: they stay as they are."""

import pytest

from perdure.core.ids import InvocationId
from perdure.storage.keys import object_group
from perdure.storage.tables.invocations import (
    HandlerKind,
    Target,
    split_target_key,
    target_key,
)

ID = InvocationId(bytes(range(24)))


@pytest.mark.parametrize(
    ("service", "key", "group"),
    [
        ("Svc", None, b"Svc\0\0\0\0"),
        ("Svc", "", b"Svc\0\0\0\0"),
        ("Svc", "k", b"Svc\0\0k\0\0"),
        ("S\0", "\0é", b"S\0\xff\0\0\0\xff\xc3\xa9\0\0"),
        ("Svc", "k" * 300, object_group("Svc", "k" * 300)),
    ],
)
def test_group_then_time_then_id(service: str, key: str | None, group: bytes) -> None:
    written = target_key(Target(service, "any", key, HandlerKind.SHARED), 0x19A0B0C0D0E, ID)
    assert written == group + b"\x00\x00\x01\x9a\x0b\x0c\x0d\x0e" + bytes(range(24))
    assert split_target_key(written) == (group, 0x19A0B0C0D0E, ID)
