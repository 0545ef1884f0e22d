"""The gateway of one node among several: what it doesn't lead itself, it asks the leader for.

A request goes to the partition's leader as this node knows it, and again to the next one when the
leader moved, died or could not be reached: who asked sees a pause. Commands name what they are
about by id, so that most may be sent twice; one that may not is given up once its outcome is
unknown. Whatever can be done on this node is done without a task.
"""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import count
from typing import TypeVar

import msgspec

from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Transport
from perdure.core.errors import (
    NotFound,
    OutcomeUnknown,
    Overloaded,
    PartitionUnavailable,
    PerdureError,
    Unreachable,
)
from perdure.core.ids import (
    InvocationId,
    PartitionId,
    format_invocation_id,
    partition_key_of,
    partition_of,
)
from perdure.core.limits import (
    ROUTE_ASK_MS,
    ROUTE_PATIENCE_MS,
    ROUTE_RESULT_KEPT_MS,
    ROUTE_RETRY_MS_INITIAL,
    ROUTE_RETRY_MS_MAX,
    ROUTE_WATCH_MS,
)
from perdure.engine.actions import Outcome
from perdure.engine.commands import Command, Invoke, Signal, encode_command
from perdure.node.invoker.run import Run
from perdure.node.partition.gateway import Found, LedPartition, LocalGateway, find
from perdure.node.partition.leader import Waiter
from perdure.node.partition.members import Leaders
from perdure.node.partition.messages import LookUp, Propose, Unwatch, Watch, unpack
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.invocations import Result

T = TypeVar("T")

# Worth another try at another leader, or at the same one a little later.
_PASSING = (PartitionUnavailable, Unreachable, Overloaded)
_REPEATABLE = (Invoke, Signal)


