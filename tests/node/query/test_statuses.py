"""Invocations by status, target and time: what is found, in which order, and how little is read."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine import entries as e
from tests.engine.test_replay import TARGETS, Step, play
from tests.engine.world import FIRST_MS, World
from tests.node.query.rig import Asked, ask
from tests.node.query.test_twin import STEP, invocations, status_of

from perdure.core.ids import InvocationId, format_invocation_id, make_invocation_id
from perdure.node.query.bounds import ALWAYS, Need, Order, Range, Restriction, Span
from perdure.node.query.invocations import ranges_by, way_of
from perdure.node.query.live import Live
from perdure.node.query.statuses import RAW_WORDS, SHOWN_WORDS, made_in, statuses_of
from perdure.storage.partition_store import TableId
from perdure.storage.tables.invocations import Completed, Inboxed, Invoked, Scheduled, Status

# --- Against a plain reading of the tables --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Known:
    """What is asked about an invocation here."""

    id: str
    status: str
    created_at: int
    modified_at: int
    completed_at: int | None
    target: str
    service: str
    key: str | None


Passes = Callable[[Known], bool]
_WORDS = [*sorted({*RAW_WORDS, *SHOWN_WORDS}), "nonsense"]


def _live(number: int) -> Live:
    return Live(bool(number % 2), number % 3, 0, 0, None, None, None, None)


def known(world: World, live: dict[InvocationId, Live], *, is_raw: bool) -> list[Known]:
    """All invocations, by reading everything."""
    found: list[Known] = []
    for id, row in invocations(world).items():
        status = status_of(row)
        if not is_raw and isinstance(row, Inboxed):
            status = "pending"
        elif not is_raw and isinstance(row, Invoked):
            session = live.get(id)
            status = "ready" if session is None or not session.attempt_count else "backing-off"
            if session is not None and session.is_in_flight:
                status = "running"
        match row:
            case Scheduled():
                modified_at = row.spec.created_at_ms
            case Inboxed():
                modified_at = row.inboxed_at_ms
            case Completed():
                modified_at = row.completed_at_ms
            case _:
                modified_at = row.progress.modified_at_ms
        found.append(
            Known(
                format_invocation_id(id),
                status,
                row.spec.created_at_ms,
                modified_at,
                row.completed_at_ms if isinstance(row, Completed) else None,
                row.spec.target.text(),
                row.spec.target.service,
                row.spec.target.key,
            )
        )
    return found


def _time(offset_ms: int) -> str:
    moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=FIRST_MS + offset_ms)
    return moment.isoformat(timespec="milliseconds")


def _compare(column: str, operator: str, offset_ms: int) -> tuple[str, Passes]:
    time_ms = FIRST_MS + offset_ms
    holds: dict[str, Callable[[int], bool]] = {
        "<": lambda value: value < time_ms,
        "<=": lambda value: value <= time_ms,
        "=": lambda value: value == time_ms,
        ">=": lambda value: value >= time_ms,
        ">": lambda value: value > time_ms,
    }

    def passes(row: Known) -> bool:
        value = getattr(row, column)
        return value is not None and holds[operator](value)

    return f"{column} {operator} '{_time(offset_ms)}'", passes


def _listed(words: list[str], is_negated: bool) -> tuple[str, Passes]:
    values = ", ".join(f"'{word}'" for word in words)
    text = f"status {'not in' if is_negated else 'in'} ({values})"
    return text, lambda row: (row.status in words) != is_negated


def _like(letter: str) -> tuple[str, Passes]:
    """A condition that isn't understood."""
    return f"target like '{letter}%'", lambda row: row.target.startswith(letter)


def _is(target: str) -> tuple[str, Passes]:
    return f"target = '{target}'", lambda row: row.target == target


def _of_services(names: list[str]) -> tuple[str, Passes]:
    values = ", ".join(f"'{name}'" for name in names)
    return f"target_service_name in ({values})", lambda row: row.service in names


def _of_keys(keys: list[str]) -> tuple[str, Passes]:
    values = ", ".join(f"'{key}'" for key in keys)
    return f"target_service_key in ({values})", lambda row: row.key in keys


