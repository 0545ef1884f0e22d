"""What each operation answers in each state, over HTTP, with real partitions and a real service."""

import itertools

import pytest
from tests.node.admin.world import World, wait_for

_KEYS = itertools.count()
_OK, _LATER = 200, 202

# Operation: answers for an invocation that is unknown, completed, scheduled, inboxed, running,
# suspended, backing off, paused.
_STATES = (
    "unknown",
    "completed",
    "scheduled",
    "pending",
    "running",
    "suspended",
    "backing-off",
    "paused",
)
_MATRIX = {
    "cancel": (404, 409, 200, 200, 202, 202, 202, 202),
    "kill": (404, 409, 200, 200, 200, 200, 200, 200),
    "purge": (404, 200, 409, 409, 409, 409, 409, 409),
    "purge-journal": (404, 200, 409, 409, 409, 409, 409, 409),
    "pause": (404, 409, 409, 409, 202, 202, 202, 200),
    "resume": (404, 409, 425, 425, 200, 200, 200, 200),
    "restart-as-new": (404, 200, 425, 425, 409, 409, 409, 409),
}
_CASES = [
    (operation, state, status)
    for operation, answers in _MATRIX.items()
    for state, status in zip(_STATES, answers, strict=True)
]
_UNKNOWN = "inv_18vwCfGUHwE30pTv2hoWWWUwYyFI6Nlsu7"


def make(world: World, state: str) -> str:
    """A fresh invocation in a state."""
    key = f"k{next(_KEYS)}"
    match state:
        case "unknown":
            return _UNKNOWN
        case "completed":
            found = world.send("/Probe/echo/send", "x")
        case "scheduled":
            found = world.send("/Probe/echo/send?delay=1h", "x")
        case "pending":
            holder = world.send(f"/Keyed/{key}/hold/send")
            world.wait_status(holder, "running")
            found = world.send(f"/Keyed/{key}/hold/send")
        case "running":
            found = world.send("/Probe/hang/send")
        case "suspended":
            found = world.send("/Probe/nap/send", 3600)
        case "backing-off":
            found = world.send("/Probe/trip/send")
        case "paused":
            found = make(world, "suspended")
            assert world.admin("PATCH", f"/invocations/{found}/pause").status == _LATER
        case _:
            raise AssertionError(state)
    world.wait_status(found, state)
    return found


@pytest.mark.parametrize(("operation", "state", "status"), _CASES)
def test_operation_by_state(world: World, operation: str, state: str, status: int) -> None:
    target = make(world, state)
    answered = world.admin("PATCH", f"/invocations/{target}/{operation}")
    assert answered.status == status, answered
    if status in (_OK, _LATER):
        assert answered.body == b"" or operation == "restart-as-new"
    else:
        document = answered.json()
        assert document["restate_code"].startswith("REQ")
        assert target in document["message"]


def test_kill_ends_a_running_invocation(world: World) -> None:
    target = make(world, "running")
    assert world.admin("PATCH", f"/invocations/{target}/kill").status == _OK
    shown = world.wait_status(target, "completed")
    assert shown["result"] == {"kind": "failure", "code": 409, "message": "killed"}


def test_purge_forgets(world: World) -> None:
    target = make(world, "completed")
    assert world.admin("PATCH", f"/invocations/{target}/purge").status == _OK
    assert world.admin("GET", f"/perdure/invocations/{target}").status == 404


def test_purge_journal_keeps_the_result_and_rules_out_a_restart(world: World) -> None:
    target = make(world, "completed")
    assert world.admin("PATCH", f"/invocations/{target}/purge-journal").status == _OK
    shown = world.describe(target)
    assert shown["journal"] == [] and shown["result"] == {"kind": "success"}
    answered = world.admin("PATCH", f"/invocations/{target}/restart-as-new")
    assert (answered.status, answered.json()["restate_code"]) == (410, "REQ0013")


def test_resume_retries_at_once_what_backs_off(world: World) -> None:
    target = make(world, "backing-off")
    before = world.describe(target)["retry_count"]
    assert world.admin("PATCH", f"/invocations/{target}/resume").status == _OK
    wait_for(
        lambda: world.describe(target),
        lambda shown: shown["status"] == "backing-off" and shown["retry_count"] == before + 1,
    )


