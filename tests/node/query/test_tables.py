"""What the tables say about what happened, beyond what the CLI asks."""

import json

import pytest
from tests.node.query.scene import Scene

from perdure.core.hashing import key_partition_key

pytestmark = pytest.mark.slow


def test_raw_and_shown_status_differ(scene: Scene) -> None:
    rows = scene.rows(
        "select i.id, i.status as shown, s.status as raw from sys_invocation i join "
        "sys_invocation_status s on s.id = i.id"
    )
    found = {row["id"]: (row["raw"], row["shown"]) for row in rows}
    assert {name: found[id] for name, id in scene.ids.items()} == {
        "step": ("completed", "completed"),
        "refuse": ("completed", "completed"),
        "nap": ("suspended", "suspended"),
        "halted": ("paused", "paused"),
        "hang": ("invoked", "running"),
        "trip": ("invoked", "backing-off"),
        "hold": ("invoked", "running"),
        "put": ("completed", "completed"),
        "pending": ("inboxed", "pending"),
        "later": ("scheduled", "scheduled"),
        "flow": ("completed", "completed"),
    }


def test_running_sessions(scene: Scene) -> None:
    rows = scene.rows("select * from sys_invocation_state order by in_flight")
    assert {row["id"] for row in rows} == {scene.ids[name] for name in ("hang", "hold", "trip")}
    trip = rows[0]
    assert trip["in_flight"] is False and trip["retry_count"] == 1
    assert trip["last_failure_error_code"] == "RT0007" and "next_retry_at" in trip
    one = f"select id from sys_invocation_state where id = '{scene.ids['hang']}'"
    assert scene.rows(one) == [{"id": scene.ids["hang"]}]


def test_times(scene: Scene) -> None:
    (row,) = scene.rows(f"select * from sys_invocation where id = '{scene.ids['step']}'")
    assert row["created_at"] <= row["running_at"] <= row["modified_at"] <= row["completed_at"]
    assert row["completion_retention"].startswith("PT")
    (later,) = scene.rows(f"select * from sys_invocation where id = '{scene.ids['later']}'")
    assert later["scheduled_start_at"] > later["scheduled_at"] and "running_at" not in later
    (pending,) = scene.rows(f"select * from sys_invocation where id = '{scene.ids['pending']}'")
    assert pending["inboxed_at"] >= pending["created_at"]
    recent = "select count(1) from sys_invocation where created_at > now() - interval '1 hour'"
    assert scene.value(recent) == len(scene.ids)
    text = "select count(1) from sys_invocation where created_at > '2100-01-01T00:00:00Z'"
    assert scene.value(text) == 0


def test_what_a_suspended_one_waits_for(scene: Scene) -> None:
    (row,) = scene.rows(
        "select suspended_waiting_for_completions as completions, suspended_waiting_future_json as "
        f"tree from sys_invocation where id = '{scene.ids['nap']}'"
    )
    assert row["completions"] == [1]
    ((_, leaves),) = json.loads(row["tree"]).items()
    assert {"Single": {"CompletionId": 1}} in leaves


def test_failed_attempts_are_events(scene: Scene) -> None:
    (row,) = scene.rows(
        "select after_journal_entry_index, event_type, event_json from sys_journal_events where "
        f"id = '{scene.ids['trip']}' order by appended_at"
    )
    assert (row["after_journal_entry_index"], row["event_type"]) == (0, "TransientError")
    event = json.loads(row["event_json"])
    assert event["ty"] == "TransientError" and event["error_code"] == 500
    assert event["error_message"] == "ValueError('tripped')"
    assert "in trip" in event["error_stacktrace"]
    types = "select event_type from sys_journal_events where id = '{}' order by appended_at"
    halted = [row["event_type"] for row in scene.rows(types.format(scene.ids["halted"]))]
    assert halted[-1] == "Paused"


def test_operators_on_json(scene: Scene) -> None:
    rows = scene.rows(
        "select i.target, e.event_json ->> 'error_message' as said, e.event_json -> 'error_code' "
        "as code from sys_journal_events e join sys_invocation i on i.id = e.id where "
        "e.event_json ->> 'ty' = 'TransientError' and e.event_json ? 'error_code'"
    )
    assert rows == [{"target": "Probe/trip", "said": "ValueError('tripped')", "code": "500"}]
    journal = (
        "select entry_json -> 'Command' -> 'Input' -> 'payload' -> 0 as octet from sys_journal "
        f"where id = '{scene.ids['step']}' and index = 0"
    )
    assert scene.value(journal) == str(ord('"'))


def test_objects(scene: Scene) -> None:
    number = key_partition_key("b")
    holder = scene.ids["hold"]
    assert scene.rows("select * from sys_keyed_service_status") == [
        {
            "partition_key": number,
            "service_name": "Keyed",
            "service_key": "b",
            "invocation_id": holder,
        }
    ]
    (lock,) = scene.rows("select lock_name, acquired_by from sys_locks")
    assert lock == {"lock_name": "Keyed/b", "acquired_by": holder}
    (row,) = scene.rows(f"select * from sys_inbox where id = '{scene.ids['pending']}'")
    assert (row["service_name"], row["service_key"]) == ("Keyed", "b")
    assert scene.value("select value_utf8 from state where service_key = 'a'") == '"x"'
    assert scene.rows("select * from state where service_name = 'Keyed' and key = 'nope'") == []


