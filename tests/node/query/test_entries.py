"""Journal entries as JSON: the shapes that strict clients decode."""

import json

import pytest
from tests.engine import entries as e

from perdure.core.ids import InvocationId, format_invocation_id
from perdure.engine.commands import Append, CompleteRun
from perdure.engine.notifications import cancel_signal, invocation_id, state_keys, void
from perdure.node.query.entries import entry_json, entry_lite_json, entry_name, entry_type
from perdure.proto.frames import MessageType as T
from perdure.storage.tables.journal import Entry

CHILD = InvocationId(bytes(range(24)))
CHILD_TEXT = format_invocation_id(CHILD)


def stored(effect: Append | CompleteRun) -> Entry:
    if isinstance(effect, CompleteRun):
        return Entry(T.RUN_COMPLETION, effect.payload, 0)
    return Entry(effect.type_code, effect.payload, 0, effect.call)


def command(kind: str, **fields: object) -> object:
    return {"Command": {kind: {**fields, "name": ""}}}


def completion(kind: str, **fields: object) -> object:
    return {"Notification": {"Completion": {kind: fields}}}


SUCCESS = {"Success": [118]}
FAILURE = {"Failure": {"code": 418, "message": "no"}}


@pytest.mark.parametrize(
    ("entry", "kind", "shape"),
    [
        (stored(e.output(b"v")), "Command: Output", command("Output", result=SUCCESS)),
        (
            stored(e.output_failure(418, "no")),
            "Command: Output",
            command("Output", result=FAILURE),
        ),
        (
            stored(e.output_failure(418, "no", why="so")),
            "Command: Output",
            command(
                "Output",
                result={"Failure": {"code": 418, "message": "no", "metadata": {"why": "so"}}},
            ),
        ),
        (
            stored(e.get_state(3, b"k")),
            "Command: GetLazyState",
            command("GetLazyState", key="k", completion_id=3),
        ),
        (
            stored(e.get_state_keys(3)),
            "Command: GetLazyStateKeys",
            command("GetLazyStateKeys", completion_id=3),
        ),
        (
            stored(e.get_eager_state(b"k", None)),
            "Command: GetEagerState",
            command("GetEagerState", key="k", result="Void"),
        ),
        (
            stored(e.get_eager_state(b"k", b"v")),
            "Command: GetEagerState",
            command("GetEagerState", key="k", result=SUCCESS),
        ),
        (
            stored(e.set_state(b"\xff", b"v")),
            "Command: SetState",
            command("SetState", key="\ufffd", value=[118]),
        ),
        (stored(e.clear_state(b"k")), "Command: ClearState", command("ClearState", key="k")),
        (stored(e.clear_all_state()), "Command: ClearAllState", command("ClearAllState")),
        (
            stored(e.get_promise(3, "p")),
            "Command: GetPromise",
            command("GetPromise", key="p", completion_id=3),
        ),
        (
            stored(e.resolve_promise(3, "p", b"v")),
            "Command: CompletePromise",
            command("CompletePromise", key="p", value=SUCCESS, completion_id=3),
        ),
        (
            stored(e.reject_promise(3, "p", 418, "no")),
            "Command: CompletePromise",
            command("CompletePromise", key="p", value=FAILURE, completion_id=3),
        ),
        (
            stored(e.sleep(3, 99)),
            "Command: Sleep",
            command("Sleep", wake_up_time=99, completion_id=3),
        ),
        (
            stored(e.send_signal(CHILD, 17, b"v")),
            "Command: SendSignal",
            command(
                "SendSignal",
                target_invocation_id=CHILD_TEXT,
                signal_id={"Index": 17},
                result=SUCCESS,
            ),
        ),
        (
            stored(e.send_signal(CHILD, "n")),
            "Command: SendSignal",
            command(
                "SendSignal",
                target_invocation_id=CHILD_TEXT,
                signal_id={"Name": "n"},
                result="Void",
            ),
        ),
        (
            stored(e.attach(3, CHILD)),
            "Command: AttachInvocation",
            command("AttachInvocation", target={"InvocationId": CHILD_TEXT}, completion_id=3),
        ),
        (
            stored(e.attach_workflow(3, "W", "k")),
            "Command: AttachInvocation",
            command(
                "AttachInvocation",
                target={"Workflow": {"service_name": "W", "key": "k"}},
                completion_id=3,
            ),
        ),
        (
            stored(e.resolve_awakeable("sign_1x", b"v")),
            "Command: CompleteAwakeable",
            command("CompleteAwakeable", id="sign_1x", result=SUCCESS),
        ),
        (
            stored(e.run_result(3, b"v")),
            "Notification: Run",
            completion("Run", completion_id=3, result=SUCCESS),
        ),
        (
            stored(e.run_failure(3, 418, "no")),
            "Notification: Run",
            completion("Run", completion_id=3, result=FAILURE),
        ),
        (
            Entry(T.SLEEP_COMPLETION, void(3), 0),
            "Notification: Sleep",
            completion("Sleep", completion_id=3),
        ),
        (
            Entry(T.CALL_INVOCATION_ID_COMPLETION, invocation_id(3, CHILD_TEXT), 0),
            "Notification: CallInvocationId",
            completion("CallInvocationId", completion_id=3, invocation_id=CHILD_TEXT),
        ),
        (
            Entry(T.GET_LAZY_STATE_KEYS_COMPLETION, state_keys(3, [b"a"]), 0),
            "Notification: GetLazyStateKeys",
            completion("GetLazyStateKeys", completion_id=3, state_keys=["a"]),
        ),
        (
            Entry(T.SIGNAL_NOTIFICATION, cancel_signal(), 0),
            "Notification: Signal",
            {"Notification": {"Signal": {"id": {"Index": 1}, "result": "Void"}}},
        ),
    ],
)
def test_everything_in_an_entry(entry: Entry, kind: str, shape: object) -> None:
    assert entry_type(entry) == kind
    assert json.loads(entry_json(entry) or "") == shape
    assert entry_name(entry) == ("" if kind.startswith("Command") else None)


