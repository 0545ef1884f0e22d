"""The key codec against tuples: same order, no prefixes, nothing mistaken for anything else."""

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from perdure.core.ids import InvocationId, make_invocation_id
from perdure.core.limits import LMDB_KEY_BYTES_MAX
from perdure.storage.keys import (
    GROUP_BYTES_MAX,
    SUFFIX_BYTES_MAX,
    after_prefix,
    group_bytes,
    index_suffix,
    invocation_key,
    is_hashed_group,
    object_group,
    outbox_key,
    sequence_suffix,
    service_prefix,
    split_invocation_key,
    split_object_group,
    split_outbox_key,
    split_timer_key,
    state_suffix,
    text_suffix,
    timer_key,
)

U8, U32, U64 = (st.integers(0, 2**bits - 1) for bits in (8, 32, 64))
# Zeros, ones and 0xFF's neighbours are where an escape goes wrong.
TEXT = st.text(
    alphabet=st.sampled_from("\0\x01aÿ\U0010ffff") | st.characters(codec="utf-8"), max_size=12
)
LONG = st.tuples(st.text("\0\x01ab", min_size=1), U8).map(lambda pair: pair[0] * pair[1])
PAIRS = st.tuples(TEXT | LONG, TEXT | LONG)


def _utf8(pair: tuple[str, str]) -> tuple[bytes, bytes]:
    return pair[0].encode(), pair[1].encode()


@given(st.tuples(TEXT, TEXT), st.tuples(TEXT, TEXT))
def test_groups_sort_as_pairs(one: tuple[str, str], other: tuple[str, str]) -> None:
    assert (object_group(*one) < object_group(*other)) == (_utf8(one) < _utf8(other))


@given(PAIRS, PAIRS)
def test_no_group_is_a_prefix_of_another(one: tuple[str, str], other: tuple[str, str]) -> None:
    if one != other:
        assert not object_group(*one).startswith(object_group(*other))


@given(PAIRS)
def test_groups_tell_their_names_unless_hashed(pair: tuple[str, str]) -> None:
    group = object_group(*pair)
    assert len(group) <= GROUP_BYTES_MAX
    if is_hashed_group(group):
        assert split_object_group(group) is None
    else:
        assert split_object_group(group) == pair


@given(PAIRS, st.binary(max_size=20))
def test_a_row_s_key_tells_where_its_group_ends(pair: tuple[str, str], suffix: bytes) -> None:
    group = object_group(*pair)
    assert group_bytes(group + suffix) == len(group)


@given(PAIRS, TEXT | LONG)
def test_a_service_s_prefix_is_that_of_all_its_objects(pair: tuple[str, str], other: str) -> None:
    service, key = pair
    assert object_group(service, key).startswith(service_prefix(service))
    if other != service and len(other) < 50:
        assert not object_group(service, key).startswith(service_prefix(other))


def _hash_starts_with_terminator() -> str:
    """A long key whose hash begins as the end of a text does: found by trying."""
    for number in range(1 << 20):
        key = "k" * 211 + str(number) + "x" * 60
        encoded = b"s\0\0" + key.encode() + b"\0\0"
        if hashlib.sha256(encoded).digest()[:2] == b"\0\0":
            return key
    raise AssertionError


def test_a_hash_can_t_be_chosen_to_end_a_shorter_key() -> None:
    """Clearing one object must never touch another, whatever keys a client picks."""
    hashed = object_group("s", _hash_starts_with_terminator())
    for length in range(150, 240):
        for key in ("k" * length, "k" * 211 + "1" * (length - 211) if length > 211 else "k"):
            assert not hashed.startswith(object_group("s", key))


@given(st.integers(200, 260), st.integers(0, 6))
def test_groups_cut_in_an_escape_stay_apart(length: int, zeros: int) -> None:
    """Where the head of a hashed group ends in the middle of an escape or a terminator."""
    long = object_group("s", "k" * length + "\0" * zeros + "tail" * 30)
    for shorter in range(zeros + 1):
        for cut in (0, 1, 2):
            short = object_group("s", "k" * (length - cut) + "\0" * shorter)
            assert not long.startswith(short)
            assert not short.startswith(long)


def test_hashed_groups_differ_and_keep_their_head() -> None:
    one, other = (object_group("service", "k" * 300 + end) for end in ("a", "b"))
    assert one != other
    assert len(one) == len(other) == GROUP_BYTES_MAX
    assert one[:200] == other[:200] == object_group("service", "k" * 300)[:200]


@given(st.text(max_size=80), st.text(max_size=80))
def test_text_suffixes_sort_as_texts_in_utf8(one: str, other: str) -> None:
    if max(len(one.encode()), len(other.encode())) < SUFFIX_BYTES_MAX:
        assert (text_suffix(one) < text_suffix(other)) == (one.encode() < other.encode())


@given(st.binary(max_size=600), st.binary(max_size=600))
def test_state_suffixes_are_unique_and_fit(one: bytes, other: bytes) -> None:
    assert len(state_suffix(one)) <= SUFFIX_BYTES_MAX
    assert (state_suffix(one) == state_suffix(other)) == (one == other)


def test_the_longest_key_fits_into_lmdb() -> None:
    group = object_group("s" * 255, "k" * 1000)
    assert 1 + len(group) + len(state_suffix(b"x" * 1000)) + 1 <= LMDB_KEY_BYTES_MAX


TIMER = st.tuples(U64, U8, st.binary(min_size=24, max_size=24).map(InvocationId), U32)


@given(TIMER, TIMER)
def test_timers_sort_by_time(
    one: tuple[int, int, InvocationId, int], other: tuple[int, int, InvocationId, int]
) -> None:
    assert split_timer_key(timer_key(*one)) == one

    def order(timer: tuple[int, int, InvocationId, int]) -> tuple[int, int, bytes, int]:
        return (timer[0], timer[1], invocation_key(timer[2]), timer[3])

    assert (timer_key(*one) < timer_key(*other)) == (order(one) < order(other))


@given(U64, U64, st.integers(0, 2**48 - 2), st.integers(0, 2**80 - 1), st.integers(0, 2**80 - 1))
def test_later_invocations_are_filed_behind(
    one: int, other: int, now_ms: int, dice: int, later_dice: int
) -> None:
    first = make_invocation_id(one, now_ms << 80 | dice)
    second = make_invocation_id(other, now_ms + 1 << 80 | later_dice)
    assert invocation_key(first) < invocation_key(second)
    assert split_invocation_key(invocation_key(first) + b"suffix") == first


@given(st.tuples(U32, U64), st.tuples(U32, U64))
def test_outbox_messages_sort_by_target_and_sequence(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert split_outbox_key(outbox_key(*one)) == one
    assert (outbox_key(*one) < outbox_key(*other)) == (one < other)


@given(U32, U32)
def test_ordinals_sort_as_numbers(one: int, other: int) -> None:
    assert (index_suffix(one) < index_suffix(other)) == (one < other)
    assert (sequence_suffix(one) < sequence_suffix(other)) == (one < other)


@given(st.binary(max_size=6), st.binary(max_size=6))
def test_after_prefix_is_the_end_of_the_prefix(prefix: bytes, key: bytes) -> None:
    if key.startswith(prefix):
        assert prefix <= key < after_prefix(prefix)
    elif key >= prefix:
        assert key >= after_prefix(prefix)
