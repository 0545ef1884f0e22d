"""Answers SQL statements: ``Query`` is what the admin API asks, on the event loop.

A statement is planned on a thread; then the partitions it reads are flushed by who leads them, and
their states and the running sessions are captured. Its answer comes in pieces, and is made no
faster than they are taken. Nothing else of the node waits for it.
"""

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, NamedTuple, Self

from perdure.core.clock import Clock
from perdure.core.errors import (
    PartitionUnavailable,
    QueryRefused,
    QueryUnavailable,
    TooManyRequests,
)
from perdure.core.limits import (
    QUERIES_MAX,
    QUERIES_WAITING_MAX,
    QUERY_MEMORY_BYTES,
    QUERY_PATIENCE_MS,
    QUERY_STATEMENT_BYTES_MAX,
    QUERY_TIMEOUT_MS,
    ROUTE_RETRY_MS_INITIAL,
    ROUTE_RETRY_MS_MAX,
)
from perdure.core.offload import Offload, ThreadOffload, run_offloaded
from perdure.node.partition.gateway import LedPartition
from perdure.node.partition.members import Members
from perdure.node.query.desk import QueryDesk
from perdure.node.query.distant import DistantReading, open_all
from perdure.node.query.led import LedTables
from perdure.node.query.pieces import ARROW_TYPE, JSON_TYPE, Piece
from perdure.node.query.reading import Reading
from perdure.node.registry.model import Registry

if TYPE_CHECKING:  # importing it loads the query engine
    from perdure.node.query.statements import Execution, Planned


class Rest:
    """The pieces after the first one. Each is made when the one before is asked past."""

    def __init__(self, pieces: AsyncGenerator[Piece], first: Piece) -> None:
        self._pieces = pieces
        self._before = first

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        self._before.taken()
        self._before = await anext(self._pieces)
        return self._before.data

    async def aclose(self) -> None:
        """Give up what is left."""
        await self._pieces.aclose()


class Answer(NamedTuple):
    """A response's media type and first piece; ``rest`` gives the others, where there are any.

    What is wrong with a statement mostly shows before the first piece; ``rest`` may raise the same
    errors. It holds a thread and the tables until it is exhausted or closed.
    """

    media_type: str
    first: bytes
    rest: Rest | None


@dataclass(frozen=True, slots=True)
class QueryLimits:
    """What one statement may take."""

    timeout_ms: int = QUERY_TIMEOUT_MS
    memory_bytes_max: int = QUERY_MEMORY_BYTES


@dataclass(frozen=True, slots=True)
class QueryStatistics:
    """Statements at work and waiting; answered, failed, and rows read since the start."""

    running: int
    waiting: int
    answered: int
    failed: int
    rows_read: int


