"""Puts a copy of a cluster's registers into an etcd, while no node runs.

Versions are kept, so that what nodes and replicas have seen of a register is never newer than what
they find. A copy that is older than what they have acted on is refused by them, not here.
"""

import asyncio
from dataclasses import dataclass
from pathlib import Path

from perdure.cluster.metadata.provision import decode_backup
from perdure.cluster.metadata.store import Versioned
from perdure.core.clock import SystemClock
from perdure.core.errors import InvalidConfiguration, UnreadableConfiguration
from perdure.core.limits import METADATA_MESSAGE_BYTES_MAX
from perdure.node.config.model import Config


@dataclass(frozen=True, slots=True)
class Backup:
    """What a file holds."""

    fingerprint: str
    registers: dict[str, Versioned]


def describe_backup(file: Path) -> Backup:
    """What the file holds.

    Raises:
        UnreadableConfiguration: it can't be read.
        DataDirectoryDamaged: it is no whole copy.
    """
    try:
        with file.open("rb") as source:
            content = source.read(METADATA_MESSAGE_BYTES_MAX)
    except OSError as error:
        raise UnreadableConfiguration(f"{file} can't be read: {error.strerror}") from error
    return Backup(*decode_backup(content))


def restore_to_etcd(config: Config, backup: Backup) -> None:
    """Fill the empty prefix.

    Raises:
        InvalidConfiguration: no etcd is named.
        MetadataNotEmpty: there is something already.
        MetadataUnavailable: etcd doesn't answer.
    """
    if not config.etcd.endpoints:
        raise InvalidConfiguration(
            "name the etcd with etcd.endpoints: registers that nodes keep themselves come back "
            "with a node's data directory, or with snapshots"
        )

    async def fill() -> None:
        from perdure.node.etcd import open_etcd

        store = open_etcd(config, SystemClock())
        try:
            await store.fill(backup.registers)
        finally:
            await store.aclose()

    asyncio.run(fill())
