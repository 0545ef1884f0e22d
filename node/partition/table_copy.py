"""Tables of a partition from another node, for a replica whose log begins too late.

Whoever has tables hands out their last commit, row by row, beside everything else; so does an
object store (``archive.py``). It replaces what is here: first all of that goes, last comes the row
that says how far the tables are. Who dies in between has tables that have applied nothing; they
are emptied at the next start.
"""

from collections.abc import AsyncIterator

import msgspec

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.recoverer import close_stream
from perdure.cluster.transport import Transport
from perdure.core.errors import PartitionUnavailable
from perdure.core.ids import PartitionId
from perdure.core.limits_snapshots import TABLES_PIECE_BYTES, TABLES_PIECE_ROWS
from perdure.core.offload import Offload, run_offloaded
from perdure.node.partition.messages import CopyTables, TablesPiece
from perdure.node.partition.processor import Processor
from perdure.storage.env import Env, MapFull
from perdure.storage.partition_store import META_KEY, STORE_FORMAT_VERSION, Meta, PartitionStore

_FIRST, _BEYOND = b"", b"\xff"  # tables are named by bytes below
Row = tuple[bytes, bytes]


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


async def copy_tables(
    store: PartitionStore, storage: Offload, transport: Transport, source: NodeId, lsn_min: int
) -> None:
    """Replace the store's content by the source's, which must have applied ``lsn_min``.

    No flush may be under way until this returns. Raises PerdureError: the source has no such
    tables, or can't be reached; what is here is gone then if any of it had arrived.
    """
    stream = transport.stream(source, CopyTables(store.opened.partition))
    try:
        await replace_tables(store, storage, (list(piece.rows) async for piece in stream), lsn_min)
    finally:
        await close_stream(stream)


async def replace_tables(
    store: PartitionStore, storage: Offload, pieces: AsyncIterator[list[Row]], lsn_min: int
) -> None:
    """Replace the store's content by rows, which must have applied ``lsn_min``; as above."""
    partition = store.opened.partition
    meta: Row | None = None
    async for rows in pieces:
        if meta is None:  # it sorts before all other rows
            meta = _checked(store, rows.pop(0), lsn_min)
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


def _checked(store: PartitionStore, row: Row, lsn_min: int) -> Row:
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
