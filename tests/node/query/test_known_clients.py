"""Every statement that the official CLI sends, with the answer it has to get."""

from typing import Any

import pytest
from tests.node.query.scene import Scene

from perdure.node.query.libraries import arrow

pytestmark = pytest.mark.slow

_NOT_DONE = "inv.status != 'completed'"
_DETAIL = """
SELECT
    inv.id, inv.target, inv.target_service_ty, inv.idempotency_key, inv.status, inv.created_at,
    inv.modified_at as state_modified_at, inv.pinned_deployment_id, inv.retry_count as num_retries,
    inv.last_failure as last_failure_message,
    inv.last_failure_related_entry_index as last_failure_entry_index,
    inv.last_failure_related_entry_name as last_failure_entry_name,
    inv.last_failure_related_entry_type as last_failure_entry_type,
    inv.last_attempt_deployment_id, inv.last_attempt_server, inv.next_retry_at, inv.last_start_at,
    inv.invoked_by_id, inv.invoked_by_target, inv.trace_id, inv.completion_result,
    inv.completion_failure, dp.id IS NOT NULL as pinned_deployment_exists
FROM sys_invocation inv LEFT JOIN sys_deployment dp ON dp.id = inv.pinned_deployment_id
WHERE {where} ORDER BY inv.created_at DESC, inv.id
"""


def names(scene: Scene, ids: list[str]) -> list[str]:
    known = {id: name for name, id in scene.ids.items()}
    return sorted(known[id] for id in ids)


def count(scene: Scene, statement: str) -> int:
    """How the CLI reads a count: the first column of an Arrow stream, which must be Int64."""
    table = scene.ask(statement, accept="*/*").table
    assert table.schema.field(0).type == arrow.int64()
    number: int = table.column(0)[0].as_py()
    return number


# --- services status ------------------------------------------------------------------------------


def test_pending_by_handler(scene: Scene) -> None:
    (row,) = scene.rows(
        "SELECT target_service_name, target_handler_name, 'pending' as status, COUNT(1) as "
        "num_invocations, MIN(created_at) as oldest_at, FIRST_VALUE(id ORDER BY created_at ASC) as "
        "oldest_invocation FROM sys_invocation_status WHERE status == 'inboxed' AND "
        "target_service_name IN ('Keyed','Probe') GROUP BY target_service_name, target_handler_name"
    )
    assert row.pop("oldest_at").endswith("Z")
    assert row == {
        "target_service_name": "Keyed",
        "target_handler_name": "put",
        "status": "pending",
        "num_invocations": 1,
        "oldest_invocation": scene.ids["pending"],
    }


def test_every_status_by_handler(scene: Scene) -> None:
    rows = scene.rows(
        "SELECT target_service_name, target_handler_name, status, COUNT(1) as num_invocations, "
        "MIN(created_at) as oldest_at, FIRST_VALUE(id ORDER BY created_at ASC) as "
        "oldest_invocation FROM sys_invocation WHERE target_service_name IN ('Probe') GROUP BY "
        "target_service_name, target_handler_name, status ORDER BY target_handler_name"
    )
    found = [(row["target_handler_name"], row["status"], row["num_invocations"]) for row in rows]
    assert sorted(found) == [
        ("echo", "scheduled", 1),
        ("hang", "running", 1),
        ("nap", "paused", 1),
        ("nap", "suspended", 1),
        ("refuse", "completed", 1),
        ("step", "completed", 1),
        ("trip", "backing-off", 1),
    ]
    assert [handler for handler, _, _ in found] == sorted(handler for handler, _, _ in found)


def test_inboxes_and_locks_of_keys(scene: Scene) -> None:
    assert scene.rows(
        "SELECT service_name, service_key, COUNT(1) as num_pending FROM sys_inbox WHERE "
        "service_name IN ('Keyed') GROUP BY service_name, service_key ORDER BY num_pending DESC"
    ) == [{"service_name": "Keyed", "service_key": "b", "num_pending": 1}]
    rows = scene.rows(
        "SELECT target_service_name as service_name, target_service_key as service_key, status as "
        "invocation_status, first_value(id) as invocation_holding_lock, "
        "first_value(target_handler_name) as invocation_method_holding_lock, "
        "first_value(created_at) as invocation_created_at, first_value(modified_at) as "
        "invocation_state_modified_at, first_value(pinned_deployment_id) as pinned_deployment_id, "
        "first_value(last_attempt_deployment_id) as last_attempt_deployment_id, "
        "first_value(last_failure) as last_failure, first_value(next_retry_at) as next_retry_at, "
        "first_value(last_start_at) as last_start_at, 0 as num_pending, sum(retry_count) as "
        "num_retries FROM sys_invocation WHERE status != 'pending' AND target_service_name IN "
        "('Keyed') GROUP BY target_service_name, target_service_key, status"
    )
    running, done = sorted(rows, key=lambda row: str(row["invocation_status"]), reverse=True)
    assert (running["service_key"], running["invocation_status"]) == ("b", "running")
    assert running["invocation_holding_lock"] == scene.ids["hold"]
    assert running["last_attempt_deployment_id"] == scene.deployment
    assert (running["num_retries"], running["num_pending"]) == (1, 0)
    assert "last_failure" not in running and running["last_start_at"].endswith("Z")
    assert (done["service_key"], done["invocation_status"]) == ("a", "completed")


