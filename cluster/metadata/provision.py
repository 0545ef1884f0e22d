"""The birth of a metadata member, and moving registers from one store to another.

A member's storage is made once, under a name drawn for it, and every member knows the names of all.
A member without storage never makes it by itself: it would have forgotten its votes. The members of
a quorum are fixed; others make up another quorum, which begins with what the first one was when it
was stopped (``base``).

A backup is one file: a line of text that says what it is, the CRC u32 of the rest, then msgpack of
the cluster's fingerprint and all registers.
"""

import zlib
from collections.abc import Iterable

import msgspec

from perdure.cluster.metadata.raft_journal import create_journal
from perdure.cluster.metadata.raft_links import MemberIdentity
from perdure.cluster.metadata.store import Versioned
from perdure.core.entropy import Entropy
from perdure.core.errors import DataDirectoryDamaged, DataDirectoryForeign
from perdure.core.limits import METADATA_JOURNAL_BYTES
from perdure.storage.disk import Disk

_NAME = "member"
_STARTS = "starts"
_PEERS = "peers"
_BASE = "base"
_BACKUP_HEAD = b"perdure metadata backup 1\n"


class _Member(msgspec.Struct, frozen=True):
    cluster: str
    node: int
    storages: dict[int, str]
    quorum: int = 1


class _Backup(msgspec.Struct, frozen=True, array_like=True):
    cluster: str
    registers: list[tuple[str, int, bytes]]


def draw_storages(nodes: Iterable[int], entropy: Entropy) -> dict[int, str]:
    """A fresh storage name for each member; draw them once for a cluster."""
    return {node: f"{entropy.bits(128):032x}" for node in sorted(nodes)}


def provision(
    disk: Disk,
    identity: MemberIdentity,
    entropy: Entropy,
    journal_bytes: int = METADATA_JOURNAL_BYTES,
    base: bytes | None = None,
) -> None:
    """Make a member's storage; again with the same identity is fine. ``base``: what its quorum, if
    it isn't the first, begins with; the same for all its members.

    Raises:
        DataDirectoryForeign: there is storage of another member already.
    """
    known = read_identity(disk)
    if known is not None:
        if known != identity:
            raise DataDirectoryForeign(
                f"the metadata folder belongs to member {known.node} of cluster {known.cluster}"
            )
        return
    if base is not None:
        disk.replace(_BASE, zlib.crc32(base).to_bytes(4, "little") + base)
    create_journal(disk, entropy, journal_bytes)
    member = _Member(identity.cluster, identity.node, identity.storages, identity.quorum)
    disk.replace(_NAME, _checked(msgspec.json.encode(member)))


def read_identity(disk: Disk) -> MemberIdentity | None:
    """Which member's storage this is; None: nobody's yet.

    Raises:
        DataDirectoryDamaged: the file is not what was written.
    """
    if not disk.exists(_NAME):
        return None
    try:
        member = msgspec.json.decode(_unchecked(disk.read_file(_NAME)), type=_Member)
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataDirectoryDamaged(f"the metadata member's file {_NAME} is damaged") from error
    return MemberIdentity(member.cluster, member.node, member.storages, member.quorum)


def read_base(disk: Disk) -> bytes | None:
    """What the member's quorum began with; None: with nothing, it is the first.

    Raises:
        DataDirectoryDamaged: the file is not what was written.
    """
    if not disk.exists(_BASE):
        return None
    content = disk.read_file(_BASE)
    if zlib.crc32(content[4:]).to_bytes(4, "little") != content[:4]:
        raise DataDirectoryDamaged(f"the metadata member's file {_BASE} is damaged")
    return content[4:]


def count_start(disk: Disk) -> int:
    """Another start of this member: its number, from 1, durable."""
    try:
        known = int(_unchecked(disk.read_file(_STARTS))) if disk.exists(_STARTS) else 0
    except ValueError as error:
        raise DataDirectoryDamaged(f"the metadata member's file {_STARTS} is damaged") from error
    disk.replace(_STARTS, _checked(b"%d" % (known + 1)))
    return known + 1


def read_peers(disk: Disk) -> dict[int, tuple[int, int]]:
    """The last life of each other member that this one has met: its start and incarnation.

    Raises:
        DataDirectoryDamaged: the file is not what was written.
    """
    if not disk.exists(_PEERS):
        return {}
    try:
        content = _unchecked(disk.read_file(_PEERS))
        return msgspec.json.decode(content, type=dict[int, tuple[int, int]])
    except (msgspec.MsgspecError, ValueError) as error:
        raise DataDirectoryDamaged(f"the metadata member's file {_PEERS} is damaged") from error


def note_peers(disk: Disk, lives: dict[int, tuple[int, int]]) -> None:
    """Keep what ``read_peers`` reads."""
    disk.replace(_PEERS, _checked(msgspec.json.encode(lives)))


def encode_backup(cluster: str, registers: dict[str, Versioned]) -> bytes:
    """Registers as a file; the same registers give the same bytes."""
    rows = [(key, at.version, at.value) for key, at in sorted(registers.items())]
    body = msgspec.msgpack.encode(_Backup(cluster, rows))
    return _BACKUP_HEAD + zlib.crc32(body).to_bytes(4, "little") + body


def decode_backup(content: bytes) -> tuple[str, dict[str, Versioned]]:
    """The cluster and the registers of a backup.

    Raises:
        DataDirectoryDamaged: it is not a whole backup.
    """
    head, crc, body = content.partition(b"\n")[0], content[26:30], content[30:]
    if head + b"\n" != _BACKUP_HEAD or int.from_bytes(crc, "little") != zlib.crc32(body):
        raise DataDirectoryDamaged("this is no metadata backup, or it is damaged")
    try:
        backup = msgspec.msgpack.decode(body, type=_Backup)
    except msgspec.MsgspecError as error:
        raise DataDirectoryDamaged("the metadata backup makes no sense") from error
    return backup.cluster, {
        key: Versioned(version, value) for key, version, value in backup.registers
    }


def _checked(content: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(content), content)


def _unchecked(content: bytes) -> bytes:
    """The content of a checked line.

    Raises:
        ValueError: it was changed.
    """
    crc, _, rest = content.partition(b" ")
    rest = rest.removesuffix(b"\n")
    if int(crc, 16) != zlib.crc32(rest):
        raise ValueError("the checksum doesn't fit")
    return rest
