"""What running an invocation needs of the rest of the node."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.ids import InvocationId
from perdure.core.limits import FRAME_BYTES_MAX
from perdure.engine.actions import Outcome
from perdure.engine.commands import Effect, Effects
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamListener
from perdure.node.invoker.attempt import Terminal
from perdure.node.invoker.gate import Gates, Place
from perdure.node.invoker.retries import RetryState
from perdure.node.invoker.tally import AttemptTally
from perdure.node.invoker.validation import Resolver
from perdure.node.registry.effective import Catalogue, Route
from perdure.node.traces.tracer import Tracer
from perdure.storage.partition_store import PartitionStore


class Stream(Protocol):
    """What an attempt needs of a request stream (node/http/stream.py)."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def reset(self) -> None: ...

    def is_writable(self) -> bool: ...

    def consumed(self, size: int) -> None: ...


class _Gone:
    """Stands for a stream that is closed: takes nothing, does nothing."""

    def write(self, data: bytes) -> None: ...

    def end(self) -> None: ...

    def reset(self) -> None: ...

    def is_writable(self) -> bool:
        return False

    def consumed(self, size: int) -> None: ...


GONE: Stream = _Gone()


class Caller(Protocol):
    """Opens request streams to deployments."""

    def open(
        self, route: Route, path: str, headers: Headers, listener: StreamListener
    ) -> Stream: ...


Propose = Callable[[Effects, Callable[[Outcome], None]], None]
"""Append effects to the partition's log; the callback gets the outcome once they are applied.

May raise PerdureError when the log takes nothing; the callback is not called then.
"""


def _no_fence() -> "StartFence | None":
    """A single node has no successor."""
    return None


class StartFence(Protocol):
    """Whether this node leads the partition for sure: see node/partition/fence.py."""

    def is_fresh(self) -> bool: ...

    def wait(self, start: Callable[[], None]) -> Place: ...


@dataclass(frozen=True, slots=True)
class RunPorts:
    """What all runs of a partition share."""

    store: PartitionStore
    propose: Propose
    caller: Caller
    catalogue: Callable[[], Catalogue]
    resolver: Resolver
    clock: Clock
    entropy: Entropy
    cluster_name: str
    additional_headers: tuple[tuple[bytes, bytes], ...] = ()
    frame_bytes_max: int = FRAME_BYTES_MAX
    tally: AttemptTally = field(default_factory=AttemptTally)
    tracer: Tracer | None = None
    gates: Gates = field(default_factory=Gates)
    fence: Callable[[], StartFence | None] = _no_fence


class Session(Protocol):
    """The run that an attempt belongs to (run.py)."""

    id: InvocationId
    ports: RunPorts
    retry_state: RetryState

    def propose(self, effects: list[Effect], done: Callable[[Outcome], None]) -> bool:
        """Put effects of the attempt into the log; False: refused, ``done`` won't be called."""
        ...

    def may_tell(self) -> bool:
        """Whether the attempt may be told more now; ``pump`` is called once it may again."""
        ...

    def give_up_attempt(self) -> None:
        """Something the attempt did was not taken: drop the rest and try again."""
        ...

    def conclude(self, terminal: Terminal, effects: list[Effect]) -> None:
        """The attempt is over, with these last effects."""
        ...

    def abort(self) -> None:
        """The invocation no longer runs."""
        ...
