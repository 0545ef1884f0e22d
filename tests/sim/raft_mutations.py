"""Each rule that hardens the Raft library, taken away: the simulation must notice every one."""

# pyright: reportPrivateUsage=false

from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

from tests.sim.disk import SimDisk, SimFile

from perdure.cluster.metadata import raft, raft_state
from perdure.cluster.metadata.raft import RaftMember
from perdure.cluster.metadata.raft_journal import DurableJournal
from perdure.cluster.metadata.raft_links import PeerConnection
from perdure.cluster.metadata.raft_serializer import DumpSerializer
from perdure.cluster.metadata.raft_state import Applied, RegisterMap
from perdure.cluster.metadata.raft_transport import LibraryTransport, MessageFilter

Mutation = Callable[[ExitStack], None]


def _replace(owner: Any, name: str, substitute: Any) -> Mutation:
    return lambda stack: stack.enter_context(patch.object(owner, name, substitute))


def _never(*arguments: object) -> bool:
    return False


def _always(*arguments: object) -> bool:
    return True


def _nothing(*arguments: object) -> None:
    return None


def _unclamped(self: MessageFilter, message: Any) -> Any:
    return message


def _send_without_barrier(self: LibraryTransport, node: Any, message: dict[str, Any]) -> bool:
    assert self.filter is not None
    self._connections[node.id].send(self.filter.outgoing(message))
    return True


_tick = RaftMember.tick


def _tick_without_barrier(self: RaftMember) -> None:
    self._barrier = lambda: None  # type: ignore[method-assign]
    _tick(self)
    del self._barrier


def _on_data_with_gaps(self: PeerConnection, now: float, frame: Any) -> None:
    self._heard_at = now
    if not self.is_connected:
        self._connect()
    self._hooks.on_message(frame.message)


def _replace_without_sync(self: SimDisk, name: str, content: bytes) -> None:
    with (
        patch.object(SimDisk, "sync_inode", _nothing),
        patch.object(SimDisk, "sync_folder", _nothing),
    ):
        _disk_replace(self, name, content)


_disk_replace = SimDisk.replace
_stage = DurableJournal._stage


def _stage_and_write(self: DurableJournal, change: Any) -> None:
    _stage(self, change)
    self.barrier()


_submit = RaftMember.submit


def _submit_without_name(self: RaftMember, command: Any, finished: Any) -> None:
    def done(result: Any, error: int) -> None:
        good = error == 0 and isinstance(result, Applied)
        self._finished.append((finished, result if good else None))

    self._core._applyCommand(b"\0" + raft_state.encode_command(command), done)


class _Forgetful(dict[Any, Any]):
    def get(self, key: Any, default: Any = None) -> Any:
        return default


_init_map = RegisterMap.__init__


def _map_without_memory(self: RegisterMap) -> None:
    _init_map(self)
    self._outcomes = _Forgetful()


def _few_outcomes(stack: ExitStack) -> None:
    stack.enter_context(patch.object(raft_state, "METADATA_OUTCOMES_KEPT", 2))


def _few_outcomes_never_expired(stack: ExitStack) -> None:
    _few_outcomes(stack)
    execute = RegisterMap._execute

    def executed(self: RegisterMap, command: Any) -> Applied:
        self._dropped_count = 0
        return execute(self, command)

    stack.enter_context(patch.object(RegisterMap, "_execute", executed))


MUTATIONS: dict[str, Mutation] = {
    "messages leave before what they tell is durable": _replace(
        LibraryTransport, "send", _send_without_barrier
    ),
    "a tick acts before what it acts on is durable": _replace(
        RaftMember, "tick", _tick_without_barrier
    ),
    "the journal is written but not synced": _replace(SimFile, "sync_data", _nothing),
    "the journal writes each change by itself": _replace(
        DurableJournal, "_stage", _stage_and_write
    ),
    "dumps are not synced": _replace(SimDisk, "replace", _replace_without_sync),
    "a start doesn't bring journal and dump in line": _replace(DumpSerializer, "_align", _nothing),
    "commits are learned without a check": _replace(MessageFilter, "_clamp", _unclamped),
    "any dump is installed": _replace(MessageFilter, "_is_dump_known", _never),
    "connections have gaps and outlive themselves": _replace(
        PeerConnection, "_on_data", _on_data_with_gaps
    ),
    "an append may be short": _replace(raft, "_BATCH_BYTES", 100),
    "a repeated request is executed again": _replace(RegisterMap, "__init__", _map_without_memory),
    "an outcome that was dropped is taken for new": _few_outcomes_never_expired,
}


# These are needed too, but other rules stand behind them, or nobody's promise breaks without them:
# tests/cluster/metadata/test_raft.py tells the story of each.
STORIES = {
    "answers of another term count": _replace(MessageFilter, "_is_of_another_term", _never),
    "stale resets are believed": _replace(MessageFilter, "_is_stale_reset", _never),
    "a dump goes on where another connection left it": _replace(
        RaftMember, "cancel_dump", _nothing
    ),
    "whose outcome it is isn't asked": _replace(RaftMember, "submit", _submit_without_name),
    "a member without its memory is let in": _replace(PeerConnection, "_is_known", _always),
    "anybody may campaign at any time": _replace(MessageFilter, "_has_a_leader", _never),
}


@contextmanager
def mutated(mutation: Mutation) -> Generator[None]:
    with ExitStack() as stack:
        mutation(stack)
        yield