def test_restart_runs_the_same_input_again(world: World) -> None:
    target = world.send("/Probe/step/send", "again")
    world.wait_status(target, "completed")
    answered = world.admin("PATCH", f"/invocations/{target}/restart-as-new?from=0")
    fresh = answered.json()["new_invocation_id"]
    assert fresh != target and fresh[:16] == target[:16]
    shown = world.wait_status(fresh, "completed")
    assert shown["target"] == "Probe/step"
    assert (shown["invoked_by"], shown["invoked_by_id"]) == ("restart_as_new", target)


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("from=0&deployment=latest", 200),
        ("deployment=Keep", 200),
        ("from=1", 200),
        ("from=999", 400),
        ("from=-1", 400),
        ("from=x", 400),
        ("deployment=nonsense", 400),
        ("deployment=dp_10GKJsDUCgXLbXSpQ8sSCDM", 400),
    ],
)
def test_restart_parameters(world: World, query: str, status: int) -> None:
    target = world.send("/Probe/step/send", "x")
    world.wait_status(target, "completed")
    answered = world.admin("PATCH", f"/invocations/{target}/restart-as-new?{query}")
    assert answered.status == status, answered


def test_workflows_are_not_restarted(world: World) -> None:
    target = world.send("/Flow/once/run/send")
    world.wait_status(target, "completed")
    assert world.admin("PATCH", f"/invocations/{target}/restart-as-new").status == 422


@pytest.mark.parametrize(
    ("state", "deployment", "status"),
    [
        ("paused", "keep", 200),
        ("paused", "latest", 200),
        ("suspended", "Latest", 200),
        ("running", "latest", 409),
        ("completed", "latest", 409),
        ("scheduled", "latest", 425),
        ("unknown", "latest", 404),
        ("paused", "nonsense", 400),
        ("paused", "dp_10GKJsDUCgXLbXSpQ8sSCDM", 400),
    ],
)
def test_resume_with_a_deployment(world: World, state: str, deployment: str, status: int) -> None:
    target = make(world, state)
    answered = world.admin("PATCH", f"/invocations/{target}/resume?deployment={deployment}")
    assert answered.status == status, answered


@pytest.mark.parametrize("operation", [*_MATRIX])
def test_malformed_id(world: World, operation: str) -> None:
    answered = world.admin("PATCH", f"/invocations/inv_1/{operation}")
    assert answered.status == 400
    assert "invocation_id" in answered.json()["message"]


@pytest.mark.parametrize("mode", ["", "?mode=cancel", "?mode=Kill"])
def test_old_termination_is_always_accepted(world: World, mode: str) -> None:
    assert world.admin("DELETE", f"/invocations/{_UNKNOWN}{mode}").status == _LATER
    target = make(world, "suspended")
    assert world.admin("DELETE", f"/invocations/{target}{mode}").status == _LATER
    shown = world.wait_status(target, "completed")
    assert shown["result"]["code"] == 409


def test_old_purge_and_unknown_mode(world: World) -> None:
    target = make(world, "completed")
    assert world.admin("DELETE", f"/invocations/{target}?mode=foo").status == 400
    assert world.admin("DELETE", f"/invocations/{target}?mode=purge").status == _LATER
    assert world.admin("GET", f"/perdure/invocations/{target}").status == 404


_BATCH = "/internal/invocations_batch_operations"


@pytest.mark.parametrize("prefix", ["", "/v4"])
def test_batch_tells_what_succeeded_and_what_failed(world: World, prefix: str) -> None:
    good, bad = make(world, "suspended"), make(world, "completed")
    ids = [good, bad, _UNKNOWN]
    answered = world.admin("POST", f"{prefix}{_BATCH}/kill", {"invocation_ids": ids})
    assert answered.status == _OK
    document = answered.json()
    assert document["succeeded"] == [good]
    assert [each["invocation_id"] for each in document["failed"]] == [bad, _UNKNOWN]
    assert all(each["error"].startswith("[REQ") for each in document["failed"])


def test_batch_restart_and_resume(world: World) -> None:
    done, paused = make(world, "completed"), make(world, "paused")
    restarted = world.admin(
        "POST", f"{_BATCH}/restart-as-new", {"invocation_ids": [done], "deployment": "latest"}
    ).json()
    assert restarted["succeeded"][0]["old_invocation_id"] == done
    world.wait_status(restarted["succeeded"][0]["new_invocation_id"], "completed")
    resumed = world.admin("POST", f"{_BATCH}/resume", {"invocation_ids": [paused]})
    assert resumed.json() == {"succeeded": [paused], "failed": []}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"invocation_ids": ["nonsense"]}, 422),
        ({"invocation_ids": "nonsense"}, 422),
        ({}, 422),
        ({"invocation_ids": [_UNKNOWN] * 1001}, 400),
        ({"invocation_ids": []}, 200),
    ],
)
def test_batch_bodies(world: World, body: object, status: int) -> None:
    assert world.admin("POST", f"{_BATCH}/cancel", body).status == status
