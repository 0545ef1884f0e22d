"""Placement: spread, balance and little movement, against brute force where that is possible."""

import itertools
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.core.placement import (
    LogSite,
    WorkSite,
    choose_nodeset,
    place_leaders,
    place_replicas,
)
from perdure.cluster.core.quorum import check_property
from perdure.cluster.core.types import Member, NodeId


def _ids(*nodes: int) -> tuple[NodeId, ...]:
    return tuple(NodeId(node) for node in nodes)


def _logs(count: int, zones: int = 0) -> list[LogSite]:
    return [
        LogSite(Member(NodeId(n), b"%d" % n), f"z{n % zones}" if zones else "")
        for n in range(1, count + 1)
    ]


def _workers(count: int, zones: int = 0) -> list[WorkSite]:
    return [WorkSite(NodeId(n), f"z{n % zones}" if zones else "") for n in range(1, count + 1)]


def _unplaced(count: int) -> dict[int, tuple[NodeId, ...]]:
    return dict.fromkeys(range(count), ())


def _nodes(members: tuple[Member, ...] | None) -> list[int]:
    assert members is not None
    return [member.node for member in members]


# --- Nodesets -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sites", "replication", "size"),
    [(1, 1, 1), (5, 1, 1), (2, 2, 2), (3, 2, 3), (9, 2, 3), (3, 3, 3), (4, 3, 4), (9, 3, 5)],
)
def test_a_nodeset_is_as_large_as_counts(sites: int, replication: int, size: int) -> None:
    chosen = choose_nodeset(0, NodeId(1), _logs(sites), (), replication)
    assert len(set(_nodes(chosen))) == size
    check_property(size, replication)


def test_too_few_sites_give_no_nodeset() -> None:
    assert choose_nodeset(0, NodeId(1), _logs(1), (), 2) is None
    assert choose_nodeset(0, NodeId(1), [], (), 1) is None


def test_sites_that_are_away_fill_up_a_nodeset_but_make_none() -> None:
    logs = _logs(3)
    logs[1] = replace(logs[1], is_here=False)
    assert sorted(_nodes(choose_nodeset(0, NodeId(1), logs, (), 2))) == [1, 2, 3]
    # With others to choose from, it is left out.
    many = [*logs, LogSite(Member(NodeId(4), b"4"), load=9)]
    assert sorted(_nodes(choose_nodeset(0, NodeId(1), many, _ids(2), 2))) == [1, 3, 4]
    logs[2] = replace(logs[2], is_here=False)
    assert choose_nodeset(0, NodeId(1), logs, (), 2) is None


def test_the_writer_stores_itself_when_it_can() -> None:
    for partition in range(50):
        assert _nodes(choose_nodeset(partition, NodeId(7), _logs(9, 3), (), 2))[0] == 7
        assert 12 not in _nodes(choose_nodeset(partition, NodeId(12), _logs(9, 3), (), 2))


def test_former_members_are_kept_unless_they_have_too_much() -> None:
    chosen = choose_nodeset(0, NodeId(1), _logs(9), _ids(4, 6), 2)
    assert sorted(_nodes(chosen)) == [1, 4, 6]
    sites = [LogSite(site.member, load=5 if site.member.node == 4 else 0) for site in _logs(9)]
    assert 4 not in _nodes(choose_nodeset(0, NodeId(1), sites, _ids(4, 6), 2))


@given(
    st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99), st.integers(1, 12)
)
def test_zones_are_spread_before_all(
    sites: int, zones: int, replication: int, partition: int, me: int
) -> None:
    logs = _logs(sites, zones)
    chosen = choose_nodeset(partition, NodeId(me), logs, _ids(2, 4, 6), replication)
    if sites < replication:
        assert chosen is None
        return
    zone = {site.member.node: site.zone for site in logs}
    used = Counter(zone[NodeId(node)] for node in _nodes(chosen))
    room = Counter(zone.values())
    for one, other in itertools.permutations(room, 2):
        # No zone has two more than another that still has a site to offer.
        assert used[one] - used[other] <= 1 or used[other] == room[other]


