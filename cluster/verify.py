"""Compares the replicas of a partition's segments by digest: read-only, record by record at most.

Tells which ranges are on fewer replicas than they should be, which no replica has, and where two
replicas differ, which must never happen (I-2). Only what is committed is compared.
"""

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.log_messages import DigestSegment, Extent, Hello
from perdure.cluster.core.types import Member, SegmentKey
from perdure.cluster.log_server import LogServer
from perdure.cluster.transport import Transport
from perdure.core.errors import PerdureError
from perdure.core.limits import DIGEST_EXTENT_RECORDS, RECOVERY_REQUEST_MS

_TIMEOUT_S = RECOVERY_REQUEST_MS / 1000


@dataclass(frozen=True, slots=True)
class LsnRange:
    """Half-open."""

    lower: int
    upper: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SegmentReport:
    """What the replicas of one segment that answered hold below ``upper`` (an LSN).

    ``missing``: on none of them. ``under_replicated``: on fewer than the segment asks for.
    ``diverging``: two of them hold different records.
    """

    segment: int
    upper: int
    answered: tuple[Member, ...]
    absent: tuple[Member, ...]
    missing: tuple[LsnRange, ...]
    under_replicated: tuple[LsnRange, ...]
    diverging: tuple[LsnRange, ...]

    @property
    def is_sound(self) -> bool:
        return not (self.missing or self.under_replicated or self.diverging)


class Verifier:
    """Asks the replicas here and on other nodes."""

    def __init__(self, server: LogServer, transport: Transport | None = None) -> None:
        self._server = server
        self._transport = transport

    async def verify(self, partition: int, meta: PartitionMeta) -> list[SegmentReport]:
        """A report per segment of the chain."""
        return [await self._verify(partition, segment, meta.trim_lsn) for segment in meta.chain]

    async def _verify(self, partition: int, segment: SegmentMeta, trim_lsn: int) -> SegmentReport:
        key = partition, segment.index
        states = await self._states(segment, partition)
        lower = max(trim_lsn - segment.base_lsn, 0)
        for trim, _ in states.values():
            lower = max(lower, trim)
        upper = max((kgt for _, kgt in states.values()), default=0)
        if segment.tail_lsn is not None:
            upper = segment.tail_lsn - segment.base_lsn
        digests: dict[Member, list[Extent]] = {}
        for member in states:
            extents = await self._digest(member, key, (lower, upper, DIGEST_EXTENT_RECORDS))
            if extents is not None:
                digests[member] = extents
        diverging: list[int] = []
        for first, count in differing(digests):
            singles = {
                member: await self._digest(member, key, (first, first + count, 1)) or []
                for member in digests
            }
            diverging.extend(offset for offset, _ in differing(singles))
        copies = count_copies(digests.values(), lower, upper)
        wanted = segment.replication
        return SegmentReport(
            segment=segment.index,
            upper=segment.base_lsn + upper,
            answered=tuple(digests),
            absent=tuple(m for m in segment.nodeset if m not in digests),
            missing=ranges((o for o, n in copies.items() if n == 0), segment.base_lsn),
            under_replicated=ranges((o for o, n in copies.items() if n < wanted), segment.base_lsn),
            diverging=ranges(sorted(set(diverging)), segment.base_lsn),
        )

    async def _states(self, segment: SegmentMeta, partition: int) -> dict[Member, tuple[int, int]]:
        """Trim point and kgt of the members that answer."""
        ref = segment.params(partition).ref
        found: dict[Member, tuple[int, int]] = {}
        for member in segment.nodeset:
            if member == self._server.member:
                state = self._server.state(ref.key)
            elif self._transport is None:
                continue
            else:
                try:
                    answer = await self._transport.ask(member.node, Hello((ref,)), _TIMEOUT_S)
                except PerdureError:
                    continue
                if answer.member != member:
                    continue
                (state,) = answer.states
            found[member] = (state.trim, state.kgt) if state is not None else (0, 0)
        return found

    async def _digest(
        self, member: Member, key: SegmentKey, span: tuple[int, int, int]
    ) -> list[Extent] | None:
        lower, upper, step = span
        if member == self._server.member:
            return list(self._server.digest(key, lower, upper, step))
        if self._transport is None:
            return None
        request = DigestSegment(*key, lower, upper, step)
        found: list[Extent] = []
        try:
            async with asyncio.timeout(12 * _TIMEOUT_S):
                async for extent in self._transport.stream(member.node, request):
                    found.append(extent)
        except (PerdureError, TimeoutError):
            return None
        return found


def differing(digests: Mapping[Member, Sequence[Extent]]) -> list[tuple[int, int]]:
    """Extents ``(first offset, count)`` that two replicas hold with different content."""
    seen: dict[tuple[int, int], int] = {}
    found: list[tuple[int, int]] = []
    for extents in digests.values():
        for extent in extents:
            place = extent.first_offset, extent.count
            if seen.setdefault(place, extent.crc) != extent.crc and place not in found:
                found.append(place)
    return found


def count_copies(digests: Iterable[Sequence[Extent]], lower: int, upper: int) -> dict[int, int]:
    """On how many replicas each offset is."""
    copies = dict.fromkeys(range(lower, upper), 0)
    for extents in digests:
        for extent in extents:
            for offset in range(extent.first_offset, extent.first_offset + extent.count):
                if offset in copies:
                    copies[offset] += 1
    return copies


def ranges(offsets: Iterable[int], base_lsn: int) -> tuple[LsnRange, ...]:
    """Ascending offsets as ranges of LSNs."""
    found: list[LsnRange] = []
    for offset in offsets:
        lsn = base_lsn + offset
        if found and found[-1].upper == lsn:
            found[-1] = LsnRange(found[-1].lower, lsn + 1)
        else:
            found.append(LsnRange(lsn, lsn + 1))
    return tuple(found)
