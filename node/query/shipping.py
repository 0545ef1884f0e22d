"""Rows and conditions as bytes, on their way between nodes. Imported lazily."""

import importlib
from collections.abc import Iterator, Sequence
from typing import Any

from perdure.core.errors import QueryRefused
from perdure.node.query.libraries import arrow

_compute: Any = importlib.import_module("pyarrow.compute")


def pack_batches(schema: Any, batches: Sequence[Any]) -> bytes:
    """Batches as one Arrow stream; nothing for none."""
    if not batches:
        return b""
    sink = arrow.BufferOutputStream()
    with arrow.ipc.new_stream(sink, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    packed: bytes = sink.getvalue().to_pybytes()
    return packed


def unpack_batches(schema: Any, packed: bytes) -> Iterator[Any]:
    """The batches that were packed.

    Raises:
        QueryRefused: they are of another schema.
    """
    if not packed:
        return
    with arrow.ipc.open_stream(arrow.py_buffer(packed)) as reader:
        if not reader.schema.equals(schema):
            raise QueryRefused(
                "another node runs a release whose tables have other columns: ask it, or finish "
                "the upgrade"
            )
        yield from reader


def pack_condition(condition: Any) -> bytes | None:
    """An expression as Arrow writes it down: data, no code."""
    if condition is None:
        return None
    # The library shows its own format only where it prepares an object for pickling.
    _, (buffer,) = condition.__reduce__()
    packed: bytes = buffer.to_pybytes()
    return packed


def unpack_condition(packed: bytes | None) -> Any:
    """The expression that was packed."""
    if packed is None:
        return None
    return _compute.Expression._deserialize(arrow.py_buffer(packed))
