"""The smallest service there is: one handler that answers at once, for load without an SDK.

Run as ``python -m tests.process.echo_service --port N``. It speaks the service protocol in
request/response mode over the project's own HTTP server: an Output frame and an End frame.
"""

import argparse
import asyncio
import json
import struct

from perdure.core.clock import SystemClock
from perdure.node.http.cores import make_server_core
from perdure.node.http.server import Exchange, HttpServer
from perdure.proto.frames import MessageType

SERVICE = "Echo"
HANDLER = "echo"
RESULT = b'"ok"'

_MANIFEST = {
    "protocolMode": "REQUEST_RESPONSE",
    "minProtocolVersion": 5,
    "maxProtocolVersion": 6,
    "services": [{"name": SERVICE, "ty": "SERVICE", "handlers": [{"name": HANDLER}]}],
}
_MANIFEST_TYPE = b"application/vnd.restate.endpointmanifest.v1+json"


def encode_answer(result: bytes) -> bytes:
    """An OutputCommand (field 14: a Value whose field 1 is the result) and an End."""
    value = b"\x0a" + bytes([len(result)]) + result
    output = b"\x72" + bytes([len(value)]) + value
    return (
        struct.pack(">HHI", MessageType.OUTPUT_COMMAND, 0, len(output))
        + output
        + struct.pack(">HHI", MessageType.END, 0, 0)
    )


class Echo:
    """Answers discovery with the manifest and every attempt with the result."""

    body_bytes_max = 32 * 1024 * 1024

    def __init__(self) -> None:
        self._answer = encode_answer(RESULT)
        self._manifest = json.dumps(_MANIFEST).encode()

    def on_exchange(self, exchange: Exchange) -> None:
        if exchange.target == "/discover":
            exchange.respond(200, [(b"content-type", _MANIFEST_TYPE)], self._manifest)
        else:
            kind = exchange.header(b"content-type") or b""
            exchange.respond(200, [(b"content-type", kind)], self._answer)

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        exchange.respond(413, [])


async def serve(port: int) -> None:
    server = HttpServer(Echo(), lambda version: make_server_core("auto", version), SystemClock())
    await server.listen("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    asyncio.run(serve(parser.parse_args().port))
