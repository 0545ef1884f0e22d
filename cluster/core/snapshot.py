"""When a snapshot is due, how it becomes the one that counts, and what may be deleted. Pure.

``Publication`` is the only way to change ``latest.json``: read it, decide, write it on condition
that it is still what was read. Whatever becomes of an answer, it ends in one of two ways: my
snapshot is named, or one that is at least as new is (I-25). What was read is decided upon, never
what was believed to be written: after an answer that was lost, only reading tells.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

from perdure.core.invariant import invariant
from perdure.core.limits_snapshots import (
    PUBLISH_RETRY_INITIAL_MS,
    PUBLISH_RETRY_MS_MAX,
    PUBLISH_ROUNDS_MAX,
    SNAPSHOT_ORPHAN_MS,
)
from perdure.storage.object_store import ListedObject
from perdure.storage.snapshot_format import Latest, Retained, parse_snapshot_key

# --- When -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotPolicy:
    """``interval_ms`` after the last one, or ``records`` later; None: not for this reason."""

    interval_ms: int | None
    records: int | None


@dataclass(frozen=True, slots=True)
class Progress:
    """A partition since its last snapshot. ``new_records``: without those that only announce."""

    new_records: int
    since_ms: int


def is_due(policy: SnapshotPolicy, progress: Progress) -> bool:
    """Whether to take a snapshot: never of a partition where nothing has happened."""
    if progress.new_records <= 0:
        return False
    if policy.records is not None and progress.new_records >= policy.records:
        return True
    return policy.interval_ms is not None and progress.since_ms >= policy.interval_ms


# --- Publishing -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Read:
    """Read ``latest.json`` after ``delay_ms``, then call ``on_read``."""

    delay_ms: int = 0


@dataclass(frozen=True, slots=True)
class Write:
    """Write it if it is still what was read (``etag`` None: still absent); then ``on_written``,
    ``on_failed`` when its condition failed, ``on_unclear`` when nobody can tell."""

    document: Latest
    etag: str | None


@dataclass(frozen=True, slots=True)
class Published:
    """Mine is named. ``evicted``: what mine replaced; nobody needs it after a while."""

    latest: Latest
    evicted: tuple[Retained, ...]


@dataclass(frozen=True, slots=True)
class Superseded:
    """One at least as new is named, mine is not and never will be: delete mine."""

    latest: Latest


@dataclass(frozen=True, slots=True)
class GaveUp:
    """Too many rounds; mine may or may not be named: leave it alone, it is garbage or it counts."""


PublicationStep = Read | Write | Published | Superseded | GaveUp


@dataclass(slots=True, kw_only=True)
class Publication:
    """One snapshot on its way into ``latest.json``.

    ``retain``: how many are kept; ``pinned``: ids that are kept besides, because a set names them.
    """

    fingerprint: str
    partition: int
    mine: Retained
    retain: int
    pinned: frozenset[str] = frozenset()
    _rounds: int = 0
    _delay_ms: int = field(default=PUBLISH_RETRY_INITIAL_MS)
    _evicted: dict[str, Retained] = field(default_factory=dict[str, Retained])

    def start(self) -> PublicationStep:
        """Begin."""
        return Read()

    def on_read(self, found: tuple[Latest, str] | None) -> PublicationStep:
        """What ``latest.json`` is now, with its tag; None: it is absent."""
        latest, etag = found if found is not None else (None, None)
        known = latest.retained if latest is not None else ()
        if latest is not None and any(item.id == self.mine.id for item in known):
            # Written by a try whose answer was lost.
            return Published(latest, self._gone(known))
        if latest is not None and latest.newest_lsn >= self.mine.lsn:
            return Superseded(latest)
        document = self._successor(latest, known)
        kept = {item.id for item in document.retained}
        self._evicted |= {item.id: item for item in known if item.id not in kept}
        return Write(document, etag)

    def on_written(self, document: Latest) -> PublicationStep:
        """The write succeeded."""
        return Published(document, self._gone(document.retained))

    def on_failed(self) -> PublicationStep:
        """It was changed meanwhile: decide again at once, but not for ever."""
        return self._again(0)

    def on_unclear(self) -> PublicationStep:
        """The answer was lost, to reading or writing, or writers collided: look, a little later."""
        delay_ms = self._delay_ms
        self._delay_ms = min(2 * delay_ms, PUBLISH_RETRY_MS_MAX)
        return self._again(delay_ms)

    def _again(self, delay_ms: int) -> PublicationStep:
        self._rounds += 1
        return Read(delay_ms) if self._rounds < PUBLISH_ROUNDS_MAX else GaveUp()

    def _successor(self, latest: Latest | None, known: tuple[Retained, ...]) -> Latest:
        kept = [
            item
            for place, item in enumerate((self.mine, *known))
            if place < self.retain or item.id in self.pinned
        ]
        document = Latest(
            fingerprint=self.fingerprint,
            partition=self.partition,
            version=(latest.version if latest is not None else 0) + 1,
            retained=tuple(kept),
        )
        check_successor(latest, document)
        return document

    def _gone(self, named: tuple[Retained, ...]) -> tuple[Retained, ...]:
        kept = {item.id for item in named}
        return tuple(item for id, item in self._evicted.items() if id not in kept)


def check_successor(before: Latest | None, after: Latest) -> None:
    """Stop unless ``latest.json`` may go from one to the other (I-25)."""
    lsns = [item.lsn for item in after.retained]
    invariant(
        bool(lsns) and lsns == sorted(lsns, reverse=True),
        "latest.json names at least one snapshot, the newest first",
        lsns=lsns,
    )
    if before is None:
        invariant(after.version == 1, "the first version is 1", version=after.version)
        return
    invariant(
        (after.fingerprint, after.partition) == (before.fingerprint, before.partition),
        "latest.json stays with its cluster and partition",
        partition=after.partition,
    )
    invariant(
        after.version == before.version + 1 and after.newest_lsn > before.newest_lsn,
        "latest.json only goes forward",
        before=(before.version, before.newest_lsn),
        after=(after.version, after.newest_lsn),
    )
    invariant(
        after.archived_lsn >= before.archived_lsn,
        "the archived LSN only grows",
        before=before.archived_lsn,
        after=after.archived_lsn,
    )


# --- Deleting -------------------------------------------------------------------------------------


def find_orphans(
    listed: Iterable[ListedObject],
    latest: Latest | None,
    now_ms: int,
    pinned: frozenset[str] = frozenset(),
) -> list[tuple[int, str]]:
    """Snapshots, as LSN and id, that may be deleted because no publication can name them any more.

    ``latest`` must have been read after the listing was made; ``pinned``: ids that sets name, which
    are restored whether they count or not. A snapshot older than the newest one
    that counts can't be published any more: its publication would read, or fail on its condition
    and then read, that it is superseded. So age alone never decides; it only keeps us from deleting
    below the hands of somebody who is at work. Newer ones wait until one is published after them.
    """
    if latest is None:
        return []
    named = {item.id for item in latest.retained} | pinned
    touched: dict[tuple[int, str], int] = {}
    for item in listed:
        snapshot = parse_snapshot_key(item.key)
        if snapshot is not None:
            touched[snapshot] = max(touched.get(snapshot, 0), item.modified_ms)
    return sorted(
        (lsn, id)
        for (lsn, id), modified_ms in touched.items()
        if id not in named
        and lsn <= latest.newest_lsn
        and now_ms - modified_ms >= SNAPSHOT_ORPHAN_MS
    )
