"""Ranges of keys: no row that a filter lets pass may lie outside, and few others inside."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.core.hashing import key_partition_key
from perdure.core.ids import InvocationId, format_invocation_id, partition_key_of, partition_of
from perdure.node.query.bounds import (
    Need,
    Range,
    Restriction,
    Values,
    invocation_ranges,
    object_ranges,
    wanted_ids,
)
from perdure.storage.keys import invocation_key, object_group
from perdure.storage.partition_store import TableId

TABLE = TableId.INVOCATIONS
IDS = [InvocationId(bytes([n * 17]) * 8 + bytes([n]) * 16) for n in range(12)]
NAMES = ["A", "AB", "A\x00", "B", "s" * 120, "t" * 120 + "1", "t" * 120 + "2", "u" * 230, "v" * 255]


def equal(*scans: Values) -> Need:
    """A need of scans that only compare for equality."""
    return Need(tuple(Restriction(scan) for scan in scans))


def covers(ranges: list[Range], partition: int, key: bytes) -> bool:
    return any(r.partition == partition and r.lower <= key < r.upper for r in ranges)


def is_ordered(ranges: list[Range]) -> bool:
    pairs = itertools.pairwise(ranges)
    return all((a.partition, a.upper) < (b.partition, b.lower) for a, b in pairs)


_SUBSET = st.frozensets(st.sampled_from(IDS), min_size=0, max_size=4)


@given(st.lists(st.one_of(st.none(), _SUBSET), min_size=1, max_size=3), st.integers(1, 5))
def test_ids_are_looked_up_and_nothing_else(
    scans: list[frozenset[InvocationId] | None], count: int
) -> None:
    need = equal(
        *(
            {} if ids is None else {"id": frozenset(format_invocation_id(each) for each in ids)}
            for ids in scans
        )
    )
    ranges = invocation_ranges(TABLE, need, count)
    assert is_ordered(ranges)
    is_whole = any(ids is None for ids in scans)
    chosen = frozenset[InvocationId]().union(*(ids for ids in scans if ids is not None))
    for each in IDS:
        partition = partition_of(partition_key_of(each), count)
        expected = is_whole or each in chosen
        assert covers(ranges, partition, bytes([TABLE]) + invocation_key(each)) == expected
    found = wanted_ids(need)
    assert found == (None if is_whole else sorted(chosen))


def test_what_is_no_id_names_no_row() -> None:
    wanted = equal({"id": frozenset(("nope", "dp_15mdtU1BEGtqYqnNyeRqqEF"))})
    assert invocation_ranges(TABLE, wanted, 3) == []
    assert wanted_ids(wanted) == []


def test_everything_is_every_partition() -> None:
    assert [r.partition for r in invocation_ranges(TABLE, Need(), 3)] == [0, 1, 2]
    assert [r.partition for r in object_ranges(TableId.STATE, Need(), 2)] == [0, 1]


def test_a_key_names_the_partition_of_its_invocations() -> None:
    wanted = equal({"target_service_key": frozenset(("k",))})
    ranges = invocation_ranges(TABLE, wanted, 4, "target_service_key")
    number = key_partition_key("k")
    assert [r.partition for r in ranges] == [partition_of(number, 4)]
    assert covers(ranges, ranges[0].partition, bytes([TABLE]) + b"\x07" * 24)
    assert len(invocation_ranges(TableId.JOURNAL, wanted, 4)) == 4
    same = equal({"partition_key": frozenset((number, -1, 1 << 64))})
    assert invocation_ranges(TABLE, same, 4) == ranges


def test_an_index_bounds_a_journal() -> None:
    wanted = equal({"id": frozenset((format_invocation_id(IDS[3]),)), "index": frozenset((2,))})
    (found,) = invocation_ranges(TableId.JOURNAL, wanted, 1)
    prefix = bytes([TableId.JOURNAL]) + invocation_key(IDS[3])
    assert covers([found], 0, prefix + b"\x00\x00\x00\x02")
    assert not covers([found], 0, prefix + b"\x00\x00\x00\x01")
    assert not covers([found], 0, prefix + b"\x00\x00\x00\x03")


_SOME = st.one_of(st.none(), st.frozensets(st.sampled_from(NAMES), max_size=3))


@given(st.lists(st.tuples(_SOME, _SOME), min_size=1, max_size=3), st.integers(1, 4))
@settings(max_examples=300)
def test_objects_that_pass_lie_inside(
    scans: list[tuple[frozenset[str] | None, frozenset[str] | None]], count: int
) -> None:
    wanted = equal(
        *(
            {
                name: values
                for name, values in (("service_name", services), ("service_key", keys))
                if values is not None
            }
            for services, keys in scans
        )
    )
    ranges = object_ranges(TableId.STATE, wanted, count)
    assert is_ordered(ranges)
    for service in NAMES:
        for key in NAMES:
            passes = any(
                (services is None or service in services) and (keys is None or key in keys)
                for services, keys in scans
            )
            partition = partition_of(key_partition_key(key), count)
            row = bytes([TableId.STATE]) + object_group(service, key) + b"suffix"
            assert not passes or covers(ranges, partition, row)


def test_an_object_is_not_read_for_another() -> None:
    wanted = equal({"service_name": frozenset("A"), "service_key": frozenset("B")})
    ranges = object_ranges(TableId.STATE, wanted, 1)
    for service, key in (("A", "BB"), ("AB", "B"), ("A", "A"), ("B", "B")):
        assert not covers(ranges, 0, bytes([TableId.STATE]) + object_group(service, key))
    services = equal({"service_name": frozenset("A")})
    ranges = object_ranges(TableId.STATE, services, 1)
    assert not covers(ranges, 0, bytes([TableId.STATE]) + object_group("AB", "x"))
