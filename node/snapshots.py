"""A node's snapshots by its configuration: where they go, what takes them, what leans on them."""

import asyncio
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from urllib.parse import unquote, urlsplit

import msgspec

import perdure
from perdure.cluster.core.snapshot import SnapshotPolicy
from perdure.cluster.core.trim import DurabilityMode, TrimPolicy
from perdure.cluster.metadata.store import MetadataStore
from perdure.cluster.registers import insist
from perdure.cluster.snapshot_repository import RepositoryPorts, SnapshotRepository
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import InvalidConfiguration
from perdure.core.ids import PartitionId
from perdure.core.limits_snapshots import SNAPSHOT_TRANSFERS_MAX, TRIM_DELAY_MS, TRIM_NAMED_MS
from perdure.core.offload import PoolOffload
from perdure.core.tasks import Supervisor
from perdure.node.config.model import Config, SnapshotsConfig
from perdure.node.identity import Identity
from perdure.node.origin import Origin, read_origin
from perdure.node.partition.archive import Archive, Source
from perdure.node.partition.cluster_host import ClusterHost, ClusterPorts
from perdure.node.partition.host import Host
from perdure.node.partition.processor import Processor
from perdure.node.partition.snapshotter import Snapshotter, SnapshotterPorts
from perdure.node.partition.taker import Taker, TakerPorts
from perdure.node.registry.model import Registry
from perdure.storage.disk import OsDisk
from perdure.storage.env import LmdbEnv
from perdure.storage.object_store import DirectoryStore, ObjectStore
from perdure.storage.s3_store import S3Options, S3Store
from perdure.storage.snapshots import SnapshotOwner
from perdure.storage.table_images import HeldTables, LmdbTables, UnpackedTables

_COPIES_FOLDER = "copies"
_WITH_SNAPSHOTS = (DurabilityMode.SNAPSHOT, DurabilityMode.BALANCED, DurabilityMode.BOTH)


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


def trim_policy(config: Config) -> TrimPolicy:
    """When the log is let go of.

    Raises:
        InvalidConfiguration: the mode needs snapshots, and there are none.
    """
    has_snapshots = config.snapshots.destination is not None
    mode = config.worker.durability_mode
    if mode is None:
        mode = DurabilityMode.BALANCED if has_snapshots else DurabilityMode.REPLICAS
    if mode in _WITH_SNAPSHOTS and not has_snapshots:
        raise InvalidConfiguration(
            f"with worker.durability-mode {mode.value} nothing would ever leave the log, for there "
            "are no snapshots: set snapshots.destination, or another mode"
        )
    delay_ms = config.worker.trim_delay_ms
    if delay_ms is None:
        delay_ms = TRIM_DELAY_MS if mode in _WITH_SNAPSHOTS else TRIM_NAMED_MS
    return TrimPolicy(mode=mode, delay_ms=max(delay_ms, TRIM_NAMED_MS))


@dataclass(frozen=True, slots=True)
class SnapshotsSite:
    """Where a node's snapshots are made. ``envs``: the tables, as they are opened."""

    identity: Identity
    disk: OsDisk
    envs: dict[PartitionId, LmdbEnv]
    clock: Clock
    entropy: Entropy


async def open_snapshots(
    config: Config, metadata: MetadataStore, site: SnapshotsSite
) -> "NodeSnapshots":
    """A node's snapshots, before its partitions are opened; nothing is taken yet."""
    origin = await insist(
        lambda: read_origin(metadata), "what the cluster was made of", site.clock, site.entropy
    )
    return NodeSnapshots(config, site, origin)


