"""What is new in each look at an invocation."""

import io

from rich.console import Console

from perdure.node.cli.client import Document
from perdure.node.cli.timeline import Timeline, time_ms
from perdure.node.cli.watch import describe, render

AT = "2026-01-02T03:04:0{}.000Z"


def look(status: str, *journal: Document, **facts: object) -> Document:
    return {
        "id": "inv_1",
        "target": "Shop/sell",
        "status": status,
        "journal": list(journal),
        "events": [],
        **facts,
    }


def entry(index: int, type_: str, **facts: object) -> Document:
    shown: Document = {"index": index, "type": type_, "appended_at": AT.format(index)}
    return {**shown, "is_command": not type_.endswith("Completion"), **facts}


def kinds(changes: list[Document]) -> list[object]:
    return [change["change"] for change in changes]


def test_each_change_is_told_once() -> None:
    timeline = Timeline()
    call = entry(1, "Call", completion_ids=[1, 2], target="Till/add")
    page = look("running", entry(0, "Input"), call)
    assert kinds(timeline.absorb(page)) == ["step", "step", "state"]
    assert timeline.absorb(look("running")) == []
    event: Document = {"event": "suspended", "at": AT.format(2), "after_index": 1}
    asleep = look("suspended", awaiting={"combinator": 0, "completions": [2]}, events=[event])
    changes = timeline.absorb(asleep)
    assert kinds(changes) == ["event", "state"]
    assert timeline.absorb(asleep) == []
    assert describe(changes[1]) == "is suspended waits for completion 2"
    assert not timeline.is_over


def test_a_command_and_its_completion_are_one_step() -> None:
    timeline = Timeline()
    call = entry(1, "Call", completion_ids=[1, 2])
    first = entry(2, "CallInvocationIdCompletion", completion_ids=[1])
    timeline.absorb(look("running", entry(0, "Input"), call, first))
    assert [step.is_waiting for step in timeline.steps] == [False, True]
    no: Document = {"code": 409, "message": "no"}
    timeline.absorb(look("running", entry(5, "CallCompletion", completion_ids=[2], failure=no)))
    assert timeline.steps[1].is_waiting  # entries in between are still to come
    missing = [entry(3, "Signal", signal_index=17), entry(4, "Run", completion_ids=[3])]
    end = entry(5, "CallCompletion", completion_ids=[2], failure=no)
    timeline.absorb(look("running", *missing, end))
    assert (timeline.steps[1].took_ms, timeline.steps[1].failure) == (4000, no)
    assert [step.entry["type"] for step in timeline.steps] == ["Input", "Call", "Signal", "Run"]


def test_the_end_comes_after_the_last_entry() -> None:
    timeline = Timeline()
    result: Document = {"kind": "failure", "code": 409, "message": "killed"}
    whole = {"completed_at": AT.format(9), "result": result}
    first = look("completed", entry(0, "Input"), next_from=1, **whole)
    assert kinds(timeline.absorb(first)) == ["step"]
    assert not timeline.is_over
    changes = timeline.absorb(look("completed", entry(1, "Output"), **whole))
    assert kinds(changes) == ["step", "state", "ended"]
    assert describe(changes[2]) == "2026-01-02T03:04:09.000Z ended: failed [409] killed"
    assert timeline.is_over


def test_what_is_not_retained_is_gone() -> None:
    timeline = Timeline()
    timeline.absorb(look("scheduled"))
    assert kinds(timeline.vanish()) == ["gone"]
    assert timeline.is_over
    assert "nothing of it is retained" in screen(timeline)


def screen(timeline: Timeline, height: int = 30) -> str:
    console = Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(render(timeline, time_ms(AT.format(9)), height))
    return capture.get()


def test_the_screen_shows_what_matters() -> None:
    timeline = Timeline()
    sleep = entry(1, "Sleep", completion_ids=[1], wake_up_at=AT.format(9))
    failure: Document = {"code": 500, "error_code": "RT0007", "message": "no\x1b[2J"}
    retrying: Document = {
        "retry_count": 2,
        "attempt_count": 3,
        "last_failure": failure,
        "next_retry_at": "2026-01-02T03:04:12.500Z",
        "is_pausing": True,
        "events": [{"event": "transient_error", "at": AT.format(8), "failure": failure}],
    }
    timeline.absorb(look("backing-off", entry(0, "Input"), sleep, **retrying))
    text = screen(timeline)
    for words in (
        "Shop/sell  backing-off",
        "pausing, attempt 3, 2 retries",
        "next attempt in 3s 500ms",
        "[RT0007] no",
        "wake up at 2026-01-02T03:04:09.000Z",
        "8s",
        "transient_error",
    ):
        assert words in text
    assert "\x1b[2J" not in text


def test_only_the_latest_steps_fit_the_screen() -> None:
    timeline = Timeline()
    timeline.absorb(look("running", *(entry(index, "SetState") for index in range(9))))
    text = screen(timeline, height=10)
    assert "(4 earlier steps)" in text
    assert text.count("SetState") == 5
