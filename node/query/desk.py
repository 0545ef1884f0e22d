"""What other nodes' statements read of the partitions that this node leads.

Scans run on a few threads that all of them share: a piece is made when it is asked for, and takes
no longer than pieces may; so what nobody takes holds tables, but no thread. Whatever happens to who
asked, the tables are let go of when the statement's time is over.
"""

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from perdure.cluster.core.messages import Peer
from perdure.cluster.transport import Answer, Transport
from perdure.core.clock import Clock
from perdure.core.errors import (
    PartitionUnavailable,
    PerdureError,
    QueryRefused,
    QueryUnavailable,
    TooManyRequests,
)
from perdure.core.limits import (
    QUERY_DESK_THREADS,
    QUERY_PART_BYTES_MAX,
    QUERY_PIECE_BYTES,
    QUERY_PIECE_MS,
    QUERY_TIMEOUT_MS_MAX,
    QUERY_VISITS_PER_PEER_MAX,
)
from perdure.core.offload import Offload, ThreadOffload
from perdure.node.query.columns import TABLES
from perdure.node.query.led import LedTables
from perdure.node.query.messages import (
    CloseReading,
    CloseScan,
    NextPiece,
    OpenReading,
    OpenScan,
    ReadingOpened,
    ScanPiece,
    unpack_need,
)
from perdure.node.query.reading import Reading
from perdure.node.registry.model import Registry

_Key = tuple[int, int]
_Pull = Callable[[], ScanPiece]


