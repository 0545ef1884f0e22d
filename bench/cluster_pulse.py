"""Clients that ask a cluster without a break, to see for how long it is silent when a node is lost.

Each has an object of its own, so that they are spread over the partitions, and a node that it asks
until that is gone; then it asks the next one, under the same idempotency key. What a client waits
for an answer, tries included, is its pause.
"""

import http.client
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

from bench.processes import BenchFailed

CLIENTS = 8
_PATIENCE_SECONDS = 60.0
_BETWEEN_TRIES_SECONDS = 0.02
# A client that thinks for a moment leaves the processors to the servers.
_BETWEEN_CALLS_SECONDS = 0.02


@dataclass(frozen=True, slots=True)
class _Answered:
    began: float
    ended: float


class Pulse:
    """Use it as a context; ``ports`` are where the nodes serve ingress."""

    def __init__(self, ports: Sequence[int], run: str) -> None:
        self._ports = ports
        self._run = run
        self._over = threading.Event()
        self._answered: list[list[_Answered]] = [[] for _ in range(CLIENTS)]
        self.errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._ask, args=(number,), daemon=True)
            for number in range(CLIENTS)
        ]

    def __enter__(self) -> "Pulse":
        for thread in self._threads:
            thread.start()
        self.wait_answered(time.monotonic())
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def wait_answered(self, since: float) -> float:
        """Wait until each client has the answer to a call that it began after ``since``; the
        longest that one of them waited for an answer from then on, in seconds."""
        deadline = time.monotonic() + _PATIENCE_SECONDS
        while not all(calls and calls[-1].began > since for calls in self._answered):
            if self.errors or time.monotonic() > deadline:
                raise BenchFailed(f"clients are not answered: {self.errors}")
            time.sleep(0.01)
        waits = (
            call.ended - max(call.began, since)
            for calls in self._answered
            for call in calls
            if call.ended > since
        )
        return max(waits)

    def _ask(self, number: int) -> None:
        place, count = number, 0
        connection: http.client.HTTPConnection | None = None
        while not self._over.is_set():
            key, began = f"{self._run}-{number}-{count}", time.monotonic()
            count += 1
            while True:
                port = self._ports[place % len(self._ports)]
                connection = connection or http.client.HTTPConnection(
                    "127.0.0.1", port, timeout=_PATIENCE_SECONDS
                )
                status = _call(connection, number, key)
                if status == 200:
                    break
                connection.close()
                connection = None
                place += 1
                if time.monotonic() - began > _PATIENCE_SECONDS:
                    self.errors.append(f"client {number} had no answer, at last {status}")
                    return
                time.sleep(_BETWEEN_TRIES_SECONDS)
            self._answered[number].append(_Answered(began, time.monotonic()))
            time.sleep(_BETWEEN_CALLS_SECONDS)


def _call(connection: http.client.HTTPConnection, number: int, key: str) -> int:
    """The status of an answer; 0 where there is none."""
    headers = {"content-type": "application/json", "idempotency-key": key}
    try:
        connection.request("POST", f"/Counter/pulse-{number}/add", "1", headers)
        answer = connection.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return 0
    return answer.status
