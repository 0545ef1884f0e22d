"""Tables of a partition from another node, for a replica whose log begins too late.

Whoever has tables hands out their last commit, row by row, beside everything else; so does an
object store (``archive.py``). It replaces what is here: first all of that goes, last comes the row
that says how far the tables are. Who dies in between has tables that have applied nothing; they
are emptied at the next start. Who gives up in between (the node is no replica any more, or stops)
has to get them from the beginning before it may go on with the log.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing

import msgspec

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.recoverer import close_stream
from perdure.cluster.transport import Transport
from perdure.core.errors import PartitionUnavailable, PerdureError
from perdure.core.ids import PartitionId
from perdure.core.limits_snapshots import TABLES_PIECE_BYTES, TABLES_PIECE_ROWS, TABLES_RETRY_MS
from perdure.core.offload import Offload, run_offloaded
from perdure.core.telemetry import logger
from perdure.node.partition.archive import Archive
from perdure.node.partition.messages import CopyTables, TablesPiece
from perdure.node.partition.processor import Processor
from perdure.storage.env import Env, MapFull
from perdure.storage.partition_store import META_KEY, STORE_FORMAT_VERSION, Meta, PartitionStore

log = logger("partition")

_FIRST, _BEYOND = b"", b"\xff"  # tables are named by bytes below
Row = tuple[bytes, bytes]
Check = Callable[[int, int], None]
"""Given the applied LSN and epoch of tables, raises PerdureError if they are of no use."""


def _take_any(applied_lsn: int, applied_epoch: int) -> None:
    """All are good."""


class TableDesk:
    """Hands tables out."""

    def __init__(self, processors: list[Processor], transport: Transport) -> None:
        self._here = {processor.partition: processor for processor in processors}
        transport.serve_stream(CopyTables, self._copy)

    async def _copy(self, peer: Peer, request: CopyTables) -> AsyncIterator[TablesPiece]:
        processor = self._here.get(PartitionId(request.partition))
        if processor is None or processor.halted is not None:
            raise PartitionUnavailable(f"partition {request.partition} has no tables to copy here")
        snapshot = processor.store.env.snapshot()
        try:
            lower, meta = _FIRST, snapshot.get(META_KEY)
            while rows := snapshot.scan(lower, _BEYOND, TABLES_PIECE_ROWS, TABLES_PIECE_BYTES):
                yield TablesPiece(tuple(rows))
                lower = rows[-1][0] + b"\0"
            if snapshot.get(META_KEY) != meta:  # the environment grew
                raise PartitionUnavailable("the tables moved on while they were copied: try again")
        finally:
            snapshot.close()


class WantedTables:
    """Tables for a replica whose log begins after what it has applied.

    One per partition and process. What was begun stays wanted until it is whole, whoever gives up
    in between: nothing may be applied to what a copy has left behind. ``holders``: other nodes that
    have the partition's tables. ``check`` raises PerdureError for tables that are no good.
    """

    def __init__(
        self,
        processor: Processor,
        storage: Offload,
        transport: Transport,
        archive: Archive | None,
        holders: Callable[[int], list[NodeId]],
        check: Check = _take_any,
    ) -> None:
        self._check = check
        self._processor = processor
        self._storage = storage
        self._transport = transport
        self._archive = archive
        self._holders = holders
        self._begins: int | None = None
        self._getting = asyncio.Lock()  # who was cancelled may still be at it for a moment

    def want(self, begins: int) -> None:
        """The log begins at ``begins``: tables that end before are none to go on from."""
        if self._processor.next_lsn < begins:
            self._begins = max(self._begins or 0, begins)

    @property
    def are_wanted(self) -> bool:
        """Whether there is nothing here that the log carries on."""
        return self._begins is not None

    async def get(self) -> None:
        """Get them, however long it takes."""
        processor = self._processor
        async with self._getting:
            applied, rested = asyncio.Event(), asyncio.Event()
            processor.when_applied(applied.set)  # or else it would be applied to what comes
            await applied.wait()
            processor.hold_flushes(rested.set)
            try:
                await rested.wait()
                while self._begins is not None:
                    if await self._have_copied(self._begins):
                        self._begins = None
                    else:
                        await asyncio.sleep(TABLES_RETRY_MS / 1000)
            finally:
                processor.release_flushes()

    async def _have_copied(self, begins: int) -> bool:
        processor, store = self._processor, self._processor.store
        if self._archive is not None:
            rows = self._archive.rows(processor.partition, begins - 1)
            async with aclosing(rows):
                copying = replace_tables(store, self._storage, rows, begins - 1, self._check)
                if await self._has_got(copying, "snapshot"):
                    return True
        for node in self._holders(processor.partition):
            source = self._transport, node
            copying = copy_tables(store, self._storage, source, begins - 1, self._check)
            if await self._has_got(copying, node):
                return True
        return False

    async def _has_got(self, copying: Coroutine[None, None, None], source: NodeId | str) -> bool:
        """Whether the tables came over."""
        partition = self._processor.partition
        try:
            await copying
        except PerdureError as failure:
            log.warning(
                "partition.tables.wanted", partition=partition, source=source, reason=failure
            )
            return False
        lsn = self._processor.store.applied_lsn
        log.info("partition.tables.copied", partition=partition, source=source, lsn=lsn)
        return True


async def copy_tables(
    store: PartitionStore,
    storage: Offload,
    source: tuple[Transport, NodeId],
    lsn_min: int,
    check: Check = _take_any,
) -> None:
    """Replace the store's content by the source's, which must have applied ``lsn_min``.

    No flush may be under way until this returns. Raises PerdureError: the source has no such
    tables, or can't be reached; what is here is gone then if any of it had arrived.
    """
    transport, node = source
    stream = transport.stream(node, CopyTables(store.opened.partition))
    pieces = (list(piece.rows) async for piece in stream)
    try:
        await replace_tables(store, storage, pieces, lsn_min, check)
    finally:
        await close_stream(stream)


async def replace_tables(
    store: PartitionStore,
    storage: Offload,
    pieces: AsyncIterator[list[Row]],
    lsn_min: int,
    check: Check = _take_any,
) -> None:
    """Replace the store's content by rows, which must have applied ``lsn_min``; as above.

    From the first row on the store has applied nothing, until it has all of them: whoever cancels
    this, or stops the process, finds nothing there to flush. A commit that is under way then ends
    before the next one on this thread.
    """
    partition = store.opened.partition
    meta: Row | None = None
    async for rows in pieces:
        if meta is None:  # it sorts before all other rows
            meta = _checked(store, rows.pop(0), lsn_min, check)
            store.forget()
            await _commit(store.env, storage, [(_FIRST, _BEYOND)], [])
            store.reload()
        await _commit(store.env, storage, [], rows)
    if meta is None:
        raise PartitionUnavailable(f"there are no tables of partition {partition}")
    await _commit(store.env, storage, [], [meta])
    store.reload()


def drop_partial(env: Env) -> None:
    """Empty tables that don't say how far they are: what a copy left behind that was cut short.

    The log may still have its first record somewhere, and would be applied on top of it.
    """
    if env.get(META_KEY) is None and next(env.scan(_FIRST, _BEYOND), None) is not None:
        env.commit([(_FIRST, _BEYOND)], [], [])
        env.refresh()


def _checked(store: PartitionStore, row: Row, lsn_min: int, check: Check) -> Row:
    partition = store.opened.partition
    if row[0] != META_KEY:
        raise PartitionUnavailable(f"the tables of partition {partition} there are not whole")
    found = msgspec.msgpack.decode(row[1], type=Meta)
    ours = (STORE_FORMAT_VERSION, store.opened.fingerprint, partition)
    if (found.format, found.fingerprint, found.partition) != ours:
        raise PartitionUnavailable(f"the tables of partition {partition} there are of another kind")
    if found.applied_lsn < lsn_min:
        raise PartitionUnavailable(
            f"the tables of partition {partition} there end at {found.applied_lsn}, the log begins "
            f"after {lsn_min}"
        )
    check(found.applied_lsn, found.applied_epoch)
    return row


async def _commit(
    env: Env, storage: Offload, cleared: list[tuple[bytes, bytes]], written: list[Row]
) -> None:
    while True:
        try:
            await run_offloaded(storage, lambda: env.commit(cleared, [], written))
        except MapFull:
            if not env.grow():
                raise PartitionUnavailable("the tables are being copied: try again") from None
        except OSError as error:
            raise PartitionUnavailable(f"the tables can't be written: {error}") from error
        else:
            return
