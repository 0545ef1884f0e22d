"""Sessions over a simulated network that loses, holds up and breaks: what holds for any seed."""

import asyncio
import random
from collections import defaultdict
from collections.abc import Callable, Coroutine
from itertools import pairwise

import pytest
from tests.cluster.fabric_rig import (
    Blob,
    Count,
    Echo,
    Member,
    Rig,
    SimNet,
    Text,
    gather,
    is_up,
    on_sim,
    peer,
    until,
)
from tests.sim.loop import SimLoop, run
from tests.sim.network import SimNetwork, SimWires
from tests.sim.seeds import batches, chosen

from perdure.cluster.core.messages import Peer
from perdure.cluster.core.types import NodeId
from perdure.cluster.transport import Answer, Place
from perdure.core import limits
from perdure.core.errors import AnswerLost, PerdureError, Unreachable

ONE, TWO = NodeId(1), NodeId(2)
NODES = (1, 2, 3)
SEEDS = batches(chosen(4), 10)


def network_of(rig: Rig) -> SimNetwork:
    assert isinstance(rig.net, SimNet)
    return rig.net.network


def wires_of(member: Member) -> SimWires:
    assert isinstance(member.wires, SimWires)
    return member.wires


class Chaos:
    """Three nodes that say numbered things to each other, and what became of each of them."""

    def __init__(self, rig: Rig, dice: random.Random) -> None:
        self.rig = rig
        self.dice = dice
        self.secret = dice.choice((None, b"known to all of them"))
        self.network = network_of(rig)
        self.nodes: dict[int, Member] = {}
        self.counter = 0
        self.never: set[str] = set()
        self.answered: set[str] = set()
        self.asks: list[asyncio.Future[None]] = []

    async def start(self, node: int) -> None:
        generation = self.nodes[node].fabric.me.generation + 1 if node in self.nodes else 1
        self.nodes[node] = await self.rig.start(peer(node, generation), secret=self.secret)
        self.rig.introduce(*self.nodes.values())

    async def restart(self, node: int, end: Callable[[SimWires], None]) -> None:
        old = self.nodes[node]
        end(wires_of(old))
        await old.fabric.aclose()
        await asyncio.sleep(self.dice.random() * 3)
        await self.start(node)

    def speak(self) -> None:
        source, target = self.dice.sample(NODES, 2)
        for _ in range(self.dice.randint(1, 30)):
            if self.dice.random() < 0.3:
                self.asks.append(asyncio.ensure_future(self._ask(source, NodeId(target))))
                continue
            text = self._next()
            if not self.nodes[source].fabric.send(NodeId(target), Text(text)):
                self.never.add(text)

    def _next(self) -> str:
        self.counter += 1
        return str(self.counter)

    async def _ask(self, source: int, target: NodeId) -> None:
        text = self._next()  # now: the order of questions is that in which they are queued
        try:
            timeout_s = self.dice.choice((0.001, 0.1, 5.0))
            answer = await self.nodes[source].fabric.ask(target, Echo(text), timeout_s)
        except Unreachable:
            self.never.add(text)
        except AnswerLost:
            return
        else:
            assert answer == Text(text)
            self.answered.add(text)

    async def live(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while loop.time() < end:
            await self._do(self.dice.random())
            await asyncio.sleep(self.dice.choice((0.0, 0.0005, 0.01, 0.3)))

    async def _do(self, draw: float) -> None:
        one, other = self.dice.sample(NODES, 2)
        hosts = [f"node-{node}:5122" for node in (one, other)]
        if draw < 0.9:
            self.speak()
        elif draw < 0.93:
            self.network.reset(*hosts)
        elif draw < 0.945:
            self.network.cut(*hosts)
        elif draw < 0.95:
            self.network.isolate(hosts[0])
        elif draw < 0.97:
            self.network.heal()
        elif draw < 0.975:
            end = self.dice.choice((SimWires.kill, SimWires.lose_power))
            await self.restart(one, end)

    async def heal(self) -> None:
        """Everybody finds everybody, whatever was."""
        self.network.heal()
        self.network.faults.reset_chance = 0.0
        await asyncio.sleep(self.network.faults.latency_max)  # both ends know of all resets
        self.network.faults.latency_max = 0.01
        pairs = [(one, two) for one in NODES for two in NODES if one != two]
        await until(lambda: all(is_up(self.nodes[one], self.nodes[two]) for one, two in pairs))
        await asyncio.gather(*self.asks)
        for one, two in pairs:
            said = Echo(f"{one} is back")
            assert await self.nodes[one].fabric.ask(NodeId(two), said, 5) == Text(said.text)

    def check(self) -> None:
        """At most once, in order, only what was sent, all that was answered."""
        heard = set[str]()
        for member in self.rig.members:
            order = defaultdict[Peer, list[int]](list)
            for sender, message in member.heard:
                assert isinstance(message, Text | Echo)
                if message.text.isdigit():
                    assert message.text not in heard, "twice"
                    heard.add(message.text)
                    order[sender].append(int(message.text))
            assert all(numbers == sorted(numbers) for numbers in order.values())
            _check_alternation(member)
        assert heard.isdisjoint(self.never)
        assert self.answered <= heard
        assert len(self.answered) > 20


def _check_alternation(member: Member) -> None:
    """Each up has its down before the next."""
    up: dict[int, Peer] = {}
    for other, is_up_now in member.sessions:
        if is_up_now:
            assert other.node not in up
            up[other.node] = other
        else:
            assert up.pop(other.node) == other


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SEEDS, ids=str)
def test_what_is_said_arrives_at_most_once_and_in_order(seeds: range) -> None:
    for seed in seeds:

        async def check(rig: Rig, seed: int = seed) -> None:
            dice = random.Random(f"chaos {seed}")
            chaos = Chaos(rig, dice)
            chaos.network.faults.reset_chance = dice.choice((0.0, 0.002, 0.02))
            chaos.network.faults.latency_max = dice.choice((0.002, 0.1, 0.5))
            for node in NODES:
                await chaos.start(node)
            await chaos.live(30)
            await chaos.heal()
            chaos.check()

        on_sim(check, seed)