# --- invocations list and describe ----------------------------------------------------------------


def test_counting_with_an_alias_that_leaks(scene: Scene) -> None:
    statement = "SELECT COUNT(1) FROM (SELECT * FROM sys_invocation inv LIMIT 50000) WHERE "
    assert count(scene, statement + _NOT_DONE) == 7
    assert count(scene, statement + "inv.target_service_name IN ('Keyed')") == 3


@pytest.mark.parametrize(
    ("where", "found"),
    [
        (_NOT_DONE, ["halted", "hang", "hold", "later", "nap", "pending", "trip"]),
        ("inv.status IN ('running','ready')", ["hang", "hold"]),
        ("inv.status = 'completed' AND inv.completion_result = 'failure'", ["refuse"]),
        ("inv.target_service_name IN ('Keyed')", ["hold", "pending", "put"]),
        ("inv.target_handler_name IN ('nap')", ["halted", "nap"]),
        ("inv.target_service_key IN ('b')", ["hold", "pending"]),
        (
            "inv.target_service_name IN (select name from sys_service where ty = 'workflow')",
            ["flow"],
        ),
        (
            "(inv.pinned_deployment_id IS NOT NULL AND inv.pinned_deployment_id NOT IN "
            "(select id from sys_deployment))",
            [],
        ),
    ],
)
def test_lists_with_every_filter(scene: Scene, where: str, found: list[str]) -> None:
    rows = scene.rows(
        f"SELECT id FROM sys_invocation inv WHERE {where} "
        "ORDER BY inv.created_at DESC, inv.id LIMIT 100"
    )
    assert names(scene, [row["id"] for row in rows]) == found
    total = f"SELECT COUNT(1) FROM (SELECT * FROM sys_invocation inv LIMIT 50000) WHERE {where}"
    assert count(scene, total) == len(found)


def test_lists_by_deployment(scene: Scene) -> None:
    ids = f"('{scene.deployment}')"
    rows = scene.rows(
        f"SELECT id FROM sys_invocation inv WHERE (inv.pinned_deployment_id IN {ids} OR "
        f"inv.last_attempt_deployment_id IN {ids}) AND {_NOT_DONE} ORDER BY inv.created_at DESC, "
        "inv.id LIMIT 100"
    )
    assert set(names(scene, [row["id"] for row in rows])) >= {"nap", "hang", "hold", "trip"}
    assert not {"later", "pending"} & set(names(scene, [row["id"] for row in rows]))


def test_details(scene: Scene) -> None:
    chosen = [scene.ids[name] for name in ("step", "refuse", "trip", "hang")]
    listed = ", ".join(f"'{id}'" for id in chosen)
    rows = {row["id"]: row for row in scene.rows(_DETAIL.format(where=f"inv.id in ({listed})"))}
    step, refuse, trip, hang = (rows[id] for id in chosen)
    assert step["target"] == "Probe/step" and step["target_service_ty"] == "service"
    assert step["idempotency_key"] == "once" and step["completion_result"] == "success"
    assert step["pinned_deployment_exists"] is True and "num_retries" not in step
    assert refuse["completion_failure"] == "[418] never"
    assert trip["status"] == "backing-off" and trip["num_retries"] == 1
    assert trip["last_failure_message"].startswith("[500 Internal] ValueError('tripped')\nTrace")
    assert trip["next_retry_at"] > trip["last_start_at"]
    assert trip["last_attempt_server"].startswith("restate-sdk-python/")
    assert trip["pinned_deployment_exists"] is False
    assert hang["status"] == "running" and hang["last_attempt_deployment_id"] == scene.deployment