class NodeSnapshots:
    """Takes a running node's snapshots in the background, from ``start`` to ``stop``; and gets
    tables out of those that are there, or that the cluster was made of (``origin``).
    ``snapshotter``: None where there is no destination."""

    def __init__(self, config: Config, site: SnapshotsSite, origin: Origin | None) -> None:
        self.snapshotter: Snapshotter | None = None
        self._origin = origin
        self._config = config
        self._site = site
        self._copies = site.disk.root / _COPIES_FOLDER
        self._transfers = PoolOffload("snapshots", SNAPSHOT_TRANSFERS_MAX + 1)
        self._copying = PoolOffload("copies", 1)
        self._unpacked = count(1)
        self._running: asyncio.Task[None] | None = None
        self._store = open_store(config.snapshots)
        self._taker = self._make_taker(self._store) if self._store is not None else None
        shutil.rmtree(self._copies, ignore_errors=True)  # of a process that was killed

    def equip(self, ports: ClusterPorts) -> ClusterPorts:
        """What a node among several makes of snapshots: it trims by them, and begins with them."""
        return replace(
            ports,
            trim=trim_policy(self._config),
            archived=self._archived_lsn,
            archive=self._make_archive(),
            taker=self._taker,
        )

    def start(
        self, host: Host | ClusterHost, registry: Callable[[], Registry], supervisor: Supervisor
    ) -> None:
        """Begin, if there is a destination; the host is open."""
        if self._taker is None:
            return

        def processors() -> list[Processor]:
            is_all = isinstance(host, Host)  # also what was halted: there is no set without it
            return [led.processor for led in host.led if is_all or led.leader.is_leading]

        ports = SnapshotterPorts(
            taker=self._taker,
            processors=processors,
            registry=lambda: msgspec.msgpack.encode(registry()),
            clock=self._site.clock,
            entropy=self._site.entropy,
            together=host.sets() if isinstance(host, ClusterHost) else None,
        )
        config = self._config.snapshots
        policy = SnapshotPolicy(interval_ms=config.interval_ms, records=config.records)
        self.snapshotter = Snapshotter(ports, policy, config.destination or "")
        self._running = supervisor.start("snapshots", self.snapshotter.run())

    async def stop(self) -> None:
        """Take no more; what is under way is given up, and is no snapshot."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)
        if self.snapshotter is not None:
            await self.snapshotter.aclose()

    def close(self) -> None:
        """After the host: nothing asks for tables any more."""
        self._transfers.close()
        self._copying.close()

    # --- Parts ----------------------------------------------------------------------------------

    def _make_taker(self, store: ObjectStore) -> Taker:
        site, config = self._site, self._config
        owner = SnapshotOwner(
            fingerprint=site.identity.fingerprint.hex(),
            cluster=site.identity.cluster,
            partition_count=site.identity.partition_count,
            software=perdure.__version__,
        )
        ports = RepositoryPorts(
            store=store, threads=self._transfers, clock=site.clock, entropy=site.entropy
        )

        def hold(partition: PartitionId) -> HeldTables:
            return LmdbTables(site.envs[partition], self._copies / str(partition))

        return Taker(
            TakerPorts(
                repository=SnapshotRepository(ports, owner, config.snapshots.retain),
                hold=hold,
                copy_thread=self._copying,
                free_bytes=site.disk.free_bytes,
                clock=site.clock,
                is_alone=not config.is_clustered,
            )
        )

    def _make_archive(self) -> Archive | None:
        sources: list[Source] = []
        fingerprint = self._site.identity.fingerprint
        if self._store is not None:
            sources.append(Source(store=self._store, fingerprint=fingerprint.hex()))
        origin = self._origin
        if origin is not None:
            store = open_store(replace(self._config.snapshots, destination=origin.destination))
            assert store is not None
            sources.append(
                Source(
                    store=store,
                    fingerprint=origin.document.fingerprint,
                    document=origin.document,
                )
            )
        if not sources:
            return None
        return Archive(sources, self._transfers, self._unpack, fingerprint)

    def _unpack(self, partition: int, chunks: Iterator[bytes]) -> UnpackedTables:
        # A folder each: one that nobody wants any more may still be being written.
        return UnpackedTables(chunks, self._copies / f"{partition}.incoming-{next(self._unpacked)}")

    def _archived_lsn(self, partition: int) -> int | None:
        snapshotter = self.snapshotter
        return snapshotter.archived_lsn(partition) if snapshotter is not None else None
