"""Group commit: collects the frames of a loop turn, writes and syncs them as one group.

While a sync is under way the next group gathers, so batches grow with load by themselves. When
syncs are short the loop does them inline, because handing over to a thread costs as much as the
sync; when they are long, or a lot is staged, the writer thread does. Acks run only after the sync.

Called on the event loop. A failed write or sync stops the log for good (``on_failure``); a full
disk only keeps the group waiting until there is room for a new file.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from perdure.core.clock import Clock
from perdure.core.errors import LogFailed
from perdure.core.limits import (
    DISK_FULL_RETRY_MS,
    WAL_GROUP_BYTES_MAX,
    WAL_INLINE_SYNC_MS_MAX,
    WAL_MARK_IDLE_MS,
)
from perdure.core.offload import Offload
from perdure.core.telemetry import logger
from perdure.storage.disk import DiskFullError
from perdure.storage.wal import SegmentKey, Wal
from perdure.storage.wal_format import FRAME_HEADER_BYTES, Frame

log = logger("wal")

# Inline only while a group is small: writing megabytes holds the loop as long as a slow sync.
_INLINE_BYTES_MAX = 256 * 1024
_SMOOTHING = 0.1


@dataclass(frozen=True, slots=True)
class _Staged:
    frame: Frame
    size: int
    on_durable: Callable[[], None] | None


@dataclass(frozen=True, slots=True)
class WalWriterStatistics:
    """Queue and sync figures; ``sync_ms`` is a moving average."""

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
        self._wal = wal
        self._clock = clock
        self._writing = writing
        self._housekeeping = housekeeping
        self._on_failure = on_failure
        self._checkpoint = checkpoint
        self._loop = asyncio.get_running_loop()
        self._staged: deque[_Staged] = deque()
        self._staged_bytes = 0
        self._is_scheduled = False
        self._is_writing = False
        self._is_failed = False
        self._is_marked = True
        self._mark_timer: asyncio.TimerHandle | None = None
        self._last_group_at = 0.0
        self._sync_ms = 0.0
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
        """Have a group taken at the next turn of the loop."""
        if not self._is_scheduled and not self._is_writing and not self._is_failed:
            self._is_scheduled = True
            self._loop.call_soon(self._flush)

    def recycle(self, is_dead: Callable[[SegmentKey, int], bool]) -> None:
        """Free files in the background; ``is_dead`` as in ``Wal.recycle``."""
        self._housekeeping.submit(
            lambda: self._wal.recycle(is_dead), lambda _: None, self._on_failure
        )

    def ensure_spare(self) -> None:
        """Prepare the next file in the background; says when the disk is too full for it."""
        self._housekeeping.submit(
            self._wal.ensure_spare, lambda _: self._set_full(False), self._on_spare_failed
        )

    def statistics(self) -> WalWriterStatistics:
        return WalWriterStatistics(
            self._staged_bytes, self._groups, self._inline_groups, self._sync_ms, self.is_full
        )

    def close(self) -> None:
        """Stop timers; what is staged is not written."""
        self._is_failed = True
        if self._mark_timer is not None:
            self._mark_timer.cancel()

    def _flush(self) -> None:
        self._is_scheduled = False
        if self._is_writing or self._is_failed:
            return
        for collect in self._before_flush:
            collect()
        self._is_scheduled = False
        if not self._staged:
            return
        group, size = self._take_group()
        if self._sync_ms <= WAL_INLINE_SYNC_MS_MAX and size <= _INLINE_BYTES_MAX:
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
            group.append(_Staged(self._checkpoint(), 0, None))
        return group, size

    def _write(self, group: list[_Staged]) -> float:
        self._wal.append([item.frame for item in group])
        started = self._clock.monotonic()
        self._wal.sync()
        return (self._clock.monotonic() - started) * 1000

    def _written(self, group: list[_Staged], elapsed_ms: float) -> None:
        self._is_writing = False
        self._groups += 1
        self._sync_ms += (elapsed_ms - self._sync_ms) * _SMOOTHING
        self._last_group_at = self._loop.time()
        self._is_marked = False
        if self._mark_timer is None:
            self._mark_timer = self._loop.call_later(WAL_MARK_IDLE_MS / 1000, self._mark)
        if self._wal.statistics().spares == 0:
            self.ensure_spare()
        for item in group:
            if item.on_durable is not None:
                item.on_durable()
        if self._staged:
            self.request_flush()

    def _failed(self, group: list[_Staged], error: BaseException) -> None:
        self._is_writing = False
        if isinstance(error, DiskFullError):
            # Nothing was written: the group waits at the front until there is room.
            kept = [item for item in group if item.size]
            self._staged.extendleft(reversed(kept))
            self._staged_bytes += sum(item.size for item in kept)
            self._set_full(True)
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

    def _on_spare_failed(self, error: BaseException) -> None:
        if isinstance(error, DiskFullError):
            self._set_full(True)
        else:
            self._failed([], error)

    def _set_full(self, is_full: bool) -> None:
        if is_full != self.is_full:
            self.is_full = is_full
            if is_full:
                log.error("wal.disk.full", next_step="free some space; nothing is lost")
            else:
                log.info("wal.disk.has_room")
        if is_full:
            self._loop.call_later(DISK_FULL_RETRY_MS / 1000, self._retry_full)

    def _retry_full(self) -> None:
        if not self._is_failed and self.is_full:
            self.ensure_spare()
            self.request_flush()

    def _mark(self) -> None:
        self._mark_timer = None
        if self._is_failed or self._is_marked:
            return
        idle = self._loop.time() - self._last_group_at
        if self._is_writing or self._staged or idle < WAL_MARK_IDLE_MS / 1000:
            delay = max(WAL_MARK_IDLE_MS / 1000 - idle, 0.001)
            self._mark_timer = self._loop.call_later(delay, self._mark)
            return
        self._is_marked = True
        try:
            self._wal.mark()
            self._wal.sync()
        except Exception as error:  # bulkhead: the disk, whatever it raises
            self._failed([], error)
