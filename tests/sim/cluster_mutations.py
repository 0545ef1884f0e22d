"""Promises of a cluster, each with a way to break it that its world must notice."""

# pyright: reportPrivateUsage=false

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from tests.sim.cluster_faults import DARK, STALE

from perdure.cluster.core.log_messages import TailState
from perdure.cluster.core.recovery import Recovered
from perdure.cluster.core.types import SegmentKey, SegmentParams, SegmentState
from perdure.cluster.log_server import LogServer
from perdure.cluster.recoverer import Recoverer
from perdure.cluster.wal_writer import WalWriter, _Staged
from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId
from perdure.engine.actions import Outcome
from perdure.engine.apply import Machine
from perdure.engine.commands import Command, Invoke
from perdure.node.http.connection import Connection
from perdure.node.partition.fence import Fence
from perdure.node.partition.replica import PartitionReplica
from perdure.node.partition.routing import RoutedGateway


@dataclass(frozen=True)
class Mutation:
    """Methods and what they become; it is noticed within ``seeds`` under faults of these kinds."""

    name: str
    patches: tuple[tuple[type, str, Any], ...]
    seeds: range = range(12)
    kinds: tuple[str, ...] = DARK


_propose = RoutedGateway.propose


def _write_unsynced(self: WalWriter, group: list[_Staged]) -> float:
    self._wal.append([item.frame for item in group])
    return 0.0


async def _go_on_at_once(self: PartitionReplica, lsn: int) -> None:
    self._stop_following()


async def _believe_oneself(self: Recoverer, *_: object) -> Recovered:
    state = self._server.state(self._params.key)
    return Recovered(state.local_tail if state is not None else 0)


def _rename_repeats(
    self: RoutedGateway,
    command: Command,
    partition_key: int,
    on_applied: Callable[[Outcome], None],
    on_lost: Callable[[PerdureError], None],
) -> None:
    if isinstance(command, Invoke):
        fresh = command.id[:-4] + next(self._tickets).to_bytes(4, "big")
        command = msgspec.structs.replace(command, id=InvocationId(fresh))
    _propose(self, command, partition_key, on_applied, on_lost)


def _lead_on(self: PartitionReplica, epoch: int, reason: str) -> None:
    self._log = None
    self._opened = None
    self.follow()


def _apply_again(self: Machine, *_: object) -> bool:
    return True


def _read_to_the_end(self: LogServer, key: SegmentKey) -> TailState | None:
    state = self.state(key)
    if state is None:
        return None
    return TailState(state.local_tail, state.tail_at_seal is not None, state.closed_tail)


def _give_to_the_end(self: LogServer, state: SegmentState, for_repair: bool) -> int:
    return state.local_tail


def _sure_of_itself(self: Fence) -> bool:
    return True


def _say_it_anyway(self: Connection, since: float) -> bool:
    return False


def _seal_short(self: SegmentParams) -> int:
    return max(1, len(self.nodeset) - self.replication)


MUTATIONS = (
    Mutation("an ack without a sync", ((WalWriter, "_write", _write_unsynced),)),
    Mutation("a leader without the tail", ((PartitionReplica, "_read_until", _go_on_at_once),)),
    Mutation(
        "a tail from one replica, unsealed", ((Recoverer, "run", _believe_oneself),), range(10, 40)
    ),
    Mutation("a repeat under another id", ((RoutedGateway, "propose", _rename_repeats),)),
    Mutation("a leader that acts after its term", ((PartitionReplica, "step_down", _lead_on),)),
    Mutation("an outbox message counts again", ((Machine, "_is_next", _apply_again),)),
    Mutation(
        "followers read what isn't committed",
        ((LogServer, "tail", _read_to_the_end), (LogServer, "_readable", _give_to_the_end)),
    ),
    Mutation(
        "seal by n - R", ((SegmentParams, "seal_quorum", property(_seal_short)),), range(10, 40)
    ),
    Mutation(
        "a leader that wakes up doesn't ask whether it still leads",
        ((Fence, "is_fresh", _sure_of_itself),),
        range(10, 40),
        STALE,
    ),
    Mutation(
        "what was to be sent before the process stood still is sent",
        ((Connection, "_stood_still", _say_it_anyway),),
        range(10, 40),
        STALE,
    ),
)
