"""A node as a process: what starts, in which order, and how it stops.

``run`` is what ``perdure server`` calls. The order of ``Node.start`` is the order in which things
depend on each other; ``Node.stop`` goes backwards: callers are answered first, then the log is
flushed. A failure that can't be survived (the log, a bug in a callback) ends the process loudly;
the log is the truth, so a restart goes on from it.
"""

import asyncio
import errno
import gc
import signal
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import uvloop

import perdure
from perdure.cluster.core.types import NodeId
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import MetadataStore
from perdure.cluster.registers import insist
from perdure.core import build, limits, telemetry
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy
from perdure.core.errors import AddressInUse, DiskFull, Draining, PerdureError
from perdure.core.ids import PartitionId
from perdure.core.invariant import InvariantViolation
from perdure.core.offload import Offload, ThreadOffload
from perdure.core.tasks import Supervisor
from perdure.node.admin.admin import Admin, AdminOptions
from perdure.node.config.choices import LogColours
from perdure.node.config.effective import to_defaults
from perdure.node.config.model import Config, advertised
from perdure.node.config.values import Address
from perdure.node.desks import Desks
from perdure.node.formation import Formation, Formed
from perdure.node.heap import share_one_heap
from perdure.node.http.client import HttpClient
from perdure.node.http.cores import make_server_core
from perdure.node.http.server import Application, HttpServer
from perdure.node.identity import Identity, establish
from perdure.node.ingress.ingress import Ingress, IngressOptions
from perdure.node.invoker.discovery import Discovery
from perdure.node.invoker.ports import Caller
from perdure.node.metrics.node_port import NodePort
from perdure.node.metrics.process import read_process
from perdure.node.metrics.statistics import Listener, Listening, NodeStatistics
from perdure.node.outbound import Outbound, open_outbound
from perdure.node.partition.cluster_host import ClusterHost, identity_of
from perdure.node.partition.host import Host
from perdure.node.partition.members import Members
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.partition.snapshotter import Snapshotter
from perdure.node.query.query import Query, QueryLimits
from perdure.node.register_desk import Listable
from perdure.node.registry.store import RegistryStore
from perdure.node.snapshots import NodeSnapshots, SnapshotsSite, open_snapshots
from perdure.node.traces.spans import Value
from perdure.node.traces.tracer import Tracer
from perdure.node.traces.tracing import Tracing, start_tracing
from perdure.storage.data_directory import PARTITIONS_FOLDER, lock_folder, open_disk
from perdure.storage.disk import FolderLock, OsDisk
from perdure.storage.env import Env, LmdbEnv

log = telemetry.logger("node")

T = TypeVar("T")
AnyHost = Host | ClusterHost


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyInfo:
    """Where a node that has started is found."""

    ingress_url: str
    admin_url: str
    node_url: str
    data_directory: Path
    started_in_ms: int
    records_replayed: int


@dataclass(frozen=True, slots=True)
class _Bound:
    name: Listener
    address: Address
    url: str
    server: HttpServer


