"""How events are written for SQL."""

import json

from perdure.node.query.texts import event_json, event_type
from perdure.storage.tables.futures import Combinator, Future
from perdure.storage.tables.journal import AttemptFailure, Event, EventKind


def test_a_suspension_says_what_it_waits_for() -> None:
    awaiting = Future(Combinator.FIRST_COMPLETED, (2,), (1,))
    event = Event(EventKind.SUSPENDED, 3, 0, None, awaiting)
    assert event_type(event) == "Suspended"
    assert json.loads(event_json(event)) == {
        "ty": "Suspended",
        "awaiting_on": {
            "FirstCompleted": [{"Single": {"CompletionId": 2}}, {"Single": {"SignalIndex": 1}}]
        },
    }


def test_a_pause_says_which_failure_led_to_it() -> None:
    event = Event(EventKind.PAUSED, 3, 0, AttemptFailure(500, "no", "", "RT0007", 2, "step"))
    assert json.loads(event_json(event)) == {
        "ty": "Paused",
        "last_failure": {
            "error_code": 500,
            "error_message": "no",
            "restate_doc_error_code": "RT0007",
            "related_command_index": 2,
            "related_command_name": "step",
        },
    }
