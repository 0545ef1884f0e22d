"""The last resort of operators whose disks are gone: a segment that no rule can close any more.

Looking changes nothing. What is allowed is written to the partition's register, and carried out by
whoever takes the partition over, in the only way in which a segment is ever followed by another.
"""

import asyncio
from collections.abc import Mapping

from perdure.cluster.core import chain
from perdure.cluster.core.chain import PartitionMeta, SegmentMeta
from perdure.cluster.core.log_messages import Hello
from perdure.cluster.core.membership import Nodes
from perdure.cluster.core.types import Member, NodeId, SegmentState
from perdure.cluster.core.unsafe_close import Examination, examine, is_given_up
from perdure.cluster.log_server import LogServer
from perdure.cluster.membership import Membership
from perdure.cluster.transport import Transport
from perdure.cluster.verify import Verifier
from perdure.core.clock import Clock
from perdure.core.errors import PerdureError
from perdure.core.limits import RECOVERY_REQUEST_MS
from perdure.core.loss_errors import UnsafeCloseRefused
from perdure.core.telemetry import logger

log = logger("log")

_TIMEOUT_S = RECOVERY_REQUEST_MS / 1000


class UnsafeDesk:
    """``transport``: None on a single node."""

    def __init__(self, server: LogServer, transport: Transport | None, clock: Clock) -> None:
        self._server = server
        self._transport = transport
        self._clock = clock
        self._verifier = Verifier(server, transport)

    async def examine(
        self, partition: int, meta: PartitionMeta, nodes: Nodes, tables: Mapping[NodeId, int]
    ) -> Examination:
        """What is left of the partition's open segment; ``tables`` of living nodes, by what they
        have applied.

        Raises:
            UnsafeCloseRefused: there is none.
        """
        opened = chain.open_segment(meta)
        if opened is None:
            raise UnsafeCloseRefused(f"partition {partition} has no open segment")
        told = await self._ask(partition, opened)
        given_up = {member for member in opened.nodeset if is_given_up(nodes, member)}
        is_short = len(told.keys() - given_up) < opened.params(partition).seal_quorum
        holes = await self._find_holes(partition, meta, nodes) if is_short else []
        return examine(opened, told, given_up, tables, holes)

    async def allow(
        self, membership: Membership, partition: int, found: Examination, by: str
    ) -> PartitionMeta:
        """Have whoever takes over close the segment as was found; the register as it is then.

        Raises:
            UnsafeCloseRefused: it isn't to be, or another segment is open by now.
            MetadataConflict, MetadataUnavailable: the register can't be written now.
        """
        if found.refusal is not None:
            raise UnsafeCloseRefused(
                f"segment {found.segment.index} of partition {partition}: {found.refusal}"
            )
        close = found.close(by, self._clock.now_ms())
        meta = await membership.edit_partition(
            partition, lambda known: chain.allow_unsafe(known, close) if known else None
        )
        if meta is None or meta.allowed != close:
            raise UnsafeCloseRefused(
                f"segment {close.segment} of partition {partition} is not open any more: look again"
            )
        log.error(
            "log.segment.unsafe_close_allowed",
            partition=partition,
            segment=close.segment,
            tail_lsn=found.tail_lsn,
            begins_lsn=found.begins_lsn,
            nodes=[member.node for member in close.counted],
            by=by,
        )
        return meta

    async def _ask(self, partition: int, segment: SegmentMeta) -> dict[Member, SegmentState | None]:
        found = await asyncio.gather(
            *(self._ask_one(partition, segment, member) for member in segment.nodeset)
        )
        return {
            member: answer[0]
            for member, answer in zip(segment.nodeset, found, strict=True)
            if answer is not None
        }

    async def _ask_one(
        self, partition: int, segment: SegmentMeta, member: Member
    ) -> tuple[SegmentState | None] | None:
        """None: it doesn't answer, or doesn't count."""
        ref = segment.params(partition).ref
        if member == self._server.member:
            return (self._server.state(ref.key),) if self._server.is_authoritative else None
        if self._transport is None:
            return None
        try:
            answer = await self._transport.ask(member.node, Hello((ref,)), _TIMEOUT_S)
        except PerdureError:
            return None
        if answer.member != member or not answer.is_authoritative:
            return None
        return (answer.states[0],)

    async def _find_holes(
        self, partition: int, meta: PartitionMeta, nodes: Nodes
    ) -> list[tuple[int, int]]:
        """What was committed and is on no replica any more; where one may come back, it is awaited
        by those who need it."""
        reports = await self._verifier.verify(partition, meta)
        return [
            (hole.lower, hole.upper)
            for report in reports
            if all(is_given_up(nodes, member) for member in report.absent)
            for hole in report.missing
        ]