def test_new_segments_spread_over_the_sites() -> None:
    named = Counter(
        node
        for partition in range(300)
        for node in _nodes(choose_nodeset(partition, NodeId(1 + partition % 6), _logs(6), (), 2))
    )
    assert max(named.values()) - min(named.values()) < 60


# --- Replica sets -------------------------------------------------------------------------------


def _load(sets: Mapping[int, tuple[NodeId, ...]], sites: list[WorkSite]) -> list[int]:
    load = Counter(node for nodes in sets.values() for node in nodes)
    return [load[site.node] for site in sites]


def _moved(
    before: Mapping[int, tuple[NodeId, ...]], after: Mapping[int, tuple[NodeId, ...]]
) -> int:
    return sum(len(set(after[p]) - set(before[p])) for p in after)


@pytest.mark.parametrize(
    ("nodes", "zones"), [(1, 0), (2, 0), (3, 0), (5, 0), (6, 3), (24, 0), (24, 4)]
)
def test_sets_are_full_spread_and_even(nodes: int, zones: int) -> None:
    sites = _workers(nodes, zones)
    sets = place_replicas(_unplaced(24), sites, 3)
    zone = {site.node: site.zone for site in sites}
    for members in sets.values():
        assert len(set(members)) == len(members) == min(3, nodes)
        if zones >= 3:
            assert len({zone[node] for node in members}) == 3
    assert max(_load(sets, sites)) - min(_load(sets, sites)) <= 1
    assert place_replicas(sets, sites, 3) == sets


def test_first_choices_differ_too() -> None:
    sets = place_replicas(_unplaced(60), _workers(3), 3)
    firsts = Counter(members[0] for members in sets.values())
    assert min(firsts[node] for node in _ids(1, 2, 3)) >= 10


def test_a_node_that_leaves_moves_only_what_it_had() -> None:
    before = place_replicas(_unplaced(24), _workers(6), 3)
    after = place_replicas(before, _workers(5), 3)
    assert _moved(before, after) == 12
    for partition, members in before.items():
        kept = [node for node in members if node != 6]
        assert [node for node in after[partition] if node in kept] == kept


def test_a_node_that_joins_takes_its_share_and_no_more() -> None:
    before = place_replicas(_unplaced(24), _workers(5), 3)
    after = place_replicas(before, _workers(6), 3)
    assert _moved(before, after) == 12
    assert sorted(_load(after, _workers(6))) == [12] * 6


def test_surplus_members_go() -> None:
    sets = place_replicas({0: _ids(1, 2, 3, 4), 1: _ids(1, 1, 9)}, _workers(4), 2)
    assert all(len(members) == 2 for members in sets.values())
    assert set(sets[1]) >= {1}


@given(
    st.dictionaries(st.integers(0, 20), st.lists(st.integers(1, 9), max_size=4), max_size=16),
    st.lists(st.sampled_from("abc"), min_size=1, max_size=9),
    st.integers(1, 4),
)
def test_no_single_move_would_be_better(
    current: dict[int, list[int]], zones: list[str], copies: int
) -> None:
    sites = [WorkSite(NodeId(n), zone) for n, zone in enumerate(zones, 1)]
    sets = place_replicas({p: _ids(*nodes) for p, nodes in current.items()}, sites, copies)
    load = dict(zip([site.node for site in sites], _load(sets, sites), strict=True))
    zone = {site.node: site.zone for site in sites}
    for members in sets.values():
        assert len(set(members)) == len(members) == min(copies, len(sites))
        for source, target in itertools.product(members, set(load) - set(members)):
            crowds = Counter(zone[node] for node in members)
            moved = Counter(zone[target if node == source else node] for node in members)
            is_no_worse = moved[zone[target]] <= crowds[zone[source]]
            assert load[source] - load[target] < 2 or not is_no_worse
    assert place_replicas(sets, sites, copies) == sets


