"""The logs of partitions for operators: comparing their replicas, and ending an open segment.

A comparison reads a whole log, so it runs beside everything else, one at a time, and its result
stays to be looked at: status, metrics and alarms know the latest one of each partition. Besides
those that are asked for, who leads a partition compares its log now and then, quietly.
"""

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from perdure.cluster.core.chain import PartitionMeta, open_segment
from perdure.cluster.core.log_messages import SealSegment
from perdure.cluster.core.types import Member, Refused, SealOk, SegmentParams
from perdure.cluster.log_server import LogServer
from perdure.cluster.transport import Transport
from perdure.cluster.verify import SegmentReport, Verifier, still_in
from perdure.core.clock import Clock
from perdure.core.errors import PartitionUnavailable, PerdureError
from perdure.core.limits import RECOVERY_REQUEST_MS
from perdure.core.limits_telling import VERIFY_DUE_LOOK_MS
from perdure.core.telemetry import logger
from perdure.node.unsafe_desk import UnsafeDesk

log = logger("log")


@dataclass(frozen=True, slots=True, kw_only=True)
class Verification:
    """A comparison; ``ended_at_ms`` None: it is under way. ``failure``: why it came to nothing."""

    partition: int
    began_at_ms: int
    ended_at_ms: int | None = None
    reports: tuple[SegmentReport, ...] = ()
    failure: str | None = None

    @property
    def is_sound(self) -> bool:
        """Whether nothing was found."""
        return self.failure is None and all(report.is_sound for report in self.reports)

    def count(self, kind: str) -> int:
        """Records in the ranges of a kind: missing, under_replicated, diverging."""
        return sum(
            found.upper - found.lower for report in self.reports for found in getattr(report, kind)
        )


@dataclass(frozen=True, slots=True)
class SealResult:
    """``sealed``: replicas that take nothing more from now on; ``needed``: so many end it."""

    segment: int
    sealed: tuple[Member, ...]
    absent: tuple[Member, ...]
    needed: int


class LogDesk:
    """Belongs to a running loop. ``transport``: None on a single node."""

    def __init__(self, server: LogServer, transport: Transport | None, clock: Clock) -> None:
        self._server = server
        self._transport = transport
        self._clock = clock
        self._verifier = Verifier(server, transport)
        self._quiet = Verifier(server, transport, is_quiet=True)
        self.unsafe = UnsafeDesk(server, transport, clock)
        self._turn = asyncio.Lock()
        self._under_way: dict[int, asyncio.Task[None]] = {}
        self._found: dict[int, Verification] = {}

    def verify(self, partition: int, meta: PartitionMeta) -> Verification:
        """Begin to compare the replicas of a partition's log, unless that is under way."""
        if partition not in self._under_way:
            self._found[partition] = Verification(
                partition=partition, began_at_ms=self._clock.now_ms()
            )
            task = asyncio.get_running_loop().create_task(
                self._verify(partition, meta), name=f"verify.{partition}"
            )
            self._under_way[partition] = task
            task.add_done_callback(lambda _: self._under_way.pop(partition, None))
        return self._found[partition]

    def verification(self, partition: int) -> Verification | None:
        """The latest one, perhaps still under way."""
        return self._found.get(partition)

    def verifications(self) -> tuple[Verification, ...]:
        """The latest one of each partition that has ended."""
        return tuple(each for each in self._found.values() if each.ended_at_ms is not None)

    async def seal(self, partition: int, meta: PartitionMeta) -> SealResult:
        """Have the open segment take nothing more: whoever is to lead opens the next. Idempotent.

        Raises:
            PartitionUnavailable: there is no open segment.
        """
        opened = open_segment(meta)
        if opened is None:
            raise PartitionUnavailable(f"partition {partition} has no open segment")
        params = opened.params(partition)
        answers = await asyncio.gather(
            *(self._seal(params, member, meta.epoch) for member in params.nodeset)
        )
        result = SealResult(
            opened.index,
            tuple(m for m, is_sealed in zip(params.nodeset, answers, strict=True) if is_sealed),
            tuple(m for m, is_sealed in zip(params.nodeset, answers, strict=True) if not is_sealed),
            params.seal_quorum,
        )
        log.info(
            "log.segment.sealed",
            partition=partition,
            segment=opened.index,
            nodes=[member.node for member in result.sealed],
        )
        return result

    async def run(self, interval_ms: int, led: Callable[[], Mapping[int, PartitionMeta]]) -> None:
        """Compare the log of each partition that is led here once in so long, until cancelled.

        One of which a replica is away is put off: what it lacks for that would be no finding.
        """
        compared: dict[int, float] = {}
        while True:
            await asyncio.sleep(min(interval_ms, VERIFY_DUE_LOOK_MS) / 1000)
            for partition in sorted(led()):
                latest = compared.get(partition)
                now = self._clock.monotonic()
                is_due = latest is None or now - latest >= interval_ms / 1000
                if is_due and await self._compare_quietly(partition, led):
                    compared[partition] = self._clock.monotonic()

    async def _compare_quietly(
        self, partition: int, led: Callable[[], Mapping[int, PartitionMeta]]
    ) -> bool:
        """Whether it came to anything."""
        began_at_ms = self._clock.now_ms()
        meta = led().get(partition)
        if meta is None or partition in self._under_way:
            return False
        try:
            found = await self._quiet.verify(partition, meta)
        except PerdureError as failure:
            log.warning("log.verify.failed", partition=partition, reason=failure)
            return False
        meta = led().get(partition)
        if meta is None or partition in self._under_way:
            return False
        reports = tuple(each for report in found if (each := still_in(report, meta)) is not None)
        if any(report.absent for report in reports) and not any(r.diverging for r in reports):
            return False
        self._note(
            Verification(
                partition=partition,
                began_at_ms=began_at_ms,
                ended_at_ms=self._clock.now_ms(),
                reports=reports,
            )
        )
        return True

    async def aclose(self) -> None:
        """End what is under way."""
        tasks = list(self._under_way.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _verify(self, partition: int, meta: PartitionMeta) -> None:
        async with self._turn:
            try:
                reports = await self._verifier.verify(partition, meta)
                found = replace(self._found[partition], reports=tuple(reports))
            except PerdureError as failure:
                found = replace(self._found[partition], failure=str(failure))
        self._note(replace(found, ended_at_ms=self._clock.now_ms()))

    def _note(self, found: Verification) -> None:
        self._found[found.partition] = found
        if found.is_sound:
            log.info("log.verified", partition=found.partition)
            return
        log.error(
            "log.unsound",
            partition=found.partition,
            missing=found.count("missing"),
            under_replicated=found.count("under_replicated"),
            diverging=found.count("diverging"),
            failure=found.failure,
        )

    async def _seal(self, params: SegmentParams, member: Member, epoch: int) -> bool:
        if member == self._server.member:
            answered: asyncio.Future[SealOk | Refused] = asyncio.get_running_loop().create_future()

            def sealed(reply: SealOk | Refused) -> None:
                if not answered.done():
                    answered.set_result(reply)

            self._server.seal(params.ref, epoch, sealed)
            return isinstance(await answered, SealOk)
        if self._transport is None:
            return False
        try:
            request = SealSegment(params.ref, epoch)
            found = await self._transport.ask(member.node, request, RECOVERY_REQUEST_MS / 1000)
        except PerdureError:
            return False
        return found.reply is not None and found.reply.member == member
