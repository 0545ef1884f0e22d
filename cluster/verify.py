"""Compares the replicas of a partition's segments by digest: read-only, record by record at most.

Tells which ranges are on fewer replicas than they should be, which no replica has, and where two
replicas differ, which must never happen (I-2). Only what is committed is compared. It goes over a
log in windows and reads in small pieces, so that neither this node nor the others stand still.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.log_messages import DigestSegment, Extent, Hello
from perdure.cluster.core.types import Member, SegmentKey
from perdure.cluster.log_server import LogServer
from perdure.cluster.transport import Transport
from perdure.core.errors import PerdureError
from perdure.core.limits import DIGEST_EXTENT_RECORDS, RECOVERY_REQUEST_MS
from perdure.core.limits_telling import (
    VERIFY_CATCH_UP_MS,
    VERIFY_POLL_MS,
    VERIFY_QUIET_SHARE,
    VERIFY_QUIET_WINDOW_RECORDS,
    VERIFY_WINDOW_RECORDS,
)

_TIMEOUT_S = RECOVERY_REQUEST_MS / 1000


@dataclass(frozen=True, slots=True)
class LsnRange:
    """Half-open."""

    lower: int
    upper: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What the replicas of one segment that answered hold of ``[lower, upper)`` (LSNs).

    ``missing``: on none of them. ``under_replicated``: on fewer than the segment asks for.
    ``diverging``: two of them hold different records.
    """

    segment: int
    lower: int
    upper: int
    answered: tuple[Member, ...]
    absent: tuple[Member, ...]
    missing: tuple[LsnRange, ...]
    under_replicated: tuple[LsnRange, ...]
    diverging: tuple[LsnRange, ...]

    @property
    def is_sound(self) -> bool:
        return not (self.missing or self.under_replicated or self.diverging)