_SERVICES = [*sorted({target.service for target in TARGETS}), "nonsense"]
_KEYS = [*sorted({target.key for target in TARGETS if target.key is not None}), "", "nonsense"]
CONDITION: st.SearchStrategy[tuple[str, Passes]] = st.one_of(
    st.builds(
        _compare,
        st.sampled_from(["created_at", "created_at", "modified_at", "completed_at"]),
        st.sampled_from(["<", "<=", "=", ">=", ">"]),
        st.integers(-10, 5000),
    ),
    st.builds(_listed, st.lists(st.sampled_from(_WORDS), min_size=1, max_size=6), st.booleans()),
    st.builds(_like, st.sampled_from("SGWx")),
    st.builds(_is, st.just(e.SERVICE.text())),
    st.builds(_of_services, st.lists(st.sampled_from(_SERVICES), min_size=1, max_size=3)),
    st.builds(_of_services, st.lists(st.sampled_from(_SERVICES), min_size=1, max_size=1)),
    # Only in a world of one partition: the ids of this world are not those of its keys.
    st.builds(_of_keys, st.lists(st.sampled_from(_KEYS), min_size=1, max_size=2)),
)
COLUMNS = st.sampled_from(
    [
        "id",
        "id, status, created_at",
        "id, target, created_at",
        "id, target_service_name, created_at",
        "id, target_service_name, target_service_key",
        "*",
    ]
)
ORDER = st.one_of(
    st.none(), st.tuples(st.integers(0, 6), st.booleans(), st.sampled_from([", id", ", id desc"]))
)


@pytest.mark.slow
@given(
    st.lists(STEP, min_size=5, max_size=40),
    st.integers(1, 3),
    st.lists(
        st.tuples(st.booleans(), COLUMNS, st.lists(CONDITION, max_size=3), ORDER),
        min_size=10,
        max_size=10,
    ),
)
@settings(max_examples=40, deadline=None)
def test_filters_and_orders_find_what_reading_everything_finds(
    steps: list[Step],
    partition_count: int,
    statements: list[tuple[bool, str, list[tuple[str, Passes]], tuple[int, bool, str] | None]],
) -> None:
    world = World(partition_count)
    play(world, steps)
    rows = invocations(world).items()
    running = [id for id, row in rows if isinstance(row, Invoked)]
    live = {id: _live(number) for number, id in enumerate(running) if number % 4}
    for is_raw, columns, conditions, order in statements:
        table = "sys_invocation_status" if is_raw else "sys_invocation"
        text = f"select {columns} from {table}"
        if partition_count > 1:
            conditions = [each for each in conditions if "_key " not in each[0]]
        if conditions:
            text += " where " + " and ".join(condition for condition, _ in conditions)
        expected = [
            row
            for row in known(world, live, is_raw=is_raw)
            if all(passes(row) for _, passes in conditions)
        ]
        if order is None:
            found = ask(world, text, live)
            assert {row["id"] for row in found.rows} == {row.id for row in expected}, text
            assert len(found.rows) == len(expected), text
            _check_names(found.rows, expected)
            continue
        count, is_descending, rest = order
        text += f" order by created_at{' desc' if is_descending else ''}{rest} limit {count}"
        expected.sort(key=lambda row: row.id, reverse=rest.endswith("desc"))
        expected.sort(key=lambda row: row.created_at, reverse=is_descending)
        found = ask(world, text, live)
        assert [row["id"] for row in found.rows] == [row.id for row in expected[:count]], text
        _check_names(found.rows, expected)


def _check_names(rows: list[dict[str, Any]], expected: list[Known]) -> None:
    by_id = {row.id: row for row in expected}
    for row in rows:
        if "target_service_name" in row:
            assert row["target_service_name"] == by_id[row["id"]].service
        if "target_service_key" in row:
            assert row["target_service_key"] == by_id[row["id"]].key


# --- How much is read -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many() -> World:
    """4,000 completed invocations, one each second; every hundredth suspended instead. 40 of
    another service, behind each other on one key, and one paused."""
    world = World(3)
    for number in range(4000):
        id = world.invoke(id=make_invocation_id(number * 0x9E3779B97F4A7C15 % 2**64, number))
        if number % 100 == 50:
            world.suspend(id, "#17")
        else:
            world.end(id, e.output(b"x"))
        world.advance(1000)
    holder, *_ = [world.invoke(e.exclusive("k"), id=make_invocation_id(7, n)) for n in range(40)]
    world.pause(holder)
    return world


