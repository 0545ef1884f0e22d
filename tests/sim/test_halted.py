"""A partition that contradicts its tables is halted alone; the node stays up and says so."""

import asyncio
from collections.abc import Callable

import pytest
from tests.sim.loop import SimLoop, run
from tests.sim.node_world import HEALED, KEYS, PARTITIONS, NodeLife, NodeWorld

from perdure.core.errors import PartitionUnavailable, PerdureError
from perdure.core.hashing import key_partition_key
from perdure.core.ids import make_invocation_id, partition_of
from perdure.core.invariant import InvariantViolation
from perdure.engine.actions import Accepted, Action, Outcome
from perdure.engine.apply import Origin
from perdure.engine.commands import Announce, Command, Invoke
from perdure.engine.notifications import input_entry
from perdure.node.partition.processor import Processor
from perdure.storage.tables.invocations import HandlerKind, Source, SourceKind, Target

Apply = Callable[[Processor, int, int, int, Command, Origin | None], tuple[Outcome, list[Action]]]
BROKEN, SOUND = (partition_of(key_partition_key(key), PARTITIONS) for key in KEYS)
RULE = "perdure.node.partition.processor.Processor._apply"
APPLY: Apply = getattr(Processor, "_apply")  # noqa: B009


def _invoke(key: str, number: int) -> Invoke:
    return Invoke(
        id=make_invocation_id(key_partition_key(key), number),
        target=Target("Counter", "add", key, HandlerKind.EXCLUSIVE),
        source=Source(SourceKind.INGRESS),
        sink=None,
        execute_at_ms=0,
        idempotency_key=None,
        completion_retention_ms=1000,
        journal_retention_ms=0,
        input=input_entry([], b"[]"),
    )


async def _ask(life: NodeLife, key: str, number: int) -> Outcome | PerdureError:
    told: asyncio.Future[Outcome | PerdureError] = life.loop.create_future()
    life.host.gateway.propose(
        _invoke(key, number), key_partition_key(key), told.set_result, told.set_result
    )
    return await told


def _break(monkeypatch: pytest.MonkeyPatch, what: type[Command]) -> None:
    """From now on records of this kind contradict the tables of one partition."""

    def apply(
        processor: Processor,
        lsn: int,
        epoch: int,
        now_ms: int,
        command: Command,
        origin: Origin | None,
    ) -> tuple[Outcome, list[Action]]:
        if processor.partition == BROKEN and isinstance(command, what):
            raise InvariantViolation("tables and record contradict each other", {"lsn": lsn})
        return APPLY(processor, lsn, epoch, now_ms, command, origin)

    monkeypatch.setattr(RULE, apply)


async def _check_the_others(life: NodeLife) -> None:
    with pytest.raises(PartitionUnavailable, match=f"partition {BROKEN} was halted"):
        await _ask(life, KEYS[0], 2)
    assert isinstance(await _ask(life, KEYS[1], 3), Accepted)
    await life.host.close()


def test_the_keys_are_in_different_partitions() -> None:
    assert BROKEN != SOUND


def test_a_partition_that_halts_while_it_leads_tells_who_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main(loop: SimLoop) -> None:
        life = NodeLife(NodeWorld(1), HEALED, loop)
        await life.boot()
        _break(monkeypatch, Invoke)
        assert isinstance(await _ask(life, KEYS[0], 1), PartitionUnavailable)
        await _check_the_others(life)

    run(1, main)


@pytest.mark.parametrize("what", [Invoke, Announce])
def test_a_partition_that_halts_at_boot_doesn_t_hold_up_the_node(
    what: type[Command], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = NodeWorld(1)

    async def fill(loop: SimLoop) -> None:
        life = NodeLife(world, HEALED, loop)
        await life.boot()
        for key in KEYS:
            assert isinstance(await _ask(life, key, 1), Accepted)

    async def main(loop: SimLoop) -> None:
        life = NodeLife(world, HEALED, loop)
        async with asyncio.timeout(60):
            await life.boot()
        assert [led.processor.halted is not None for led in life.host.led] == [
            number == BROKEN for number in range(PARTITIONS)
        ]
        await _check_the_others(life)

    run(1, fill)
    world.disk.kill()
    _break(monkeypatch, what)
    run(2, main)