def test_deployments_and_services(scene: Scene) -> None:
    (row,) = scene.rows("select * from sys_deployment")
    assert row["id"] == scene.deployment and row["ty"] == "http"
    assert row["services"] == ["Probe", "Keyed", "Flow"]
    assert row["max_service_protocol_version"] >= row["min_service_protocol_version"] >= 5
    unused = (
        "WITH active AS (SELECT DISTINCT deployment_id AS id FROM sys_service WHERE deployment_id "
        "IS NOT NULL UNION SELECT DISTINCT pinned_deployment_id AS id FROM sys_invocation_status "
        "WHERE pinned_deployment_id IS NOT NULL AND status != 'completed') SELECT d.id AS id FROM "
        "sys_deployment d EXCEPT SELECT id FROM active"
    )
    assert scene.rows(unused) == []


def test_statements_of_the_web_ui(scene: Scene) -> None:
    bar = scene.rows(
        "SELECT ss.target_service_name AS service_name, CASE WHEN ss.status = 'invoked' AND "
        "sis.in_flight THEN 'running' WHEN ss.status = 'invoked' AND COALESCE(sis.retry_count, 0) "
        "= 0 THEN 'ready' WHEN ss.status = 'invoked' THEN 'backing-off' ELSE ss.status END AS "
        "bucket, COUNT(1) AS count FROM sys_invocation_status ss LEFT JOIN sys_invocation_state "
        "sis ON sis.id = ss.id WHERE ss.target_service_name = 'Probe' GROUP BY "
        "ss.target_service_name, CASE WHEN ss.status = 'invoked' AND sis.in_flight THEN 'running' "
        "WHEN ss.status = 'invoked' AND COALESCE(sis.retry_count, 0) = 0 THEN 'ready' WHEN "
        "ss.status = 'invoked' THEN 'backing-off' ELSE ss.status END"
    )
    assert {row["bucket"]: row["count"] for row in bar} == {
        "running": 1,
        "backing-off": 1,
        "suspended": 1,
        "paused": 1,
        "scheduled": 1,
        "completed": 2,
    }
    (hour,) = scene.rows(
        "SELECT to_unixtime(date_bin(INTERVAL '3600 seconds', completed_at, TIMESTAMP "
        "'1970-01-01T00:00:00')) AS bucket, COUNT(1) FILTER (WHERE completion_result = 'success') "
        "AS succeeded, COUNT(1) FILTER (WHERE completion_result = 'failure') AS failed FROM "
        "sys_invocation_status WHERE target_service_name = 'Probe' AND status = 'completed' AND "
        "completed_at >= '2020-01-01T00:00:00Z' GROUP BY bucket LIMIT 1"
    )
    assert hour["bucket"] % 3600 == 0 and hour["succeeded"] + hour["failed"] >= 1
    sizes = (
        "SELECT service_name, COALESCE(SUM(value_length),0) AS size FROM state GROUP BY "
        "service_name ORDER BY service_name"
    )
    assert scene.rows(sizes) == [{"service_name": "Keyed", "size": 3}]
    keys = "SELECT DISTINCT service_key FROM state WHERE \"service_name\" = 'Keyed' LIMIT 301"
    assert scene.rows(keys) == [{"service_key": "a"}]
    recent = (
        "SELECT i.id FROM sys_invocation_status i WHERE target_service_ty = 'workflow' AND "
        "target_handler_name = 'run' ORDER BY created_at DESC NULLS LAST LIMIT 51"
    )
    assert scene.rows(recent) == [{"id": scene.ids["flow"]}]
    ready = (
        "SELECT ss.id AS id FROM sys_invocation_status ss LEFT JOIN (SELECT id AS state_id, "
        "in_flight, retry_count FROM sys_invocation_state) sis ON sis.state_id = ss.id WHERE "
        "ss.status = 'invoked' AND sis.in_flight IS NOT TRUE AND COALESCE(sis.retry_count,0) = 0"
    )
    assert scene.rows(ready) == []
    widest = (
        "SELECT CAST(i.journal_size AS VARCHAR) AS a, CAST(journal_size AS STRING) || 'x' AS b, "
        "CAST(journal_size AS DOUBLE) AS c, CAST(journal_size AS INT UNSIGNED) AS d, "
        "GREATEST(created_at, modified_at) > now() - INTERVAL '24 hours' AS e, ROW_NUMBER() OVER "
        f"(ORDER BY created_at) AS f FROM sys_invocation i WHERE id = '{scene.ids['hang']}'"
    )
    assert scene.rows(widest) == [{"a": "1", "b": "1x", "c": 1.0, "d": 1, "e": True, "f": 1}]