def still_in(report: SegmentReport, meta: PartitionMeta) -> SegmentReport | None:
    """What of a report is of the log as it is now, when a comparison took long; None: nothing."""
    if all(segment.index != report.segment for segment in meta.chain):
        return None

    def clip(found: tuple[LsnRange, ...]) -> tuple[LsnRange, ...]:
        trim = meta.trim_lsn
        return tuple(LsnRange(max(r.lower, trim), r.upper) for r in found if r.upper > trim)

    return replace(
        report,
        missing=clip(report.missing),
        under_replicated=clip(report.under_replicated),
        diverging=clip(report.diverging),
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """Trim point and kgt of a replica, in offsets."""

    trim: int = 0
    kgt: int = 0


class Verifier:
    """Asks the replicas here and on other nodes. ``is_quiet``: a little at a time, with rests."""

    def __init__(
        self, server: LogServer, transport: Transport | None = None, *, is_quiet: bool = False
    ) -> None:
        self._server = server
        self._transport = transport
        self._window = VERIFY_QUIET_WINDOW_RECORDS if is_quiet else VERIFY_WINDOW_RECORDS
        self._share = VERIFY_QUIET_SHARE if is_quiet else 1.0

    async def verify(self, partition: int, meta: PartitionMeta) -> list[SegmentReport]:
        """A report per segment of the chain."""
        return [await self._verify(partition, segment, meta.trim_lsn) for segment in meta.chain]

    async def _verify(self, partition: int, segment: SegmentMeta, trim_lsn: int) -> SegmentReport:
        states, upper = await self._settled_states(segment, partition)
        trimmed = max(trim_lsn - segment.base_lsn, 0)
        lower = max([trimmed, *(state.trim for state in states.values())])
        found = _Findings(segment.replication)
        answering = list(states)
        loop = asyncio.get_running_loop()
        for first in range(lower, upper, self._window):
            began = loop.time()
            end = min(first + self._window, upper)
            await self._compare((partition, segment.index), answering, first, end, found)
            await asyncio.sleep((loop.time() - began) * (1 / self._share - 1))
        # What was trimmed meanwhile is missing by right.
        later = [await self._state(member, segment, partition) for member in answering]
        trims = [state.trim for state in later if state is not None]
        lower = min(max([lower, *trims]), max(lower, upper))
        base = segment.base_lsn
        return SegmentReport(
            segment=segment.index,
            lower=base + lower,
            upper=base + max(lower, upper),
            answered=tuple(answering),
            absent=tuple(m for m in segment.nodeset if m not in answering),
            missing=_lsns(found.missing, lower, base),
            under_replicated=_lsns(found.short, lower, base),
            diverging=_lsns(found.diverging, lower, base),
        )

    async def _compare(
        self,
        key: SegmentKey,
        members: list[Member],
        lower: int,
        upper: int,
        found: "_Findings",
    ) -> None:
        """One window; a member that doesn't answer any more is taken out of ``members``."""
        digests: dict[Member, list[Extent]] = {}
        for member in list(members):
            extents = await self._digest(member, key, (lower, upper, DIGEST_EXTENT_RECORDS))
            if extents is None:
                members.remove(member)
            else:
                digests[member] = extents
        for block in suspicious(digests, DIGEST_EXTENT_RECORDS):
            span = max(block, lower), min(block + DIGEST_EXTENT_RECORDS, upper), 1
            singles = {member: await self._digest(member, key, span) or [] for member in digests}
            found.diverging.extend((offset, offset + 1) for offset, _ in differing(singles))
        found.count(digests.values(), lower, upper)

    async def _settled_states(
        self, segment: SegmentMeta, partition: int
    ) -> tuple[dict[Member, _Held], int]:
        """The members that answer, and up to where to compare: what is committed now. Replicas hear
        of commits a little later than the writer, so they are given a moment."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + VERIFY_CATCH_UP_MS / 1000
        states = await self._states(segment, partition)
        upper = max((state.kgt for state in states.values()), default=0)
        if segment.tail_lsn is not None:
            upper = segment.tail_lsn - segment.base_lsn
        while any(state.kgt < upper for state in states.values()) and loop.time() < deadline:
            await asyncio.sleep(VERIFY_POLL_MS / 1000)
            states = await self._states(segment, partition)
        return states, upper

    async def _states(self, segment: SegmentMeta, partition: int) -> dict[Member, _Held]:
        found = [(m, await self._state(m, segment, partition)) for m in segment.nodeset]
        return {member: state for member, state in found if state is not None}

    async def _state(self, member: Member, segment: SegmentMeta, partition: int) -> _Held | None:
        """None: the member, with this disk, doesn't answer."""
        ref = segment.params(partition).ref
        if member == self._server.member:
            state = self._server.state(ref.key)
        elif self._transport is None:
            return None
        else:
            try:
                answer = await self._transport.ask(member.node, Hello((ref,)), _TIMEOUT_S)
            except PerdureError:
                return None
            if answer.member != member:
                return None
            (state,) = answer.states
        return _Held(state.trim, state.kgt) if state is not None else _Held()

    async def _digest(
        self, member: Member, key: SegmentKey, span: tuple[int, int, int]
    ) -> list[Extent] | None:
        lower, upper, step = span
        found: list[Extent] = []
        if member == self._server.member:
            for extent in self._server.digest(key, lower, upper, step):
                if extent is not None:
                    found.append(extent)
                else:
                    await asyncio.sleep(0)
            return found
        if self._transport is None:
            return None
        request = DigestSegment(*key, lower, upper, step)
        try:
            async with asyncio.timeout(12 * _TIMEOUT_S):
                async for extent in self._transport.stream(member.node, request):
                    found.append(extent)
        except (PerdureError, TimeoutError):
            return None
        return found


class _Findings:
    """Ranges of offsets, in the order in which they are found."""

    def __init__(self, replication: int) -> None:
        self._replication = replication
        self.missing: list[tuple[int, int]] = []
        self.short: list[tuple[int, int]] = []
        self.diverging: list[tuple[int, int]] = []

    def count(self, digests: Iterable[Sequence[Extent]], lower: int, upper: int) -> None:
        """Note which of ``[lower, upper)`` is on too few replicas."""
        for first, end, copies in coverage(digests, lower, upper):
            if copies == 0:
                self.missing.append((first, end))
            if copies < self._replication:
                self.short.append((first, end))


def suspicious(digests: Mapping[Member, Sequence[Extent]], step: int) -> list[int]:
    """Where blocks of ``step`` begin of which two replicas hold something, and not the same:
    their records differ, or others are missing."""
    held: dict[int, set[tuple[Extent, ...]]] = {}
    for extents in digests.values():
        blocks: dict[int, list[Extent]] = {}
        for extent in extents:
            blocks.setdefault(extent.first_offset // step, []).append(extent)
        for block, pieces in blocks.items():
            held.setdefault(block, set()).add(tuple(pieces))
    return [block * step for block, found in sorted(held.items()) if len(found) > 1]


def differing(digests: Mapping[Member, Sequence[Extent]]) -> list[tuple[int, int]]:
    """Extents ``(first offset, count)`` that two replicas hold with different content."""
    seen: dict[tuple[int, int], int] = {}
    found: dict[tuple[int, int], None] = {}
    for extents in digests.values():
        for extent in extents:
            place = extent.first_offset, extent.count
            if seen.setdefault(place, extent.crc) != extent.crc:
                found[place] = None
    return list(found)


def coverage(
    digests: Iterable[Sequence[Extent]], lower: int, upper: int
) -> list[tuple[int, int, int]]:
    """``[lower, upper)`` in pieces ``(first, end, replicas that have it)``."""
    steps: dict[int, int] = {lower: 0, upper: 0}
    for extents in digests:
        for extent in extents:
            first = max(extent.first_offset, lower)
            end = min(extent.first_offset + extent.count, upper)
            if first < end:
                steps[first] = steps.get(first, 0) + 1
                steps[end] = steps.get(end, 0) - 1
    found: list[tuple[int, int, int]] = []
    copies = 0
    places = sorted(steps)
    for first, end in pairwise(places):
        copies += steps[first]
        found.append((first, end, copies))
    return found


def _lsns(found: Iterable[tuple[int, int]], lower: int, base_lsn: int) -> tuple[LsnRange, ...]:
    """Ranges of offsets from ``lower`` on as few ranges of LSNs."""
    merged: list[LsnRange] = []
    for first, end in sorted(found):
        first = max(first, lower)
        if first >= end:
            continue
        if merged and merged[-1].upper >= base_lsn + first:
            upper = max(merged[-1].upper, base_lsn + end)
            merged[-1] = LsnRange(merged[-1].lower, upper)
        else:
            merged.append(LsnRange(base_lsn + first, base_lsn + end))
    return tuple(merged)
