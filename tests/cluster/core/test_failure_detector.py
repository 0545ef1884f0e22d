"""The failure detector: what one node makes of beats, and what many make of lossy networks."""

import random
from collections import defaultdict, deque
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.core.failure_detector import (
    Beat,
    Effect,
    FailureDetector,
    Gossip,
    Mood,
    NodeChanged,
    NodeState,
    Replaced,
    ReplicaReport,
    Report,
    Role,
    SendGossip,
    UnknownNode,
)
from perdure.cluster.core.types import NodeId, Writer
from perdure.core.limits import (
    FD_DEAD_TICKS,
    FD_LONELY_TICKS,
    FD_REPORT_TICKS,
    FD_RESET_TICKS,
    FD_SUSPECT_TICKS,
    FD_VACANT_TICKS,
)

ONE, TWO, THREE = NodeId(1), NodeId(2), NodeId(3)


def _writer(node: int, generation: int = 1) -> Writer:
    return Writer(NodeId(node), generation, 1000 * node + generation)


def _detector(members: Iterable[int] = (1, 2, 3)) -> FailureDetector:
    return FailureDetector(_writer(1), [NodeId(node) for node in members])


def _beat(
    node: int, count: int, *, generation: int = 1, mood: Mood = Mood.WELL, of: Gossip | None = None
) -> Gossip:
    rest = of.beats if of is not None else ()
    return Gossip((Beat(_writer(node, generation), count, mood), *rest))


def _pass(detector: FailureDetector, ticks: int) -> list[Effect]:
    return [effect for _ in range(ticks) for effect in detector.tick(0)]


def _changes(effects: list[Effect]) -> list[tuple[int, NodeState]]:
    return [(e.node, e.state) for e in effects if isinstance(e, NodeChanged)]


def test_a_node_that_was_never_heard_is_suspect_then_dead() -> None:
    detector = _detector()
    assert detector.state(TWO) is NodeState.SUSPECT
    assert _changes(_pass(detector, FD_LONELY_TICKS - 1)) == []
    assert _changes(_pass(detector, 1)) == [(2, NodeState.DEAD), (3, NodeState.DEAD)]


def test_a_beat_makes_alive_and_silence_makes_dead() -> None:
    detector = _detector()
    assert _changes(detector.on_gossip(_beat(2, 1))) == [(2, NodeState.ALIVE)]
    assert detector.alive() == [1, 2]
    _pass(detector, FD_DEAD_TICKS - 1)
    assert detector.state(TWO) is NodeState.ALIVE
    _pass(detector, 1)
    assert detector.state(TWO) is NodeState.DEAD
    assert detector.is_gone(_writer(2))


def test_the_same_count_again_is_no_sign_of_life() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 5))
    for _ in range(FD_DEAD_TICKS):
        detector.tick(0)
        detector.on_gossip(_beat(2, 5))
        detector.on_gossip(_beat(2, 4))
    assert detector.state(TWO) is NodeState.DEAD


def test_what_others_heard_counts_once_it_grows() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1, of=_beat(3, 40)))
    assert detector.state(THREE) is NodeState.SUSPECT
    detector.on_gossip(_beat(2, 2, of=_beat(3, 41)))
    assert detector.state(THREE) is NodeState.ALIVE


def test_who_comes_back_is_suspect_for_a_while() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    _pass(detector, FD_DEAD_TICKS)
    assert _changes(detector.on_gossip(_beat(2, 2))) == [(2, NodeState.SUSPECT)]
    for count in range(FD_SUSPECT_TICKS):
        assert detector.state(TWO) is NodeState.SUSPECT
        detector.on_gossip(_beat(2, 3 + count))
        detector.tick(0)
    assert detector.state(TWO) is NodeState.ALIVE


def test_a_new_run_is_alive_at_once_and_ends_the_one_before() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 100))
    assert not detector.is_gone(_writer(2))
    effects = detector.on_gossip(_beat(2, 1, generation=2))
    assert effects == [NodeChanged(TWO, _writer(2, 2), NodeState.ALIVE)]
    assert detector.is_gone(_writer(2))
    assert not detector.is_gone(_writer(2, 2))
    assert detector.on_gossip(_beat(2, 101)) == []
    assert detector.writer(TWO) == _writer(2, 2)


def test_a_lost_connection_shortens_the_respite() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    _pass(detector, 1)
    assert detector.on_link(TWO, False) == []
    _pass(detector, FD_RESET_TICKS - 2)
    assert detector.state(TWO) is NodeState.ALIVE
    assert (2, NodeState.DEAD) in _changes(_pass(detector, 1))


