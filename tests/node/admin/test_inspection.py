"""Reading invocations page by page, from real partitions."""

import time
from datetime import datetime

import pytest
from tests.node.admin.world import World, wait_for

from perdure.node.admin import inspection


def pages(world: World, query: str) -> list[dict[str, object]]:
    """Every row that a filter finds, following cursors."""
    found: list[dict[str, object]] = []
    cursor = ""
    for _ in range(1000):
        document = world.admin("GET", f"/perdure/invocations?{query}{cursor}").json()
        found.extend(document["invocations"])
        if "cursor" not in document:
            return found
        cursor = f"&cursor={document['cursor']}"
    raise AssertionError("cursors don't end")


@pytest.mark.parametrize("limit", [1, 2, 7, 1000])
def test_pages_neither_miss_nor_repeat(world: World, limit: int) -> None:
    sent = {world.send(f"/Keyed/paged-{limit}-{number}/put/send", "x") for number in range(9)}
    for invocation in sent:
        world.wait_status(invocation, "completed")
    ids = [row["id"] for row in pages(world, f"service=Keyed&handler=put&limit={limit}")]
    assert len(ids) == len(set(ids))
    assert sent <= set(ids)


def test_pages_end_early_where_rows_are_long(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection, "INSPECTION_BYTES_MAX", 900)
    sent = {world.send(f"/Keyed/long-{number}/put/send", "x") for number in range(5)}
    for invocation in sent:
        world.wait_status(invocation, "completed")
    page = world.admin("GET", "/perdure/invocations?service=Keyed").json()
    assert 0 < len(page["invocations"]) < 5
    ids = [row["id"] for row in pages(world, "service=Keyed")]
    assert len(ids) == len(set(ids)) and sent <= set(ids)


def test_filters(world: World) -> None:
    holder = world.send("/Keyed/filtered/hold/send")
    waiting = world.send("/Keyed/filtered/put/send", "x")
    later = world.send("/Keyed/filtered/put/send?delay=1h", "x")
    other = world.send("/Keyed/filtered-not/hold/send")
    world.wait_status(holder, "running")
    world.wait_status(other, "running")

    def ids(query: str) -> set[object]:
        return {row["id"] for row in pages(world, query)}

    assert ids("key=filtered") == {holder, waiting, later}
    assert ids("key=filtered&limit=1") == {holder, waiting, later}
    assert ids("key=filtered&status=running") == {holder}
    assert ids("key=filtered&status=invoked,scheduled") == {holder, later}
    assert ids("key=filtered&status=inboxed") == {waiting}
    assert ids("key=filtered&service=Probe") == set()
    assert other in ids("service=Keyed&status=running")
    assert all(row["service"] == "Keyed" for row in pages(world, "service=Keyed"))


def test_filters_by_time(world: World) -> None:
    def found(query: str) -> set[object]:
        return {row["id"] for row in pages(world, f"key=timed&{query}")}

    first = world.send("/Keyed/timed/put/send", "x")
    at = str(world.describe(first)["created_at"])
    wait_for(lambda: time.time() * 1000, lambda now: int(now) > _milliseconds(at))
    second = world.send("/Keyed/timed/put/send", "y")
    later = str(world.describe(second)["created_at"])
    assert found(f"created_before={later}") == {first}
    assert found(f"created_after={later}") == {second}
    assert found(f"created_after={at}&created_before={later}") == {first}
    assert found(f"created_after={at}") == {first, second}
    assert found(f"created_before={at}") == set()
    assert found("created_after=2000-01-01T00:00:00%2B02:00") == {first, second}
    assert found("created_after=9000-01-01T00:00:00Z") == set()


def _milliseconds(text: str) -> int:
    return round(datetime.fromisoformat(text).timestamp() * 1000)


