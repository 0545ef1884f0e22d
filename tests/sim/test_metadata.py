"""Nodes that ask a quorum of metadata members while these lose power, links and each other.

The whole way: client, fabric, service, member, disk, on virtual time. ``SIM_SEEDS`` and ``SEED``
choose the seeds; tests/sim/test_raft.py torments the members themselves much harder.
"""

import asyncio
import random

import pytest
from tests.cluster.metadata.quorum import OUTSIDER, SimQuorum, tell
from tests.sim import seeds
from tests.sim.registers import Found, Lost, Operation, Wrote, find_violation

from perdure.cluster.metadata.client import RaftMetadata
from perdure.cluster.metadata.store import Conflict, Unknown, Versioned
from perdure.core.errors import MetadataUnavailable


async def live(
    client: RaftMetadata, number: int, dice: random.Random, history: list[Operation]
) -> None:
    """Reads and writes; one that isn't answered is left open."""
    loop = asyncio.get_running_loop()
    known: dict[str, int | None] = {}
    for turn in range(25):
        operation = Operation(dice.choice("ab"), loop.time())
        history.append(operation)
        key = operation.key
        if dice.random() < 0.4:
            try:
                found = await client.get(key)
            except MetadataUnavailable:
                continue
            operation.answer = Found((found.version, found.value) if found else None)
            known[key] = found.version if found else None
        else:
            operation.expected, operation.value = known.get(key), b"%d.%d" % (number, turn)
            match await client.cas(key, operation.expected, operation.value):
                case Versioned(version, _):
                    operation.answer, known[key] = Wrote(version), version
                case Conflict(version):
                    operation.answer, known[key] = Lost(version), version
                case Unknown():
                    continue
        operation.answered = loop.time()
        await asyncio.sleep(dice.random() * 0.5)


async def torment(quorum: SimQuorum, dice: random.Random) -> None:
    """One member at a time loses its power or its links; every now and then all their power."""
    while True:
        await asyncio.sleep(dice.random() * 2)
        node = dice.choice(quorum.nodes)
        match dice.choice(("power", "links", "all", "reset")):
            case "power":
                await quorum.lose_power(node)
                await asyncio.sleep(dice.random() * 2)
                await quorum.boot(node)
            case "links":
                quorum.isolate(node)
                await asyncio.sleep(dice.random() * 4)
                quorum.network.heal()
            case "reset":
                other = dice.choice([peer for peer in quorum.nodes if peer != node])
                quorum.network.reset(f"member-{node}:5123", f"member-{other}:5123")
            case _:
                for each in quorum.nodes:
                    await quorum.lose_power(each)
                for each in quorum.nodes:
                    await quorum.boot(each)


@pytest.mark.slow
@pytest.mark.parametrize("batch", seeds.batches(seeds.chosen(20), 4), ids=str)
def test_clients_see_registers_through_faults(batch: range) -> None:
    for seed in batch:
        dice = random.Random(seed)
        history: list[Operation] = []

        async def story(
            quorum: SimQuorum, dice: random.Random = dice, history: list[Operation] = history
        ) -> None:
            clients = [quorum.client(node) for node in (*quorum.nodes, OUTSIDER)]
            faults = asyncio.create_task(torment(quorum, dice))
            await asyncio.gather(
                *(live(client, at, dice, history) for at, client in enumerate(clients))
            )
            faults.cancel()
            await asyncio.gather(faults, return_exceptions=True)

        tell(seed, story)
        violation = find_violation(history)
        assert violation is None, f"SEED={seed}: {violation}"
        answered = [operation for operation in history if operation.answer is not None]
        assert len(answered) > len(history) // 2