class _Visit:
    """What one statement of another node reads here. ``opening``: what makes ``reading``."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer
        self.opening: asyncio.Task[None] | None = None
        self.reading: Reading | None = None
        self.expiry: asyncio.TimerHandle | None = None
        self.scans: dict[int, tuple[Offload, _Pull]] = {}
        self.jobs = 0
        self.is_over = False

    def end(self) -> None:
        """Let go of the tables, once nothing reads them any more."""
        self.is_over = True
        if self.expiry is not None:
            self.expiry.cancel()
        if self.opening is not None:
            self.opening.cancel()
        if self.reading is not None:
            self.reading.give_up()
            self.settle()

    def settle(self) -> None:
        """Close what is over and at rest."""
        if self.is_over and self.jobs == 0 and self.reading is not None:
            self.reading.close()
            self.reading = None


class QueryDesk:
    """Serves the messages of ``node/query/messages.py``."""

    def __init__(
        self,
        tables: LedTables,
        registry: Callable[[], Registry],
        transport: Transport,
        clock: Clock,
    ) -> None:
        self._tables = tables
        self._registry = registry
        self._clock = clock
        self._visits: dict[_Key, _Visit] = {}
        self._threads: list[Offload] = []
        self._turn = 0
        self._is_closed = False
        self.rows_read = 0
        transport.serve(OpenReading, self._open)
        transport.serve(OpenScan, self._scan)
        transport.serve(NextPiece, self._next)
        transport.serve(CloseScan, self._close_scan)
        transport.serve(CloseReading, self._close_reading)
        transport.on_session(self._on_session)

    @property
    def visits(self) -> int:
        """Statements of other nodes that read here."""
        return len(self._visits)

    def close(self) -> None:
        """Let go of everything, and stop the threads."""
        self._is_closed = True
        for key in tuple(self._visits):
            self._end(key)
        for thread in self._threads:
            thread.close()

    # --- Statements -----------------------------------------------------------------------------

    def _open(self, peer: Peer, request: OpenReading, answer: Answer) -> None:
        if self._is_closed:
            raise PartitionUnavailable("the node is stopping")
        theirs = sum(visit.peer.node == peer.node for visit in self._visits.values())
        if theirs >= QUERY_VISITS_PER_PEER_MAX:
            raise TooManyRequests(f"node {peer.node} has {theirs} statements read here already")
        known = range(self._tables.partition_count)
        if not all(each in known for each in (*request.partitions, *request.live)):
            raise PartitionUnavailable("there is no such partition")
        key = (peer.incarnation, request.ticket)
        visit = self._visits[key] = _Visit(peer)
        timeout_ms = min(request.timeout_ms, QUERY_TIMEOUT_MS_MAX)
        loop = asyncio.get_running_loop()
        visit.expiry = loop.call_later(timeout_ms / 1000, self._end, key)
        visit.opening = loop.create_task(self._hold(key, visit, request, answer))

    async def _hold(self, key: _Key, visit: _Visit, request: OpenReading, answer: Answer) -> None:
        try:
            opened = await self._tables.open(request.partitions, request.live)
        except PerdureError as error:
            visit.opening = None
            self._end(key)
            answer(error)
            return
        visit.opening = None
        visit.reading = Reading(opened.snapshots, opened.live, self._registry(), self._clock)
        answer(ReadingOpened())

    def _close_reading(self, peer: Peer, message: CloseReading, _: Answer) -> None:
        self._end((peer.incarnation, message.ticket))

    def _on_session(self, peer: Peer, is_up: bool) -> None:
        """A node that is gone takes nothing any more."""
        if not is_up:
            for key, visit in tuple(self._visits.items()):
                if visit.peer == peer:
                    self._end(key)

    def _end(self, key: _Key) -> None:
        visit = self._visits.pop(key, None)
        if visit is not None:
            if visit.reading is not None:
                self.rows_read += visit.reading.rows_read
            visit.end()

    # --- Scans ----------------------------------------------------------------------------------

    def _scan(self, peer: Peer, request: OpenScan, answer: Answer) -> None:
        visit = self._visit(peer, request.ticket)
        assert visit.reading is not None
        scan = _Scan(visit.reading, request, self._tables.partition_count, self._clock)
        visit.scans[request.scan] = (self._next_thread(), scan.pull)
        self._pull(visit, request.scan, answer)

    def _next(self, peer: Peer, request: NextPiece, answer: Answer) -> None:
        visit = self._visit(peer, request.ticket)
        if request.scan not in visit.scans:
            raise PartitionUnavailable("the scan is over")
        self._pull(visit, request.scan, answer)

    def _close_scan(self, peer: Peer, message: CloseScan, _: Answer) -> None:
        visit = self._visits.get((peer.incarnation, message.ticket))
        if visit is not None:
            visit.scans.pop(message.scan, None)

    def _pull(self, visit: _Visit, scan: int, answer: Answer) -> None:
        thread, pull = visit.scans[scan]

        def done(piece: ScanPiece) -> None:
            if piece.is_last:
                visit.scans.pop(scan, None)
            rest()
            answer(piece)

        def failed(failure: BaseException) -> None:
            visit.scans.pop(scan, None)
            rest()
            if isinstance(failure, PerdureError):
                answer(failure)
            elif isinstance(failure, ImportError):
                answer(QueryUnavailable(f"another node has no SQL ({failure})"))
            else:
                # The libraries have no classes for what a condition may do wrong.
                answer(QueryRefused(str(failure) or type(failure).__name__))

        def rest() -> None:
            visit.jobs -= 1
            visit.settle()

        visit.jobs += 1
        thread.submit(pull, done, failed)

    def _visit(self, peer: Peer, ticket: int) -> _Visit:
        visit = self._visits.get((peer.incarnation, ticket))
        if visit is None or visit.reading is None:
            raise PartitionUnavailable("what the statement read here was let go of: run it again")
        return visit

    def _next_thread(self) -> Offload:
        """All of a scan runs on one thread."""
        if len(self._threads) < QUERY_DESK_THREADS:
            self._threads.append(ThreadOffload(f"query-desk-{len(self._threads)}"))
            return self._threads[-1]
        self._turn = (self._turn + 1) % QUERY_DESK_THREADS
        return self._threads[self._turn]


class _Scan:
    """A scan under way, on its thread. What it takes is loaded by the first piece."""

    def __init__(
        self, reading: Reading, request: OpenScan, partition_count: int, clock: Clock
    ) -> None:
        self._reading = reading
        self._request = request
        self._partition_count = partition_count
        self._clock = clock
        self._steps: Iterator[Any] | None = None
        self._schema: Any = None
        # What is left of an Arrow stream that is too large for a message.
        self._left = memoryview(b"")
        self._is_last = False

    def pull(self) -> ScanPiece:
        """The next piece."""
        if not self._left:
            packed, self._is_last = self._rows()
            self._left = memoryview(packed)
        part, self._left = self._left[:QUERY_PART_BYTES_MAX], self._left[QUERY_PART_BYTES_MAX:]
        is_cut = bool(self._left)
        return ScanPiece(bytes(part), self._is_last and not is_cut, is_cut)

    def _rows(self) -> tuple[bytes, bool]:
        """Some more rows, and whether they are the last ones."""
        steps = self._steps if self._steps is not None else self._begin()
        from perdure.node.query.shipping import pack_batches

        ends_at = self._clock.monotonic() + QUERY_PIECE_MS / 1000
        batches: list[Any] = []
        size = 0
        for batch in steps:
            if batch is not None:
                batches.append(batch)
                size += batch.nbytes
            if size >= QUERY_PIECE_BYTES or self._clock.monotonic() > ends_at:
                return pack_batches(self._schema, batches), False
        return pack_batches(self._schema, batches), True

    def _begin(self) -> Iterator[Any]:
        from perdure.node.query.datasets import Table
        from perdure.node.query.shipping import unpack_condition

        request = self._request
        known = TABLES.get(request.table, {}).keys()
        if not known >= {*request.columns, *request.filtered}:
            raise QueryRefused(f"another node's release knows no such columns of {request.table}")
        table = Table(request.table, self._partition_count)
        table.need = unpack_need(request)
        table.filtered = frozenset(request.filtered)
        table.reading = self._reading
        self._schema = table.schema_of(request.columns)
        self._steps = table.steps(request.columns, unpack_condition(request.condition))
        return self._steps
