"""From one quorum to the next: nothing is lost, nothing happens twice, clients see a pause."""

import asyncio
import random

import msgspec
import pytest
from tests.cluster.metadata.quorum import OUTSIDER, SimQuorum, tell
from tests.sim.registers import Found, Lost, Operation, Wrote, find_violation

from perdure.cluster.metadata.client import RaftMetadata
from perdure.cluster.metadata.quorum import (
    QUORUM_KEY,
    Quorum,
    Quorums,
    begin_move,
    decode_quorums,
    finish_move,
)
from perdure.cluster.metadata.store import Conflict, Versioned
from perdure.core.errors import MembershipRefused, MetadataConflict, MetadataUnavailable

CLUSTER = "ab" * 8


def make_wanted(*names: str) -> Quorum:
    places = range(1, len(names) + 1)
    return Quorum(
        number=0,
        cluster=CLUSTER,
        members={name: f"{name}:1" for name in names},
        storages={place: f"{place:032x}" for place in places},
        disks={place: f"{place:032x}" for place in places},
    )


# --- The register -------------------------------------------------------------------------------


def test_one_quorum_follows_another() -> None:
    known = begin_move(None, make_wanted("n1", "n2", "n4"))
    assert known.number == 1
    following = known.following
    assert following is not None
    assert following.number == 2
    assert [following.place_of(name) for name in ("n1", "n4", "n3")] == [1, 3, None]
    assert following.majority == 2
    with pytest.raises(MembershipRefused, match="moving to n1, n2, n4"):
        begin_move(known, make_wanted("n1"))
    assert finish_move(known, 1) is None
    done = finish_move(known, 2)
    assert done == Quorums(following, None)
    assert finish_move(done, 2) is None
    assert finish_move(None, 2) is None
    again = begin_move(done, make_wanted("n1")).following
    assert again is not None
    assert again.number == 3


@pytest.mark.parametrize("count", [0, 2, 4, 7])
def test_members_are_one_three_or_five(count: int) -> None:
    names = [f"n{number}" for number in range(count)]
    with pytest.raises(MembershipRefused, match="1, 3 or 5"):
        begin_move(None, make_wanted(*names))


# --- The quorums --------------------------------------------------------------------------------


class Moves:
    """Clients that read and write all the time while members are replaced."""

    def __init__(self, quorum: SimQuorum, seed: int) -> None:
        self.quorum = quorum
        self.dice = random.Random(seed)
        self.history: list[Operation] = []
        self.is_over = False
        self.elsewhere: list[bytes] = []

    async def client(self, store: RaftMetadata) -> None:
        store.on_elsewhere = self.elsewhere.append
        known: dict[str, int | None] = {}
        while not self.is_over:
            key = self.dice.choice("ab")
            operation = Operation(key, self.quorum.clock.monotonic())
            self.history.append(operation)
            if self.dice.random() < 0.5:
                await self._read(store, operation, known)
            else:
                await self._write(store, operation, known)
            await asyncio.sleep(self.dice.random() * 0.1)

    async def _read(
        self, store: RaftMetadata, operation: Operation, known: dict[str, int | None]
    ) -> None:
        try:
            found = await store.get(operation.key)
        except MetadataUnavailable:
            return
        known[operation.key] = found.version if found is not None else None
        operation.answer = Found((found.version, found.value) if found is not None else None)
        operation.answered = self.quorum.clock.monotonic()

    async def _write(
        self, store: RaftMetadata, operation: Operation, known: dict[str, int | None]
    ) -> None:
        operation.expected = known.get(operation.key)
        operation.value = b"%d" % len(self.history)
        outcome = await store.cas(operation.key, operation.expected, operation.value)
        if isinstance(outcome, Versioned):
            known[operation.key] = outcome.version
            operation.answer = Wrote(outcome.version)
        elif isinstance(outcome, Conflict):
            known[operation.key] = outcome.version
            operation.answer = Lost(outcome.version)
        else:
            return
        operation.answered = self.quorum.clock.monotonic()

    async def move(self, store: RaftMetadata) -> None:
        """As nodes do it, at once."""
        found = await store.get(QUORUM_KEY)
        known = decode_quorums(found.value) if found is not None else None
        value = msgspec.msgpack.encode(begin_move(known, make_wanted("n1", "n2", "n3")))
        written = await store.cas(QUORUM_KEY, found.version if found else None, value)
        assert isinstance(written, Versioned)
        number = known.number if known is not None else 1
        with pytest.raises(MetadataConflict):
            await store.halt(number, QUORUM_KEY, written.version + 1)
        await store.halt(number, QUORUM_KEY, written.version)
        await store.halt(number, QUORUM_KEY, written.version)  # another node does it too
        base = await store.export(number)
        assert await store.export(number) == base
        await asyncio.sleep(self.dice.random())  # clients meet the quorum that was stopped
        await self.quorum.follow(base)
        await self._finish(store, number + 1)

    async def _finish(self, store: RaftMetadata, number: int) -> None:
        found = await store.get(QUORUM_KEY)
        assert found is not None
        done = finish_move(decode_quorums(found.value), number)
        assert done is not None
        value = msgspec.msgpack.encode(done)
        assert isinstance(await store.cas(QUORUM_KEY, found.version, value), Versioned)


@pytest.mark.parametrize("seed", range(4))
def test_registers_stay_linearizable_while_the_quorum_is_replaced(seed: int) -> None:
    async def story(quorum: SimQuorum) -> None:
        moves = Moves(quorum, seed)
        operator = quorum.client(OUTSIDER)
        async with asyncio.TaskGroup() as group:
            for node in (*quorum.nodes, OUTSIDER):
                group.create_task(moves.client(quorum.client(node)))
            for _ in range(3):
                await asyncio.sleep(1.0)
                await moves.move(operator)
            await asyncio.sleep(1.0)
            moves.is_over = True
        assert find_violation(moves.history) is None
        assert sum(operation.answer is not None for operation in moves.history) > 30
        followers = [decode_quorums(register).following for register in moves.elsewhere]
        assert {at.number for at in followers if at is not None} <= {2, 3, 4}
        assert followers, "nobody met a quorum that was stopped"

    tell(seed, story)


def test_a_quorum_that_was_not_stopped_is_not_exported() -> None:
    async def story(quorum: SimQuorum) -> None:
        store = quorum.client(quorum.nodes[0])
        await store.cas("a", None, b"x")
        with pytest.raises(MetadataUnavailable):
            await store.export(1)
        with pytest.raises(MetadataUnavailable):
            await store.halt(2, "a", 1)  # another quorum than this one
        assert await store.get("a") == Versioned(1, b"x")

    tell(7, story)


def test_a_quorum_outlives_power_losses_from_its_beginning_on() -> None:
    async def story(quorum: SimQuorum) -> None:
        store = quorum.client(OUTSIDER)
        await store.cas("a", None, b"x")
        moves = Moves(quorum, 1)
        await moves.move(store)
        await store.cas("a", 1, b"y")
        for node in quorum.nodes:
            await quorum.lose_power(node)
        for node in quorum.nodes:
            await quorum.boot(node)
        assert await store.get("a") == Versioned(2, b"y")

    tell(8, story)
