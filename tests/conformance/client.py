"""A plain HTTP client for the ingress and the admin API: stdlib only, one connection per request.

The suite talks to a server through this file and nothing else, so that what a test sees is what any
HTTP client sees.
"""

import http.client
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from urllib.parse import quote, urlsplit

T = TypeVar("T")

REQUEST_TIMEOUT_S = 60.0
CONDITION_TIMEOUT_S = 20.0
_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Response:
    """An answer read to its end; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def invocation_id(self) -> str:
        return self.headers["x-restate-id"]


@dataclass(frozen=True, slots=True)
class Options:
    """What a request to a handler may carry besides its body."""

    key: str | None = None
    idempotency_key: str | None = None
    delay: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])


class Http:
    """Requests to one origin."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._authority = urlsplit(url).netloc

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Response:
        connection = http.client.HTTPConnection(self._authority, timeout=REQUEST_TIMEOUT_S)
        try:
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            names = {name.lower(): value for name, value in answer.getheaders()}
            return Response(answer.status, names, answer.read())
        finally:
            connection.close()

    def get(self, path: str) -> Response:
        return self.request("GET", path)

    def send_json(self, method: str, path: str, body: object) -> Response:
        content = json.dumps(body).encode()
        return self.request(method, path, content, {"content-type": "application/json"})


class Ingress(Http):
    """Calls, sends and the reserved routes of the ingress."""

    def call(
        self, service: str, handler: str, body: object = None, options: Options | None = None
    ) -> Response:
        """Call with a JSON body (none for ``None``, raw for ``bytes``) and wait for the result."""
        return self._invoke(service, handler, body, options or Options(), "")

    def send(
        self, service: str, handler: str, body: object = None, options: Options | None = None
    ) -> Response:
        return self._invoke(service, handler, body, options or Options(), "/send")

    def attach(self, invocation_id: str) -> Response:
        return self.get(f"/restate/invocation/{invocation_id}/attach")

    def output(self, invocation_id: str) -> Response:
        return self.get(f"/restate/invocation/{invocation_id}/output")

    def resolve(self, awakeable_id: str, value: object) -> Response:
        return self.send_json("POST", f"/restate/awakeables/{awakeable_id}/resolve", value)

    def reject(self, awakeable_id: str, reason: str) -> Response:
        return self.request("POST", f"/restate/awakeables/{awakeable_id}/reject", reason.encode())

    def _invoke(
        self, service: str, handler: str, body: object, options: Options, suffix: str
    ) -> Response:
        key = "" if options.key is None else f"/{quote(options.key, safe='')}"
        path = f"/{service}{key}/{handler}{suffix}"
        if options.delay is not None:
            path += f"?delay={quote(options.delay)}"
        headers = dict(options.headers)
        if options.idempotency_key is not None:
            headers["idempotency-key"] = options.idempotency_key
        if isinstance(body, bytes):
            headers.setdefault("content-type", "application/octet-stream")
            return self.request("POST", path, body, headers)
        if body is None:
            return self.request("POST", path, None, headers)
        headers.setdefault("content-type", "application/json")
        return self.request("POST", path, json.dumps(body).encode(), headers)


class Admin(Http):
    """The few admin operations the suite needs."""

    def register(self, uri: str, *, use_http_11: bool = False, force: bool = False) -> Response:
        body = {"uri": uri, "use_http_11": use_http_11, "force": force}
        return self.send_json("POST", "/deployments", body)

    def cancel(self, invocation_id: str) -> Response:
        return self.request("PATCH", f"/invocations/{invocation_id}/cancel")

    def kill(self, invocation_id: str) -> Response:
        return self.request("PATCH", f"/invocations/{invocation_id}/kill")

    def pause(self, invocation_id: str) -> Response:
        return self.request("PATCH", f"/invocations/{invocation_id}/pause")

    def resume(self, invocation_id: str) -> Response:
        return self.request("PATCH", f"/invocations/{invocation_id}/resume")

    def purge(self, invocation_id: str) -> Response:
        return self.request("PATCH", f"/invocations/{invocation_id}/purge")

    def query(self, sql: str) -> list[dict[str, Any]]:
        """The rows that SQL gives."""
        headers = {"content-type": "application/json", "accept": "application/json"}
        answer = self.request("POST", "/query", json.dumps({"query": sql}).encode(), headers)
        assert answer.status == 200, answer.body
        return list(answer.json()["rows"])

    def status(self, invocation_id: str) -> str:
        """The status that SQL shows; ``absent`` when there is no such invocation."""
        rows = self.query(f"select status from sys_invocation where id = '{invocation_id}'")
        return str(rows[0]["status"]) if rows else "absent"

    def await_status(self, invocation_id: str, status: str) -> None:
        what = f"{invocation_id} is {status}"
        wait_until(lambda: self.status(invocation_id) == status, what)


def wait_until(
    probe: Callable[[], T | None], what: str, timeout_s: float = CONDITION_TIMEOUT_S
) -> T:
    """Ask ``probe`` until it gives something, at most ``timeout_s``.

    Raises:
        AssertionError: it did not; the message says ``what`` was awaited.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        found = probe()
        if found is not None and found is not False:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {timeout_s} s: {what}")
        time.sleep(_POLL_S)
