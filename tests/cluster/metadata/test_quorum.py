"""Nodes that ask a quorum of members, through faults, on virtual time and a simulated network."""

import asyncio
import random

import pytest
from tests.cluster.metadata.quorum import OUTSIDER, SimQuorum, tell
from tests.sim.disk import SimDisk

from perdure.cluster.core.types import NodeId
from perdure.cluster.metadata.client import RaftMetadata
from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.messages import Answer, Ask, Halt, Look, Standing
from perdure.cluster.metadata.provision import decode_backup, encode_backup
from perdure.cluster.metadata.service import MemberService
from perdure.cluster.metadata.store import Unknown, Versioned
from perdure.core.errors import (
    DataDirectoryDamaged,
    MemberStalled,
    MetadataNotEmpty,
    MetadataTooLarge,
    MetadataUnavailable,
)
from perdure.core.invariant import InvariantViolation
from perdure.core.limits import METADATA_CALL_MS, METADATA_PAUSE_MS, METADATA_VALUE_BYTES_MAX


def _ignore(*arguments: object) -> None:
    """Does nothing."""


async def leader_of(client: RaftMetadata) -> NodeId:
    """The node whose member leads."""
    leader = (await client.look()).leader
    assert leader is not None
    return NodeId(leader)


def test_a_node_without_a_member_asks_through_the_others() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(OUTSIDER)
        assert await client.cas("a", None, b"1") == Versioned(1, b"1")
        assert await quorum.client(quorum.nodes[2]).get("a") == Versioned(1, b"1")

    tell(1, story)


def test_a_lost_leader_costs_a_second() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(OUTSIDER)
        await client.cas("a", None, b"1")
        leader = await leader_of(client)
        before = quorum.clock.monotonic()
        await quorum.lose_power(leader)
        assert await client.cas("a", 1, b"2") == Versioned(2, b"2")
        assert quorum.clock.monotonic() - before < 3.0

    tell(2, story)


@pytest.mark.parametrize("is_older", [False, True])
def test_a_member_whose_disk_was_rolled_back_is_not_counted_on(is_older: bool) -> None:
    """It has forgotten what it acknowledged, and what it voted for: also where its next start has
    the number of one that was met."""

    async def story(quorum: SimQuorum) -> None:
        one, two, three = quorum.nodes
        client = quorum.client(OUTSIDER)
        await client.cas("a", None, b"1")
        copy = quorum.disks[three].copy()
        await restart(quorum, three)
        await quorum.meet(one, three)
        if is_older:
            await restart(quorum, three)
            await quorum.meet(one, three)
        await quorum.lose_power(one)
        assert await client.cas("a", 1, b"2") == Versioned(2, b"2")
        await quorum.lose_power(two)
        await quorum.lose_power(three)
        quorum.disks[three] = copy
        await quorum.boot(one)
        await quorum.boot(three)
        with pytest.raises(MetadataUnavailable):
            await client.get("a")
        await restart(quorum, one)
        with pytest.raises(MetadataUnavailable):
            await client.get("a")
        await quorum.boot(two)
        assert await client.get("a") == Versioned(2, b"2")

    tell(5, story)


async def restart(quorum: SimQuorum, node: NodeId) -> None:
    await quorum.lose_power(node)
    await quorum.boot(node)


def test_without_a_quorum_the_outcome_is_unknown_and_may_come_later() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(OUTSIDER)
        await client.cas("a", None, b"1")
        for node in quorum.nodes[:2]:
            await quorum.lose_power(node)
        with pytest.raises(MetadataUnavailable):
            await client.get("a")
        assert await client.cas("a", 1, b"2") == Unknown()
        for node in quorum.nodes[:2]:
            await quorum.boot(node)
        found = await client.get("a")
        assert found in (Versioned(1, b"1"), Versioned(2, b"2"))

    tell(3, story)


def test_a_repeated_write_is_executed_once() -> None:
    """The leader dies with the answer: the client asks another member under the same number."""
    executed_once = 0

    async def story(quorum: SimQuorum) -> None:
        nonlocal executed_once
        client = quorum.client(OUTSIDER)
        await client.cas("a", None, b"0")
        version = 1
        for turn in range(6):
            write = asyncio.create_task(client.cas("a", version, b"%d" % turn))
            await asyncio.sleep(0.001 + 0.002 * turn)
            leader = await leader_of(client)
            await quorum.lose_power(leader)
            assert await write == Versioned(version + 1, b"%d" % turn)
            version += 1
            executed_once += 1
            await quorum.boot(leader)
            await asyncio.sleep(3)

    tell(4, story)
    assert executed_once == 6


def test_hints_go_on_after_the_member_that_gave_them_is_gone() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(quorum.nodes[0])
        heard: list[str] = []
        client.watch("p/", heard.append)
        other = quorum.client(quorum.nodes[1])
        await other.cas("p/1", None, b"")
        await asyncio.sleep(1)
        assert "p/1" in heard
        heard.clear()
        await quorum.lose_power(quorum.nodes[0])
        await other.cas("p/2", None, b"")
        await client.get("p/2")  # finds another member
        await asyncio.sleep(15)
        assert "p/2" in heard

    tell(5, story)


def test_a_member_says_how_it_is() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(quorum.nodes[0])
        await client.cas("a", None, b"1")
        await asyncio.sleep(5)
        answers = [await quorum.lives[node].service.answer(Look()) for node in quorum.nodes]
        standings = [answer for answer in answers if isinstance(answer, Standing)]
        assert len({standing.leader for standing in standings}) == 1
        assert [standing.node for standing in standings] == list(quorum.nodes)
        for standing in standings:
            assert len(standing.connected) == 2
            assert standing.register_count == 1
            assert standing.committed_ago_ms is not None
            assert standing.committed_ago_ms < 5_000  # the health barrier

    tell(6, story)


