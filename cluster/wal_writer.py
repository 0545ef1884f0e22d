"""Group commit: collects the frames of a loop turn, writes and syncs them as one group.

While a sync is under way the next group gathers, so batches grow with load by themselves. When
syncs are short, or rare, the loop does them inline, because handing over to a thread and back costs
as much as a short sync, and on a busy machine more than a long one; when they are long and often,
or a lot is staged, the writer thread does. Acks run only after the sync.

Called on the event loop. A failed write or sync stops the log for good (``on_failure``); a full
disk only keeps the group waiting until there is room for a new file.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

from perdure.core.clock import Clock
from perdure.core.errors import LogFailed
from perdure.core.limits import (
    DISK_FULL_RETRY_MS,
    WAL_GROUP_BYTES_MAX,
    WAL_INLINE_RARE_SYNC_MS_MAX,
    WAL_INLINE_SYNC_MS_MAX,
    WAL_MARK_IDLE_MS,
)
from perdure.core.offload import Offload
from perdure.core.telemetry import logger
from perdure.storage.disk import DiskFullError
from perdure.storage.wal import SegmentKey, Wal
from perdure.storage.wal_format import FRAME_HEADER_BYTES, Frame, FrameType

log = logger("wal")

# Inline only while a group is small: writing megabytes holds the loop as long as a slow sync.
_INLINE_BYTES_MAX = 256 * 1024
_SMOOTHING = 0.1
# Syncs are rare while the loop, doing them itself, would have most of its time left.
_SHARE_MAX = 0.4
_BETWEEN_MS_MAX = 100.0
# A sync now and then takes ten times as long as all others: it says nothing about the next ones.
_SAMPLE_MS_MAX = 4 * WAL_INLINE_SYNC_MS_MAX


class _Staged(NamedTuple):
    frame: Frame
    size: int
    on_durable: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class WalWriterStatistics:
    """Queue and sync figures; ``sync_ms``: a moving average that single stalls hardly move."""

    staged_bytes: int
    groups: int
    inline_groups: int
    sync_ms: float
    is_full: bool


class WalWriter:
    """The only user of an open log's ``append`` and ``sync``."""

    def __init__(
        self,
        wal: Wal,
        clock: Clock,
        writing: Offload,
        housekeeping: Offload,
        on_failure: Callable[[BaseException], None],
        checkpoint: Callable[[], Frame],
    ) -> None:
        self.wal = wal  # for reading; writing is this writer's alone
        self._wal = wal
        self._clock = clock
        self._writing = writing
        self._housekeeping = housekeeping
        self._on_failure = on_failure
        self._checkpoint = checkpoint
        self._loop = asyncio.get_running_loop()
        self._staged: deque[_Staged] = deque()
        self._staged_bytes = 0
        self._is_scheduled = False  # a flush is due, now or when the one under way has ended
        self._is_writing = False
        self._is_failed = False
        self._is_blocked = False  # the group at the front waits for room on the disk
        self._is_marked = True  # nothing was written since the last MARK
        self._mark_timer: asyncio.TimerHandle | None = None
        self._full_timer: asyncio.TimerHandle | None = None
        self._last_group_at = 0.0
        self._sync_ms = 0.0
        self._last_sync_ms = 0.0
        self._between_ms = 0.0  # from one group to the next, as a moving average
        self._groups = self._inline_groups = 0
        self._before_flush: list[Callable[[], None]] = []
        self.is_full = False

    def before_flush(self, collect: Callable[[], None]) -> None:
        """Let ``collect`` stage what it has gathered, right before each group is taken."""
        self._before_flush.append(collect)

    def stage(self, frame: Frame, on_durable: Callable[[], None] | None) -> None:
        """Put a frame into the next group; ``on_durable`` runs after its sync."""
        size = FRAME_HEADER_BYTES + sum(map(len, frame.body))
        self._staged.append(_Staged(frame, size, on_durable))
        self._staged_bytes += size
        self.request_flush()

    def request_flush(self) -> None:
        """Have a group taken at the next turn of the loop, or after the one under way."""
        if not self._is_scheduled:
            self._is_scheduled = True
            if not self._is_writing:
                self._loop.call_soon(self._flush)

    def recycle(self, is_dead: Callable[[SegmentKey, int], bool]) -> None:
        """Free files in the background; ``is_dead`` as in ``Wal.recycle``."""
        self._housekeeping.submit(
            lambda: self._wal.recycle(is_dead), self._on_recycled, self._on_spare_failed
        )

    def ensure_spare(self) -> None:
        """Prepare the next file in the background; says when the disk is too full for it."""
        self._housekeeping.submit(
            self._wal.ensure_spare, lambda _: self._on_room(), self._on_spare_failed
        )

    def statistics(self) -> WalWriterStatistics:
        return WalWriterStatistics(
            self._staged_bytes, self._groups, self._inline_groups, self._sync_ms, self.is_full
        )

    def close(self) -> None:
        """Stop timers; what is staged is not written."""
        self._is_failed = True
        for timer in (self._mark_timer, self._full_timer):
            if timer is not None:
                timer.cancel()

    # --- Groups ---------------------------------------------------------------------------------

    def _flush(self) -> None:
        if self._is_writing or self._is_failed or self._is_blocked:
            self._is_scheduled = False
            return
        for collect in self._before_flush:
            collect()  # what it stages belongs to this flush: the flag is still up
        self._is_scheduled = False
        if not self._staged:
            return
        group, size = self._take_group()
        if self._is_quick(size):
            self._inline_groups += 1
            try:
                elapsed_ms = self._write(group)
            except Exception as error:  # bulkhead: the disk, whatever it raises
                self._failed(group, error)
            else:
                self._written(group, elapsed_ms)
        else:
            self._is_writing = True
            self._writing.submit(
                lambda: self._write(group),
                lambda elapsed_ms: self._written(group, elapsed_ms),
                lambda error: self._failed(group, error),
            )

    def _is_quick(self, size: int) -> bool:
        """Whether the loop can afford to write and sync the group itself."""
        is_rare = (
            self._last_sync_ms <= WAL_INLINE_RARE_SYNC_MS_MAX
            and self._sync_ms <= _SHARE_MAX * self._between_ms
        )
        return (
            (self._sync_ms <= WAL_INLINE_SYNC_MS_MAX or is_rare)
            and size <= _INLINE_BYTES_MAX
            and not self._wal.must_roll(size)
        )

    def _take_group(self) -> tuple[list[_Staged], int]:
        group: list[_Staged] = []
        size = 0
        while self._staged and (not group or size + self._staged[0].size <= WAL_GROUP_BYTES_MAX):
            item = self._staged.popleft()
            group.append(item)
            size += item.size
        self._staged_bytes -= size
        if self._wal.wants_checkpoint and not self._staged:
            # Only when nothing is left behind: the checkpoint tells of everything staged so far.
            checkpoint = self._checkpoint()
            group.append(_Staged(checkpoint, 0, None))
            size += FRAME_HEADER_BYTES + sum(map(len, checkpoint.body))
        return group, size

    def _write(self, group: list[_Staged]) -> float:
        self._wal.append([item.frame for item in group])
        started = self._clock.monotonic()
        self._wal.sync()
        return (self._clock.monotonic() - started) * 1000

    def _written(self, group: list[_Staged], elapsed_ms: float) -> None:
        self._is_writing = False
        if self._is_failed:
            return
        for item in group:  # first: somebody waits for them, and nobody for our notes
            if item.on_durable is not None:
                item.on_durable()
        if self._is_failed:
            return  # it was closed by one of them
        self._note_group(group, elapsed_ms)
        if self._staged or self._is_scheduled:
            self._is_scheduled = False
            self.request_flush()

    def _note_group(self, group: list[_Staged], elapsed_ms: float) -> None:
        sample_ms = min(elapsed_ms, _SAMPLE_MS_MAX)
        self._sync_ms += (sample_ms - self._sync_ms) * (_SMOOTHING if self._groups else 1.0)
        self._groups += 1
        passed_ms = min((self._loop.time() - self._last_group_at) * 1000, _BETWEEN_MS_MAX)
        self._last_sync_ms = elapsed_ms
        self._between_ms += (passed_ms - self._between_ms) * _SMOOTHING
        self._last_group_at = self._loop.time()
        self._is_marked = group[-1].frame.type == FrameType.MARK and all(
            item.frame.type == FrameType.MARK for item in group
        )
        if self._mark_timer is None and not self._is_marked:
            self._mark_timer = self._loop.call_later(WAL_MARK_IDLE_MS / 1000, self._mark)
        if not self._wal.has_spare and not self.is_full:
            self.ensure_spare()

    def _mark(self) -> None:
        self._mark_timer = None
        if self._is_failed or self._is_marked:
            return
        idle = self._loop.time() - self._last_group_at
        if self._is_writing or self._staged or idle < WAL_MARK_IDLE_MS / 1000:
            delay = max(WAL_MARK_IDLE_MS / 1000 - idle, 0.001)
            self._mark_timer = self._loop.call_later(delay, self._mark)
            return
        self.stage(self._wal.mark_frame(), None)

    # --- Trouble --------------------------------------------------------------------------------

    def _failed(self, group: list[_Staged], error: BaseException) -> None:
        self._is_writing = False
        if self._is_failed:
            return
        if isinstance(error, DiskFullError):
            # Nothing was written: the group waits at the front until there is room.
            kept = [item for item in group if item.size]
            self._staged.extendleft(reversed(kept))
            self._staged_bytes += sum(item.size for item in kept)
            self._is_blocked = True
            self._set_full()
            return
        self._is_failed = True
        if isinstance(error, OSError):
            failure = LogFailed(
                f"writing the log failed ({error}); what is acknowledged is safe. This process "
                "stops, because a failed sync can't be trusted again: check the disk, then restart"
            )
            failure.__cause__ = error
            self._on_failure(failure)
        else:
            self._on_failure(error)

    def _on_recycled(self, freed: int) -> None:
        if freed and self.is_full:
            self.ensure_spare()

    def _on_spare_failed(self, error: BaseException) -> None:
        if self._is_failed:
            return
        if isinstance(error, DiskFullError):
            self._set_full()
        else:
            self._failed([], error)

    def _set_full(self) -> None:
        if not self.is_full:
            self.is_full = True
            log.error("wal.disk.full", next_step="free some space; nothing is lost")
        if self._full_timer is None:
            self._full_timer = self._loop.call_later(DISK_FULL_RETRY_MS / 1000, self._retry_full)

    def _on_room(self) -> None:
        if self.is_full and not self._is_failed:
            self.is_full = False
            log.info("wal.disk.has_room")
            self._is_blocked = False
            self.request_flush()

    def _retry_full(self) -> None:
        self._full_timer = None
        if not self._is_failed and self.is_full:
            self.ensure_spare()
