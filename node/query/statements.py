"""The query engine's side: plan a statement, then run it. Imported with the first statement.

This module, ``datasets``, ``pushdown`` and ``answers`` are the only ones that know DataFusion and
Arrow. A statement has a session of its own: nothing of one is seen by another, and what it may hold
is bounded. Both functions block and are called on a thread.
"""

import asyncio
import contextlib
from collections.abc import Callable
from functools import partial
from typing import Any

from perdure.core.errors import PerdureError, QueryRefused, QueryTooLarge
from perdure.core.limits import (
    QUERY_BATCH_ROWS,
    QUERY_MEMORY_BYTES,
    QUERY_PIECE_BYTES,
    QUERY_PIECE_MS,
)
from perdure.node.query import json_operators
from perdure.node.query.answers import ArrowEncoder, Encoder, JsonEncoder
from perdure.node.query.bounds import Need
from perdure.node.query.columns import TABLES
from perdure.node.query.datasets import Table, TableDataset
from perdure.node.query.libraries import arrow, datafusion
from perdure.node.query.pieces import Deliver, Piece
from perdure.node.query.pushdown import Scan, scans
from perdure.node.query.reading import Reading

_OPTIONS = {
    "datafusion.sql_parser.dialect": "postgres",
    "datafusion.sql_parser.map_string_types_to_utf8view": "false",
    "datafusion.execution.batch_size": str(QUERY_BATCH_ROWS),
    "datafusion.execution.time_zone": "+00:00",
    "datafusion.execution.enable_recursive_ctes": "false",
}
_NARROW = "filter by id, status or created_at, or by service and key"
# What makes much out of nothing: rows without end that can't be given up, and values that are not
# counted as memory.
_TABLE_FUNCTIONS_BARRED = ("generate_series", "range")
_FUNCTIONS_BARRED = (
    "array_repeat",
    "array_resize",
    "generate_series",
    "list_repeat",
    "list_resize",
    "lpad",
    "range",
    "repeat",
    "rpad",
)
_TEXT = arrow.large_string()


class Planned:
    """A statement that can be run, once. ``partitions``: those whose tables it reads; ``live``:
    those whose sessions it looks at."""

    def __init__(self, frame: Any, tables: dict[str, Table], found: list[Scan]) -> None:
        self.frame = frame
        self.tables = [tables[name] for name in {scan.table for scan in found}]
        self.partitions = sorted(
            {
                each.partition
                for table in self.tables
                for each in table.source.ranges(table.need, table.partition_count)
            }
        )
        live = (table.partitions() for table in self.tables if table.source.needs_live)
        self.live = sorted(set[int]().union(*live))


def plan(
    statement: str, partition_count: int, memory_bytes_max: int = QUERY_MEMORY_BYTES
) -> Planned:
    """Parse and plan.

    Raises:
        QueryRefused: it is no statement, names what isn't there, or would change something.
    """
    tables = {name: Table(name, partition_count) for name in TABLES}
    context = _session(tables, memory_bytes_max)
    only_reading = (
        datafusion.SQLOptions()
        .with_allow_ddl(False)
        .with_allow_dml(False)
        .with_allow_statements(False)
    )
    try:
        text = json_operators.rewrite(statement)
        frame = context.sql_with_options(text, only_reading)
        found = [scan for scan in scans(frame.optimized_logical_plan()) if scan.table in tables]
        if void := {scan.table for scan in found if scan.is_void}:
            void -= {scan.table for scan in found if not scan.is_void}
            # The bindings stumble over filters that contradict each other.
            for name in void:
                _empty(context, name, tables[name])
            found = [scan for scan in found if scan.table not in void]
            frame = context.sql_with_options(text, only_reading)
    except Exception as error:  # bulkhead: the engine has no classes for what users get wrong
        raise QueryRefused(_message(error)) from error
    for scan in found:
        table = tables[scan.table]
        others = [other for other in found if other.table == scan.table]
        order = others[0].order
        if len(others) > 1 or not table.source.can_order(others[0].restriction):
            order = None  # what is enough for one may not be for another
        table.need = Need(tuple(other.restriction for other in others), order=order)
        if any(other.filtered is None for other in others):
            table.filtered = frozenset(TABLES[scan.table])
        else:
            table.filtered = frozenset(name for other in others for name in other.filtered or ())
    return Planned(frame, tables, found)


