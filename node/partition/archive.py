"""Tables for replicas out of an object store: the way to begin where the log does not.

A source is a place with snapshots: the cluster's own destination, or that of the cluster which this
one was made of. What it has becomes this cluster's on the way: its tables say then whose they are.
Nothing but whole images that were checked is handed out, row by row, as another node would do it.
"""

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import msgspec

from perdure.core.errors import (
    PerdureError,
    SnapshotDamaged,
    SnapshotNotFound,
    SnapshotsUnavailable,
)
from perdure.core.limits_snapshots import TABLES_PIECE_BYTES, TABLES_PIECE_ROWS
from perdure.core.offload import Offload, offloaded, run_offloaded
from perdure.core.telemetry import logger
from perdure.storage.object_store import ObjectStore
from perdure.storage.partition_store import META_KEY, Meta
from perdure.storage.snapshot_format import Retained, SnapshotSet
from perdure.storage.snapshots import (
    check_tables,
    get_image,
    read_latest,
    read_usable_manifest,
)

log = logger("snapshots")

T = TypeVar("T")

Row = tuple[bytes, bytes]


class Unpacked(Protocol):
    """An image that was read back, on any thread."""

    @property
    def meta(self) -> Meta:
        """What the tables say of themselves."""
        ...

    def scan(self, lower: bytes, rows_max: int, bytes_max: int) -> list[Row]:
        """The first rows with keys from ``lower`` on."""
        ...

    def discard(self) -> None:
        """It is not needed any more."""
        ...


Unpack = Callable[[int, Iterator[bytes]], Unpacked]
"""Make a partition's image out of its pieces; on a thread. Raises SnapshotDamaged, OSError."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """``fingerprint``: whose snapshots they are, 32 hex digits. ``document``: the set that this
    cluster was made of; None: whatever counts."""

    store: ObjectStore
    fingerprint: str
    document: SnapshotSet | None = None

    def retained(self, partition: int) -> Sequence[Retained]:
        """The partition's snapshots there, the best first; blocks."""
        if self.document is not None:
            members = self.document.members
            return [item.snapshot for item in members if item.partition == partition]
        latest = read_latest(self.store, partition, self.fingerprint)
        return latest.retained if latest is not None else ()


class Archive:
    """Of one node; ``fingerprint``: of its cluster. ``sources``: the best first."""

    def __init__(
        self, sources: Sequence[Source], threads: Offload, unpack: Unpack, fingerprint: bytes
    ) -> None:
        self._sources = sources
        self._threads = threads
        self._unpack = unpack
        self._fingerprint = fingerprint

    async def rows(self, partition: int, lsn_min: int) -> AsyncGenerator[list[Row], None]:
        """Tables that have applied ``lsn_min``: all rows by ascending keys, in pieces.

        Raises:
            SnapshotNotFound: there are none.
            PerdureError: there are, and they can't be used now, or ever.
        """
        image = await self._find(partition, lsn_min)
        try:
            lower = b""
            while rows := await self._run(
                partial(image.scan, lower, TABLES_PIECE_ROWS, TABLES_PIECE_BYTES)
            ):
                lower = rows[-1][0] + b"\0"
                yield [self._adopt(row) for row in rows]
        finally:
            self._discard(image)

    async def _find(self, partition: int, lsn_min: int) -> Unpacked:
        failure: PerdureError | None = None
        newest = 0
        for source in self._sources:
            try:
                retained = await self._run(partial(source.retained, partition))
            except PerdureError as error:
                failure = error
                continue
            newest = max([newest, *(item.lsn for item in retained)])
            for item in retained:
                if item.lsn >= lsn_min:
                    try:
                        return await self._get(source, partition, item)
                    except PerdureError as error:
                        failure = error
                        _tell(partition, item, error)
        raise failure or SnapshotNotFound(
            f"partition {partition} needs a snapshot at {lsn_min} or later, the newest is "
            f"{newest or 'none'}"
        )

    async def _get(self, source: Source, partition: int, retained: Retained) -> Unpacked:
        # It can't be stopped; if nobody wants it any more, it goes once it is here.
        fetching = offloaded(self._threads, partial(self._fetch, source, partition, retained))
        try:
            return await asyncio.shield(fetching)
        except asyncio.CancelledError:
            fetching.add_done_callback(self._discard_fetched)
            raise

    def _discard_fetched(self, fetching: "asyncio.Future[Unpacked]") -> None:
        if not fetching.cancelled() and fetching.exception() is None:
            self._discard(fetching.result())

    def _discard(self, image: Unpacked) -> None:
        self._threads.submit(image.discard, _ignore, _ignore)  # nobody waits for it

    def _fetch(self, source: Source, partition: int, retained: Retained) -> Unpacked:
        manifest = read_usable_manifest(source.store, partition, retained, source.fingerprint)
        try:
            image = self._unpack(partition, get_image(source.store, manifest))
        except OSError as error:
            raise SnapshotsUnavailable(f"there is no room for a snapshot: {error}") from error
        try:
            check_tables(manifest, image.meta)
        except SnapshotDamaged:
            image.discard()
            raise
        return image

    def _adopt(self, row: Row) -> Row:
        if row[0] != META_KEY:
            return row
        meta = msgspec.msgpack.decode(row[1], type=Meta)
        ours: Meta = msgspec.structs.replace(meta, fingerprint=self._fingerprint)
        return row[0], msgspec.msgpack.encode(ours)

    async def _run(self, job: Callable[[], T]) -> T:
        return await run_offloaded(self._threads, job)


def _ignore(_: object) -> None:
    """It was only tidied up."""


def _tell(partition: int, snapshot: Retained, failure: PerdureError) -> None:
    if isinstance(failure, SnapshotDamaged):
        log.error("snapshots.damaged", partition=partition, lsn=snapshot.lsn, reason=str(failure))
