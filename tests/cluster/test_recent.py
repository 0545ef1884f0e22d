"""The last records of a segment in memory: what is taken is what was stored, or nothing."""

from hypothesis import given
from hypothesis import strategies as st

from perdure.cluster.recent import RecentRecords
from perdure.core.limits_log import RECENT_BYTES_MAX


def _records(first: int, count: int) -> tuple[bytes, ...]:
    return tuple(b"%d" % number for number in range(first, first + count))


def test_records_are_read_as_far_as_asked() -> None:
    recent = RecentRecords()
    recent.add(3, _records(3, 2))
    recent.add(5, _records(5, 3))
    assert recent.take(2, 8, 1000) == ()
    assert recent.take(4, 7, 1000) == _records(4, 3)
    assert recent.take(7, 8, 1000) == _records(7, 1)
    assert recent.take(8, 9, 1000) == ()


def test_what_was_read_is_let_go_and_what_is_too_much() -> None:
    recent = RecentRecords()
    recent.add(0, _records(0, 2))
    recent.add(2, _records(2, 2))
    assert recent.take(2, 4, 1000) == _records(2, 2)
    assert recent.take(0, 4, 1000) == ()
    large = b"x" * (RECENT_BYTES_MAX // 2)
    recent.add(4, (large,))
    recent.add(5, (large,))
    assert recent.take(2, 6, 1) == ()
    assert recent.take(4, 6, 1) == (large,)


@given(
    stored=st.lists(st.tuples(st.integers(0, 2), st.integers(1, 4)), max_size=12),
    read=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 10)), max_size=12),
)
def test_it_never_tells_anything_else(
    stored: list[tuple[int, int]], read: list[tuple[int, int]]
) -> None:
    recent, end = RecentRecords(), 0
    for number, (hole, count) in enumerate(stored):
        recent.add(end + hole, _records(end + hole, count))
        end += hole + count
        for lower, length in read[number : number + 2]:
            found = recent.take(lower, lower + length, 1000)
            assert found == _records(lower, len(found))
            assert lower + len(found) <= max(end, lower) and len(found) <= length