class RoutedGateway:
    """All partitions of the cluster."""

    def __init__(
        self,
        me: NodeId,
        partitions: list[LedPartition],
        partition_count: int,
        leaders: Leaders,
        transport: Transport,
    ) -> None:
        self._me = me
        self._here = {led.processor.partition: led for led in partitions}
        self._local = LocalGateway(partitions)
        self._count = partition_count
        self._leaders = leaders
        self._transport = transport
        self._tickets = count(1)
        self._tasks: set[asyncio.Task[None]] = set()
        self._ended: dict[InvocationId, Result] = {}  # told along with the outcome
        self._news: dict[PartitionId, asyncio.Future[None]] = {}  # of leaders that are waited for
        self._loop = asyncio.get_running_loop()

    @property
    def partition_count(self) -> int:
        return self._count

    @property
    def pending(self) -> int:
        """Requests that another node, or a change of leaders, is waited for with."""
        return len(self._tasks)

    def leads(self, partition: PartitionId) -> bool:
        return self._led(partition) is not None

    def halted(self) -> list[PartitionId]:
        return self._local.halted()

    def propose(
        self,
        command: Command,
        partition_key: int,
        on_applied: Callable[[Outcome], None],
        on_lost: Callable[[PerdureError], None],
        *,
        is_awaited: bool = False,
    ) -> None:
        partition = partition_of(partition_key, self._count)
        command = _made_repeatable(command)
        if (led := self._led(partition)) is not None:

            def lost(error: PerdureError) -> None:
                if isinstance(command, _REPEATABLE) and isinstance(error, OutcomeUnknown):
                    self._start(self._propose(command, partition_key, on_applied, on_lost))
                else:
                    on_lost(error)

            # A leader that hands over, or whose successor has begun, takes nothing more: the next
            # one is asked.
            with suppress(PartitionUnavailable, OutcomeUnknown):
                led.leader.propose(command, partition_key, on_applied, lost)
                return
        self._start(self._propose(command, partition_key, on_applied, on_lost, is_awaited))

    def wait(self, invocation: InvocationId, waiter: Waiter) -> Callable[[], None]:
        partition = partition_of(partition_key_of(invocation), self._count)
        if (result := self._ended.pop(invocation, None)) is not None:
            return self._loop.call_soon(waiter, result).cancel
        led = self._led(partition)
        if led is None or not _is_under_way(led, invocation):
            # It may have ended since its command was applied: whoever leads knows.
            return self._start(self._wait(invocation, partition, waiter))
        forget: Callable[[], None]

        def told(result: Result | PerdureError) -> None:
            nonlocal forget
            if isinstance(result, PartitionUnavailable | OutcomeUnknown):
                forget = self._start(self._wait(invocation, partition, waiter))
            else:
                waiter(result)

        forget = led.leader.wait(invocation, told)
        return lambda: forget()

    def look_up(
        self, invocation: InvocationId, on_found: Callable[[Found | PerdureError | None], None]
    ) -> None:
        partition = partition_of(partition_key_of(invocation), self._count)
        led = self._led(partition)
        found = find(led.processor.store, invocation) if led is not None else None
        if found is not None:
            on_found(found)
        else:
            self._start(self._look_up(invocation, partition, on_found))

    def store(self, partition_key: int) -> PartitionStore:
        return self._local.store(partition_key)

    def run_of(self, invocation: InvocationId) -> Run | None:
        return self._local.run_of(invocation)

    def on_led(self, partition: PartitionId) -> None:
        """Somebody leads the partition from now on: who waits for that asks at once."""
        if (news := self._news.pop(partition, None)) is not None:
            news.set_result(None)

    async def aclose(self) -> None:
        """Stop asking; whoever waits has been answered by now, or never will be."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- Asking another node --------------------------------------------------------------------

    async def _propose(
        self,
        command: Command,
        partition_key: int,
        on_applied: Callable[[Outcome], None],
        on_lost: Callable[[PerdureError], None],
        is_awaited: bool = False,
    ) -> None:
        partition = partition_of(partition_key, self._count)
        payload = encode_command(command)
        result: Result | None = None

        async def here(led: LedPartition) -> Outcome:
            done: asyncio.Future[Outcome] = self._loop.create_future()
            led.leader.propose(
                command, partition_key, partial(_resolve, done), partial(_reject, done)
            )
            return await done

        async def there(node: NodeId) -> Outcome:
            nonlocal result
            request = Propose(partition, partition_key, payload, is_awaited)
            applied = await self._transport.ask(node, request, ROUTE_ASK_MS / 1000)
            result = applied.result
            return unpack(applied)

        try:
            outcome = await self._persist(
                partition, here, there, may_repeat=isinstance(command, _REPEATABLE)
            )
        except PerdureError as error:
            on_lost(error)
            return
        if result is None or not isinstance(command, Invoke):
            on_applied(outcome)
            return
        self._ended[command.id] = result  # for whoever waits for it from within
        on_applied(outcome)
        self._ended.pop(command.id, None)

    async def _wait(self, invocation: InvocationId, partition: PartitionId, waiter: Waiter) -> None:
        async def here(led: LedPartition) -> Result:
            # Its tables may know more than those that were asked before.
            found = await find_surely(led, invocation)
            if found is None:
                raise gone(invocation)
            if found.result is not None:
                return found.result
            done: asyncio.Future[Result] = self._loop.create_future()
            forget = led.leader.wait(invocation, partial(_settle, done))
            try:
                return await done
            finally:
                forget()

        async def there(node: NodeId) -> Result:
            ticket = next(self._tickets)
            request = Watch(partition, invocation, ticket)
            try:
                return (await self._transport.ask(node, request, ROUTE_WATCH_MS / 1000)).result
            except (asyncio.CancelledError, OutcomeUnknown):
                self._transport.send(node, Unwatch(ticket))  # who asks again has another ticket
                raise

        try:
            result = await self._persist(partition, here, there, may_repeat=True)
        except PerdureError as error:
            waiter(error)
        else:
            waiter(result)

    async def _look_up(
        self,
        invocation: InvocationId,
        partition: PartitionId,
        on_found: Callable[[Found | PerdureError | None], None],
    ) -> None:
        async def here(led: LedPartition) -> Found | None:
            return await find_surely(led, invocation)

        async def there(node: NodeId) -> Found | None:
            request = LookUp(partition, invocation)
            known = await self._transport.ask(node, request, ROUTE_ASK_MS / 1000)
            if known.target is None:
                return None
            return Found(known.target, known.result, known.expires_at_ms)

        try:
            found = await self._persist(partition, here, there, may_repeat=True)
        except PerdureError as error:
            on_found(error)
        else:
            on_found(found)

    async def _persist(
        self,
        partition: PartitionId,
        here: Callable[[LedPartition], Awaitable[T]],
        there: Callable[[NodeId], Awaitable[T]],
        *,
        may_repeat: bool,
    ) -> T:
        """Ask whoever leads until somebody answers, for as long as patience lasts."""
        pause_ms, gives_up_at = ROUTE_RETRY_MS_INITIAL, self._loop.time() + ROUTE_PATIENCE_MS / 1000
        while True:
            trouble: PerdureError
            try:
                if (led := self._led(partition)) is not None:
                    return await here(led)
                node = self._leaders.leader_of(partition)
                if node is not None and node != self._me:
                    return await there(node)
                trouble = PartitionUnavailable(
                    f"partition {partition} has no leader now: try again shortly"
                )
            except _PASSING as error:
                trouble = error
            except OutcomeUnknown as error:
                if not may_repeat:
                    raise
                trouble = error
                # An answer was awaited for long: patience is for the time without any leader.
                gives_up_at = max(gives_up_at, self._loop.time() + ROUTE_PATIENCE_MS / 1000)
            if self._loop.time() >= gives_up_at:
                raise trouble
            if await self._wait_led(partition, pause_ms):
                pause_ms = ROUTE_RETRY_MS_INITIAL
            else:
                pause_ms = min(2 * pause_ms, ROUTE_RETRY_MS_MAX)

    async def _wait_led(self, partition: PartitionId, pause_ms: int) -> bool:
        """Wait for news of a leader, for a while; whether there were any."""
        news = self._news.get(partition)
        if news is None:
            news = self._news[partition] = self._loop.create_future()
        await asyncio.wait((news,), timeout=pause_ms / 1000)
        return news.done()

    def _led(self, partition: PartitionId) -> LedPartition | None:
        led = self._here.get(partition)
        return led if led is not None and led.leader.is_leading else None

    def _start(self, work: Coroutine[None, None, None]) -> Callable[[], None]:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return lambda: None if task.done() else _cancel(task)


def _made_repeatable(command: Command) -> Command:
    """An invocation that nobody remembers would run again when its command comes twice."""
    if isinstance(command, Invoke) and command.completion_retention_ms < ROUTE_RESULT_KEPT_MS:
        return msgspec.structs.replace(command, completion_retention_ms=ROUTE_RESULT_KEPT_MS)
    return command


def _is_under_way(led: LedPartition, invocation: InvocationId) -> bool:
    found = find(led.processor.store, invocation)
    return found is not None and found.result is None


async def find_surely(led: LedPartition, invocation: InvocationId) -> Found | None:
    """What the tables of a leader know; that they know nothing only counts if it leads still.

    Raises:
        PartitionUnavailable: it may not.
    """
    found = find(led.processor.store, invocation)
    if found is None:
        await led.leader.confirm()
    return found


def gone(invocation: InvocationId) -> NotFound:
    """What to tell who waits for an invocation that tables no longer know."""
    id_text = format_invocation_id(invocation)
    return NotFound(f"there is no invocation {id_text}, or its result is no longer kept")


def _cancel(task: "asyncio.Task[None]") -> None:
    task.cancel()


def _resolve(done: "asyncio.Future[T]", value: T) -> None:
    if not done.done():
        done.set_result(value)


def _reject(done: "asyncio.Future[T]", error: PerdureError) -> None:
    if not done.done():
        done.set_exception(error)


def _settle(done: "asyncio.Future[Result]", result: Result | PerdureError) -> None:
    if isinstance(result, PerdureError):
        _reject(done, result)
    else:
        _resolve(done, result)
