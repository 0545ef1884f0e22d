"""A node's snapshots by its configuration: where they go, and what takes them while it runs."""

import asyncio
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

import perdure
from perdure.cluster.core.snapshot import SnapshotPolicy
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.ids import PartitionId
from perdure.core.limits import SNAPSHOT_TRANSFERS_MAX
from perdure.core.offload import PoolOffload
from perdure.core.tasks import Supervisor
from perdure.node.config.model import SnapshotsConfig
from perdure.node.identity import Identity
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.snapshotter import Snapshotter, SnapshotterPorts
from perdure.node.registry.model import Registry
from perdure.storage.disk import OsDisk
from perdure.storage.env import LmdbEnv
from perdure.storage.object_store import DirectoryStore, ObjectStore
from perdure.storage.s3_store import S3Options, S3Store
from perdure.storage.snapshots import SnapshotOwner
from perdure.storage.table_images import HeldTables, LmdbTables

_COPIES_FOLDER = "copies"


def open_store(config: SnapshotsConfig) -> ObjectStore | None:
    """The object store of the destination; None: there is none. Nothing is asked of it yet."""
    if config.destination is None:
        return None
    parts = urlsplit(config.destination)
    if parts.scheme == "file":
        return DirectoryStore(Path(unquote(parts.path)))
    return S3Store(
        S3Options(
            bucket=parts.netloc,
            prefix=unquote(parts.path).strip("/"),
            endpoint_url=config.endpoint_url,
            region=config.region,
            profile=config.aws_profile,
            is_path_style=config.path_style,
        )
    )


class NodeSnapshots:
    """Takes a running node's snapshots in the background, from ``start`` to ``stop``."""

    def __init__(
        self,
        config: SnapshotsConfig,
        store: ObjectStore,
        identity: Identity,
        disk: OsDisk,
        chances: tuple[Clock, Entropy],
    ) -> None:
        assert config.destination is not None
        clock, entropy = chances
        self._config = config
        self._identity = identity
        self._disk = disk
        self._chances = chances
        self._transfers = PoolOffload("snapshots", SNAPSHOT_TRANSFERS_MAX + 1)
        self._copying = PoolOffload("copies", 1)
        self._running: asyncio.Task[None] | None = None
        owner = SnapshotOwner(
            fingerprint=identity.fingerprint.hex(),
            cluster=identity.cluster,
            partition_count=identity.partition_count,
            software=perdure.__version__,
        )
        ports = RepositoryPorts(store=store, threads=self._transfers, clock=clock, entropy=entropy)
        self._repository = SnapshotRepository(ports, owner, config.retain)
        self.snapshotter: Snapshotter

    def start(
        self,
        partitions: Sequence[LedPartition],
        envs: dict[PartitionId, LmdbEnv],
        registry: Callable[[], Registry],
        supervisor: Supervisor,
    ) -> Snapshotter:
        """Begin; the partitions must be led."""
        clock, entropy = self._chances
        copies = self._disk.root / _COPIES_FOLDER
        shutil.rmtree(copies, ignore_errors=True)  # of a process that was killed

        def hold(partition: PartitionId) -> HeldTables:
            return LmdbTables(envs[partition], copies / str(partition))

        ports = SnapshotterPorts(
            repository=self._repository,
            processors=lambda: [led.processor for led in partitions],
            hold=hold,
            copy_thread=self._copying,
            free_bytes=self._disk.free_bytes,
            registry=lambda: msgspec.msgpack.encode(registry()),
            clock=clock,
            entropy=entropy,
        )
        config = self._config
        policy = SnapshotPolicy(interval_ms=config.interval_ms, records=config.records)
        self.snapshotter = Snapshotter(ports, policy, config.destination or "")
        self._running = supervisor.start("snapshots", self.snapshotter.run())
        return self.snapshotter

    async def stop(self) -> None:
        """Take no more; what is under way is given up, and is no snapshot."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
            await self.snapshotter.aclose()
        self._transfers.close()
        self._copying.close()
