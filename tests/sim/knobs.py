"""Limits as a seed draws them: often as they are, sometimes absurdly small.

What a limit guards must also hold where the limit bites all the time: windows of two records,
memtables of a few rows, one effect per record.
"""

import random
from collections.abc import Generator
from contextlib import contextmanager
from types import ModuleType

from perdure.cluster import log, wal_writer
from perdure.cluster.core import sequencer
from perdure.node.invoker import batches
from perdure.node.partition import leader, processor, shuffle, timers

KNOBS: tuple[tuple[ModuleType, str, tuple[int, ...]], ...] = (
    (sequencer, "WINDOW_RECORDS_MAX", (1, 2, 16)),
    (sequencer, "WINDOW_BYTES_MAX", (1, 500)),
    (log, "WAITING_PROPOSALS_MAX", (8, 64)),
    (wal_writer, "WAL_GROUP_BYTES_MAX", (1, 1000)),
    (processor, "MEMTABLE_FLUSH_INTERVAL_MS", (5, 30, 30)),
    (processor, "MEMTABLE_FLUSH_BYTES", (500, 3_000)),
    (processor, "MEMTABLE_BYTES_MAX", (4_000, 10_000)),
    (batches, "EFFECTS_PER_RECORD_MAX", (1, 2)),
    (batches, "EFFECT_BYTES_PER_RECORD_MAX", (1, 60)),
    (timers, "TIMERS_PER_RECORD_MAX", (1, 2)),
    (leader, "_SCAN_COUNT", (1, 2)),
    (shuffle, "_SCAN_COUNT", (1, 2)),
    (shuffle, "OUTBOX_WINDOW_COUNT", (1, 2)),
    (shuffle, "OUTBOX_TRIM_INTERVAL_MS", (1, 500)),
)


@contextmanager
def drawn(dice: random.Random) -> Generator[None]:
    """Turn some knobs while the block runs."""
    before = [(module, name, getattr(module, name)) for module, name, _ in KNOBS]
    try:
        for module, name, extremes in KNOBS:
            if dice.random() < 0.4:
                setattr(module, name, dice.choice(extremes))
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)