def test_a_member_whose_disk_fails_is_over() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(OUTSIDER)
        await client.cas("a", None, b"1")
        node = quorum.nodes[0]
        service = quorum.lives[node].service
        quorum.disks[node].sync_failure_at = 0
        await client.cas("a", 1, b"2")
        await asyncio.sleep(3)
        assert isinstance(service.failed.result(), OSError)
        assert await client.cas("a", 2, b"3") == Versioned(3, b"3")

    tell(7, story)


def test_a_member_with_a_broken_invariant_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    def tick() -> None:
        raise InvariantViolation("as the test wants", {})

    async def story(quorum: SimQuorum) -> None:
        service = quorum.lives[quorum.nodes[0]].service
        member = service._member  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(member, "tick", tick)
        await asyncio.sleep(1)
        assert isinstance(service.failed.result(), InvariantViolation)

    tell(14, story)


def test_who_is_no_member_of_a_quorum_is_not_asked_to_stop_it_without_a_pause(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = 0
    answer = MemberService.answer

    async def count(service: MemberService, ask: Ask) -> Answer:
        nonlocal asked
        asked += isinstance(ask, Halt)
        return await answer(service, ask)

    monkeypatch.setattr(MemberService, "answer", count)

    async def story(quorum: SimQuorum) -> None:
        with pytest.raises(MetadataUnavailable):
            await quorum.client(OUTSIDER).halt(7, "a", 1)
        assert 0 < asked <= METADATA_CALL_MS / METADATA_PAUSE_MS

    tell(5, story)


def test_a_member_that_gets_nowhere_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(OUTSIDER)
        await client.cas("a", None, b"1")
        node = quorum.nodes[0]
        service = quorum.lives[node].service
        member = service._member  # pyright: ignore[reportPrivateUsage]
        monkeypatch.setattr(member, "submit", _ignore)
        await asyncio.sleep(20)
        assert not service.failed.done()
        await asyncio.sleep(20)
        assert isinstance(service.failed.result(), MemberStalled)
        for other in quorum.nodes:
            if other != node:
                assert not quorum.lives[other].service.failed.done()

    tell(12, story)


def test_a_member_without_a_majority_waits() -> None:
    async def story(quorum: SimQuorum) -> None:
        for node in quorum.nodes[:2]:
            await quorum.lose_power(node)
        await asyncio.sleep(120)
        assert not quorum.lives[quorum.nodes[2]].service.failed.done()
        await quorum.boot(quorum.nodes[0])
        client = quorum.client(quorum.nodes[2])
        assert await client.cas("a", None, b"1") == Versioned(1, b"1")

    tell(13, story)


# --- Moving registers -----------------------------------------------------------------------------


def test_local_registers_move_to_a_quorum_with_their_versions() -> None:
    async def story(quorum: SimQuorum) -> None:
        local = LocalMetadata(SimDisk(random.Random(1)))
        for version in range(5):
            await local.cas("p/1", version or None, b"%d" % version)
        await local.cas("cluster", None, bytes(range(256)))
        backup = encode_backup("fingerprint", await local.scan(""))
        cluster, registers = decode_backup(backup)
        assert cluster == "fingerprint"
        client = quorum.client(quorum.nodes[0])
        await client.fill(registers)
        assert await client.scan("") == await local.scan("")
        assert await client.cas("p/1", 5, b"next") == Versioned(6, b"next")
        with pytest.raises(MetadataNotEmpty):
            await client.fill(registers)
        assert encode_backup("fingerprint", await local.scan("")) == backup

    tell(8, story)


def test_every_changed_byte_of_a_backup_is_refused() -> None:
    content = encode_backup("fingerprint", {"a": Versioned(3, b"value")})
    assert decode_backup(content) == ("fingerprint", {"a": Versioned(3, b"value")})
    for position in range(len(content)):
        changed = bytearray(content)
        changed[position] ^= 0x10
        with pytest.raises(DataDirectoryDamaged):
            decode_backup(bytes(changed))
        with pytest.raises(DataDirectoryDamaged):
            decode_backup(content[:position])


def test_registers_beyond_the_limit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("perdure.cluster.metadata.service.METADATA_BYTES_MAX", 1_000)

    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(quorum.nodes[0])
        await client.cas("a", None, bytes(900))
        with pytest.raises(MetadataTooLarge, match="full"):
            await client.cas("b", None, bytes(200))
        assert await client.cas("b", None, bytes(50)) == Versioned(1, bytes(50))

    tell(9, story)


def test_an_import_beyond_the_limit_puts_nothing() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(quorum.nodes[0])
        value = bytes(METADATA_VALUE_BYTES_MAX)
        many = {f"k/{number}": Versioned(1, value) for number in range(17)}
        with pytest.raises(MetadataTooLarge):
            await client.fill(many)
        assert await client.scan("") == {}
        few = {f"k/{number}": Versioned(number + 1, value) for number in range(4)}
        await client.fill(few)
        assert await client.scan("k/") == few

    tell(10, story)


@pytest.mark.slow
def test_large_writes_at_the_same_time_all_come_through() -> None:
    async def story(quorum: SimQuorum) -> None:
        client = quorum.client(OUTSIDER)
        value = bytes(METADATA_VALUE_BYTES_MAX)
        outcomes = await asyncio.gather(
            *(client.cas(f"k/{number}", None, value) for number in range(12))
        )
        assert outcomes == [Versioned(1, value)] * 12

    tell(11, story)
