"""The whole node under power loss, kills, failing syncs, full disks and a flaky service."""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence

import pytest
from tests.sim.node_world import NodeWorld
from tests.sim.ports import SimEnv
from tests.sim.seeds import batches, chosen, repeatable

from perdure.cluster.wal_writer import WalWriter
from perdure.core.errors import PerdureError
from perdure.core.invariant import InvariantViolation
from perdure.engine.actions import MessageApplied
from perdure.engine.apply import Machine, Origin
from perdure.engine.turn import Turn
from perdure.storage.wal_format import Frame

SEEDS = chosen(share=2)


def _live(seed: int) -> NodeWorld:
    world = NodeWorld(seed)
    with repeatable(seed):
        world.run(lives=4)
    return world


@pytest.mark.slow
@pytest.mark.parametrize("seeds", batches(SEEDS, 10), ids=str)
def test_every_acknowledged_invocation_ends_once_and_right(seeds: range) -> None:
    for seed in seeds:
        _live(seed)


@pytest.mark.slow
def test_a_seed_replays_exactly() -> None:
    seed = SEEDS[0]
    assert NodeWorld(seed).run(lives=3) == NodeWorld(seed).run(lives=3)
    assert NodeWorld(seed).run(lives=3) != NodeWorld(seed + 1).run(lives=3)


@pytest.mark.slow
def test_the_faults_happen() -> None:
    happened = Counter[str]()
    for seed in range(1000, 1025):
        world = _live(seed)
        happened += world.happened + world.ledger.happened
        happened["executed again"] += sum(n > 1 for n in world.ledger.executions.values())
    for what in (
        "stop",
        "kill",
        "power",
        "full",
        "replayed",
        "ended",
        "suspended",
        "lost",
        "failed",
        "executed again",
    ):
        assert happened[what] > 0, f"{what} never happened"


# --- The checks can fail: without one of the rules, some early seed breaks a promise. -------------


def _ack_before_sync(
    writer: WalWriter, frame: Frame, on_durable: Callable[[], None] | None
) -> None:
    STAGE(writer, frame, None)
    if on_durable is not None:
        asyncio.get_running_loop().call_soon(on_durable)


def _apply_repeats(machine: Machine, turn: Turn, origin: Origin) -> bool:
    turn.actions.append(MessageApplied(origin.partition, origin.sequence))
    return True


def _start_nothing(service: object) -> None:
    """A new leader doesn't look into the tables for what is due."""


def _commit_in_halves(
    env: SimEnv,
    cleared: Sequence[tuple[bytes, bytes]],
    deleted: Sequence[bytes],
    written: Sequence[tuple[bytes, bytes]],
) -> None:
    COMMIT(env, [], [], written[: len(written) // 2])
    COMMIT(env, cleared, deleted, written)


STAGE = WalWriter.stage
COMMIT = SimEnv.commit


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rule", "mutant"),
    [
        ("perdure.cluster.wal_writer.WalWriter.stage", _ack_before_sync),
        ("perdure.engine.apply.Machine._is_next", _apply_repeats),
        ("tests.sim.ports.SimEnv.commit", _commit_in_halves),
        ("perdure.node.partition.timers.TimerService.start", _start_nothing),
        ("perdure.node.partition.shuffle.Shuffle.start", _start_nothing),
    ],
)
def test_a_broken_rule_is_noticed(
    rule: str, mutant: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rule, mutant)
    for seed in range(400):
        try:
            NodeWorld(seed).run(lives=4)
        except (AssertionError, PerdureError, InvariantViolation, TimeoutError):
            return
    pytest.fail("no seed noticed")
