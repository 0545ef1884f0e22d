"""A metadata member at work: ticks it, feeds it, and answers what nodes ask.

Everything happens on one event loop, syncs too: the process does nothing else. A failure of the
member is final: it is kept in ``failed``, and the process that runs the service ends.

Reads go through the log as everything does: a barrier is committed, then the member's own map is
fresh. Reads that wait at the same time share a barrier.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial

from perdure.cluster.metadata.messages import (
    Answer,
    Ask,
    Changes,
    Done,
    Elsewhere,
    Export,
    Exported,
    Fill,
    Halt,
    Look,
    Read,
    Registers,
    Standing,
    Unanswered,
    Watch,
    Write,
)
from perdure.cluster.metadata.quorum import QUORUM_KEY
from perdure.cluster.metadata.raft import RaftMember
from perdure.cluster.metadata.raft_state import (
    Applied,
    Barrier,
    Cas,
    Command,
    Import,
    Moved,
    Refused,
    Stop,
)
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import MemberStalled
from perdure.core.invariant import InvariantViolation
from perdure.core.limits import (
    METADATA_BYTES_MAX,
    METADATA_CHANGES_KEPT,
    METADATA_HEALTH_MS,
    METADATA_PAUSE_MS,
    METADATA_STALLED_MS,
    METADATA_TICK_MS,
    METADATA_TRY_MS,
    METADATA_WRITES_UNDER_WAY_MAX,
)
from perdure.core.telemetry import logger

log = logger("metadata")

_TERMS_PER_MINUTE_MAX = 20


class MemberService:
    """Wraps a member. Belongs to the loop it was started on."""

    def __init__(self, member: RaftMember, clock: Clock, entropy: Entropy) -> None:
        self._member = member
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self.failed: asyncio.Future[BaseException] = self._loop.create_future()
        self._boot = entropy.bits(62)
        self._client = entropy.bits(62)
        self._number = 0
        self._writes = asyncio.Semaphore(METADATA_WRITES_UNDER_WAY_MAX)
        self._changes: deque[str] = deque(maxlen=METADATA_CHANGES_KEPT)
        self._position = 0  # of the newest change
        self._changed = asyncio.Event()
        self._barrier: asyncio.Task[None] | None = None
        self._next_barrier: asyncio.Task[None] | None = None
        self._committed_at: float | None = None
        self._usable_since = clock.monotonic()
        self._is_poked = False
        self._timer: asyncio.TimerHandle | None = None
        self._health: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._tick()
        self._health = self._loop.create_task(self._watch_health(), name="metadata-health")

    async def aclose(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None
        tasks = [at for at in (self._health, self._barrier, self._next_barrier) if at is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._member.close()

    # --- From peers -------------------------------------------------------------------------------

    def receive(self, peer: int, frame: bytes, may_count: Callable[[], bool]) -> None:
        """Take a frame of a peer, if that may be listened to."""
        self._guarded(lambda: self._member.receive(peer, frame) if may_count() else None)
        self._poke()

    def disconnect(self, peer: int) -> None:
        self._guarded(lambda: self._member.disconnect(peer))

    # --- From nodes -------------------------------------------------------------------------------

    async def answer(self, ask: Ask) -> Answer:
        """Answer a question within its own timeout."""
        match ask:
            case Read():
                return await self._read(ask)
            case Write():
                if (
                    ask.is_first
                    and self._member.state.bytes_held + len(ask.value) > METADATA_BYTES_MAX
                ):
                    return Done(
                        self._member.state.applied_count,
                        Applied(ask.client, ask.number, Refused("metadata is full")),
                    )
                command = Cas(
                    ask.client, ask.number, self._since(ask), ask.key, ask.expected, ask.value
                )
                return await self._write(command, ask.timeout_ms)
            case Fill():
                fill = Import(ask.client, ask.number, self._since(ask), ask.registers)
                return await self._write(fill, ask.timeout_ms)
            case Watch():
                return await self._wait_changes(ask)
            case Look():
                return self._standing()
            case Halt():
                if ask.quorum != self._member.identity.quorum:
                    return Unanswered()
                return await self._write(
                    Stop(ask.client, ask.number, ask.key, ask.version), ask.timeout_ms
                )
            case Export():
                state = self._member.state
                if ask.quorum != self._member.identity.quorum or not state.is_stopped:
                    return Unanswered()
                return Exported(state.encode())

    def _since(self, ask: Write | Fill) -> int:
        # What was never sent can't have been executed before now.
        return max(ask.since, self._member.state.applied_count) if ask.is_first else ask.since

    async def _read(self, ask: Read) -> Answer:
        try:
            async with asyncio.timeout(ask.timeout_ms / 1000):
                await self._fresh()
        except TimeoutError:
            return Unanswered()
        if self._member.state.is_stopped:
            return self._elsewhere()
        registers = self._member.state.registers
        if ask.is_prefix:
            keys = sorted(key for key in registers if key.startswith(ask.key))
        else:
            keys = [ask.key] if ask.key in registers else []
        return Registers(
            self._member.state.applied_count,
            [(key, registers[key].version, registers[key].value) for key in keys],
        )

    async def _write(self, command: Command, timeout_ms: int) -> Answer:
        try:
            async with asyncio.timeout(timeout_ms / 1000), self._writes:
                applied = await self._commit(command)
        except TimeoutError:
            return Unanswered()
        if isinstance(applied.outcome, Moved):
            return self._elsewhere()
        return Done(self._member.state.applied_count, applied)

    def _elsewhere(self) -> Elsewhere:
        return Elsewhere(self._member.state.registers[QUORUM_KEY].value)

    async def _wait_changes(self, ask: Watch) -> Changes:
        if ask.boot == self._boot and ask.position == self._position:
            try:
                async with asyncio.timeout(ask.timeout_ms / 1000):
                    await self._changed.wait()
            except TimeoutError:
                return Changes(self._boot, self._position, [])
        missed = self._position - ask.position
        if ask.boot != self._boot or not 0 <= missed <= len(self._changes):
            keys = sorted(self._member.state.registers)
        else:
            keys = sorted(set(list(self._changes)[len(self._changes) - missed :]))
        return Changes(self._boot, self._position, keys)

    def _standing(self) -> Standing:
        status = self._member.status()
        ago = None
        if self._committed_at is not None:
            ago = int((self._clock.monotonic() - self._committed_at) * 1000)
        return Standing(
            applied_count=self._member.state.applied_count,
            node=status.node,
            leader=status.leader,
            term=status.term,
            applied_index=status.applied_index,
            entry_count=status.entry_count,
            connected=list(status.connected),
            register_count=len(self._member.state.registers),
            committed_ago_ms=ago,
        )

    # --- Commands ---------------------------------------------------------------------------------

    async def _commit(self, command: Command) -> Applied:
        """Propose until the outcome is known; repeats are recognised by the map."""
        while True:
            outcome: asyncio.Future[Applied | None] = self._loop.create_future()

            def finished(
                applied: Applied | None, outcome: asyncio.Future[Applied | None] = outcome
            ) -> None:
                if not outcome.done():
                    outcome.set_result(applied)

            self._guarded(partial(self._member.submit, command, finished))
            self._poke()
            try:
                async with asyncio.timeout(METADATA_TRY_MS / 1000):
                    applied = await outcome
            except TimeoutError:
                applied = None
            if applied is not None:
                self._committed_at = self._clock.monotonic()
                return applied
            await asyncio.sleep(METADATA_PAUSE_MS / 1000)

    async def _fresh(self) -> None:
        """Wait until the map holds all that was committed before this call."""
        if self._barrier is None or self._barrier.done():
            self._barrier = self._loop.create_task(self._pass_barrier(), name="metadata-barrier")
            barrier = self._barrier
        else:
            # The one under way may have been applied before this call; its successor wasn't.
            if self._next_barrier is None:
                self._next_barrier = self._loop.create_task(
                    self._follow(self._barrier), name="metadata-barrier"
                )
            barrier = self._next_barrier
        await asyncio.shield(barrier)

    async def _follow(self, barrier: asyncio.Task[None]) -> None:
        await asyncio.wait([barrier])
        self._barrier, self._next_barrier = self._next_barrier, None
        await self._pass_barrier()

    async def _pass_barrier(self) -> None:
        self._number += 1
        await self._commit(Barrier(self._client, self._number))

    # --- Driving ----------------------------------------------------------------------------------

    def _poke(self) -> None:
        if not self._is_poked:
            self._is_poked = True
            self._loop.call_soon(self._tick)

    def _tick(self) -> None:
        self._is_poked = False
        if self._timer is not None:
            self._timer.cancel()
        if not self._guarded(self._member.tick):
            return
        changed = self._member.state.take_changed()
        if changed:
            self._changes.extend(changed)
            self._position += len(changed)
            self._changed.set()
            self._changed = asyncio.Event()
        self._timer = self._loop.call_later(METADATA_TICK_MS / 1000, self._tick)

    def _guarded(self, action: Callable[[], None]) -> bool:
        if self.failed.done():
            return False
        try:
            action()
        except (Exception, SystemExit, InvariantViolation) as failure:  # bulkhead: it is over
            self._fail(failure)
            return False
        return True

    def _fail(self, failure: BaseException) -> None:
        log.error("metadata.member.failed", cause=failure)
        if not self.failed.done():
            self.failed.set_result(failure)

    async def _watch_health(self) -> None:
        """Commit nothing in particular every now and then: the one sign of health."""
        term, term_at = self._member.term(), self._clock.monotonic()
        while not self.failed.done():
            try:
                async with asyncio.timeout(METADATA_HEALTH_MS / 1000):
                    await self._fresh()
                await asyncio.sleep(METADATA_HEALTH_MS / 1000)
            except TimeoutError:
                pass
            now = self._clock.monotonic()
            self._check_progress(now)
            if now - term_at >= 60:
                if self._member.term() - term > _TERMS_PER_MINUTE_MAX:
                    log.warning("metadata.leader.flapping", terms=self._member.term() - term)
                term, term_at = self._member.term(), now

    def _check_progress(self, now: float) -> None:
        status = self._member.status()
        if 2 * (len(status.connected) + 1) <= len(self._member.identity.storages):
            self._usable_since = now
        alive_at = max(self._usable_since, self._committed_at or 0.0)
        if now - alive_at > METADATA_STALLED_MS / 1000:
            self._fail(MemberStalled("a majority is connected, yet nothing commits"))
