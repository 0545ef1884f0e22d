"""An HTTP front end for systems that have none: the paths of an ingress, served by hypercorn."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from hypercorn.asyncio import serve  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config

Caller = Callable[[str, Any, bool], Awaitable[Any]]
"""Handler, argument, whether to wait for the result (else only until it is durable)."""


def make_app(call: Caller) -> Any:
    """An ASGI application over ``POST /Bench/<handler>[/send]``."""

    async def app(
        scope: Any, receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
    ) -> None:
        if scope["type"] != "http":
            return
        parts = scope["path"].split("/")[1:]
        body, status = b"", 200
        while (event := await receive())["type"] == "http.request":
            body += event["body"]
            if not event.get("more_body"):
                break
        if parts[0] == "Bench":
            waits = parts[-1] != "send"
            answer = json.dumps(await call(parts[1], json.loads(body), waits)).encode()
        else:
            answer = b"{}"
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


async def run(call: Caller, port: int) -> None:
    config = Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.keep_alive_max_requests = sys.maxsize
    config.loglevel = "ERROR"
    await serve(make_app(call), config, shutdown_trigger=asyncio.Event().wait)
