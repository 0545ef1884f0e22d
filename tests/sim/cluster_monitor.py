"""Looks on while a simulated cluster lives: what no single node can see, all of them together show.

It stands beside the product's own methods (``watching``) and knows by the context of a call whose
process it is. What it finds is a ``Violation`` that ends the seed; the numbers are those of
tests/sim/README.md.
"""

# pyright: reportPrivateUsage=false

from collections import defaultdict
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import msgspec
from tests.sim.loop import OWNER
from tests.sim.node_world import Violation

from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.replica import ReplicaCore
from perdure.cluster.core.sequencer import SequencerCore
from perdure.cluster.core.types import SegmentKey, Store
from perdure.cluster.wal_writer import WalWriter
from perdure.core.ids import InvocationId
from perdure.engine.apply import Machine as Engine
from perdure.engine.apply import Origin
from perdure.engine.commands import Command, Invoke
from perdure.node.partition.processor import Processor
from perdure.storage.partition_store import PartitionStore
from perdure.storage.wal_format import Frame

if TYPE_CHECKING:
    from tests.sim.cluster_machine import ClusterLife, Machine

Applied = tuple[int, int, Command, Origin | None]


class Monitor:
    """Of one seed. ``is_register_honest``: whether chains may be held against the log."""

    def __init__(self) -> None:
        self.is_register_honest = True
        self.found: list[Violation] = []
        self.copies = 0  # of tables, begun
        self.applied_invocations: set[InvocationId] = set()
        self._history: dict[int, dict[int, Applied]] = defaultdict(dict)
        self._inbound: dict[tuple[int, int], int] = defaultdict(int)
        self._writers: dict[SegmentKey, tuple[int, int]] = {}
        self._committed: dict[SegmentKey, int] = defaultdict(int)
        self._chained: dict[SegmentKey, SegmentMeta] = {}
        self._readable: dict[int, int] = defaultdict(int)  # LSN, exclusive
        self._durable: dict[tuple[str, int], int] = {}
        self._metas: dict[int, PartitionMeta] = {}

    def raise_found(self) -> None:
        """The first thing that was found, if any."""
        if self.found:
            raise self.found[0]

    # --- The log ----------------------------------------------------------------------------------

    def on_stored(self, item: Store) -> None:
        """A replica takes records (I-1)."""
        key, writer = (item.partition, item.segment), (item.incarnation, item.epoch)
        if self.is_register_honest and self._writers.setdefault(key, writer) != writer:
            self._find(f"I-1: segment {key} has two writers")

    def on_committed(self, core: SequencerCore) -> None:
        """A sequencer tells that records are committed (I-8)."""
        params = core.params
        key = params.partition, params.index
        self._committed[key] = max(self._committed[key], core.committed)
        tail_lsn = params.base_lsn + core.committed
        self._readable[params.partition] = max(self._readable[params.partition], tail_lsn)
        closed = self._chained.get(key)
        end_lsn = closed.tail_lsn if closed is not None else None
        if self.is_register_honest and end_lsn is not None and tail_lsn > end_lsn:
            self._find(f"I-8: segment {key} ends at {end_lsn}, and is committed up to {tail_lsn}")

    def on_written(self, life: "ClusterLife") -> None:
        """A group of frames is told to be durable (I-3)."""
        if life.is_up and life.machine.disk.is_dirty("wal/"):
            self._find(f"I-3: {life.machine.name} acknowledges what it has not synced")

    def on_trimmed(self, core: ReplicaCore, key: SegmentKey, up_to: int) -> None:
        """A replica lets records go (I-24)."""
        segment, meta = self._chained.get(key), self._metas.get(key[0])
        if segment is None or meta is None or not self.is_register_honest:
            return
        below = segment.base_lsn + up_to
        for node in meta.replicas.current:
            durable = self._durable.get((f"node-{node}", key[0]))
            if durable is not None and durable < below - 1:
                self._find(f"I-24: partition {key[0]} trimmed below {below}, {node} has {durable}")

    # --- Registers --------------------------------------------------------------------------------

    def on_partition(self, partition: int, value: bytes) -> None:
        """A partition's register is written (I-8, I-11, I-13)."""
        after = msgspec.msgpack.decode(value, type=PartitionMeta)
        before = self._metas.get(partition)
        self._metas[partition] = after
        if before is not None and self.is_register_honest:
            self._check_growth(partition, before, after)
        for segment in after.chain:
            self._chained[partition, segment.index] = segment
            if segment.tail_lsn is not None:
                readable = max(self._readable[partition], segment.tail_lsn)
                self._readable[partition] = readable

    def _check_growth(self, partition: int, before: PartitionMeta, after: PartitionMeta) -> None:
        if after.epoch < before.epoch or after.trim_lsn < before.trim_lsn:
            self._find(f"I-11: partition {partition} falls from {before} to {after}")
        for one, other in zip(after.chain, after.chain[1:], strict=False):
            if other.index != one.index + 1 or other.epoch <= one.epoch:
                self._find(f"I-11: segments of partition {partition} don't grow: {after.chain}")
            if one.tail_lsn != other.base_lsn:
                self._find(f"I-11: segments of partition {partition} don't meet: {after.chain}")
        for segment in after.chain:
            key = partition, segment.index
            known = self._chained.get(key)
            if known is not None and known.tail_lsn is not None and known != segment:
                self._find(f"I-11: closed segment {key} changes from {known} to {segment}")
            committed_lsn = segment.base_lsn + self._committed[key]
            if segment.tail_lsn is not None and committed_lsn > segment.tail_lsn:
                self._find(f"I-8: segment {key} is closed below what it has committed")

    # --- Tables -----------------------------------------------------------------------------------

    def on_apply(self, partition: int, lsn: int, applied: Applied) -> None:
        """A replica is about to apply a record (I-2, I-10, I-13, I-16, I-17)."""
        history = self._history[partition]
        known = history.get(lsn)
        if known is None:
            history[lsn] = applied
            self._note(partition, lsn, applied)
        elif known != applied:
            self._find(f"I-16: record {lsn} of partition {partition} is {known} and {applied}")
        if lsn >= self._readable[partition]:
            self._find(f"I-10: record {lsn} of partition {partition} is applied, not committed")

    def _note(self, partition: int, lsn: int, applied: Applied) -> None:
        epoch, _, command, origin = applied
        before = self._history[partition].get(lsn - 1)
        if before is not None and epoch < before[0]:
            self._find(f"I-13: epochs of partition {partition} fall at {lsn}")
        if isinstance(command, Invoke):
            self.applied_invocations.add(command.id)
        if origin is not None:
            stream = partition, origin.partition
            if origin.sequence > self._inbound[stream] + 1:
                self._find(f"I-17: messages of {origin.partition} to {partition} have a gap")
            self._inbound[stream] = max(self._inbound[stream], origin.sequence)

    def on_acknowledged(self, invocation: InvocationId) -> None:
        """A client is told that its invocation was accepted (I-15)."""
        if invocation not in self.applied_invocations:
            self._find(f"I-15: {invocation.hex()} is acknowledged before it is applied")

    def on_durable(self, life: "ClusterLife", processor: Processor) -> None:
        """Tables tell how far they are durable."""
        place = life.machine.name, int(processor.partition)
        self._durable[place] = max(self._durable.get(place, 0), processor.store.durable_lsn)

    def on_boot(self, life: "ClusterLife") -> None:
        """Tables were opened again (I-26)."""
        for number, led in enumerate(life.host.led):
            told = self._durable.get((life.machine.name, number), 0)
            if led.processor.store.durable_lsn < told:
                self._find(f"I-26: {life.machine.name} lost what it told to be durable: {told}")

    def on_forgotten(self, life: "ClusterLife", partition: int) -> None:
        """Its tables are about to be replaced by others."""
        self.copies += 1
        self._durable.pop((life.machine.name, partition), None)

    def on_reloaded(self, life: "ClusterLife", store: PartitionStore) -> None:
        """It has other tables, or none."""
        self._durable[life.machine.name, store.opened.partition] = store.durable_lsn

    def on_wiped(self, machine: "Machine") -> None:
        """Its disk is a new one."""
        for place in [place for place in self._durable if place[0] == machine.name]:
            del self._durable[place]

    def _find(self, what: str) -> None:
        self.found.append(Violation(what))


