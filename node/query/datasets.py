"""Tables as Arrow datasets: what the query engine asks for columns and rows. Imported lazily.

The engine takes any Arrow dataset, pulls its batches on threads of its own, and hands down the
columns it needs and the filter that it will not apply again. Columns of the filter are built first,
the others only for rows that pass.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from perdure.core.errors import PerdureError
from perdure.core.limits import QUERY_BATCH_ROWS
from perdure.node.query.bounds import Need, Order
from perdure.node.query.columns import TABLES, Kind
from perdure.node.query.libraries import arrow, dataset
from perdure.node.query.reading import DistantScan, Reading, Wanted
from perdure.node.query.shipping import pack_condition, unpack_batches
from perdure.node.query.sources import SOURCES

_POSITION = "perdure row"

_TYPES: dict[Kind, Any] = {
    Kind.TEXT: arrow.large_string(),
    Kind.U32: arrow.uint32(),
    Kind.U64: arrow.uint64(),
    Kind.BOOL: arrow.bool_(),
    Kind.BINARY: arrow.large_binary(),
    Kind.TIME: arrow.timestamp("ms", "+00:00"),
    Kind.DURATION: arrow.duration("ms"),
    Kind.U32_LIST: arrow.list_(arrow.uint32()),
    Kind.TEXT_LIST: arrow.list_(arrow.large_string()),
}


class Table:
    """A table of one statement. ``need`` is set when the statement is planned, ``reading`` when it
    runs. ``filtered``: the columns of filters."""

    def __init__(self, name: str, partition_count: int) -> None:
        columns = TABLES[name].items()
        self.name = name
        self.schema = arrow.schema([(column, _TYPES[kind]) for column, kind in columns])
        self.source = SOURCES[name]
        self.partition_count = partition_count
        self.need = Need()
        self.filtered: frozenset[str] = frozenset()
        self.reading: Reading | None = None

    def batches(self, columns: Sequence[str], condition: Any) -> Iterator[Any]:
        """Batches of the columns, of rows that meet the condition, wherever they are."""
        reading = self.reading
        if reading is None:
            return
        scans: list[DistantScan] = []
        try:
            # They work on their first piece while rows are read here.
            scans += self._begin_elsewhere(reading, columns, condition)
            yield from filter(None, self.steps(columns, condition))
            schema = self.schema_of(columns)
            for scan in scans:
                for piece in scan.pieces():
                    yield from unpack_batches(schema, piece)
        except PerdureError as error:
            reading.failure = error  # the engine makes a text of it
            raise
        finally:
            for scan in scans:
                scan.close()

    def steps(self, columns: Sequence[str], condition: Any) -> Iterator[Any]:
        """The same of what is read here; None after some work that gave no rows."""
        reading, source = self.reading, self.source
        if reading is None:
            return
        first = [name for name in self.schema.names if name in self.filtered]
        need = replace(self.need, columns=self.filtered.union(columns))
        enough = _Enough(need.order) if need.order is not None else None
        ranges = source.ranges(need, self.partition_count)
        ranges = [each for each in ranges if each.partition in reading.partitions]
        for rows in source.rows(reading, need, ranges):
            reading.pause()
            chosen = rows if condition is None else self._passing(rows, first, condition)
            for start in range(0, len(chosen), QUERY_BATCH_ROWS):
                reading.pause()
                yield self._build(chosen[start : start + QUERY_BATCH_ROWS], columns)
            if not chosen:
                yield None
            if enough is not None and enough.is_reached(rows, chosen):
                return

    def schema_of(self, columns: Sequence[str]) -> Any:
        """What batches of these columns look like."""
        return arrow.schema([self.schema.field(name) for name in columns])

    def partitions(self) -> set[int]:
        """Those that hold what is needed."""
        return self.source.partitions(self.need, self.partition_count)

    def _begin_elsewhere(
        self, reading: Reading, columns: Sequence[str], condition: Any
    ) -> list[DistantScan]:
        if not reading.elsewhere:
            return []
        packed = pack_condition(condition)
        wanted = Wanted(self.name, tuple(columns), self.filtered, self.need, packed)
        partitions = self.partitions()
        return [other.scan(wanted) for other in reading.elsewhere if other.partitions & partitions]

    def _passing(self, rows: list[Any], names: list[str], condition: Any) -> list[Any]:
        batch = self._build(rows, names)
        positions = arrow.array(range(len(rows)), arrow.uint32())
        marked = batch.append_column(_POSITION, positions).filter(condition)
        return [rows[position] for position in marked.column(_POSITION).to_pylist()]

    def _build(self, rows: list[Any], names: Sequence[str]) -> Any:
        columns = self.source.columns
        positions = arrow.array(range(len(rows)), arrow.uint32())
        arrays = [positions]
        for name in names:
            kind = self.schema.field(name).type
            read = columns.get(name)
            if read is None:
                arrays.append(arrow.nulls(len(rows), kind))
            else:
                arrays.append(arrow.array([read(row) for row in rows], kind))
        batch = arrow.RecordBatch.from_arrays(arrays, [_POSITION, *names])
        # A batch without columns still counts its rows.
        return batch.select(list(names))


class _Enough:
    """Tells when the rows that came in an order are all that is needed."""

    def __init__(self, order: Order) -> None:
        self._left = order.limit
        self._last_ms: int | None = None

    def is_reached(self, rows: list[Any], chosen: list[Any]) -> bool:
        """``rows`` came, and of these ``chosen`` were handed on."""
        if self._last_ms is None:
            if len(chosen) < self._left:
                self._left -= len(chosen)
                return False
            self._last_ms = chosen[self._left - 1].created_at_ms if self._left else None
            if self._last_ms is None:
                return True
        return bool(rows) and rows[-1].created_at_ms != self._last_ms


class TableDataset(dataset.Dataset):  # type: ignore[misc]
    """The table as a dataset of one fragment."""

    def __init__(self, table: Table) -> None:
        self._table = table

    @property
    def schema(self) -> Any:
        return self._table.schema

    def get_fragments(self, filter: Any = None) -> Iterator["_Fragment"]:
        yield _Fragment(self._table)

    def scanner(self, **options: Any) -> "_Scanner":
        return _Scanner(self._table, options)


class _Fragment(dataset.Fragment):  # type: ignore[misc]
    def __init__(self, table: Table) -> None:
        self._table = table

    @property
    def physical_schema(self) -> Any:
        return self._table.schema

    def scanner(self, schema: Any = None, **options: Any) -> "_Scanner":
        return _Scanner(self._table, options)


class _Scanner:
    """What the engine asks a scanner for, and no more."""

    def __init__(self, table: Table, options: dict[str, Any]) -> None:
        columns = options.get("columns")
        self._table = table
        self._columns = table.schema.names if columns is None else list(columns)
        self._condition = options.get("filter")

    @property
    def projected_schema(self) -> Any:
        return self._table.schema_of(self._columns)

    def to_batches(self) -> Iterator[Any]:
        return self._table.batches(self._columns, self._condition)