def test_a_long_silence_ends_when_the_connection_is_lost() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    _pass(detector, FD_RESET_TICKS)
    assert _changes(detector.on_link(TWO, False)) == [(2, NodeState.DEAD)]


def test_a_port_where_nobody_listens_shortens_it_further() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    _pass(detector, 1)
    detector.on_link(TWO, False)
    assert detector.on_vacant(TWO) == []
    assert _changes(_pass(detector, FD_VACANT_TICKS - 1)) == [(2, NodeState.DEAD)]


def test_who_is_heard_of_is_not_dead_for_a_port_where_nobody_listens() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    for count in range(2, 30):
        detector.on_vacant(TWO)
        detector.on_gossip(Gossip((Beat(_writer(3), count, Mood.WELL), *_beat(2, count).beats)))
        _pass(detector, 1)
        assert detector.state(TWO) is NodeState.ALIVE
    detector.on_link(TWO, True)
    _pass(detector, FD_VACANT_TICKS)
    assert detector.state(TWO) is NodeState.ALIVE


def test_a_connection_made_again_gives_the_whole_respite_back() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    detector.on_link(TWO, False)
    detector.on_link(TWO, True)
    _pass(detector, FD_DEAD_TICKS - 1)
    assert detector.state(TWO) is NodeState.ALIVE


@pytest.mark.parametrize(
    ("mood", "state"),
    [
        (Mood.STOPPING, NodeState.STOPPING),
        (Mood.FAILING_OVER, NodeState.FAILING_OVER),
        (Mood.GONE, NodeState.DEAD),
    ],
)
def test_what_a_node_says_of_itself_counts(mood: Mood, state: NodeState) -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    assert _changes(detector.on_gossip(_beat(2, 2, mood=mood))) == [(2, state)]
    assert detector.alive() == [1]


def test_farewell_is_believed_at_once() -> None:
    leaver, stayer = FailureDetector(_writer(2), [ONE, TWO]), _detector()
    stayer.on_gossip(_beat(2, 1))
    leaver.tick(0)
    for effect in leaver.farewell():
        assert isinstance(effect, SendGossip)
        if effect.to == ONE:
            stayer.on_gossip(effect.gossip)
    assert stayer.state(TWO) is NodeState.DEAD
    assert stayer.on_gossip(_beat(2, 1, generation=2)) != []
    assert stayer.state(TWO) is NodeState.ALIVE


def test_a_later_run_of_oneself_is_told() -> None:
    detector = _detector()
    assert Replaced(_writer(1, 2)) in detector.on_gossip(_beat(2, 1, of=_beat(1, 7, generation=2)))
    assert detector.on_gossip(_beat(2, 2, of=_beat(1, 7, generation=0))) == []


def test_two_processes_of_one_generation_are_counted_not_believed() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    clone = Gossip((Beat(Writer(TWO, 1, 77), 9, Mood.WELL),))
    assert detector.on_gossip(clone) == []
    assert (detector.writer(TWO), detector.conflicts) == (_writer(2), 1)


def test_strangers_are_told_and_not_listened_to() -> None:
    detector = _detector()
    assert detector.on_gossip(_beat(9, 1, of=_beat(2, 5))) == [UnknownNode(NodeId(9))]
    assert detector.writer(TWO) is None


def test_members_that_were_removed_are_dead() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    assert _changes(detector.set_members([ONE, THREE])) == [(2, NodeState.DEAD)]
    assert detector.is_gone(_writer(2))
    assert detector.on_gossip(_beat(3, 1, of=_beat(2, 9))) != []
    assert detector.state(TWO) is NodeState.DEAD


def test_who_hears_nobody_says_so() -> None:
    detector = _detector()
    detector.on_gossip(_beat(2, 1))
    _pass(detector, FD_LONELY_TICKS)
    assert not detector.is_isolated
    sent = _pass(detector, 1)
    assert detector.is_isolated
    moods = {e.gossip.beats[0].mood for e in sent if isinstance(e, SendGossip)}
    assert moods == {Mood.FAILING_OVER}
    assert detector.alive() == []


