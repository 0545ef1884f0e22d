"""Drives the recovery of one segment over the replicas here and on other nodes."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from perdure.cluster.core.log_messages import ReadSegment, RepairSegment, SealSegment
from perdure.cluster.core.recovery import (
    Copy,
    Recovered,
    RecoveryCore,
    Remnant,
    Repair,
    Seal,
    Wait,
)
from perdure.cluster.core.types import Member, Refused, SealOk, SegmentParams
from perdure.cluster.log_server import LogServer
from perdure.cluster.replica_links import ReplicaLinks
from perdure.core.errors import LogDamaged, PerdureError, Unreachable
from perdure.core.limits import RECOVERY_REQUEST_MS, RECOVERY_RETRY_MS
from perdure.core.limits_telling import RECOVERY_TELL_MS
from perdure.core.telemetry import logger

log = logger("log")

T = TypeVar("T")

CheckClaim = Callable[[], Awaitable[Remnant | None]]
"""Raises when going on is futile; else what is left, once an operator says to do with that."""

_TIMEOUT_S = RECOVERY_REQUEST_MS / 1000


class Recoverer:
    """Recovers ``params`` for the claim of ``epoch``."""

    def __init__(
        self,
        params: SegmentParams,
        epoch: int,
        server: LogServer,
        links: ReplicaLinks | None,
        on_waiting: Callable[[Wait | None], None] = lambda wait: None,
    ) -> None:
        self._params = params
        self._on_waiting = on_waiting
        self._epoch = epoch
        self._server = server
        self._links = links

    async def run(
        self,
        check_claim: CheckClaim,
        is_degraded_allowed: bool,
        remnant: Remnant | None = None,
    ) -> Recovered:
        """Seal, find the tail, repair; ``remnant``: as ``check_claim`` would say now.

        What it waits for meanwhile is told to ``on_waiting``, and None once that is over.
        """
        try:
            return await self._run(check_claim, is_degraded_allowed, remnant)
        finally:
            self._on_waiting(None)

    async def _run(
        self, check_claim: CheckClaim, is_degraded_allowed: bool, remnant: Remnant | None
    ) -> Recovered:
        def begin() -> RecoveryCore:
            return RecoveryCore(
                self._params, is_degraded_allowed=is_degraded_allowed, remnant=remnant
            )

        core = begin()
        told: Wait | None = None
        told_at = 0.0
        while True:
            step = core.step()
            if isinstance(step, Recovered):
                return step
            if isinstance(step, Seal):
                await self._seal(core, step.members)
            elif isinstance(step, Copy):
                await asyncio.gather(*(self._copy(core, repair) for repair in step.repairs))
            else:
                self._on_waiting(step)
                now = asyncio.get_running_loop().time()
                if step != told or now - told_at >= RECOVERY_TELL_MS / 1000:
                    told, told_at = step, now
                    self._tell(step)
                await asyncio.sleep(RECOVERY_RETRY_MS / 1000)
                before, remnant = remnant, await check_claim()
                if step.reason == "repair_source" or remnant != before:
                    # Another f-majority may do without the one that is away.
                    core = begin()
                core.retry()

    def _tell(self, wait: Wait) -> None:
        log.warning(
            "log.recovery.waiting",
            partition=self._params.partition,
            segment=self._params.index,
            reason=wait.reason,
            nodes=[member.node for member in wait.members],
        )

    async def _seal(self, core: RecoveryCore, members: tuple[Member, ...]) -> None:
        """Ask all at once, and go on as soon as enough are sealed."""
        asking = {asyncio.ensure_future(self._seal_one(member)): member for member in members}
        try:
            while asking and isinstance(core.step(), Seal):
                done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    member, reply = asking.pop(task), task.result()
                    if reply is not None and reply.member == member:
                        core.on_sealed(reply)
                    else:
                        core.on_absent(member)
        finally:
            for task in asking:
                task.cancel()

    async def _seal_one(self, member: Member) -> SealOk | None:
        if member == self._server.member:
            future: asyncio.Future[SealOk | Refused] = asyncio.get_running_loop().create_future()
            self._server.seal(self._params.ref, self._epoch, _settle(future))
            answer = await future
            return answer if isinstance(answer, SealOk) else None
        if self._links is None:
            return None
        try:
            request = SealSegment(self._params.ref, self._epoch)
            found = await self._links.transport.ask(member.node, request, _TIMEOUT_S)
        except PerdureError:
            return None
        return found.reply

    async def _copy(self, core: RecoveryCore, repair: Repair) -> None:
        lower, upper = repair.first_offset, repair.first_offset + repair.count
        while lower < upper:
            try:
                records = await self._read(repair.source, lower, upper)
            except PerdureError:
                core.on_absent(repair.source)
                return
            core.check(lower, [int.from_bytes(record[-4:], "little") for record in records])
            if not await self._repair(repair.target, lower, records):
                core.on_absent(repair.target)
                return
            core.on_repaired(Repair(lower, len(records), repair.source, repair.target))
            lower += len(records)

    async def _read(self, source: Member, lower: int, upper: int) -> tuple[bytes, ...]:
        """At least one record. Raises PerdureError."""
        key = self._params.key
        if source == self._server.member:
            try:
                found = self._server.read(key, lower, upper, for_repair=True)
            except LogDamaged as damage:
                log.error("log.recovery.damaged", partition=key[0], segment=key[1], reason=damage)
                raise
            # Another claimant may have recovered the segment meanwhile, and have let it go.
            if found is None or found.first_offset != lower or not found.records:
                raise Unreachable(f"record {lower} of segment {key} isn't here any more")
            return found.records
        if self._links is None:
            raise Unreachable(f"node {source.node} isn't reached from here")
        stream = self._links.transport.stream(
            source.node, ReadSegment(*key, lower, upper, for_repair=True)
        )
        try:
            async with asyncio.timeout(_TIMEOUT_S):
                piece = await first_of(stream)
        except TimeoutError as late:
            raise Unreachable(f"node {source.node} doesn't answer") from late
        if piece is None or piece.first_offset != lower or not piece.records:
            raise Unreachable(f"node {source.node} doesn't have record {lower} of segment {key}")
        return piece.records

    async def _repair(self, target: Member, lower: int, records: tuple[bytes, ...]) -> bool:
        ref = self._params.ref
        if target == self._server.member:
            future: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
            self._server.repair(ref, self._epoch, lower, records, _settle(future))
            return await future is None
        if self._links is None:
            return False
        request = RepairSegment(ref, self._epoch, lower, records)
        try:
            found = await self._links.transport.ask(target.node, request, _TIMEOUT_S)
        except PerdureError:
            return False
        return found.refused is None and found.member == target


async def first_of(stream: AsyncIterator[T]) -> T | None:
    """The first item of a stream, which is closed then."""
    try:
        async for item in stream:
            return item
        return None
    finally:
        await close_stream(stream)


async def close_stream(stream: AsyncIterator[object]) -> None:
    """Stop a stream early."""
    close = getattr(stream, "aclose", None)
    if close is not None:
        await close()


def _settle(future: "asyncio.Future[T]") -> Callable[[T], None]:
    def settle(result: T) -> None:
        if not future.done():
            future.set_result(result)

    return settle