def test_one_seed_is_one_history() -> None:
    def history(seed: int) -> list[object]:
        seen = list[object]()

        async def check(rig: Rig) -> None:
            chaos = Chaos(rig, random.Random(seed))
            for node in NODES:
                await chaos.start(node)
            await chaos.live(3)
            await chaos.heal()
            for member in rig.members:
                seen.extend(member.heard)
            seen.append(asyncio.get_running_loop().time())

        on_sim(check, seed)
        return seen

    assert history(5) == history(5) != history(6)


@pytest.mark.parametrize("way", ["there", "back"])
def test_a_one_way_cut_is_noticed_on_both_sides(way: str) -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        hosts = [one.place.address, two.place.address]
        network_of(rig).cut(*(hosts if way == "there" else reversed(hosts)))
        asked = asyncio.ensure_future(one.fabric.ask(TWO, Echo("hello"), 60))
        await until(lambda: one.fabric.session(TWO) is None and two.fabric.session(ONE) is None)
        assert isinstance((await gather(asked))[0], AnswerLost)
        ticks = limits.FABRIC_SILENT_TICKS_MAX + 2
        assert asyncio.get_running_loop().time() < ticks * limits.FABRIC_TICK_MS / 1000
        network_of(rig).heal()
        await until(lambda: is_up(one, two) and is_up(two, one))
        assert len(two.heard) == (way == "back")

    on_sim(check)


def test_a_pause_that_is_short_enough_is_survived() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        network_of(rig).isolate(two.place.address)
        asked = asyncio.ensure_future(one.fabric.ask(TWO, Echo("hello"), 60))
        pause_ms = (limits.FABRIC_SILENT_TICKS_MAX - 1) * limits.FABRIC_TICK_MS
        await asyncio.sleep(pause_ms / 1000)
        network_of(rig).heal()
        assert await asked == Text("hello")
        assert one.sessions == [(peer(2), True)]

    on_sim(check)


def test_a_host_without_power_is_noticed_though_nobody_tells() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        wires_of(two).lose_power()
        await until(lambda: one.fabric.session(TWO) is None)
        assert one.sessions == [(peer(2), True), (peer(2), False)]

    on_sim(check)


def test_an_earlier_life_is_not_heard_once_a_later_one_was() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        network_of(rig).isolate(two.place.address)
        later = rig.make(peer(2, generation=2), wires=network_of(rig).wires("elsewhere:5122"))
        later.place = Place(address=await later.fabric.listen())
        rig.introduce(one, later)
        await until(lambda: is_up(one, later) and is_up(later, one))
        assert two.fabric.send(ONE, Text("it doesn't know yet"))
        network_of(rig).heal()
        await until(lambda: (1, "FAB0006") in two.refusals)
        assert one.texts == []
        assert one.fabric.session(TWO) == later.fabric.me
        with pytest.raises(PerdureError):
            await two.fabric.ask(ONE, Echo("I was here first"), 5)

    on_sim(check)


def test_a_later_life_ends_the_sessions_to_an_earlier_one_at_once() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        wires_of(two).lose_power()
        later = await rig.start(peer(2, generation=2))
        later.fabric.set_directory({ONE: one.place, TWO: later.place})
        await until(lambda: is_up(one, later))
        assert asyncio.get_running_loop().time() < limits.FABRIC_TICK_MS / 1000
        _check_alternation(one)

    on_sim(check)