@given(st.integers(1, 8), st.integers(0, 30), st.integers(1, 4), st.integers(1, 8))
def test_without_zones_nobody_has_two_more(
    nodes: int, partitions: int, copies: int, then: int
) -> None:
    sets = place_replicas(_unplaced(partitions), _workers(nodes), copies)
    after = place_replicas(sets, _workers(then), copies)
    load = _load(after, _workers(then))
    assert max(load) - min(load) <= 1


# --- Leaders ------------------------------------------------------------------------------------


def _squares(leaders: Mapping[int, NodeId]) -> int:
    return sum(count * count for count in Counter(leaders.values()).values())


@settings(max_examples=200)
@given(
    st.lists(st.sets(st.integers(1, 4), max_size=3), max_size=6),
    st.lists(st.integers(1, 4), min_size=6, max_size=6),
)
def test_leaders_are_as_even_as_can_be(replicas: list[set[int]], current: list[int]) -> None:
    candidates = {p: _ids(*sorted(nodes)) for p, nodes in enumerate(replicas)}
    leaders = place_leaders(candidates, dict(enumerate(_ids(*current))))
    assert leaders.keys() == {p for p, nodes in candidates.items() if nodes}
    assert all(leader in candidates[p] for p, leader in leaders.items())
    ways = itertools.product(*(nodes for nodes in candidates.values() if nodes))
    best = min(_squares(dict(enumerate(way))) for way in ways)
    assert _squares(leaders) == best


def test_leaders_stay_while_nobody_has_two_more() -> None:
    candidates = {p: _ids(1, 2, 3) for p in range(4)}
    current = dict(enumerate(_ids(1, 1, 2, 3)))
    assert place_leaders(candidates, current) == current
    skewed = dict(enumerate(_ids(1, 1, 1, 3)))
    placed = place_leaders(candidates, skewed)
    assert sum(placed[p] != skewed[p] for p in range(4)) == 1


def test_a_leader_moves_over_a_third_node_if_need_be() -> None:
    candidates = {0: _ids(1, 2), 1: _ids(1, 2), 2: _ids(2, 3), 3: _ids(2, 3)}
    placed = place_leaders(candidates, dict(enumerate(_ids(1, 1, 2, 2))))
    assert sorted(Counter(placed.values()).values()) == [1, 1, 2]


def test_fixed_leaders_stay_and_count() -> None:
    candidates = {p: _ids(1, 2) for p in range(4)}
    current = dict.fromkeys(range(4), NodeId(1))
    placed = place_leaders(candidates, current, fixed={0, 1})
    assert (placed[0], placed[1], placed[2], placed[3]) == (1, 1, 2, 2)
    assert place_leaders(candidates, current, fixed=range(4)) == current


# --- Cost ---------------------------------------------------------------------------------------


def _time(decision: Callable[[], object]) -> float:
    started = time.perf_counter()
    decision()
    return time.perf_counter() - started


@pytest.mark.slow
def test_the_cost_of_a_decision_grows_gently() -> None:
    """Run with ``-s`` to see the curve; the bound is ten times what a slow machine needs."""
    print("\nnodes  partitions  place  join  leave  leaders (ms)")
    for nodes, partitions in ((3, 24), (5, 24), (24, 24), (24, 100), (24, 1000), (100, 1000)):
        sites = _workers(nodes, 3)
        sets = place_replicas(_unplaced(partitions), sites, 3)
        skewed = {p: sorted(members)[0] for p, members in sets.items()}
        times = [
            _time(partial(place_replicas, _unplaced(partitions), sites, 3)),
            _time(partial(place_replicas, sets, _workers(nodes + 1, 3), 3)),
            _time(partial(place_replicas, sets, _workers(nodes - 1, 3), 3)),
            _time(partial(place_leaders, sets, skewed)),
        ]
        figures = "  ".join(f"{seconds * 1000:6.1f}" for seconds in times)
        print(f"{nodes:5}  {partitions:10}  {figures}")
        assert max(times) < 10.0
