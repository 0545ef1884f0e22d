"""Following a partition's log: from this node's own replica where that has it, else from others.

``Follower.run`` delivers every committed record from a given LSN on, in order and without a gap, as
long as it isn't cancelled; ``until`` makes it stop, for one who is to lead from there.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from perdure.cluster.core.chain import PartitionMeta, closed_unsafely
from perdure.cluster.core.log_messages import Hello, ReadSegment, Records, TailState, WatchTail
from perdure.cluster.core.reader import (
    Fetch,
    Forsaken,
    Missing,
    ReadChain,
    ReaderCore,
    TrimGap,
    WaitSource,
    WaitTail,
)
from perdure.cluster.core.types import Member, SegmentKey
from perdure.cluster.log_server import LogServer
from perdure.cluster.metadata.store import MetadataStore
from perdure.cluster.recoverer import close_stream, first_of
from perdure.cluster.takeover import check_history, decode_meta, partition_key
from perdure.cluster.transport import Transport
from perdure.core.errors import LogDamaged, LogTrimmed, PerdureError
from perdure.core.limits import (
    READER_POLL_MS,
    READER_RETRY_MS,
    RECOVERY_REQUEST_MS,
)
from perdure.core.limits_log import READER_GATHER_MS
from perdure.core.telemetry import logger
from perdure.storage.wal_format import Record

log = logger("log")

_TIMEOUT_S = RECOVERY_REQUEST_MS / 1000

Deliver = Callable[[list[Record]], Awaitable[None]]
"""Takes records, in order; reading goes on when it is done."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FollowerPorts:
    """What a follower reads from. No transport: only from the replica here."""

    metadata: MetadataStore
    server: LogServer
    transport: Transport | None = None


