"""What the partitions of a node stand on, and how they are set up."""

from collections.abc import Callable
from dataclasses import dataclass

from perdure.cluster.metadata.store import MetadataStore
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.ids import PartitionId
from perdure.core.limits import MESSAGE_BYTES_MAX
from perdure.core.offload import Offload
from perdure.node.invoker.ports import Caller
from perdure.node.registry.effective import Catalogue
from perdure.node.traces.tracer import Tracer
from perdure.storage.disk import Disk
from perdure.storage.env import Env
from perdure.storage.wal import WalSizes


@dataclass(frozen=True, slots=True, kw_only=True)
class HostPorts:
    """What a host stands on. ``open_env`` gives the tables of a partition."""

    disk: Disk
    open_env: Callable[[PartitionId], Env]
    metadata: MetadataStore
    clock: Clock
    entropy: Entropy
    log_thread: Offload
    housekeeping_thread: Offload
    storage_thread: Offload
    caller: Caller
    catalogue: Callable[[], Catalogue]
    on_failure: Callable[[BaseException], None]
    wal_sizes: WalSizes | None = None
    tracer: Tracer | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """``slots``: attempts at once per partition. ``software``: version named in announcements."""

    slots: int
    software: str
    additional_headers: tuple[tuple[bytes, bytes], ...] = ()
    message_bytes_max: int = MESSAGE_BYTES_MAX
