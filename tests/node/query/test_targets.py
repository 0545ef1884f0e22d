"""Invocations of a service or an object: what is found, in which order, and how little is read."""

import itertools
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.engine import entries as e
from tests.engine.world import FIRST_MS, World
from tests.node.query.rig import Asked, ask
from tests.node.query.test_bounds import NAMES, covers, is_ordered

from perdure.core.hashing import key_partition_key
from perdure.core.ids import InvocationId, format_invocation_id, make_invocation_id, partition_of
from perdure.node.query.bounds import Need, Order, Restriction, Span
from perdure.node.query.invocations import ranges_by, way_of
from perdure.node.query.statuses import RAW_WORDS
from perdure.node.query.targets import target_ranges
from perdure.storage.partition_store import TableId
from perdure.storage.tables.invocations import HandlerKind, Status, Target, target_key

PARTITIONS = 3
LONG_KEY, LONG_SERVICE = "k" * 300, "S" * 250


def _target(service: str, key: str) -> Target:
    return Target(service, "add", key, HandlerKind.EXCLUSIVE)


def _keyed_id(key: str, number: int) -> InvocationId:
    return make_invocation_id(key_partition_key(key), number)


@pytest.fixture(scope="module")
def many() -> World:
    """One each second, mostly completed: 900 of ``Svc``, every hundredth suspended; 20 of
    ``Other``; ten keys of ``Few`` with 20 each; 400 keys of ``Lots``; 30 of a long key and 15 of a
    service with a long name."""
    world = World(PARTITIONS)
    numbers = itertools.count(1)

    def make(target: Target, is_suspended: bool = False) -> None:
        number = next(numbers)
        if target.key is None:
            id = make_invocation_id(number * 0x9E3779B97F4A7C15 % 2**64, number)
        else:
            id = _keyed_id(target.key, number)
        world.invoke(target, id=id)
        if is_suspended:
            world.suspend(id, "#17")
        else:
            world.end(id, e.output(b"x"))
        world.advance(1000)

    for number in range(900):
        make(e.SERVICE, number % 100 == 50)
        if number % 45 == 0:
            make(e.OTHER)
        if number < 400:
            make(_target("Lots", f"l{number}"))
        if number < 200:
            make(_target("Few", f"f{number % 10}"))
        if number < 30:
            make(_target("Few", LONG_KEY))
        if number < 15:
            make(_target(LONG_SERVICE, "x"))
    return world


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "rows", "read_max"),
    [
        ("select * from {} where target_service_name = 'Other'", 20, 40),
        ("select id, created_at from {} where target_service_name = 'Other'", 20, 20),
        ("select count(*) as n from {} where target_service_name = 'Svc'", 1, 900),
        ("select target_service_name as s, count(*) as n from {} where 'Lots' = "
         "target_service_name or target_service_name = 'Other' group by 1", 2, 420),
        ("select id from {} where target_service_name in ('Other', 'Nobody')", 20, 20),
        ("select id from {} where target_service_name = 'Nobody'", 0, 0),
        ("select id from {} where target_service_name = 'Sv'", 0, 0),
        # A long key's names are not in the index.
        ("select count(*) as n from {} where target_service_name = 'Few'", 1, 260),
        ("select * from {} where target_service_name = 'Few' and target_service_key = '?'", 30, 60),
        ("select * from {} where target_service_name = '!' and target_service_key = 'x'", 15, 30),
        ("select * from {} where target_service_name = '!'", 15, 30),
        ("select * from {} where target_service_name = 'Few' and target_service_key = 'f3'",
         20, 40),
        ("select id from {} where target_service_name = 'Few' and target_service_key = 'f3'",
         20, 20),
        ("select id from {} where target_service_name in ('Few', 'Lots') "
         "and target_service_key in ('f3', 'l17')", 21, 21),
        ("select id from {} where target_service_name = 'Svc' and target_service_key = ''",
         0, 1000),
        # Only part of them, from one end.
        ("select * from {} where target_service_name = 'Few' and target_service_key = 'f3' "
         "order by created_at desc limit 2", 2, 20),
        ("select * from {} where target_service_name = 'Svc' order by created_at limit 5", 5, 60),
        ("select * from {} where target_service_name = 'Svc' order by created_at desc limit 5",
         5, 60),
        ("select * from {} where target_service_name = 'Other' order by created_at limit 30",
         20, 120),
        ("select * from {} where target_service_name = 'Few' order by created_at desc limit 3",
         3, 260),
        ("select * from {} where target_service_name = 'Svc' and created_at < '{20}'", 4, 12),
        ("select * from {} where target_service_name = 'Few' and created_at < '{100}'", 42, 100),
        ("select * from {} where target_service_name = 'Few' and target_service_key = 'f3' "
         "and created_at < '{100}'", 2, 4),
        # So many keys that time alone counts, after a look at 256 of them.
        ("select * from {} where target_service_name = 'Lots' and created_at < '{100}'",
         21, 257 + 200),
        ("select * from {} where target_service_name = 'Lots' order by created_at limit 3",
         3, 257 + 400),
        # What has not ended is found by status.
        ("select * from {} where target_service_name = 'Svc' and status = 'suspended'", 9, 18),
        ("select * from {} where target_service_name = 'Few' and target_service_key = 'f3' "
         "and status = 'completed'", 20, 40),
    ],
)  # fmt: skip
@pytest.mark.parametrize("table", ["sys_invocation", "sys_invocation_status"])
def test_services_and_keys_read_little(
    many: World, table: str, statement: str, rows: int, read_max: int
) -> None:
    text = statement.replace("{}", table).replace("?", LONG_KEY).replace("!", LONG_SERVICE)
    for second in {int(part.split("}")[0]) for part in text.split("{")[1:]}:
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=FIRST_MS + 1000 * second)
        text = text.replace(f"{{{second}}}", moment.isoformat(timespec="milliseconds"))
    asked = ask(many, text)
    assert len(asked.rows) == rows
    assert asked.rows_read <= read_max