def _read(world: World, statement: str) -> tuple[int, int]:
    asked: Asked = ask(world, statement)
    return len(asked.rows), asked.rows_read


@pytest.mark.slow
@pytest.mark.parametrize(
    ("statement", "rows", "read_max"),
    [
        ("select * from {} where status = 'suspended'", 40, 80),
        ("select id from {} where status = 'suspended'", 40, 40),
        ("select id, created_at from {} where status in ('suspended', 'paused')", 41, 41),
        ("select * from {} where status = 'paused'", 1, 3),
        ("select * from {} where status = 'scheduled'", 0, 0),
        ("select * from {} where status != 'completed'", 80, 161),
        ("select * from {} where status not in ('completed', 'suspended')", 40, 81),
        ("select count(*) as n from {} where status != 'completed'", 1, 80),
        ("select target, count(*) as n from {} where status <> 'completed' group by 1", 2, 160),
        ("select status, count(*) as n from {} group by 1", 4, 4040),
        ("select * from {} where created_at >= '{3990}'", 50, 101),
        ("select * from {} where created_at between '{100}' and '{119}'", 20, 40),
        ("select * from {} where '{20}' > created_at and status = 'completed'", 20, 40),
        ("select * from {} where created_at = '{17}'", 1, 2),
        ("select * from {} where created_at < '{17}' and created_at > '{17}'", 0, 0),
        ("select * from {} where created_at = '{17}' and created_at = '{18}'", 0, 0),
        ("select * from {} where status = 'paused' and status in ('suspended')", 0, 0),
        ("select * from {} where target = 'x' and status = 'paused' and status = 'x'", 0, 0),
        ("select * from {} where completed_at < '{30}'", 30, 60),
        ("select * from {} where modified_at <= '{29}'", 30, 62),
        ("select * from {} order by created_at limit 10", 10, 260),
        ("select * from {} order by created_at desc limit 10", 10, 400),
        ("select * from {} where status = 'completed' order by created_at desc limit 5", 5, 60),
        (
            "select * from {} i where status != 'completed' order by i.created_at, i.id limit 5",
            5,
            200,
        ),
        ("select id from {} where completion_result = 'failure' and created_at > '{3900}'", 0, 200),
        ("select id, completed_at as t from {} order by created_at limit 3 offset 100", 3, 500),
        ("select t, id from (select id, created_at as t from {}) order by t limit 5", 5, 200),
    ],
)
@pytest.mark.parametrize("table", ["sys_invocation", "sys_invocation_status"])
def test_status_and_time_read_little(
    many: World, table: str, statement: str, rows: int, read_max: int
) -> None:
    text = statement.replace("{}", table)
    for second in {int(part.split("}")[0]) for part in text.split("{")[1:]}:
        text = text.replace(f"{{{second}}}", _time(1000 * second))
    found, read = _read(many, text)
    assert found == rows
    assert read <= read_max


@pytest.mark.slow
@pytest.mark.parametrize("is_descending", [False, True])
def test_what_was_made_at_one_moment_is_ordered_by_the_rest(is_descending: bool) -> None:
    world = World(2)

    def make(count: int) -> list[str]:
        """So many at this moment; their texts in order."""
        ids = [
            world.invoke(id=make_invocation_id(n % 2 << 63 | count, 50 - n)) for n in range(count)
        ]
        world.advance(1)
        return sorted(format_invocation_id(id) for id in ids)

    first, last = make(40), make(5)
    expected = (last + first if is_descending else first + last)[:30]
    direction = "desc" if is_descending else "asc"
    asked = ask(
        world, f"select id from sys_invocation order by created_at {direction}, id limit 30"
    )
    assert [row["id"] for row in asked.rows] == expected


