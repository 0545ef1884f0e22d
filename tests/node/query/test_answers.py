"""Both formats of answers, errors, and that statements only read."""

import http.client
import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from tests.node.query.scene import ARROW, Scene

from perdure.core.limits import QUERIES_MAX
from perdure.node.query.columns import TABLES
from perdure.node.query.libraries import arrow

pytestmark = pytest.mark.slow

_SAMPLE = (
    "select arrow_cast(0, 'Duration(ms)') as none, arrow_cast(1500, 'Duration(ms)') as short, "
    "arrow_cast(86400, 'Duration(s)') as day, arrow_cast(0, 'Timestamp(ms, \"+00:00\")') as epoch, "
    "arrow_cast(1500, 'Timestamp(ms, \"+00:00\")') as later, "
    "arrow_cast(18446744073709551615, 'UInt64') as big, true as yes, null as nothing, 1.5 as half, "
    "arrow_cast('hi', 'Binary') as bytes, [1, 2] as list, count(*) from state where 1 = 2"
)


def test_values_in_json(scene: Scene) -> None:
    assert scene.rows(_SAMPLE) == [
        {
            "none": "P0D",
            "short": "PT1.5S",
            "day": "PT86400S",
            "epoch": "1970-01-01T00:00:00Z",
            "later": "1970-01-01T00:00:01.500Z",
            "big": 2**64 - 1,
            "yes": True,
            "half": 1.5,
            "bytes": "6869",
            "list": [1, 2],
            "count(*)": 0,
        }
    ]


@pytest.mark.parametrize("accept", [None, "*/*", "application/json, */*", ARROW])
def test_anything_but_plain_json_is_an_arrow_stream(scene: Scene, accept: str | None) -> None:
    table = scene.ask("select name, revision, public from sys_service order by name", accept).table
    assert table.to_pylist() == [
        {"name": name, "revision": 1, "public": True} for name in ("Flow", "Keyed", "Probe")
    ]
    assert [str(field.type) for field in table.schema] == ["large_string", "uint64", "bool"]


def test_an_empty_answer(scene: Scene) -> None:
    statement = "select id, created_at from sys_invocation where id = 'nope'"
    answer = scene.ask(statement)
    assert (answer.status, answer.body) == (200, b'{"rows":[]}')
    stream = arrow.ipc.open_stream(scene.ask(statement, "*/*").body)
    assert list(stream) == []
    assert stream.schema.names == ["id", "created_at"]


def test_large_answers_come_in_small_batches(scene: Scene) -> None:
    statement = (
        "select row_number() over (order by a.column_name, b.column_name) as n from "
        "information_schema.columns a, information_schema.columns b limit 1000"
    )
    stream = arrow.ipc.open_stream(scene.ask(statement, "*/*").body)
    sizes = [batch.num_rows for batch in stream]
    assert sum(sizes) == 1000 and max(sizes) <= 128
    assert [row["n"] for row in scene.rows(statement)] == list(range(1, 1001))


@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("", "No SQL statements"),
        ("selec", "Expected: an SQL statement"),
        ("select 1; select 2", "single SQL statement"),
        ("select * from nope", "nope' not found"),
        ("select * from sys_idempotency", "not found"),
        ("select nope from state", "No field named nope"),
        ("select 1 / 0", "ivide"),
        ("create table t as select 1", "not supported"),
        ("create view v as select 1", "not supported"),
        ("create external table t stored as csv location '/etc/passwd'", "not supported"),
        ("insert into state select * from state", "not supported"),
        ("delete from state", "not supported"),
        ("update state set key = 'x'", "not supported"),
        ("drop table state", "not supported"),
        ("copy state to '/tmp/out.csv'", "not supported"),
        ("set datafusion.execution.batch_size = 1", "not supported"),
        ("select * from '/etc/passwd'", "not found"),
        ("select * from read_csv('/etc/passwd')", "read_csv"),
        ("select count(*) from generate_series(1, 10000000000000)", "generate_series"),
        ("select range(1, 10000000000000)", "range"),
        ("select repeat('x', 2000000000)", "repeat"),
        (
            "with recursive t as (select 1 as n union all select n + 1 from t) "
            "select count(*) from t",
            "ecursive",
        ),
        ("explain analyze insert into state select * from state", ""),
    ],
)
def test_refusals(scene: Scene, statement: str, said: str) -> None:
    answer = scene.ask(statement, "*/*")
    assert (answer.status, answer.media_type) == (400, "application/json")
    assert json.loads(answer.body)["restate_code"] == "SQL0001"
    assert said in answer.message


