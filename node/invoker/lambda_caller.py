"""Requests to AWS Lambda functions, in the shape of request streams.

A function takes a whole request and gives a whole response: the body is collected until it ends,
then the call waits for a thread, and the thread for the function.
"""

from collections.abc import Callable
from typing import Protocol

from perdure.core.limits import FUNCTION_BODY_BYTES_MAX
from perdure.core.offload import Offload
from perdure.core.telemetry import logger
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamFailure, StreamListener
from perdure.node.invoker.aws import Invoked, Refused, Unanswered
from perdure.node.invoker.lambda_payload import (
    BadPayload,
    Response,
    decode_response,
    encode_request,
)
from perdure.node.registry.model import Function

log = logger("lambda")


class Functions(Protocol):
    """Where functions are called (node/invoker/aws.py)."""

    def invoke(self, function: Function, payload: bytes) -> Invoked:
        """Call a function and wait for what it returns; from any thread."""
        ...

    def close(self) -> None: ...


_Outcome = Response | StreamFailure | None


class FunctionStream:
    """One call of a function."""

    http_version = ""

    def __init__(
        self, call: Callable[["FunctionStream", list[bytes]], None], listener: StreamListener
    ) -> None:
        self.listener = listener
        self.is_closed = False
        self._call = call
        self._pieces: list[bytes] = []
        self._size = 0
        self._is_ended = False

    def write(self, data: bytes) -> None:
        """Queue a piece of the request body."""
        if self.is_closed or self._is_ended:
            return
        self._size += len(data)
        if self._size <= FUNCTION_BODY_BYTES_MAX:
            self._pieces.append(data)

    def end(self) -> None:
        """The request is complete: call the function."""
        if self.is_closed or self._is_ended:
            return
        self._is_ended = True
        pieces, self._pieces = self._pieces, []
        if self._size > FUNCTION_BODY_BYTES_MAX:
            pieces = []
        self._call(self, pieces)

    def reset(self) -> None:
        """Give the call up; a function that runs is not stopped by that."""
        self.is_closed = True
        self._pieces.clear()

    def is_writable(self) -> bool:
        return True

    def consumed(self, size: int) -> None:
        pass  # the response is there as a whole

    @property
    def is_too_large(self) -> bool:
        """Whether more was written than a request may hold."""
        return self._size > FUNCTION_BODY_BYTES_MAX

    def deliver(self, outcome: _Outcome) -> None:
        """Tell the listener how the call went. It may close the stream at each step."""
        if self.is_closed or outcome is None:
            return
        if isinstance(outcome, StreamFailure):
            self.is_closed = True
            self.listener.on_failed(outcome)
            return
        self.listener.on_response(outcome.status, outcome.headers)
        if outcome.body and not self.is_closed:
            self.listener.on_body(outcome.body)
        if not self.is_closed:
            self.is_closed = True
            self.listener.on_end()


class FunctionCaller:
    """Opens streams to functions.

    ``compresses_from``: size of a request body from which on it is compressed, for functions that
    take that.
    """

    def __init__(self, functions: Functions, threads: Offload, compresses_from: int) -> None:
        self._functions = functions
        self._threads = threads
        self._compresses_from = compresses_from

    def open(
        self, function: Function, method: str, path: str, headers: Headers, listener: StreamListener
    ) -> FunctionStream:
        """Begin a request; the function is called when the stream's body ends."""
        compresses_from = self._compresses_from if function.compression is not None else None

        def call(stream: FunctionStream, pieces: list[bytes]) -> None:
            if stream.is_too_large:
                self._threads.submit(_too_large, stream.deliver, stream_failed)
                return

            def job() -> _Outcome:
                if stream.is_closed:
                    return None
                try:
                    body = b"".join(pieces)
                    payload = encode_request(method, path, headers, body, compresses_from)
                    return _heard(self._functions.invoke(function, payload))
                except BadPayload as error:
                    return StreamFailure("broken", f"{function.arn}: {error}")

            self._threads.submit(job, stream.deliver, stream_failed)

        def stream_failed(failure: BaseException) -> None:
            # A fault in the library that makes the call ends this call, not the node.
            log.error("lambda.call.failed", arn=function.arn, cause=failure)
            stream.deliver(StreamFailure("broken", f"{function.arn}: {failure!r}"))

        stream = FunctionStream(call, listener)
        return stream

    def close(self) -> None:
        """Call nothing any more; functions that run are not waited for."""
        self._threads.close()
        self._functions.close()


def _heard(invoked: Invoked) -> _Outcome:
    match invoked:
        case Refused(status=status, retry_after=retry_after):
            found = [] if retry_after is None else [(b"retry-after", retry_after.encode())]
            return Response(status, found, b"")
        case Unanswered(message=message, is_reached=is_reached):
            return StreamFailure("broken" if is_reached else "connect", message)
        case bytes():
            return decode_response(invoked)


def _too_large() -> Response:
    return Response(413, [], b"")