def test_who_is_heard_by_nobody_notices() -> None:
    detector = _detector()
    for count in range(FD_LONELY_TICKS + 1):
        detector.tick(0)
        detector.on_gossip(_beat(2, count + 1))
    assert detector.is_isolated
    echo = Gossip((Beat(_writer(2), 99, Mood.WELL), Beat(_writer(1), FD_LONELY_TICKS, Mood.WELL)))
    detector.on_gossip(echo)
    assert not detector.is_isolated


def test_the_survivor_of_two_is_not_isolated() -> None:
    detector = _detector((1, 2))
    _pass(detector, 10 * FD_LONELY_TICKS)
    assert not detector.is_isolated
    assert detector.alive() == [1]


def test_reports_go_out_now_and_then() -> None:
    detector = _detector((1, 2))
    replica = ReplicaReport(3, Role.LEADER, 5, 10, 9)
    detector.set_report(Report(7, False, (replica,)))
    assert detector.replica_report(_writer(1), 3) == replica
    detector.on_gossip(_beat(2, 1))
    ticks = [
        any(isinstance(e, SendGossip) and e.gossip.report is not None for e in detector.tick(0))
        for _ in range(FD_REPORT_TICKS + 1)
    ]
    assert ticks == [True, *[False] * (FD_REPORT_TICKS - 1), True]
    detector.hurry_report()
    assert any(isinstance(e, SendGossip) and e.gossip.report for e in detector.tick(0))


def test_a_report_counts_although_others_have_told_the_beat_before() -> None:
    detector = _detector()
    detector.on_gossip(_beat(3, 1, of=_beat(2, 5)))
    report = Report(3)
    detector.on_gossip(Gossip(_beat(2, 5).beats, report))
    assert detector.state(TWO) is NodeState.ALIVE
    assert detector.report_of(TWO) == report
    detector.on_gossip(_beat(3, 2, of=_beat(2, 6)))
    detector.on_gossip(Gossip(_beat(2, 6).beats, Report(4)))
    assert detector.report_of(TWO) == Report(4)


def test_the_latest_report_stands_until_the_node_starts_again() -> None:
    detector = _detector()
    replica = ReplicaReport(3, Role.LEADER, 5, 10, 9)
    report = Report(1, True, (replica,))
    detector.on_gossip(Gossip(_beat(2, 1).beats, report))
    assert detector.replica_report(_writer(2), 3) == replica
    detector.on_gossip(_beat(2, 2))
    detector.on_gossip(Gossip(_beat(2, 1).beats, Report(5)))  # an old one, late
    assert detector.report_of(TWO) == report
    detector.on_gossip(_beat(2, 1, generation=2))
    assert detector.report_of(TWO) == Report()
    assert detector.replica_report(_writer(2), 3) is None
    assert detector.replica_report(_writer(2, 2), 3) is None


@given(st.lists(st.tuples(st.integers(2, 3), st.integers(0, 3), st.integers(0, 9)), max_size=30))
def test_generations_and_counts_only_grow(beats: list[tuple[int, int, int]]) -> None:
    detector = _detector()
    known = {2: (0, 0), 3: (0, 0)}
    for node, generation, count in beats:
        detector.on_gossip(_beat(node, count, generation=generation))
        writer = detector.writer(NodeId(node))
        assert writer is not None
        known[node] = max(known[node], (generation, count))
        assert writer.generation == known[node][0]


# --- Many nodes over a network that loses, delays and cuts ----------------------------------------


class Network:
    """Ticks of everybody in random order; messages take up to a tick, and may get lost."""

    def __init__(self, size: int, seed: int, loss: float = 0.0) -> None:
        self.dice = random.Random(seed)
        self.loss = loss
        ids = [NodeId(number) for number in range(1, size + 1)]
        self.nodes = {node: FailureDetector(_writer(node), ids) for node in ids}
        self.cut: set[tuple[NodeId, NodeId]] = set()
        self.down: set[NodeId] = set()
        self.stalled: set[NodeId] = set()
        self.waiting: dict[NodeId, deque[Gossip]] = defaultdict(deque)
        self.seen: list[tuple[NodeId, NodeId, NodeState]] = []

    def ticks(self, count: int) -> None:
        for _ in range(count):
            order = list(self.nodes)
            self.dice.shuffle(order)
            for node in order:
                if node not in self.down and node not in self.stalled:
                    self._run(node)

    def _run(self, node: NodeId) -> None:
        waiting = self.waiting[node]
        effects = self.nodes[node].tick(self.dice.getrandbits(64))
        while waiting:
            effects.extend(self.nodes[node].on_gossip(waiting.popleft()))
        for effect in effects:
            if isinstance(effect, NodeChanged):
                self.seen.append((node, effect.node, effect.state))
            elif isinstance(effect, SendGossip):
                way = (node, effect.to)
                if way not in self.cut and self.dice.random() >= self.loss:
                    self.waiting[effect.to].append(effect.gossip)

    def count_gone(self) -> int:
        return sum(state.is_gone for _, _, state in self.seen)

    def until(self, condition: Callable[[], bool], ticks_max: int) -> int:
        for passed in range(ticks_max):
            if condition():
                return passed
            self.ticks(1)
        assert condition(), f"not within {ticks_max} ticks"
        return ticks_max

    def everybody_sees(self, node: NodeId, is_gone: bool) -> bool:
        return all(
            detector.state(node).is_gone is is_gone
            for other, detector in self.nodes.items()
            if other != node and other not in self.down
        )