@pytest.mark.slow
def test_an_order_by_something_else_of_the_same_name_reads_all(many: World) -> None:
    """The column that is sorted by is not always the one that it is called like."""
    asked = ask(
        many,
        "select id, modified_at as created_at from sys_invocation "
        "where status in ('suspended', 'pending') order by created_at desc, id limit 3",
    )
    assert len(asked.rows) == 3
    every = ask(many, "select id, modified_at from sys_invocation").rows
    last = sorted(
        {row["modified_at"] for row in every if row["id"] in {a["id"] for a in asked.rows}}
    )
    assert {row["created_at"] for row in asked.rows} <= set(last)
    joined = ask(
        many,
        "select a.id from sys_invocation a join sys_invocation b on a.id = b.id "
        "where b.status = 'paused' order by a.created_at limit 3",
    )
    assert len(joined.rows) == 1


# --- Ranges ---------------------------------------------------------------------------------------


def _scan(words: dict[str, list[str]], **spans: tuple[int, int]) -> Restriction:
    return Restriction(
        {"status": frozenset(words["in"])} if "in" in words else {},
        {"status": frozenset(words["not in"])} if "not in" in words else {},
        {column: Span(*span) for column, span in spans.items()},
    )


def test_words_name_statuses() -> None:
    everything = set(Status)
    assert statuses_of(SHOWN_WORDS, _scan({})) == everything
    assert statuses_of(RAW_WORDS, _scan({})) == everything
    assert statuses_of(RAW_WORDS, _scan({"in": ["running", "inboxed"]})) == {Status.INBOXED}
    assert statuses_of(SHOWN_WORDS, _scan({"in": ["running"]})) == {Status.INVOKED}
    # What is ready is also invoked.
    assert statuses_of(SHOWN_WORDS, _scan({"not in": ["running"]})) == everything
    barred = ["running", "ready", "backing-off"]
    assert statuses_of(SHOWN_WORDS, _scan({"not in": barred})) == everything - {Status.INVOKED}
    both = _scan({"in": ["paused", "completed"], "not in": ["completed"]})
    assert statuses_of(RAW_WORDS, both) == {Status.PAUSED}
    assert statuses_of(RAW_WORDS, _scan({}, completed_at=(5, 9))) == {Status.COMPLETED}
    assert statuses_of(RAW_WORDS, _scan({}, inboxed_at=(5, 9))) == {Status.INBOXED}


def test_what_ends_before_a_time_was_made_before_it() -> None:
    assert made_in(_scan({})) == ALWAYS
    assert made_in(_scan({}, created_at=(3, 9))) == (3, 9)
    assert made_in(_scan({}, created_at=(3, 9), modified_at=(5, 7))) == (3, 7)
    assert made_in(_scan({}, scheduled_at=(4, 1 << 64), completed_at=(8, 20))) == (4, 20)
    assert made_in(_scan({}, last_start_at=(4, 5))) == ALWAYS


def test_scans_that_go_different_ways_read_the_whole_table() -> None:
    """Ids through one table and statuses through another could give a row twice."""

    def is_by_status(ranges: list[Range]) -> bool:
        return way_of(ranges) is TableId.STATUSES

    ids = Restriction({"id": frozenset((format_invocation_id(make_invocation_id(1, 1)),))})
    live = _scan({"in": ["paused"]})
    assert not is_by_status(ranges_by(RAW_WORDS, Need((ids,)), 2))
    assert is_by_status(ranges_by(RAW_WORDS, Need((live,)), 2))
    mixed = ranges_by(RAW_WORDS, Need((ids, live)), 2)
    assert mixed == ranges_by(RAW_WORDS, Need(), 2)
    assert not is_by_status(mixed)


@given(
    st.lists(
        st.tuples(
            st.lists(st.sampled_from(_WORDS), min_size=1), st.integers(0, 9), st.integers(0, 9)
        ),
        min_size=1,
        max_size=3,
    )
)
def test_scans_share_ranges_without_overlaps(scans: list[tuple[list[str], int, int]]) -> None:
    need = Need(
        tuple(_scan({"in": words}, created_at=(lower, upper)) for words, lower, upper in scans)
    )
    ranges = ranges_by(RAW_WORDS, need, 2)
    for one, other in itertools.pairwise(ranges):
        assert (one.partition, one.upper) <= (other.partition, other.lower)
    ordered = Need(need.scans[:1], None, Order(3, True))
    assert sorted(ranges_by(RAW_WORDS, ordered, 2)) == ranges_by(RAW_WORDS, ordered, 2)
