"""Serves the examples with hypercorn: HTTP/2 without TLS, on ``HOST`` and ``PORT`` (9080)."""

import asyncio
import os
from collections.abc import Iterable
from typing import cast

import restate
from hypercorn.asyncio import serve as serve_asgi  # pyright: ignore[reportUnknownVariableType]
from hypercorn.config import Config
from hypercorn.typing import ASGIFramework


def serve(services: Iterable[restate.Service | restate.VirtualObject | restate.Workflow]) -> None:
    """Serve until interrupted."""
    config = Config()
    host, port = os.environ.get("HOST", "127.0.0.1"), os.environ.get("PORT", "9080")
    config.bind = [f"{host}:{port}"]
    # The server keeps its connections; hypercorn would close each after 1,000 requests.
    config.keep_alive_max_requests = 1_000_000
    app = cast(ASGIFramework, restate.app(services))
    asyncio.run(serve_asgi(app, config))