@contextmanager
def watching(monitor: Monitor) -> Generator[None]:
    """Have the monitor see what nodes do while the block runs."""
    with ExitStack() as stack:
        for owner, name, make in _SEEN:
            watched = make(monitor, getattr(owner, name))
            stack.enter_context(patch.object(owner, name, watched))
        yield


def _life() -> "ClusterLife | None":
    return cast("ClusterLife | None", OWNER.get())


def _see_store(monitor: Monitor, store: Callable[..., Any]) -> Callable[..., Any]:
    def seen(core: ReplicaCore, item: Store) -> Any:
        answer = store(core, item)
        if isinstance(answer, Frame):
            monitor.on_stored(item)
        return answer

    return seen


def _see_commit(monitor: Monitor, commit: Callable[..., Any]) -> Callable[..., Any]:
    def seen(core: SequencerCore, now: float) -> Any:
        answer = commit(core, now)
        if answer is not None:
            monitor.on_committed(core)
        return answer

    return seen


def _see_written(monitor: Monitor, written: Callable[..., Any]) -> Callable[..., Any]:
    def seen(writer: WalWriter, group: Any, elapsed_ms: float) -> None:
        if (life := _life()) is not None:
            monitor.on_written(life)
        written(writer, group, elapsed_ms)

    return seen


