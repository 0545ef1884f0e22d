"""Streams to functions: what the listener hears, and what is never called."""

from collections.abc import Callable
from typing import TypeVar

import pytest

from perdure.core.limits import FUNCTION_BODY_BYTES_MAX, MIB
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamFailure
from perdure.node.invoker.aws import Invoked
from perdure.node.invoker.lambda_caller import FunctionCaller, FunctionStream
from perdure.node.registry.model import Function

T = TypeVar("T")
FUNCTION = Function("arn:aws:lambda:eu-central-1:123456789012:function:f:1")
ANSWER = b'{"statusCode": 200, "headers": {"a": "b"}, "body": "text"}'


class Threads:
    """Runs jobs when told to."""

    def __init__(self) -> None:
        self._jobs: list[Callable[[], None]] = []
        self.is_closed = False

    def submit(
        self,
        job: Callable[[], T],
        done: Callable[[T], None],
        failed: Callable[[BaseException], None],
    ) -> None:
        def run() -> None:
            try:
                result = job()
            except ZeroDivisionError as failure:
                failed(failure)
            else:
                done(result)

        self._jobs.append(run)

    def close(self) -> None:
        self.is_closed = True

    def run(self) -> None:
        jobs, self._jobs = self._jobs, []
        for job in jobs:
            job()


class Functions:
    """A place of functions that answers what it is told to."""

    def __init__(self, answer: Callable[[], Invoked]) -> None:
        self.answer = answer
        self.payloads: list[bytes] = []
        self.is_closed = False

    def invoke(self, function: Function, payload: bytes) -> Invoked:
        self.payloads.append(payload)
        return self.answer()

    def close(self) -> None:
        self.is_closed = True


class Listener:
    """Writes down what it hears; resets the stream when it hears ``resets_at``."""

    def __init__(self, resets_at: str = "") -> None:
        self.heard: list[object] = []
        self.stream: FunctionStream
        self._resets_at = resets_at

    def on_response(self, status: int, headers: Headers) -> None:
        self._hear("response", status)

    def on_body(self, data: bytes) -> None:
        self._hear("body", data)

    def on_end(self) -> None:
        self._hear("end")

    def on_failed(self, failure: StreamFailure) -> None:
        self._hear("failed", failure.kind)

    def on_writable(self) -> None:
        self._hear("writable")

    def _hear(self, what: str, *facts: object) -> None:
        self.heard.append((what, *facts) if facts else what)
        if what == self._resets_at:
            self.stream.reset()


class Scene:
    """A caller with all that it stands on."""

    def __init__(self, answer: Callable[[], Invoked] = lambda: ANSWER, resets_at: str = "") -> None:
        self.threads = Threads()
        self.functions = Functions(answer)
        self.caller = FunctionCaller(self.functions, self.threads, MIB)
        self.listener = Listener(resets_at)
        self.stream = self.caller.open(
            FUNCTION, "POST", "/invoke/S/h", [(b"a", b"b")], self.listener
        )
        self.listener.stream = self.stream


def test_function_is_called_once_the_body_has_ended() -> None:
    scene = Scene()
    scene.stream.write(b"ab")
    scene.stream.write(b"c")
    scene.threads.run()
    assert scene.functions.payloads == []
    scene.stream.end()
    scene.stream.end()
    scene.stream.write(b"late")
    scene.threads.run()
    (payload,) = scene.functions.payloads
    assert b'"body":"YWJj"' in payload
    assert scene.listener.heard == [("response", 200), ("body", b"text"), "end"]
    assert scene.stream.is_closed


def test_stream_given_up_before_its_turn_calls_nothing() -> None:
    scene = Scene()
    scene.stream.end()
    scene.stream.reset()
    scene.threads.run()
    assert scene.functions.payloads == [] and scene.listener.heard == []


@pytest.mark.parametrize(
    ("resets_at", "heard"),
    [("response", [("response", 200)]), ("body", [("response", 200), ("body", b"text")])],
)
def test_listener_that_had_enough_hears_no_more(resets_at: str, heard: list[object]) -> None:
    scene = Scene(resets_at=resets_at)
    scene.stream.end()
    scene.threads.run()
    assert scene.listener.heard == heard


def test_what_no_function_takes_is_not_sent() -> None:
    scene = Scene()
    for _ in range(FUNCTION_BODY_BYTES_MAX // MIB):
        scene.stream.write(bytes(MIB))
    scene.stream.write(b"!")
    scene.stream.end()
    scene.threads.run()
    assert scene.functions.payloads == []
    assert scene.listener.heard == [("response", 413), "end"]


def test_fault_in_the_library_fails_the_call_only() -> None:
    scene = Scene(lambda: bytes(1 // 0))
    scene.stream.end()
    scene.threads.run()
    assert scene.listener.heard == [("failed", "broken")]


def test_closing_closes_what_it_stands_on() -> None:
    scene = Scene()
    scene.caller.close()
    assert scene.threads.is_closed and scene.functions.is_closed