@pytest.mark.parametrize(
    "query",
    [
        *("status=nonsense", "limit=0", "limit=1001", "limit=x", "cursor=inv_1", "status="),
        *("created_after=noon", "created_before=2026-01-31T12:00:00", "created_after=0"),
    ],
)
def test_queries_that_are_refused(world: World, query: str) -> None:
    answered = world.admin("GET", f"/perdure/invocations?{query}")
    assert (answered.status, answered.json()["restate_code"]) == (400, "REQ0001")


def test_a_completed_invocation_in_full(world: World) -> None:
    target = world.send("/Probe/step/send", "x", **{"idempotency-key": "full"})
    world.wait_status(target, "completed")
    shown = world.describe(target)
    assert shown["target"] == "Probe/step" and shown["invoked_by"] == "ingress"
    assert shown["idempotency_key"] == "full" and shown["result"] == {"kind": "success"}
    assert shown["deployment"].startswith("dp_1") and shown["protocol_version"] >= 5
    assert "expires_at" in shown and "key" not in shown
    entries = shown["journal"]
    assert [entry["index"] for entry in entries] == list(range(shown["journal_length"]))
    assert [entry["type"] for entry in entries if entry["is_command"]] == [
        "Input",
        "Run",
        "Sleep",
        "Output",
    ]
    (ran,) = [entry for entry in entries if entry["type"] == "Run"]
    assert ran["name"] == "first"
    (result,) = [entry for entry in entries if entry["type"] == "RunCompletion"]
    assert result["completion_ids"] == ran["completion_ids"]
    assert all(entry["size"] >= 0 and entry["appended_at"].endswith("Z") for entry in entries)


@pytest.mark.parametrize(("bytes_max", "count"), [(1 << 20, 2), (1, 1)])
def test_a_journal_in_pages(
    world: World, monkeypatch: pytest.MonkeyPatch, bytes_max: int, count: int
) -> None:
    """As many entries as were asked for, or as are long enough together."""
    target = world.send("/Probe/step/send", "x")
    world.wait_status(target, "completed")
    whole = world.describe(target)["journal"]
    monkeypatch.setattr(inspection, "INSPECTION_BYTES_MAX", bytes_max)
    found: list[object] = []
    start = 0
    while True:
        path = f"/perdure/invocations/{target}?from={start}&limit=2"
        document = world.admin("GET", path).json()
        found.extend(document["journal"])
        if "next_from" not in document:
            break
        assert len(document["journal"]) == count
        start = document["next_from"]
    assert found == whole


def test_what_failed_and_when_it_is_tried_again(world: World) -> None:
    target = world.send("/Probe/trip/send")
    shown = world.wait_status(target, "backing-off")
    assert shown["retry_count"] == 1 and shown["next_retry_at"] > shown["created_at"]
    assert "tripped" in shown["last_failure"]["message"]
    assert shown["last_failure"]["error_code"] == "RT0007"
    assert shown["events"][0]["event"] == "transient_error"
    assert world.admin("PATCH", f"/invocations/{target}/pause").status == 202
    paused = world.wait_status(target, "paused")
    assert paused["status"] == "paused"
    assert [event["event"] for event in paused["events"]] == ["transient_error", "paused"]


def test_a_suspended_invocation_says_what_it_waits_for(world: World) -> None:
    target = world.send("/Probe/nap/send", 3600)
    shown = world.wait_status(target, "suspended")
    (sleep,) = [entry for entry in shown["journal"] if entry["type"] == "Sleep"]
    assert sleep["wake_up_at"] > shown["created_at"]
    assert sleep["completion_ids"][0] in shown["awaiting"]["completions"]


def test_a_failed_invocation_says_why(world: World) -> None:
    target = world.send("/Probe/refuse/send")
    shown = world.wait_status(target, "completed")
    assert shown["result"] == {"kind": "failure", "code": 418, "message": "never"}


@pytest.mark.parametrize(
    ("path", "status"),
    [("inv_1", 400), ("inv_18vwCfGUHwE30pTv2hoWWWUwYyFI6Nlsu7", 404)],
)
def test_no_such_invocation(world: World, path: str, status: int) -> None:
    assert world.admin("GET", f"/perdure/invocations/{path}").status == status