def _see_trim(monitor: Monitor, trim: Callable[..., Any]) -> Callable[..., Any]:
    def seen(core: ReplicaCore, key: SegmentKey, up_to: int) -> Any:
        answer = trim(core, key, up_to)
        if answer is not None:
            monitor.on_trimmed(core, key, up_to)
        return answer

    return seen


def _see_apply(monitor: Monitor, apply: Callable[..., Any]) -> Callable[..., Any]:
    def seen(
        engine: Engine,
        lsn: int,
        epoch: int,
        now_ms: int,
        command: Command,
        origin: Origin | None = None,
    ) -> Any:
        monitor.on_apply(int(engine._partition), lsn, (epoch, now_ms, command, origin))
        return apply(engine, lsn, epoch, now_ms, command, origin)

    return seen


def _see_flush(monitor: Monitor, done: Callable[..., Any]) -> Callable[..., Any]:
    def seen(processor: Processor, flush: Any) -> None:
        done(processor, flush)
        if (life := _life()) is not None and life.is_up:
            monitor.on_durable(life, processor)

    return seen


def _see_forget(monitor: Monitor, forget: Callable[..., Any]) -> Callable[..., Any]:
    def seen(store: PartitionStore) -> None:
        if (life := _life()) is not None:
            monitor.on_forgotten(life, store.opened.partition)
        forget(store)

    return seen


def _see_reload(monitor: Monitor, reload: Callable[..., Any]) -> Callable[..., Any]:
    def seen(store: PartitionStore) -> None:
        reload(store)
        if (life := _life()) is not None and life.is_up:
            monitor.on_reloaded(life, store)

    return seen


_SEEN: tuple[tuple[type, str, Callable[[Monitor, Callable[..., Any]], Callable[..., Any]]], ...] = (
    (ReplicaCore, "store", _see_store),
    (ReplicaCore, "trim", _see_trim),
    (SequencerCore, "_commit", _see_commit),
    (WalWriter, "_written", _see_written),
    (Engine, "apply", _see_apply),
    (Processor, "_flush_done", _see_flush),
    (PartitionStore, "forget", _see_forget),
    (PartitionStore, "reload", _see_reload),
)