SIZES = [3, 5, 24]


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("loss", [0.0, 0.1])
def test_nobody_is_taken_for_dead_while_all_run(size: int, loss: float) -> None:
    for seed in range(4 if size == 24 else 10):
        network = Network(size, seed, loss)
        network.ticks(300)
        assert network.count_gone() == 0, f"seed {seed}"
        assert all(len(d.alive()) == size for d in network.nodes.values())


@pytest.mark.parametrize("size", SIZES)
def test_the_dead_are_noticed_by_all_in_bounded_time(size: int) -> None:
    network = Network(size, 1, loss=0.05)
    network.ticks(20)
    network.down.add(TWO)
    took = network.until(lambda: network.everybody_sees(TWO, True), 2 * FD_DEAD_TICKS)
    assert took >= FD_DEAD_TICKS - 2
    assert {node for _, node, state in network.seen if state.is_gone} == {TWO}


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("stall", [1, FD_DEAD_TICKS - 5])
def test_a_short_stall_of_one_deposes_nobody(size: int, stall: int) -> None:
    network = Network(size, 2)
    network.ticks(20)
    network.stalled.add(ONE)
    network.ticks(stall)
    network.stalled.clear()
    network.ticks(40)
    assert network.count_gone() == 0


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_who_was_paused_for_long_deposes_nobody_when_it_wakes(size: int) -> None:
    network = Network(size, 3)
    network.ticks(20)
    network.stalled.add(ONE)
    network.ticks(200)
    network.stalled.clear()
    network.seen.clear()
    network.ticks(60)
    assert [seen for seen in network.seen if seen[0] == ONE and seen[2].is_gone] == []
    assert network.everybody_sees(ONE, False)


@pytest.mark.slow
@pytest.mark.parametrize("size", SIZES)
def test_a_cut_between_two_is_bridged_by_others(size: int) -> None:
    network = Network(size, 4)
    network.ticks(20)
    network.cut = {(ONE, TWO), (TWO, ONE)}
    network.ticks(300)
    assert network.count_gone() == 0


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("is_deaf", [True, False])
def test_a_node_cut_off_one_way_gives_up_and_comes_back(size: int, is_deaf: bool) -> None:
    network = Network(size, 5)
    network.ticks(20)
    others = [node for node in network.nodes if node != ONE]
    network.cut = {(o, ONE) if is_deaf else (ONE, o) for o in others}
    network.until(lambda: network.everybody_sees(ONE, True), 2 * FD_LONELY_TICKS)
    network.until(lambda: network.nodes[ONE].is_isolated, 2 * FD_LONELY_TICKS)
    assert not any(network.nodes[other].is_isolated for other in others)
    network.cut.clear()
    network.until(lambda: len(network.nodes[TWO].alive()) == size, 3 * FD_SUSPECT_TICKS)
    network.until(lambda: len(network.nodes[ONE].alive()) == size, 3 * FD_SUSPECT_TICKS)


@pytest.mark.parametrize("size", [5, 24])
def test_both_sides_of_a_split_agree_again(size: int) -> None:
    network = Network(size, 6)
    network.ticks(20)
    left = set(list(network.nodes)[: size // 2])
    network.cut = {
        (a, b) for a in network.nodes for b in network.nodes if (a in left) != (b in left)
    }
    network.until(
        lambda: all(network.nodes[a].state(b).is_gone for a, b in network.cut), 4 * FD_DEAD_TICKS
    )
    network.cut.clear()
    network.until(
        lambda: all(len(d.alive()) == size for d in network.nodes.values()), 4 * FD_SUSPECT_TICKS
    )