@pytest.mark.slow
@pytest.mark.parametrize("service", ["Svc", "Other", "Few", "Lots", LONG_SERVICE])
@pytest.mark.parametrize("direction", ["asc", "desc"])
def test_a_services_invocations_come_in_order(many: World, service: str, direction: str) -> None:
    columns = "id, target_service_name, target_service_key, status, created_at"
    rows = [
        row
        for row in ask(many, f"select {columns} from sys_invocation").rows
        if row["target_service_name"] == service
    ]
    rows.sort(key=lambda row: row["created_at"], reverse=direction == "desc")
    asked: Asked = ask(
        many,
        f"select {columns} from sys_invocation where target_service_name = '{service}' "
        f"order by created_at {direction} limit 37",
    )
    assert asked.rows == rows[:37]


def test_a_row_of_a_namesake_is_not_given_twice() -> None:
    """As where the tables moved on while they were read."""
    world = World()
    id = world.invoke(e.exclusive("k"))
    partition = world.of(id)
    partition.store.targets.put(target_key(e.exclusive("k"), FIRST_MS - 1, id), 0)
    gone = make_invocation_id(5, 5)
    partition.store.targets.put(target_key(e.exclusive("k"), FIRST_MS, gone), 0)
    name = e.exclusive("k").service
    asked = ask(
        world, f"select id, status from sys_invocation where target_service_name = '{name}'"
    )
    assert [row["id"] for row in asked.rows] == [format_invocation_id(id)]


# --- Ranges ---------------------------------------------------------------------------------------

_NAME = st.sampled_from(NAMES)
_SCAN = st.tuples(
    st.frozensets(_NAME, min_size=1, max_size=2),
    st.one_of(st.none(), st.frozensets(_NAME, max_size=2)),
    st.one_of(st.none(), st.frozensets(_NAME.map(key_partition_key), max_size=2)),
    st.one_of(st.none(), st.tuples(st.integers(0, 9), st.integers(0, 9))),
)


@given(st.lists(_SCAN, min_size=1, max_size=3), st.integers(1, 4), st.booleans())
def test_all_that_passes_is_read(
    scans: list[
        tuple[frozenset[str], frozenset[str] | None, frozenset[int] | None, tuple[int, int] | None]
    ],
    count: int,
    is_ordered_by_time: bool,
) -> None:
    scans = scans[:1] if is_ordered_by_time else scans
    restrictions: list[Restriction] = []
    for services, keys, numbers, span in scans:
        equal: dict[str, frozenset[object]] = {"target_service_name": frozenset(services)}
        if keys is not None:
            equal["target_service_key"] = frozenset(keys)
        if numbers is not None:
            equal["partition_key"] = frozenset(numbers)
        spans = {"created_at": Span(*span)} if span is not None else {}
        restrictions.append(Restriction(equal, {}, spans))
    order = Order(1, False) if is_ordered_by_time else None
    need = Need(tuple(restrictions), None, order)
    ranges = target_ranges(need, count)
    assert ranges == ranges_by(RAW_WORDS, need, count)
    assert is_ordered(sorted(ranges))
    for service, key, made in itertools.product(NAMES, NAMES, (0, 4, 9)):
        number = key_partition_key(key)
        passes = any(
            service in services
            and (keys is None or key in keys)
            and (numbers is None or number in numbers)
            and (span is None or span[0] <= made < span[1])
            for services, keys, numbers, span in scans
        )
        filed = bytes([TableId.TARGETS]) + target_key(
            _target(service, key), made, make_invocation_id(number, 1)
        )
        is_read = covers(ranges, partition_of(number, count), filed)
        assert is_read or not passes
        if is_read and not passes:
            # Not of other keys; of other times, services' namesakes or scans at most.
            assert any(
                keys is None or (service in services and key in keys)
                for services, keys, *_ in scans
            )


def test_the_way_to_a_services_invocations() -> None:
    service: dict[str, frozenset[object]] = {"target_service_name": frozenset(("Svc",))}
    keyed = {**service, "target_service_key": frozenset[object](("k",))}
    some_id = format_invocation_id(make_invocation_id(1, 1))

    def way(*scans: dict[str, frozenset[object]]) -> TableId:
        return way_of(ranges_by(RAW_WORDS, Need(tuple(map(Restriction, scans))), 2))

    suspended = frozenset[object]((Status.SUSPENDED.name.lower(),))
    assert way(service) is way(keyed) is way(service, keyed) is TableId.TARGETS
    assert way({**service, "status": suspended}) is TableId.STATUSES
    assert way({**keyed, "status": suspended}) is TableId.TARGETS
    assert way({**keyed, "id": frozenset((some_id,))}) is TableId.INVOCATIONS
    # All scans go one way.
    assert way(keyed, {"status": suspended}) is TableId.STATUSES
    assert way(keyed, {}) is TableId.INVOCATIONS
    assert way({"target_service_key": frozenset(("k",))}) is TableId.INVOCATIONS