class Follower:
    """Reads one partition from ``next_lsn`` on; ``epoch``: that of the record before, if known."""

    def __init__(
        self, partition: int, next_lsn: int, ports: FollowerPorts, epoch: int | None = None
    ) -> None:
        self._partition = partition
        self._ports = ports
        self._core = ReaderCore(partition, next_lsn, ports.server.member, epoch)
        self._meta: PartitionMeta
        self._changed = asyncio.Event()
        self._urgent = asyncio.Event()  # somebody waits for what is read
        self._is_hurried = False
        self._watching: tuple[SegmentKey, Callable[[], None]] | None = None
        self._polled = 0

    @property
    def next_lsn(self) -> int:
        """The first record that was not delivered."""
        return self._core.next_lsn

    def hurry(self) -> None:
        """Somebody waits for what is read from now on."""
        self._is_hurried = True
        self._urgent.set()

    async def run(self, deliver: Deliver, until: int | None = None) -> None:
        """Deliver records; return once all below ``until`` were delivered.

        Raises:
            LogTrimmed: what is needed was trimmed; a snapshot must cover it. Its ``lsn`` is where
                the log begins now.
            LogDamaged: a record was lost on all replicas (I-12), or bytes have changed.
            HistoryForsaken: an unsafe close has cut off what came before ``next_lsn``.
        """
        forget = self._ports.metadata.watch(partition_key(self._partition), self._on_hint)
        try:
            while until is None or self._core.next_lsn < until:
                await self._advance(deliver)
        finally:
            forget()
            self._unwatch()

    async def _advance(self, deliver: Deliver) -> None:
        step = self._core.step()
        match step:
            case Fetch():
                records = self._core.on_records(step, await self._fetch(step))
                if records:
                    await deliver(records)
            case WaitTail():
                await self._wait_tail(step)
            case ReadChain():
                await self._read_chain()
            case WaitSource():
                log.debug(
                    "log.reader.waiting",
                    partition=self._partition,
                    lsn=step.lsn,
                    nodes=[member.node for member in step.members],
                )
                await self._rest(READER_RETRY_MS)
                self._core.retry()
                self._core.expire()
            case TrimGap(lsn):
                raise LogTrimmed(
                    f"partition {self._partition} needs record {self._core.next_lsn} and its log "
                    f"begins at {lsn}: a snapshot that covers the gap is needed",
                    lsn,
                )
            case Forsaken(lsn, epoch):
                check_history(self._partition, self._meta, lsn, epoch)
            case Missing(lsn):
                raise LogDamaged(
                    f"record {lsn} of partition {self._partition} was committed and is on none of "
                    "its replicas any more: restore a snapshot that covers it"
                )

    # --- The chain ------------------------------------------------------------------------------

    def _on_hint(self, key: str) -> None:
        if key == partition_key(self._partition):
            self._core.expire()
            self._changed.set()
            self._urgent.set()  # until the chain is read

    async def _read_chain(self) -> None:
        if not self._is_hurried:
            self._urgent.clear()
        try:
            found = await self._ports.metadata.get(partition_key(self._partition))
        except PerdureError:
            await self._rest(READER_RETRY_MS)
            return
        if found is None:
            await self._rest(READER_RETRY_MS)
            return
        meta = decode_meta(found)
        self._ports.server.on_chain(self._partition, meta, found.version)
        is_news = found.version != self._core.version
        self._core.on_chain(meta, found.version)
        self._meta = meta
        if not is_news and isinstance(self._core.step(), ReadChain | WaitTail):
            await self._rest(READER_RETRY_MS)  # sealed, and nobody has taken over yet

    async def _rest(self, milliseconds: int) -> None:
        """Wait, but not beyond the next hint."""
        self._changed.clear()
        try:
            async with asyncio.timeout(milliseconds / 1000):
                await self._changed.wait()
        except TimeoutError:
            return

    # --- Records --------------------------------------------------------------------------------

    async def _fetch(self, fetch: Fetch) -> Records | None:
        segment = fetch.segment
        key = self._partition, segment.index
        if fetch.source == self._ports.server.member:
            return self._ports.server.read(key, fetch.lower, fetch.upper)
        transport = self._ports.transport
        if transport is None:
            return None
        closed = segment.tail_lsn - segment.base_lsn if segment.tail_lsn is not None else None
        is_unsafe = closed_unsafely(self._meta, segment.index) is not None
        request = ReadSegment(
            *key, fetch.lower, fetch.upper, False, closed, self._core.version, is_unsafe
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                return await first_of(transport.stream(fetch.source.node, request))
        except (PerdureError, TimeoutError):
            return None

    # --- Tails ----------------------------------------------------------------------------------

    async def _wait_tail(self, wait: WaitTail) -> None:
        segment = wait.segment
        key = self._partition, segment.index
        self._watch(key, segment.nodeset)
        self._changed.clear()
        if (state := self._ports.server.tail(key)) is not None:
            self._core.on_tail(key, state)
        if self._core.step() != wait:
            return
        try:
            async with asyncio.timeout(READER_POLL_MS / 1000):
                await self._changed.wait()
            await self._gather()
        except TimeoutError:
            # The replica here may have been left behind: ask another one now and then.
            await self._poll(wait)
            self._core.on_no_news(segment)

    async def _gather(self) -> None:
        """Rest, unless somebody waits: what is committed meanwhile is read and applied at once."""
        if not self._urgent.is_set():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(READER_GATHER_MS / 1000):
                    await self._urgent.wait()

    def _watch(self, key: SegmentKey, nodeset: tuple[Member, ...]) -> None:
        if self._watching is not None and self._watching[0] == key:
            return
        self._unwatch()
        server, transport = self._ports.server, self._ports.transport
        if server.member in nodeset or transport is None:
            self._watching = key, server.watch(key, self._changed)
        else:
            task = asyncio.ensure_future(self._watch_other(transport, key, nodeset))
            self._watching = key, _cancel(task)

    def _unwatch(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching[1]()

    async def _watch_other(
        self, transport: Transport, key: SegmentKey, nodeset: tuple[Member, ...]
    ) -> None:
        while True:
            for member in nodeset:
                stream = transport.stream(member.node, WatchTail(*key))
                try:
                    async for state in stream:
                        self._core.on_tail(key, state)
                        self._changed.set()
                except PerdureError:
                    pass  # the next one may know as much
                finally:
                    await close_stream(stream)
            await asyncio.sleep(READER_RETRY_MS / 1000)

    async def _poll(self, wait: WaitTail) -> None:
        transport, segment = self._ports.transport, wait.segment
        here = self._ports.server.member
        others = [member for member in segment.nodeset if member != here]
        if transport is None or not others:
            return
        self._polled += 1
        member = others[self._polled % len(others)]
        ref = segment.params(self._partition).ref
        try:
            found = await transport.ask(member.node, Hello((ref,)), _TIMEOUT_S)
        except PerdureError:
            return
        (state,) = found.states
        if state is not None and state.ref == ref and found.member == member:
            is_sealed = state.tail_at_seal is not None
            self._core.on_tail(ref.key, TailState(state.kgt, is_sealed, state.closed_tail))


def _cancel(task: "asyncio.Future[None]") -> Callable[[], None]:
    def cancel() -> None:
        task.cancel()

    return cancel
