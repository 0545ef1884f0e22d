"""Batches of rows as answers: JSON rows, or an Arrow stream. Imported lazily.

In JSON a NULL is left out of its row, times are RFC 3339, durations ISO 8601, octets hexadecimal:
what known clients read.
"""

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import msgspec

from perdure.node.query.libraries import arrow

_EPOCH = datetime.fromtimestamp(0, UTC)
_ENCODE = msgspec.json.Encoder(enc_hook=str, decimal_format="number").encode


class Encoder(Protocol):
    """Takes batches one by one; gives the answer piece by piece."""

    @property
    def size(self) -> int:
        """Bytes that may be taken."""
        ...

    def add(self, batch: Any) -> None:
        """Append rows."""
        ...

    def take(self) -> bytes:
        """What was added since."""
        ...

    def finish(self) -> bytes:
        """The same, and the end."""
        ...


class JsonEncoder:
    """``{"rows":[…]}``."""

    def __init__(self, schema: Any) -> None:
        self._fields = [(field.name, _renderer(field.type)) for field in schema]
        self._parts = [b'{"rows":[']
        self._has_rows = False
        self.size = 0

    def add(self, batch: Any) -> None:
        count = batch.num_rows
        rows: list[dict[str, Any]] = [{} for _ in range(count)]
        for (name, render), column in zip(self._fields, batch.columns, strict=True):
            for row, value in zip(rows, render(column), strict=True):
                if value is not None:
                    row[name] = value
        if not rows:
            return
        content = _ENCODE(rows)[1:-1]
        if self._has_rows:
            self._parts.append(b",")
        self._has_rows = True
        self._parts.append(content)
        self.size += len(content)

    def take(self) -> bytes:
        content = b"".join(self._parts)
        self._parts.clear()
        self.size = 0
        return content

    def finish(self) -> bytes:
        self._parts.append(b"]}")
        return self.take()


class ArrowEncoder:
    """Schema, batches, end."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._sink = io.BytesIO()
        self._writer = arrow.ipc.new_stream(self._sink, schema)

    @property
    def size(self) -> int:
        return self._sink.tell()

    def add(self, batch: Any) -> None:
        if batch.num_rows:
            # Functions may give another type of text than the plan said.
            same = batch.schema.equals(self._schema)
            self._writer.write_batch(batch if same else batch.cast(self._schema))

    def take(self) -> bytes:
        # Messages are padded to eight bytes by their position: whole ones leave that as it is.
        content = self._sink.getvalue()
        self._sink.seek(0)
        self._sink.truncate()
        return content

    def finish(self) -> bytes:
        self._writer.close()
        return self.take()


def _renderer(kind: Any) -> Callable[[Any], list[Any]]:
    types = arrow.types
    if types.is_timestamp(kind):
        return _times
    if types.is_duration(kind):
        return _durations
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind):
        return _hexadecimal
    if types.is_binary_view(kind):
        return _hexadecimal
    if types.is_interval(kind):
        return _intervals
    return _plain


def _plain(column: Any) -> list[Any]:
    found: list[Any] = column.to_pylist()
    return found


def _times(column: Any) -> list[Any]:
    scale = {"s": 1_000_000, "ms": 1_000}.get(column.type.unit)
    if scale is None:
        column = column.cast(arrow.timestamp("us", column.type.tz), safe=False)
        scale = 1
    ticks = column.cast(arrow.int64()).to_pylist()
    has_zone = column.type.tz is not None
    return [None if tick is None else _time(tick * scale, has_zone) for tick in ticks]


def _time(microseconds: int, has_zone: bool) -> str:
    try:
        moment = _EPOCH + timedelta(microseconds=microseconds)
    except OverflowError:
        return f"{microseconds} us since 1970"
    text = moment.strftime("%Y-%m-%dT%H:%M:%S")
    if moment.year < 1000:
        text = f"{moment.year:04}{text[text.index('-') :]}"
    rest = microseconds % 1_000_000
    if rest:
        text += f".{rest // 1000:03}" if rest % 1000 == 0 else f".{rest:06}"
    return f"{text}Z" if has_zone else text


def _durations(column: Any) -> list[Any]:
    per_second = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}[column.type.unit]
    ticks = column.cast(arrow.int64()).to_pylist()
    return [None if tick is None else _duration(tick, per_second) for tick in ticks]


def _duration(ticks: int, per_second: int) -> str:
    if ticks == 0:
        return "P0D"
    sign = "-" if ticks < 0 else ""
    seconds, rest = divmod(abs(ticks), per_second)
    digits = len(str(per_second)) - 1
    fraction = f".{rest:0{digits}}".rstrip("0") if rest else ""
    return f"{sign}PT{seconds}{fraction}S"


def _intervals(column: Any) -> list[Any]:
    return [None if value is None else _interval(*value) for value in column.to_pylist()]


def _interval(months: int, days: int, nanoseconds: int) -> str:
    parts = ((months, "months"), (days, "days"), (nanoseconds / 1_000_000_000, "seconds"))
    return " ".join(f"{value:g} {unit}" for value, unit in parts if value) or "0 seconds"


def _hexadecimal(column: Any) -> list[Any]:
    return [None if value is None else value.hex() for value in column.to_pylist()]
