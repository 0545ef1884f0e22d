"""An outbox against a way that refuses, loses and forgets: everything arrives, once, in order."""

import asyncio
import random
from typing import Any, cast

import pytest
from tests.engine.memory_env import MemoryEnv
from tests.sim.loop import SimLoop, run

from perdure.core.errors import PartitionUnavailable
from perdure.core.ids import PartitionId
from perdure.node.partition.shuffle import Shuffle
from perdure.storage.keys import outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.timers import Outgoing

TARGETS = (1, 2)
MESSAGES = 60


class Way:
    """To the leaders of the targets: each takes only the message that comes next."""

    def __init__(self, dice: random.Random, store: PartitionStore) -> None:
        self.dice = dice
        self.store = store
        self.is_calm = False
        self.arrived: dict[int, list[bytes]] = {target: [] for target in TARGETS}
        self.shuffle = Shuffle(store, self.deliver, self.trim)

    def deliver(self, target: int, sequence: int, message: Outgoing) -> None:
        if not self.is_calm:
            fate = self.dice.random()
            if fate < 0.2:
                raise PartitionUnavailable("no leader now")
            if fate < 0.35:
                return  # the session broke with the message on it
        asyncio.get_running_loop().call_later(0.001, self._arrive, target, sequence, message)

    def _arrive(self, target: int, sequence: int, message: Outgoing) -> None:
        arrived = self.arrived[target]
        if sequence == len(arrived) + 1:
            arrived.append(message.payload)
        elif sequence > len(arrived):
            self.shuffle.resend_later(target)
            return
        if self.is_calm or self.dice.random() < 0.7:  # or else the acknowledgement is lost
            asyncio.get_running_loop().call_later(0.001, self.shuffle.applied, target, len(arrived))

    def trim(self, target: int, sequence: int) -> None:
        while sequence and self.store.outbox.get(outbox_key(target, sequence)) is not None:
            self.store.outbox.delete(outbox_key(target, sequence))
            sequence -= 1


@pytest.mark.parametrize("seed", range(20))
def test_everything_arrives_once_and_in_order(seed: int) -> None:
    dice = random.Random(seed)
    store = PartitionStore(cast(Any, MemoryEnv()), bytes(16), PartitionId(0))
    sent: dict[int, list[bytes]] = {target: [] for target in TARGETS}

    async def work(loop: SimLoop) -> None:
        way = Way(dice, store)
        way.shuffle.start()
        for number in range(MESSAGES):
            target = dice.choice(TARGETS)
            payload = f"{target} {number}".encode()
            sent[target].append(payload)
            sequence = len(sent[target])
            store.outbox.put(outbox_key(target, sequence), Outgoing(number, payload), 1)
            way.shuffle.stored(target, sequence)
            await asyncio.sleep(dice.choice((0, 0, 0.01, 0.3)))
        way.is_calm = True
        await asyncio.sleep(30)
        assert way.arrived == sent
        assert way.shuffle.in_flight() == 0
        assert store.outbox.scan(b"", 1) == []
        way.shuffle.stop()

    run(seed, work)