def test_a_call_says_what_is_called_and_how() -> None:
    entry = stored(e.call(1, CHILD, e.exclusive("k", "add")))
    call = json.loads(entry_json(entry) or "")["Command"]["Call"]
    request = call["request"]
    assert request["invocation_id"] == CHILD_TEXT
    ((kind, target),) = request["invocation_target"].items()
    assert (kind, target["key"], target["handler"]) == ("VirtualObject", "k", "add")
    assert (target["handler_ty"], target["scope"]) == ("Exclusive", None)
    assert set(request["completion_retention_duration"]) == {"secs", "nanos"}
    assert len(request["span_context"]["span_context"]["trace_id"]) == 16
    assert {"invocation_id_completion_id", "result_completion_id", "name"} < set(call)
    service = stored(e.send(1, CHILD, e.SERVICE, invoke_time=5))
    sent = json.loads(entry_json(service) or "")["Command"]["OneWayCall"]
    assert sent["invoke_time"] == 5 and "Service" in sent["request"]["invocation_target"]


@pytest.mark.parametrize(
    ("entry", "shape"),
    [
        (
            stored(e.run(1, "step1")),
            {"Command": {"Run": {"completion_id": 1, "name": "step1"}}},
        ),
        (stored(e.run(1)), {"Command": {"Run": {"completion_id": 1}}}),
        (stored(e.output(b"v")), {"Command": {"Output": {"result": "Success"}}}),
        (stored(e.output_failure(418, "no")), {"Command": {"Output": {"result": "Failure"}}}),
        (stored(e.set_state(b"k", b"v")), {"Command": {"SetState": {"key": "k"}}}),
        (
            stored(e.get_eager_state(b"k", None)),
            {"Command": {"GetEagerState": {"key": "k", "result": "Void"}}},
        ),
        (
            stored(e.run_result(5, b"v")),
            {
                "Notification": {
                    "ty": {"Completion": "Run"},
                    "id": {"CompletionId": 5},
                    "result": "Success",
                }
            },
        ),
        (
            Entry(T.SIGNAL_NOTIFICATION, cancel_signal(), 0),
            {"Notification": {"ty": "Signal", "id": {"SignalIndex": 1}, "result": "Void"}},
        ),
        (
            Entry(T.CALL_INVOCATION_ID_COMPLETION, invocation_id(3, CHILD_TEXT), 0),
            {
                "Notification": {
                    "ty": {"Completion": "CallInvocationId"},
                    "id": {"CompletionId": 3},
                    "result": "InvocationId",
                }
            },
        ),
    ],
)
def test_an_entry_without_payloads(entry: Entry, shape: object) -> None:
    assert json.loads(entry_lite_json(entry) or "") == shape


def test_a_call_without_payloads() -> None:
    lite = json.loads(entry_lite_json(stored(e.call(1, CHILD, e.SERVICE))) or "")
    call = lite["Command"]["Call"]
    assert set(call) == {
        "invocation_id",
        "invocation_target",
        "invocation_id_completion_id",
        "result_completion_id",
    }


@pytest.mark.parametrize(
    "entry",
    [Entry(T.RUN_COMMAND, b"\xff", 0), Entry(T.RUN_COMPLETION, b"\xff", 0), Entry(0x0777, b"", 0)],
)
def test_what_cannot_be_read_has_no_json(entry: Entry) -> None:
    assert entry_json(entry) is None
    assert entry_lite_json(entry) is None
    assert ": " in entry_type(entry)