def test_requests_that_are_no_statements(scene: Scene) -> None:
    address = urlsplit(scene.world.admin_url)
    for body, media_type, status in (
        (b'{"query": 1}', "application/json", 422),
        (b"{", "application/json", 400),
        (b'{"query": "select 1"}', "text/plain", 415),
    ):
        connection = http.client.HTTPConnection(address.netloc, timeout=20)
        connection.request("POST", "/query", body, {"content-type": media_type})
        assert connection.getresponse().status == status
        connection.close()


def test_the_tables_and_columns_there_are(scene: Scene) -> None:
    rows = scene.rows("show tables")
    public = {row["table_name"] for row in rows if row["table_schema"] == "public"}
    assert public == set(TABLES) and len(public) == 18
    for name, columns in TABLES.items():
        described = scene.rows(f"describe {name}")
        assert [row["column_name"] for row in described] == list(columns)
        table = scene.ask(f"select * from {name} limit 1", "*/*").table
        assert table.schema.names == list(columns)
    types = {row["column_name"]: row["data_type"] for row in scene.rows("describe sys_invocation")}
    assert types["id"] == "LargeUtf8" and types["retry_count"] == "UInt64"
    assert types["created_at"] == 'Timestamp(ms, "+00:00")'
    assert types["completion_retention"] == "Duration(ms)"


def test_every_row_of_every_table_can_be_shown(scene: Scene) -> None:
    for name in TABLES:
        total = scene.value(f"select count(*) from {name}")
        assert len(scene.rows(f"select * from {name}")) == total
        assert scene.ask(f"select * from {name}", "*/*").table.num_rows == total


def test_explains(scene: Scene) -> None:
    (logical, physical) = scene.rows("explain select id from sys_invocation where status = 'ready'")
    assert logical["plan_type"] == "logical_plan" and "sys_invocation" in logical["plan"]
    assert physical["plan_type"] == "physical_plan"


def test_the_query_engine_is_loaded_with_the_first_statement() -> None:
    program = (
        "import sys, perdure.node.server; "
        "print([n for n in ('pyarrow', 'datafusion') if n in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_without_the_query_engine_the_answer_says_so(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "perdure.node.query.statements", None)
    monkeypatch.delattr("perdure.node.query.statements", raising=False)
    answer = scene.ask("select 1")
    assert answer.status == 503
    assert json.loads(answer.body)["restate_code"] == "SQL0003"
    assert "pip install" in answer.message


def test_nothing_was_written(scene: Scene) -> None:
    assert not Path("/tmp/out.csv").exists()


# Rows without number, out of what is always there.
_MANY = (
    "(select row_number() over () as n from information_schema.columns a, "
    "information_schema.columns b) as many"
)


@pytest.mark.parametrize("accept", ["application/json", ARROW])
def test_a_statement_that_fails_midway_cuts_its_answer(scene: Scene, accept: str) -> None:
    with pytest.raises(http.client.IncompleteRead) as caught:
        scene.ask(f"select n, 10 / (n - 20000) as quotient from {_MANY}", accept)
    assert len(caught.value.partial) > 100_000
    assert scene.value("select 1 as one") == 1


@pytest.mark.parametrize("accept", ["application/json", ARROW])
def test_an_answer_larger_than_what_may_wait_arrives_whole(scene: Scene, accept: str) -> None:
    statement = f"select n, '{'x' * 400}' as wide from {_MANY} limit 30000"
    answer = scene.ask(statement, accept)
    assert len(answer.body) > 12_000_000
    found = answer.rows if accept == "application/json" else answer.table.to_pylist()
    assert [row["n"] for row in found] == list(range(1, 30_001))


def test_first_rows_arrive_while_the_statement_runs(scene: Scene) -> None:
    """Its end would take longer than a statement may; whoever leaves takes it along."""
    address = urlsplit(scene.world.admin_url)
    tables = ", ".join(f"information_schema.columns {name}" for name in "abc")
    body = json.dumps({"query": f"select a.column_name as name from {tables}"})
    headers = {"content-type": "application/json", "accept": "application/json"}
    for _ in range(2 * QUERIES_MAX):
        connection = http.client.HTTPConnection(address.hostname or "", address.port, timeout=20)
        connection.request("POST", "/query", body, headers)
        response = connection.getresponse()
        assert response.status == 200 and response.getheader("content-length") is None
        assert response.read(16).startswith(b'{"rows":[{"name"')
        response.close()
        connection.close()
    assert scene.value("select 1 as one") == 1