def test_describes_a_journal(scene: Scene) -> None:
    for columns, expected in (("'promise_name'", 1), ("'version','entry_json','appended_at'", 3)):
        statement = (
            "SELECT COUNT(*) FROM information_schema.columns WHERE table_name = 'sys_journal' "
            f"AND column_name IN ({columns})"
        )
        assert count(scene, statement) == expected
    rows = scene.rows(
        "SELECT sj.index, sj.entry_type, sj.completed, sj.invoked_id, sj.invoked_target, "
        "sj.sleep_wakeup_at, sj.name, sj.promise_name, sj.version, sj.entry_json, sj.appended_at "
        f"FROM sys_journal sj WHERE sj.id = '{scene.ids['step']}' ORDER BY index DESC LIMIT 100"
    )
    assert [row["index"] for row in rows] == list(range(len(rows) - 1, -1, -1))
    assert [row["entry_type"] for row in reversed(rows)] == [
        "Command: Input",
        "Command: Run",
        "Notification: Run",
        "Command: Sleep",
        "Notification: Sleep",
        "Command: Output",
    ]
    assert [row.get("name") for row in reversed(rows)] == ["", "first", None, "", None, ""]
    assert {row["version"] for row in rows} == {2}
    run = rows[-3]["entry_json"]
    assert run == (
        '{"Notification":{"Completion":{"Run":{"completion_id":1,'
        '"result":{"Success":[34,105,110,34]}}}}}'
    )


# --- Commands on what a query finds ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "found"),
    [
        ("target LIKE 'Keyed/%' AND status != 'completed'", ["hold", "pending"]),
        (
            "((target = 'Probe/nap' AND target_service_ty = 'service') OR (target LIKE "
            "'Probe/nap/%' AND target_service_ty != 'service')) AND status IN "
            "('invoked','suspended')",
            ["nap"],
        ),
        (
            "((target = 'Keyed/a' AND target_service_ty = 'service') OR (target LIKE 'Keyed/a/%' "
            "AND target_service_ty != 'service')) AND status = 'completed'",
            ["put"],
        ),
        ("target = 'Keyed/b/hold' AND status != 'completed'", ["hold"]),
        (
            "target LIKE 'Probe/%' AND status IN ('paused','invoked','suspended')",
            ["halted", "hang", "nap", "trip"],
        ),
    ],
)
def test_finds_what_to_act_on(scene: Scene, where: str, found: list[str]) -> None:
    rows = scene.rows(f"SELECT id, target FROM sys_invocation_status WHERE {where} LIMIT 500")
    assert names(scene, [row["id"] for row in rows]) == found


def test_finds_one_to_act_on(scene: Scene) -> None:
    rows = scene.rows(
        f"SELECT id, target FROM sys_invocation_status WHERE id = '{scene.ids['nap']}' "
        "AND status != 'completed' LIMIT 500"
    )
    assert rows == [{"id": scene.ids["nap"], "target": "Probe/nap"}]


# --- Deployments, state, and what doesn't exist here ----------------------------------------------


def test_usage_of_a_deployment(scene: Scene) -> None:
    where = f"pinned_deployment_id = '{scene.deployment}' AND status != 'completed'"
    total = f"SELECT COUNT(1) AS inv_count FROM sys_invocation_status WHERE {where}"
    rows = scene.rows(
        "SELECT target_service_name as service, target_handler_name as handler, COUNT(1) AS "
        f"inv_count FROM sys_invocation_status WHERE {where} GROUP BY pinned_deployment_id, "
        "target_service_name, target_handler_name"
    )
    assert rows == [{"service": "Probe", "handler": "nap", "inv_count": 2}]
    assert count(scene, total) == 2


def test_state_of_an_object(scene: Scene) -> None:
    where = "service_name = 'Keyed' and service_key = 'a'"
    value = b'"x"'.hex()
    assert scene.rows(f"select key, value from state where {where} ;") == [
        {"key": "value", "value": value}
    ]
    row: dict[str, Any] = {"service_name": "Keyed", "service_key": "a", "key": "value"}
    assert scene.rows(
        "SELECT service_name, service_key, key, value FROM state WHERE service_name = 'Keyed'"
    ) == [{**row, "value": value}]


def test_features_that_do_not_exist_are_empty_tables(scene: Scene) -> None:
    columns = "pattern, concurrency, description, disabled, version, last_modified"
    assert scene.rows(f"SELECT {columns} FROM sys_rules ORDER BY pattern") == []
    assert scene.rows(f"SELECT {columns} FROM sys_rules WHERE pattern = 'a'") == []
    assert scene.rows("SELECT id, is_active, num_inbox FROM sys_vqueue_meta LIMIT 100") == []


def test_prefixed_paths(scene: Scene) -> None:
    for path in ("/v2/query", "/v3/query", "/v4/query"):
        assert scene.ask("select 1 as one", path=path).rows == [{"one": 1}]
