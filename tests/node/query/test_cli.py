"""``perdure sql`` against a real node."""

import json

import pytest
from tests.node.cli.terminal import Done, Terminal
from tests.node.query.scene import Scene

from perdure.node.cli import exits

pytestmark = pytest.mark.slow


class Shell:
    """The verb, typed at the scene's node."""

    def __init__(self, terminal: Terminal, admin_url: str) -> None:
        self._terminal = terminal
        self._admin_url = admin_url

    def type(self, *words: str) -> Done:
        return self._terminal.type("sql", *words, "--admin-url", self._admin_url)


@pytest.fixture
def shell(
    scene: Scene, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    return Shell(Terminal(capsys, monkeypatch), scene.world.admin_url)


def test_rows_as_a_table_or_as_json(shell: Shell) -> None:
    statement = "select name, null as nothing, revision, ty from sys_service order by name"
    shown = shell.type(statement)
    assert shown.table == [
        ["name", "revision", "ty"],
        ["Flow", "1", "workflow"],
        ["Keyed", "1", "virtual_object"],
        ["Probe", "1", "service"],
    ]
    assert (shown.code, shown.err) == (0, "3 rows\n")
    names = ["Flow", "Keyed", "Probe"]
    assert [row["name"] for row in shell.type(statement, "--json").json] == names
    lines = shell.type(statement, "--jsonl").out.splitlines()
    assert [json.loads(line)["name"] for line in lines] == names


def test_columns_keep_their_order_where_rows_leave_some_out(shell: Shell) -> None:
    statement = (
        "select case when value > 1 then value end as a, value as b "
        "from (values (1), (2)) as v(value)"
    )
    assert shell.type(statement).table == [["a", "b"], ["1"], ["2", "2"]]


def test_no_rows_and_refusals(shell: Shell) -> None:
    empty = shell.type("select 1 as one where 1 = 2")
    assert (empty.code, empty.out, empty.err) == (0, "", "0 rows\n")
    refused = shell.type("drop table state")
    assert refused.code == exits.FAILED and "[SQL0001]" in refused.err