class Query:
    """SQL over all partitions: those of this node, and of ``members`` if it isn't alone."""

    def __init__(
        self,
        partitions: Sequence[LedPartition],
        registry: Callable[[], Registry],
        clock: Clock,
        limits: QueryLimits | None = None,
        members: Members | None = None,
    ) -> None:
        self._tables = LedTables(partitions, is_alone=members is None)
        self._registry = registry
        self._clock = clock
        self._limits = limits if limits is not None else QueryLimits()
        self._members = members
        self._desk: QueryDesk | None = None
        if members is not None:
            self._desk = QueryDesk(self._tables, registry, members.transport, clock)
        self._tickets = count(1)
        self._idle: list[Offload] = []
        self._threads: list[Offload] = []
        self._executions: set[Execution] = set()
        self._waiting: deque[asyncio.Future[Offload]] = deque()
        self._answered = self._failed = self._rows_read = 0

    async def answer(self, statement: str, as_json: bool) -> Answer:
        """Run one statement.

        Raises:
            QueryRefused, QueryTooLarge: it can't be answered; or not within its limits.
            PartitionUnavailable: something of it can't be read, for want of a leader.
            QueryUnavailable: the query engine isn't installed.
            TooManyRequests: too many wait already.
        """
        if len(statement) > QUERY_STATEMENT_BYTES_MAX:
            raise QueryRefused(f"the statement exceeds {QUERY_STATEMENT_BYTES_MAX} characters")
        pieces = self._pieces(statement, as_json)
        first = await anext(pieces)
        rest: Rest | None = None
        if first.is_last:
            await anext(pieces, None)
        else:
            rest = Rest(pieces, first)
        return Answer(JSON_TYPE if as_json else ARROW_TYPE, first.data, rest)

    def statistics(self) -> QueryStatistics:
        running = len(self._threads) - len(self._idle)
        rows_read = self._rows_read + (self._desk.rows_read if self._desk is not None else 0)
        return QueryStatistics(running, len(self._waiting), self._answered, self._failed, rows_read)

    def close(self) -> None:
        """Give up what is at work and stop the threads."""
        for execution in list(self._executions):
            execution.give_up()
        for thread in self._threads:
            thread.close()
        if self._desk is not None:
            self._desk.close()

    # --- One statement --------------------------------------------------------------------------

    async def _pieces(self, statement: str, as_json: bool) -> AsyncGenerator[Piece]:
        thread = await self._take_thread()
        self._failed += 1  # unless it turns out well
        try:
            async with aclosing(self._tries(thread, statement, as_json)) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._give_back(thread)
        self._failed -= 1
        self._answered += 1

    async def _tries(self, thread: Offload, statement: str, as_json: bool) -> AsyncGenerator[Piece]:
        """One, unless leaders move before there is anything to answer."""
        started = self._clock.monotonic()
        pause_ms = ROUTE_RETRY_MS_INITIAL
        while True:
            is_begun = False
            try:
                pieces = self._try(thread, (statement, as_json), started)
                async with aclosing(pieces):
                    async for piece in pieces:
                        is_begun = True
                        yield piece
            except PartitionUnavailable:
                spent_ms = (self._clock.monotonic() - started) * 1000
                if is_begun or spent_ms > min(QUERY_PATIENCE_MS, self._limits.timeout_ms):
                    raise
            else:
                return
            await asyncio.sleep(pause_ms / 1000)
            pause_ms = min(2 * pause_ms, ROUTE_RETRY_MS_MAX)

    async def _try(
        self, thread: Offload, asked: tuple[str, bool], started: float
    ) -> AsyncGenerator[Piece]:
        statement, as_json = asked
        partition_count = self._tables.partition_count
        memory = self._limits.memory_bytes_max
        planned = await run_offloaded(thread, lambda: _plan(statement, partition_count, memory))
        reading = await self._open(planned, self._left(started))
        try:
            execution = _prepare(planned, reading, as_json)
            async with aclosing(self._execute(thread, execution, self._left(started))) as pieces:
                async for piece in pieces:
                    yield piece
        finally:
            self._rows_read += reading.rows_read
            reading.close()

    def _left(self, started: float) -> float:
        """Seconds."""
        spent = self._clock.monotonic() - started
        return max(self._limits.timeout_ms / 1000 - spent, 0.001)

    async def _open(self, planned: "Planned", timeout_seconds: float) -> Reading:
        """Hold all that the statement reads, wherever it is led.

        Raises:
            PartitionUnavailable: that isn't known, or changed just now.
        """
        tables, live = planned.partitions, planned.live
        there: list[DistantReading] = []
        if self._members is not None:
            away = (self._away(tables), self._away(live))
            there = await open_all(self._members, self._tickets, away, timeout_seconds)
        led_elsewhere = frozenset[int]().union(*(each.partitions for each in there))
        try:
            opened = await self._tables.open(
                [each for each in tables if each not in led_elsewhere],
                [each for each in live if each not in led_elsewhere],
            )
        except BaseException:  # bulkhead: whatever it is, nothing stays held
            for each in there:
                each.close()
            raise
        return Reading(opened.snapshots, opened.live, self._registry(), self._clock, there)

    def _away(self, partitions: list[int]) -> list[int]:
        return [each for each in partitions if not self._tables.leads(each)]

    async def _execute(
        self, thread: Offload, execution: "Execution", timeout_seconds: float
    ) -> AsyncGenerator[Piece]:
        loop = asyncio.get_running_loop()
        made: asyncio.Queue[Piece | None] = asyncio.Queue()  # bounded by who makes them

        def deliver(piece: Piece) -> None:
            loop.call_soon_threadsafe(made.put_nowait, piece)

        running = asyncio.ensure_future(
            run_offloaded(thread, lambda: execution.run(timeout_seconds, deliver))
        )
        running.add_done_callback(lambda _: made.put_nowait(None))
        self._executions.add(execution)
        try:
            while (piece := await made.get()) is not None:
                yield piece
            running.result()
        finally:
            # The tables may be let go of only when nothing reads them any more.
            execution.give_up()
            await asyncio.wait((running,))
            if not running.cancelled():
                running.exception()
            self._executions.discard(execution)

    # --- Threads --------------------------------------------------------------------------------

    async def _take_thread(self) -> Offload:
        if self._idle:
            return self._idle.pop()
        if len(self._threads) < QUERIES_MAX:
            thread = ThreadOffload(f"query-{len(self._threads)}")
            self._threads.append(thread)
            return thread
        if len(self._waiting) >= QUERIES_WAITING_MAX:
            raise TooManyRequests(f"{QUERIES_WAITING_MAX} statements wait already: try again")
        turn: asyncio.Future[Offload] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self._give_back(turn.result())
            else:
                with contextlib.suppress(ValueError):  # it was passed over already
                    self._waiting.remove(turn)
            raise

    def _give_back(self, thread: Offload) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(thread)
                return
        self._idle.append(thread)


def _plan(statement: str, partition_count: int, memory_bytes_max: int) -> "Planned":
    try:
        from perdure.node.query import statements
    except ImportError as error:
        raise QueryUnavailable(
            f"the query engine isn't installed ({error}): pip install 'perdure[server,sql]'"
        ) from error
    return statements.plan(statement, partition_count, memory_bytes_max)


def _prepare(planned: "Planned", reading: Reading, as_json: bool) -> "Execution":
    from perdure.node.query.statements import Execution

    return Execution(planned, reading, as_json)
