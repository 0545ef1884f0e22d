"""Services of the official SDK as an AWS Lambda function, and a stand-in for its invoke API."""

import asyncio
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import restate
from restate.aws_lambda import wrap_asgi_as_lambda_handler

greeter = restate.Service("FunctionGreeter")
counter = restate.VirtualObject("FunctionCounter")


@greeter.handler()
async def greet(ctx: restate.Context, name: str) -> str:
    word = await ctx.run_typed("word", lambda: "hello")
    await ctx.sleep(timedelta(milliseconds=10))
    count = await ctx.object_call(add, key=name, arg=1)
    return f"{word} {name}, {count}"


@greeter.handler()
async def echo(ctx: restate.Context, text: str) -> str:
    return text


@counter.handler()
async def add(ctx: restate.ObjectContext, amount: int) -> int:
    total = (await ctx.get("total", type_hint=int) or 0) + amount
    ctx.set("total", total)
    return total


def handler(identity_keys: list[str] | None = None) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """The SDK's handler; each call stands for an instance of its own."""
    application: Any = restate.app([greeter, counter], "request_response", identity_keys)

    def invoke(event: dict[str, Any]) -> dict[str, Any]:
        # Makes an event loop for the thread that it is called in.
        wrapped: Any = wrap_asgi_as_lambda_handler(application)
        try:
            found: dict[str, Any] = wrapped(event, None)
        finally:
            asyncio.get_event_loop().close()
        return found

    return invoke


@dataclass
class Call:
    """An invocation of a function as it came in."""

    function: str
    qualifier: str | None
    headers: dict[str, str]
    event: dict[str, Any]


@dataclass
class Reply:
    """What the API answers instead of the function."""

    status: int
    body: bytes
    headers: dict[str, str] = field(default_factory=dict[str, str])


Answer = Callable[[dict[str, Any]], "dict[str, Any] | Reply"]


class LambdaApi:
    """Speaks Lambda's invoke API; functions are known by name, ``calls`` is what came."""

    def __init__(self) -> None:
        self.functions: dict[str, Answer] = {}
        self.calls: list[Call] = []
        self.encodings: set[str] = set()
        self.roles: list[dict[str, str]] = []
        api = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", "0")))
                sent = {name.lower(): value for name, value in self.headers.items()}
                reply = api.serve(self.path, sent, body)
                self.send_response(reply.status)
                for name, value in reply.headers.items():
                    self.send_header(name, value)
                self.send_header("content-length", str(len(reply.body)))
                self.end_headers()
                self.wfile.write(reply.body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def serve(self, target: str, headers: dict[str, str], body: bytes) -> Reply:
        """One request: the path names the function, and the query, or the ARN, its version."""
        if target == "/":
            return self._assume(body)
        parts = urlsplit(target)
        words = [unquote(word) for word in parts.path.split("/")]
        assert words[1:3] == ["2015-03-31", "functions"], target
        assert words[4:] == ["invocations"], target
        assert headers.get("authorization", "").startswith("AWS4-HMAC-SHA256 "), headers
        event: dict[str, Any] = json.loads(body)
        qualifier = parts.query.removeprefix("Qualifier=") or None
        self.calls.append(Call(words[3], qualifier, headers, event))
        arn = words[3].split(":")
        name = arn[6] if len(arn) > 6 else arn[0]
        function = self.functions.get(name)
        if function is None:
            return failure(404, "ResourceNotFoundException", f"Function not found: {words[3]}")
        answered = function(event)
        if isinstance(answered, Reply):
            return answered
        fields: dict[str, str] = answered.get("headers") or {}
        self.encodings.add(fields.get("content-encoding", "identity"))
        return Reply(200, json.dumps(answered).encode())

    def _assume(self, body: bytes) -> Reply:
        """The token service's AssumeRole."""
        asked = dict(parse_qsl(body.decode()))
        assert asked["Action"] == "AssumeRole"
        self.roles.append(asked)
        return Reply(200, _ASSUMED.encode(), {"content-type": "text/xml"})


_ASSUMED = """<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult>
<Credentials><AccessKeyId>of-the-role</AccessKeyId><SecretAccessKey>x</SecretAccessKey>
<SessionToken>t</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials>
</AssumeRoleResult></AssumeRoleResponse>"""


def failure(status: int, kind: str, message: str, headers: dict[str, str] | None = None) -> Reply:
    """An error of the API itself."""
    body = json.dumps({"Type": "User", "Message": message}).encode()
    found = {"content-type": "application/json", "x-amzn-ErrorType": kind, **(headers or {})}
    return Reply(status, body, found)


def crash(kind: str, message: str) -> Reply:
    """What the API answers when the function itself failed."""
    body = json.dumps({"errorType": kind, "errorMessage": message}).encode()
    return Reply(200, body, {"X-Amz-Function-Error": "Unhandled"})
