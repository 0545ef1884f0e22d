"""What a statement reads of other nodes: it asks each leader for what that leads.

Each node that leads something of it holds that as it is when the statement begins, under a ticket,
and makes scans of it: piece by piece, the next one while the one before is worked on here. All of
that ends when the statement ends, is given up, or runs out of time, or when this node is gone.
"""

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Iterator
from typing import Any

from perdure.cluster.core.messages import Request
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Transport
from perdure.core.errors import (
    OutcomeUnknown,
    PartitionUnavailable,
    QueryTooLarge,
    Unreachable,
)
from perdure.core.limits import QUERY_LOOK_MS, QUERY_OPEN_MS
from perdure.node.partition.members import Members
from perdure.node.query.messages import (
    CloseReading,
    CloseScan,
    NextPiece,
    OpenReading,
    OpenScan,
    ScanPiece,
    pack_scans,
)
from perdure.node.query.reading import Wanted


class DistantReading:
    """What one other node holds for a statement; made on the event loop."""

    def __init__(
        self, transport: Transport, node: NodeId, ticket: int, partitions: frozenset[int]
    ) -> None:
        self.partitions = partitions
        self._transport = transport
        self._node = node
        self._ticket = ticket
        self._scan_count = 0
        self._loop = asyncio.get_running_loop()
        self._ends_at = 0.0
        self._asking: set[asyncio.Task[Any]] = set()
        self._given_up = threading.Event()

    async def open(self, tables: list[int], live: list[int], timeout_s: float) -> None:
        """Have the node hold it.

        Raises:
            PartitionUnavailable: it can't, or it doesn't lead all of that.
        """
        self._ends_at = self._loop.time() + timeout_s
        request = OpenReading(
            self._ticket, tuple(tables), tuple(live), max(round(timeout_s * 1000), 1)
        )
        await self._ask(request, min(timeout_s, QUERY_OPEN_MS / 1000))

    def scan(self, wanted: Wanted) -> "DistantScan":
        self._scan_count += 1
        order = wanted.need.order
        request = OpenScan(
            self._ticket,
            self._scan_count,
            wanted.table,
            wanted.columns,
            tuple(sorted(wanted.filtered)),
            pack_scans(wanted.need),
            (order.limit, order.is_descending) if order is not None else None,
            wanted.condition,
        )
        return DistantScan(self, request)

    def ask(self, request: Request[ScanPiece]) -> "concurrent.futures.Future[ScanPiece]":
        """From any thread."""
        return asyncio.run_coroutine_threadsafe(self._ask_in_time(request), self._loop)

    def drop(self, request: OpenScan) -> None:
        """Nobody wants more of a scan; from any thread."""
        message = CloseScan(self._ticket, request.scan)
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._transport.send, self._node, message)

    def take(self, asked: "concurrent.futures.Future[ScanPiece]") -> ScanPiece:
        """Wait for a piece, on a thread.

        Raises:
            QueryTooLarge: the statement was given up meanwhile.
            PerdureError: the piece won't come.
        """
        while True:
            try:
                return asked.result(QUERY_LOOK_MS / 1000)
            except concurrent.futures.CancelledError as error:
                raise QueryTooLarge("the statement was given up") from error
            except TimeoutError:
                if asked.done():
                    raise
                if self._given_up.is_set():
                    raise QueryTooLarge("the statement was given up") from None

    def give_up(self) -> None:
        self._given_up.set()
        with contextlib.suppress(RuntimeError):  # the loop was closed meanwhile
            self._loop.call_soon_threadsafe(self._cancel)

    def close(self) -> None:
        self._given_up.set()
        self._cancel()
        self._transport.send(self._node, CloseReading(self._ticket))

    def _cancel(self) -> None:
        for task in tuple(self._asking):
            task.cancel()

    async def _ask_in_time(self, request: Request[ScanPiece]) -> ScanPiece:
        if self._given_up.is_set():
            raise QueryTooLarge("the statement was given up")
        task = asyncio.current_task()
        assert task is not None
        self._asking.add(task)
        try:
            left = max(self._ends_at - self._loop.time(), 0.001)
            piece: ScanPiece = await self._ask(request, left)
            return piece
        finally:
            self._asking.discard(task)

    async def _ask(self, request: Request[Any], timeout_s: float) -> Any:
        try:
            return await self._transport.ask(self._node, request, timeout_s)
        except (Unreachable, OutcomeUnknown) as error:
            listed = ", ".join(map(str, sorted(self.partitions)))
            raise PartitionUnavailable(
                f"node {self._node}, which led partitions {listed}, can't be read ({error}): "
                "try again shortly"
            ) from error


class DistantScan:
    """A scan that another node makes. It has begun."""

    def __init__(self, reading: DistantReading, request: OpenScan) -> None:
        self._reading = reading
        self._request = request
        self._asked = reading.ask(request)
        self._is_over = False

    def pieces(self) -> Iterator[bytes]:
        following = NextPiece(self._request.ticket, self._request.scan)
        parts: list[bytes] = []
        while not self._is_over:
            piece = self._reading.take(self._asked)
            self._is_over = piece.is_last
            if not piece.is_last:
                self._asked = self._reading.ask(following)
            parts.append(piece.batches)
            if not piece.is_cut:
                yield b"".join(parts)
                parts.clear()

    def close(self) -> None:
        if not self._is_over:
            self._is_over = True
            self._asked.cancel()
            self._reading.drop(self._request)


async def open_all(
    members: Members,
    tickets: Iterator[int],
    wanted: tuple[list[int], list[int]],
    timeout_s: float,
) -> list[DistantReading]:
    """Have all leaders of partitions hold these for a statement: tables, and sessions.

    Raises:
        PartitionUnavailable: one of them has no leader, or it doesn't answer; nothing is held then.
    """
    tables, live = wanted
    nodes: dict[NodeId, set[int]] = {}
    for partition in {*tables, *live}:
        nodes.setdefault(members.leader_of(partition), set()).add(partition)
    readings: list[DistantReading] = []
    opening: list[asyncio.Task[None]] = []
    for node, partitions in nodes.items():
        reading = DistantReading(members.transport, node, next(tickets), frozenset(partitions))
        its_tables = [each for each in tables if each in partitions]
        its_live = [each for each in live if each in partitions]
        readings.append(reading)
        opening.append(asyncio.create_task(reading.open(its_tables, its_live, timeout_s)))
    try:
        await asyncio.gather(*opening)
    except BaseException:  # bulkhead: whatever it is, nothing stays held
        for task in opening:
            task.cancel()
        await asyncio.gather(*opening, return_exceptions=True)
        for reading in readings:
            reading.close()  # what was asked for stands before it in the session
        raise
    return readings