class Execution:
    """Runs a planned statement; ``give_up`` ends it from another thread."""

    def __init__(self, planned: Planned, reading: Reading, as_json: bool) -> None:
        self._planned = planned
        self._reading = reading
        self._as_json = as_json
        self._stop: Callable[[], object] | None = None
        self._is_given_up = False

    def run(self, timeout_seconds: float, deliver: Deliver) -> None:
        """Make the answer and deliver it, never more than two pieces ahead of who takes them. The
        time counts until the last one is delivered.

        Raises:
            QueryRefused: working on it failed.
            QueryTooLarge: it takes more than one statement may.
        """
        for table in self._planned.tables:
            table.reading = self._reading
        try:
            asyncio.run(self._drain(timeout_seconds, deliver))
        except PerdureError:
            raise
        except TimeoutError as error:
            raise QueryTooLarge(
                "the statement took longer than query.timeout allows, its answer's way to the "
                f"client included: {_NARROW}"
            ) from error
        except asyncio.CancelledError as error:
            raise QueryTooLarge("the statement was given up") from error
        except Exception as error:  # bulkhead: the engine has no classes for what went wrong
            if self._reading.failure is not None:
                raise self._reading.failure from error
            message = _message(error)
            if "Resources exhausted" in message:
                raise QueryTooLarge(
                    "the statement needs more memory than query.memory-bytes-max allows: "
                    f"{_NARROW} ({message})"
                ) from error
            raise QueryRefused(message) from error

    def give_up(self) -> None:
        """Nobody waits for it any more."""
        self._is_given_up = True
        self._reading.give_up()
        if self._stop is not None:
            with contextlib.suppress(RuntimeError):  # it has just ended
                self._stop()

    async def _drain(self, timeout_seconds: float, deliver: Deliver) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        if self._is_given_up:
            raise asyncio.CancelledError
        try:
            async with asyncio.timeout(timeout_seconds):
                stream = self._planned.frame.execute_stream()
                schema = self._planned.frame.schema()
                encoder = JsonEncoder(schema) if self._as_json else ArrowEncoder(schema)
                await _deliver_all(stream, encoder, deliver)
        finally:
            self._stop = None
            self._reading.give_up()


async def _deliver_all(stream: Any, encoder: Encoder, deliver: Deliver) -> None:
    """Pieces are of some size, but their rows of no great age: the first ones arrive early."""
    loop = asyncio.get_running_loop()
    begun_at = loop.time()
    before: asyncio.Future[None] | None = None
    async for batch in stream:
        encoder.add(batch.to_pyarrow())
        is_old = loop.time() - begun_at > QUERY_PIECE_MS / 1000
        if encoder.size < QUERY_PIECE_BYTES and not (is_old and encoder.size):
            continue
        if before is not None:
            await before
        before = loop.create_future()
        deliver(Piece(encoder.take(), False, partial(_resolve_from_thread, loop, before)))
        begun_at = loop.time()
    if before is not None:
        await before
    deliver(Piece(encoder.finish(), True, _ignore))


def _resolve_from_thread(loop: asyncio.AbstractEventLoop, future: asyncio.Future[None]) -> None:
    with contextlib.suppress(RuntimeError):  # the statement has ended meanwhile
        loop.call_soon_threadsafe(_resolve, future)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _ignore() -> None:
    """Nothing follows the last piece."""


def _session(tables: dict[str, Table], memory_bytes_max: int) -> Any:
    config = (
        datafusion.SessionConfig(_OPTIONS)
        .with_default_catalog_and_schema("restate", "public")
        .with_information_schema(True)
        .with_target_partitions(1)
    )
    runtime = (
        datafusion.RuntimeEnvBuilder()
        .with_disk_manager_disabled()
        .with_greedy_memory_pool(memory_bytes_max)
    )
    context = datafusion.SessionContext(config, runtime)
    for name in _TABLE_FUNCTIONS_BARRED:
        context.deregister_udtf(name)
    for name in _FUNCTIONS_BARRED:
        context.deregister_udf(name)
    for name, table in tables.items():
        context.register_dataset(name, TableDataset(table))
    for name, function, kind in (
        ("json_get", json_operators.get, _TEXT),
        ("json_as_text", json_operators.as_text, _TEXT),
        ("json_get_str", json_operators.as_text, _TEXT),
        ("json_contains", json_operators.contains, arrow.bool_()),
    ):
        context.register_udf(
            datafusion.udf(_vectorized(function, kind), [_TEXT, _TEXT], kind, "immutable", name)
        )
    return context


def _empty(context: Any, name: str, table: Table) -> None:
    """Have no rows in a table."""
    context.deregister_table(name)
    context.register_record_batches(name, [[arrow.RecordBatch.from_pylist([], table.schema)]])


def _vectorized(function: Callable[[str | None, str | None], Any], kind: Any) -> Any:
    def over_arrays(texts: Any, keys: Any) -> Any:
        pairs = zip(texts.to_pylist(), keys.to_pylist(), strict=True)
        return arrow.array([function(text, key) for text, key in pairs], kind)

    return over_arrays


def _message(error: Exception) -> str:
    """What the engine says, without what its bindings add."""
    return str(error).strip().removeprefix("DataFusion error: ") or type(error).__name__
