"""Answers SQL statements: ``Query`` is what the admin API asks, on the event loop.

A statement is planned on a thread; then the partitions it reads are flushed, and in one turn of the
loop their states and the running sessions are captured. Its answer comes in pieces, and is made no
faster than they are taken. Nothing else of the node waits for it.
"""

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Self

from perdure.core.clock import Clock
from perdure.core.errors import QueryRefused, QueryUnavailable, TooManyRequests
from perdure.core.ids import InvocationId
from perdure.core.limits import (
    QUERIES_MAX,
    QUERIES_WAITING_MAX,
    QUERY_FLUSH_MS,
    QUERY_MEMORY_BYTES,
    QUERY_STATEMENT_BYTES_MAX,
    QUERY_TIMEOUT_MS,
)
from perdure.core.offload import Offload, ThreadOffload, run_offloaded
from perdure.core.telemetry import logger
from perdure.node.partition.gateway import LedPartition
from perdure.node.query.live import Live, capture
from perdure.node.query.pieces import ARROW_TYPE, JSON_TYPE, Piece
from perdure.node.query.reading import Reading
from perdure.node.registry.model import Registry

if TYPE_CHECKING:  # importing it loads the query engine
    from perdure.node.query.statements import Execution, Planned

log = logger("query")


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
    """SQL over the partitions of this node."""

    def __init__(
        self,
        partitions: Sequence[LedPartition],
        registry: Callable[[], Registry],
        clock: Clock,
        limits: QueryLimits | None = None,
    ) -> None:
        self._partitions = partitions
        self._registry = registry
        self._clock = clock
        self._limits = limits if limits is not None else QueryLimits()
        self._idle: list[Offload] = []
        self._threads: list[Offload] = []
        self._executions: set[Execution] = set()
        self._waiting: deque[asyncio.Future[Offload]] = deque()
        self._answered = self._failed = self._rows_read = 0

    async def answer(self, statement: str, as_json: bool) -> Answer:
        """Run one statement.

        Raises:
            QueryRefused, QueryTooLarge: it can't be answered; or not within its limits.
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
        return QueryStatistics(
            running, len(self._waiting), self._answered, self._failed, self._rows_read
        )

    def close(self) -> None:
        """Give up what is at work and stop the threads."""
        for execution in list(self._executions):
            execution.give_up()
        for thread in self._threads:
            thread.close()

    # --- One statement --------------------------------------------------------------------------

    async def _pieces(self, statement: str, as_json: bool) -> AsyncGenerator[Piece]:
        thread = await self._take_thread()
        self._failed += 1  # unless it turns out well
        try:
            started = self._clock.monotonic()
            count = len(self._partitions)
            memory = self._limits.memory_bytes_max
            planned = await run_offloaded(thread, lambda: _plan(statement, count, memory))
            await self._flush(planned.partitions)
            spent = self._clock.monotonic() - started
            left = max(self._limits.timeout_ms / 1000 - spent, 0.001)
            reading = self._capture(planned)
            try:
                execution = _prepare(planned, reading, as_json)
                async with aclosing(self._execute(thread, execution, left)) as pieces:
                    async for piece in pieces:
                        yield piece
            finally:
                self._rows_read += reading.rows_read
                reading.close()
        finally:
            self._give_back(thread)
        self._failed -= 1
        self._answered += 1

    async def _flush(self, partitions: list[int]) -> None:
        """Bring the tables up to what is applied now."""
        loop = asyncio.get_running_loop()
        flushed: list[asyncio.Future[None]] = []
        for number in partitions:
            processor = self._partitions[number].processor
            if processor.halted is not None or processor.is_flushed():
                continue  # a halted partition is shown as it was flushed last
            done: asyncio.Future[None] = loop.create_future()
            flushed.append(done)
            processor.flush(partial(_resolve, done))
        if not flushed:
            return
        _, late = await asyncio.wait(flushed, timeout=QUERY_FLUSH_MS / 1000)
        if late:
            log.warning("query.tables.stale", partitions=len(late))

    def _capture(self, planned: "Planned") -> Reading:
        live: dict[InvocationId, Live] = {}
        if planned.needs_live:
            for partition in self._partitions:
                live.update(capture(run) for run in partition.leader.invoker.runs())
        snapshots = {
            number: self._partitions[number].processor.store.env.snapshot()
            for number in planned.partitions
        }
        return Reading(snapshots, live, self._registry(), self._clock)

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
            raise

    def _give_back(self, thread: Offload) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(thread)
                return
        self._idle.append(thread)


def _resolve(done: asyncio.Future[None]) -> None:
    if not done.done():
        done.set_result(None)


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