def test_whoever_is_dismissed_is_not_heard_to_the_end_of_its_frame() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()

        def dismiss(sender: Peer, message: Count, answer: Answer) -> None:
            two.fabric.set_directory({})

        two.fabric.serve(Count, dismiss)
        one.fabric.send(TWO, Text("before"))
        one.fabric.send(TWO, Count(0, 0))
        one.fabric.send(TWO, Text("after"))
        await until(lambda: one.fabric.session(TWO) is None)
        assert two.texts == ["before"]

    on_sim(check)


def test_a_peer_that_does_not_read_is_cut_off() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        network_of(rig).cut(one.place.address, two.place.address)
        piece = Blob(bytes(4_000_000))
        waiting = asyncio.ensure_future(one.fabric.ask(TWO, Echo("behind them"), 60))
        count = 0
        while one.fabric.send(TWO, piece):
            count += 1
            assert one.fabric.queued_bytes(TWO) <= limits.FABRIC_QUEUE_BYTES_MAX
        assert count == limits.FABRIC_QUEUE_BYTES_MAX // 4_000_000
        assert one.fabric.session(TWO) is None
        assert one.fabric.statistics().slow_cut == 1
        assert one.fabric.statistics().queued_bytes == 0
        assert isinstance((await gather(waiting))[0], Unreachable)
        assert not one.fabric.send(TWO, piece)

    on_sim(check)


def test_questions_wait_for_room_and_give_up_unsent() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        network_of(rig).cut(one.place.address, two.place.address)
        piece = Blob(bytes(1_000_000))
        while one.fabric.queued_bytes(TWO) <= limits.FABRIC_QUEUE_BYTES_HIGH + 2_000_000:
            assert one.fabric.send(TWO, piece)
        patient = asyncio.ensure_future(one.fabric.ask(TWO, Echo("patient"), 60))
        with pytest.raises(Unreachable, match="slowly"):
            await one.fabric.ask(TWO, Echo("hasty"), 0.5)
        network_of(rig).heal()
        assert await patient == Text("patient")
        assert [message for _, message in two.heard if message != piece] == [Echo("patient")]

    on_sim(check)


def test_a_question_given_up_in_the_queue_is_never_sent() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        network_of(rig).cut(one.place.address, two.place.address)
        for _ in range(4):
            one.fabric.send(TWO, Blob(bytes(1_000_000)))
        with pytest.raises(Unreachable):
            await one.fabric.ask(TWO, Echo("too late"), 0.5)
        network_of(rig).heal()
        assert await one.fabric.ask(TWO, Echo("in time"), 5) == Text("in time")
        assert [said for _, said in two.heard if isinstance(said, Echo)] == [Echo("in time")]

    on_sim(check)


def test_a_member_that_moves_is_found_where_it_went() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        await two.fabric.aclose()
        moved = rig.make(peer(2, generation=2), wires=network_of(rig).wires("elsewhere:5122"))
        moved.place = Place(address=await moved.fabric.listen())
        rig.introduce(one, moved)
        await until(lambda: is_up(one, moved))
        assert await one.fabric.ask(TWO, Echo("there you are"), 5) == Text("there you are")
        _check_alternation(one)

    on_sim(check)


def test_nodes_dial_again_and_again_but_not_all_the_time() -> None:
    def main(loop: SimLoop) -> Coroutine[None, None, None]:
        async def work() -> None:
            rig = Rig(SimNet(3))
            one = await rig.start(peer(1))
            dialled = list[float]()
            wires = wires_of(one)
            connect = wires.connect

            def count(address: str) -> object:
                dialled.append(loop.time())
                return connect(address)

            wires.connect = count  # type: ignore[assignment, method-assign]
            one.fabric.set_directory({TWO: Place(address="nowhere:5122")})
            await asyncio.sleep(60)
            await rig.aclose()
            gaps = [later - sooner for sooner, later in pairwise(dialled)]
            assert gaps[0] < 0.1
            assert all(1.9 < gap < 2.8 for gap in gaps[8:])
            assert len(set(gaps[8:])) > 10, "no jitter"

        return work()

    run(3, main)


def test_a_directory_that_changes_all_the_time_keeps_ups_and_downs_in_pairs() -> None:
    async def check(rig: Rig) -> None:
        one, two = await rig.pair()
        net = rig.net
        assert isinstance(net, SimNet)
        for _ in range(300):
            away = Place(address="nowhere:5122")
            one.fabric.set_directory(net.dice.choice(({}, {TWO: two.place}, {TWO: away})))
            await asyncio.sleep(net.dice.choice((0.0, 0.001, 0.01, 0.2)))
        rig.introduce(one, two)
        await until(lambda: is_up(one, two) and is_up(two, one))
        for member in (one, two):
            _check_alternation(member)
        assert len(one.sessions) > 20

    for seed in range(5):
        on_sim(check, seed)