class Node:
    """Everything one process runs. ``is_sharing``: ingress and admin ports, with other workers."""

    def __init__(self, config: Config, supervisor: Supervisor, *, is_sharing: bool = False) -> None:
        self.config = config
        self._is_sharing = is_sharing
        self._supervisor = supervisor
        self._clock, self._entropy = self._chances = SystemClock(), SystemEntropy()
        self._folder = config.base_dir / config.node_name
        self._started_at = self._clock.monotonic()
        self._lock: FolderLock | None = None
        self._host: AnyHost | None = None
        self._awaiting: asyncio.Future[Any] | None = None
        self._formed: Formed | None = None
        self._outbound: Outbound | None = None
        self._bound: list[_Bound] = []
        self._rendering: Offload | None = None
        self._tracing: Tracing | None = None
        self._tracer: Tracer | None = None
        self._query: Query | None = None
        self._desks: Desks | None = None
        self._is_stopping = False
        self._envs: dict[PartitionId, LmdbEnv] = {}
        self._snapshots: NodeSnapshots | None = None
        self._ingress: Ingress

    async def start(self) -> ReadyInfo:
        """Boot, in order.

        Raises:
            PerdureError: what stands in the way; nothing is left running after ``stop``.
        """
        self._lock = lock_folder(self._folder)
        disk = open_disk(self._folder)
        metadata, identity = await self._establish(disk)
        registry = RegistryStore(metadata, to_defaults(self.config))
        await self._await_others(insist(registry.load, "the registry", *self._chances))
        self._start_tracing(identity)
        outbound = self._outbound = open_outbound(self.config, self._clock, self._entropy)
        site = SnapshotsSite(identity, disk, self._envs, self._clock, self._entropy)
        self._snapshots = await self._await_others(open_snapshots(self.config, metadata, site))
        host = await self._open_host(disk, metadata, identity, registry, outbound.caller)
        registry.on_change(host.on_catalogue_change)
        if self._formed is not None:
            self._supervisor.start("registry", registry.follow())
        self._snapshots.start(host, lambda: registry.registry, self._supervisor)
        ingress_url = await self._serve_ingress(host, registry)
        discovery = Discovery(
            outbound.client, self._clock, identity.cluster, outbound.signer, outbound.functions
        )
        admin = await self._serve_admin(host, metadata, registry, discovery, ingress_url)
        statistics = partial(self._statistics, host, registry, outbound.client, admin)
        await self._serve_node_port(statistics)
        gc.collect()
        gc.freeze()
        # What invocations leave behind holds no cycles: looking for some was a tenth of the CPU.
        gc.set_threshold(*limits.GC_THRESHOLDS)
        return self._ready(host)

    def stop_waiting(self) -> None:
        """Cancel ``start`` if it waits for the others of a cluster, which has no end of its own."""
        self._is_stopping = True
        if self._awaiting is not None:
            self._awaiting.cancel()

    async def stop(self, *, is_clean: bool) -> None:
        """Drain and flush; or, when the log can't be trusted any more, let go at once."""
        self._is_stopping = True
        if is_clean and self._bound:
            log.info("node.draining")
            servers = [bound.server for bound in self._bound]
            for server in servers:
                server.stop_accepting()
            await self._ingress.drain(self.config.shutdown_timeout_ms)
            await asyncio.gather(*(server.aclose(1.0) for server in servers))
        if self._snapshots is not None:
            await self._snapshots.stop()
        if self._desks is not None:
            await self._desks.aclose()
        if self._query is not None:
            self._query.close()
        if self._rendering is not None:
            self._rendering.close()
        if self._tracing is not None:
            await self._tracing.aclose(is_clean=is_clean)
        if self._host is not None:
            await (self._host.close() if is_clean else self._host.abandon())
        if self._snapshots is not None:
            self._snapshots.close()
        if self._formed is not None:
            await self._formed.fabric.aclose()
            await self._formed.registers.aclose()
        if self._outbound is not None:
            self._outbound.close()
        if self._lock is not None:
            self._lock.release()

    # --- Steps ----------------------------------------------------------------------------------

    async def _establish(self, disk: OsDisk) -> tuple[Listable, Identity]:
        """Where configuration is decided, and who this process is there."""
        config = self.config
        if not config.is_clustered:
            metadata = LocalMetadata(disk)
            names = (config.cluster_name, config.node_name)
            count = config.worker.partition_count
            return metadata, await establish(disk, metadata, self._entropy, names, count)
        formation = Formation(config, disk, self._folder, self._chances, self._supervisor)
        self._formed = formed = await self._await_others(formation.form())
        return formed.registers, identity_of(formed.joined)

    async def _await_others(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what may wait for others without end; ``stop_waiting`` ends it."""
        self._awaiting = task = asyncio.ensure_future(work)
        if self._is_stopping:
            task.cancel()
        return await task

    def _start_tracing(self, identity: Identity) -> None:
        config = self.config
        if config.tracing_endpoint is None:
            return
        resource: dict[str, Value] = {
            "service.name": "perdure",
            "service.namespace": identity.cluster,
            "service.instance.id": identity.node,
            "service.version": perdure.__version__,
        }
        self._tracing = start_tracing(config.tracing_endpoint, config.tracing_headers, resource)
        self._tracer = Tracer(self._tracing.emit, self._clock, self._entropy)

    async def _open_host(
        self,
        disk: OsDisk,
        metadata: MetadataStore,
        identity: Identity,
        registry: RegistryStore,
        caller: Caller,
    ) -> AnyHost:
        def open_env(partition: PartitionId) -> Env:
            folder = f"{PARTITIONS_FOLDER}/{partition}"
            disk.make_folder(folder)
            env = self._envs[partition] = LmdbEnv(disk.root / folder)
            return env

        ports = HostPorts(
            disk=disk,
            open_env=open_env,
            metadata=metadata,
            clock=self._clock,
            entropy=self._entropy,
            log_thread=ThreadOffload("log"),
            housekeeping_thread=ThreadOffload("housekeeping"),
            storage_thread=ThreadOffload("storage"),
            caller=caller,
            catalogue=lambda: registry.catalogue,
            on_failure=self._supervisor.fail,
            tracer=self._tracer,
        )
        options = HostOptions(
            slots=self.config.invoker.concurrent_invocations_max,
            software=perdure.__version__,
            additional_headers=tuple(
                (name.lower().encode(), value.encode())
                for name, value in self.config.invoker.additional_request_headers
            ),
            message_bytes_max=self.config.invoker.message_bytes_max,
        )
        if self._formed is None:
            host: AnyHost = Host(identity, ports, options)
        else:
            assert self._snapshots is not None
            cluster = self._snapshots.equip(self._formed.ports(self._supervisor))
            host = ClusterHost(identity, ports, options, cluster)
        self._host = host
        await (host.open() if self._formed is None else self._await_others(host.open()))
        return host

    async def _serve_ingress(self, host: AnyHost, registry: RegistryStore) -> str:
        config = self.config.ingress
        options = IngressOptions(
            body_bytes_max=config.request_bytes_max,
            concurrent_requests_max=config.concurrent_requests_max,
            cors=config.cors,
        )
        self._ingress = Ingress(
            host.gateway,
            lambda: registry.catalogue,
            self._clock,
            self._entropy,
            options,
            self._tracer,
        )
        return await self._listen(
            Listener.INGRESS, self._ingress, config.bind_address, config.advertised_address
        )

    async def _serve_admin(
        self,
        host: AnyHost,
        metadata: Listable,
        registry: RegistryStore,
        discovery: Discovery,
        ingress_url: str,
    ) -> Admin:
        config = self.config
        options = AdminOptions(
            ingress_url=ingress_url,
            admin_url=config.admin.advertised_address,
            concurrent_requests_max=config.admin.concurrent_requests_max,
        )
        limits = QueryLimits(config.query.timeout_ms, config.query.memory_bytes_max)
        members = None
        if self._formed is not None and isinstance(host, ClusterHost):
            members = Members(NodeId(host.identity.node_id), host, self._formed.fabric)
        query = self._query = Query(
            host.led, lambda: registry.registry, self._clock, limits, members
        )
        transport = self._formed.fabric if self._formed is not None else None
        desks = self._desks = Desks(host, metadata, transport, config, self._clock)
        desks.start(self._supervisor, ingress_url)
        admin = Admin(
            host.gateway,
            registry,
            discovery,
            query,
            self._clock,
            self._entropy,
            options,
            desks.access,
            self._snapshotter,
            partial(self._check_serving, host),
        )
        await self._listen(
            Listener.ADMIN, admin, config.admin.bind_address, config.admin.advertised_address
        )
        return admin

    async def _serve_node_port(self, statistics: Callable[[], NodeStatistics]) -> None:
        self._rendering = ThreadOffload("metrics")
        node_port = NodePort(statistics, self._rendering)
        await self._listen(Listener.NODE, node_port, self.config.bind_address, None)

    async def _listen(
        self, name: Listener, application: Application, address: Address, explicit_url: str | None
    ) -> str:
        server = HttpServer(
            application, partial(make_server_core, self.config.http_core.value), self._clock
        )
        try:
            is_shared = self._is_sharing and name is not Listener.NODE
            port = await server.listen(address.listen_host, address.port, is_shared=is_shared)
        except OSError as error:
            key = "bind-address" if name is Listener.NODE else f"{name.value}.bind-address"
            raise AddressInUse.at(address, error, key) from error
        url = advertised(explicit_url, address, port)
        self._bound.append(_Bound(name, Address(address.host, port), url, server))
        log.info("node.listening", listener=name.value, address=str(Address(address.host, port)))
        return url

    @property
    def _snapshotter(self) -> Snapshotter | None:
        return self._snapshots.snapshotter if self._snapshots is not None else None

    def _check_serving(self, host: AnyHost) -> None:
        """Raise what keeps the node from taking anything new."""
        if self._is_stopping:
            raise Draining("this node is stopping: ask again, or another node")
        if host.is_disk_full:
            raise DiskFull(
                "the disk is full: nothing new is taken until there is room; nothing is lost"
            )

    def _statistics(
        self, host: AnyHost, registry: RegistryStore, client: HttpClient, admin: Admin
    ) -> NodeStatistics:
        catalogue = registry.catalogue.registry
        assert self._query is not None and self._desks is not None
        return NodeStatistics(
            cluster=self._desks.figures(),
            cluster_name=self.config.cluster_name,
            node_name=self.config.node_name,
            node_id=host.identity.node_id,
            generation=host.identity.generation,
            age_ms=round((self._clock.monotonic() - self._started_at) * 1000),
            host=host.statistics(),
            ingress=self._ingress.statistics(),
            admin=admin.statistics(),
            client=client.statistics(),
            listeners=tuple(
                Listening(bound.name, str(bound.address), bound.url, bound.server.statistics())
                for bound in self._bound
            ),
            deployment_count=len(catalogue.deployments),
            service_count=len(catalogue.latest),
            process=read_process(),
            query=self._query.statistics(),
            snapshots=self._snapshotter.statistics() if self._snapshotter is not None else None,
        )

    def _ready(self, host: AnyHost) -> ReadyInfo:
        urls = {bound.name: bound.url for bound in self._bound}
        info = ReadyInfo(
            ingress_url=urls[Listener.INGRESS],
            admin_url=urls[Listener.ADMIN],
            node_url=urls[Listener.NODE],
            data_directory=self._folder,
            started_in_ms=round((self._clock.monotonic() - self._started_at) * 1000),
            records_replayed=host.figures.records_replayed,
        )
        log.info(
            "node.started",
            version=perdure.__version__,
            is_compiled=build.IS_COMPILED,
            generation=host.identity.generation,
            data_directory=str(self._folder),
            records_replayed=info.records_replayed,
            took_ms=info.started_in_ms,
        )
        if host.figures.torn_at is not None:
            log.warning("wal.tail.torn", at=host.figures.torn_at, lost="nothing acknowledged")
        return info


def run(
    config: Config,
    on_ready: Callable[[ReadyInfo], None] | None = None,
    *,
    is_sharing: bool = False,
) -> int:
    """Run a node until a signal or a failure; returns the exit code of the process.

    Raises:
        PerdureError: the node could not start.
    """
    colours = {LogColours.ALWAYS: True, LogColours.NEVER: False}.get(config.log_colours)
    telemetry.configure(config.log_level.value, config.log_format.value, colours)
    share_one_heap()
    sys.setswitchinterval(limits.THREAD_SWITCH_MS / 1000)
    return uvloop.run(_serve(config, on_ready, is_sharing))


async def _serve(
    config: Config, on_ready: Callable[[ReadyInfo], None] | None, is_sharing: bool
) -> int:
    loop = asyncio.get_running_loop()
    supervisor = Supervisor()
    loop.set_exception_handler(partial(_on_stray_exception, supervisor))
    # Before the boot: who asks it to end while it starts, or just after, gets a clean end too.
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    signalled = asyncio.ensure_future(stopped.wait())
    node = Node(config, supervisor, is_sharing=is_sharing)
    info = await _boot(node, signalled)
    if info is not None:
        if on_ready is not None:
            on_ready(info)
        failed = asyncio.ensure_future(supervisor.wait_failed())
        await asyncio.wait((failed, signalled), return_when=asyncio.FIRST_COMPLETED)
        if failed.done():
            signalled.cancel()
            log.error("node.failed", cause=failed.result())
            await node.stop(is_clean=False)
            return 1
        failed.cancel()
    await node.stop(is_clean=info is not None)
    await supervisor.aclose()
    log.info("node.stopped")
    return 0


async def _boot(node: Node, signalled: "asyncio.Task[Any]") -> ReadyInfo | None:
    """Start the node; None if it was asked to end while it waited for others."""
    booting = asyncio.ensure_future(node.start())
    await asyncio.wait((booting, signalled), return_when=asyncio.FIRST_COMPLETED)
    if not booting.done():
        node.stop_waiting()
    try:
        await asyncio.wait((booting,))
        return None if booting.cancelled() else booting.result()
    except PerdureError:
        await node.stop(is_clean=False)
        raise
    except OSError as error:
        await node.stop(is_clean=False)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"there is no room to start in {node.config.base_dir} ({error}): free some space, then "
            "start again; nothing is lost"
        ) from error


def _on_stray_exception(
    supervisor: Supervisor, loop: asyncio.AbstractEventLoop, context: dict[str, Any]
) -> None:
    """What nobody caught: a connection's trouble ends with it, anything else ends the process."""
    failure = context.get("exception")
    if failure is None:
        log.warning("loop.warning", message=context.get("message"))
    elif "transport" in context and not isinstance(failure, InvariantViolation):
        log.error("http.connection.failed", cause=failure)
    else:
        supervisor.fail(failure)
