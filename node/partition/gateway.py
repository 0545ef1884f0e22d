"""All partitions as ingress and admin see them: ask for a change, wait for a result, look.

Everything is called on the event loop and answers through callbacks on it, so that a partition led
by another node can stand behind the same port. Raised errors are ``PerdureError``; a caller that
gets one may repeat the same command, because commands carry their ids.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, PartitionId, partition_key_of, partition_of
from perdure.engine.actions import Outcome
from perdure.engine.commands import Command
from perdure.engine.invoke import expires_at_ms
from perdure.node.invoker.run import Run
from perdure.node.partition.leader import Leader, Waiter
from perdure.node.partition.processor import Processor
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.invocations import Completed, Result, Target


@dataclass(frozen=True, slots=True)
class LedPartition:
    """A partition of this node, with its leader."""

    processor: Processor
    leader: Leader


@dataclass(frozen=True, slots=True)
class Found:
    """An invocation as it is known now; ``result`` is None until it ends, ``expires_at_ms`` is when
    a result is forgotten."""

    target: Target
    result: Result | None
    expires_at_ms: int


class Gateway(Protocol):
    """What the outside asks of the partitions."""

    @property
    def partition_count(self) -> int: ...

    def leads(self, partition: PartitionId) -> bool:
        """Whether this node leads the partition: ``store`` and ``run_of`` know it as it is now."""
        ...

    def halted(self) -> list[PartitionId]:
        """The partitions that stopped on a broken invariant: they take and tell nothing."""
        ...

    def propose(
        self,
        command: Command,
        partition_key: int,
        on_applied: Callable[[Outcome], None],
        on_lost: Callable[[PerdureError], None],
        *,
        is_awaited: bool = False,
    ) -> None:
        """Have a command applied by the partition of ``partition_key``. ``is_awaited``: an Invoke
        whose result will be waited for as soon as it is applied.

        ``on_applied`` gets the outcome once it is committed and applied; ``on_lost`` is called
        instead when the outcome will never be known here. Exactly one is called, once.

        Raises:
            PartitionUnavailable, Overloaded, RecordTooLarge, OutcomeUnknown: not taken.
        """
        ...

    def wait(self, invocation: InvocationId, waiter: Waiter) -> Callable[[], None]:
        """Call ``waiter`` when the invocation ends (it must not have); returns how to stop.

        Raises:
            PartitionUnavailable: nobody here would learn of the end.
        """
        ...

    def look_up(
        self, invocation: InvocationId, on_found: Callable[[Found | PerdureError | None], None]
    ) -> None:
        """Tell ``on_found`` what is known of the invocation: None when nothing (any more)."""
        ...

    def store(self, partition_key: int) -> PartitionStore:
        """The tables that hold a partition key, to be read between two callbacks only."""
        ...

    def run_of(self, invocation: InvocationId) -> Run | None:
        """The invocation's running session, if it has one: for people to look at."""
        ...


class LocalGateway:
    """The gateway of a node that leads every partition."""

    def __init__(self, partitions: Sequence[LedPartition]) -> None:
        self._partitions = partitions

    @property
    def partition_count(self) -> int:
        return len(self._partitions)

    def leads(self, partition: PartitionId) -> bool:
        return True

    def halted(self) -> list[PartitionId]:
        found = (led.processor for led in self._partitions)
        return [processor.partition for processor in found if processor.halted is not None]

    def propose(
        self,
        command: Command,
        partition_key: int,
        on_applied: Callable[[Outcome], None],
        on_lost: Callable[[PerdureError], None],
        *,
        is_awaited: bool = False,
    ) -> None:
        self._of(partition_key).leader.propose(command, partition_key, on_applied, on_lost)

    def wait(self, invocation: InvocationId, waiter: Waiter) -> Callable[[], None]:
        return self._of(partition_key_of(invocation)).leader.wait(invocation, waiter)

    def look_up(
        self, invocation: InvocationId, on_found: Callable[[Found | PerdureError | None], None]
    ) -> None:
        on_found(find(self.store(partition_key_of(invocation)), invocation))

    def store(self, partition_key: int) -> PartitionStore:
        return self._of(partition_key).processor.store

    def run_of(self, invocation: InvocationId) -> Run | None:
        return self._of(partition_key_of(invocation)).leader.invoker.run_of(invocation)

    def _of(self, partition_key: int) -> LedPartition:
        partition: PartitionId = partition_of(partition_key, len(self._partitions))
        return self._partitions[partition]


def find(store: PartitionStore, invocation: InvocationId) -> Found | None:
    """What the tables know of an invocation; a completion without a result is as good as none."""
    row = store.invocations.get(invocation)
    if row is None:
        return None
    if not isinstance(row, Completed):
        return Found(row.spec.target, None, 0)
    result = store.results.get(invocation)
    return Found(row.spec.target, result, expires_at_ms(row)) if result is not None else None
