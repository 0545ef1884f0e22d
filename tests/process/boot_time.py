"""How long a boot takes after a crash, with many completed invocations on disk.

``python -m tests.process.boot_time --invocations 100000`` loads them through the ingress, kills the
server and measures from the start of the next one to healthy and to the first result.
"""

import argparse
import asyncio
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from tests.process.calls import request
from tests.process.echo_service import HANDLER, RESULT, SERVICE
from tests.process.processes import ManagedProcess, ServerProcess, free_port, wait_listening

_CONNECTIONS = 64
_SAMPLES_EVERY = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BootFigures:
    """Seconds, but for the counts."""

    invocations: int
    load_seconds: float
    healthy_seconds: float
    first_result_seconds: float
    data_mib: float


class Loader(asyncio.Protocol):
    """One keep-alive connection that calls, waits for the answer, and calls again."""

    def __init__(self, port: int, load: "Load") -> None:
        self._load = load
        self._request = (
            f"POST /{SERVICE}/{HANDLER} HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
            "content-type: application/json\r\ncontent-length: 2\r\n\r\n{}"
        ).encode()
        self._transport: asyncio.Transport
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._next()

    def data_received(self, data: bytes) -> None:
        self._received += data
        if not self._received.endswith(b"\r\n\r\n" + RESULT):
            return
        head, self._received = self._received, b""
        self._load.on_answer(head)
        self._next()

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.on_lost(exc)

    def _next(self) -> None:
        if self._load.try_take():
            self._transport.write(self._request)
        else:
            self._transport.close()


class Load:
    """How many calls are left, and the ids of some that were answered."""

    def __init__(self, count: int) -> None:
        self._left = self._unanswered = count
        self._answered = 0
        self.samples: list[str] = []
        self.done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def try_take(self) -> bool:
        if self._left == 0:
            return False
        self._left -= 1
        return True

    def on_answer(self, head: bytes) -> None:
        if not head.startswith(b"HTTP/1.1 200"):
            self.done.set_exception(AssertionError(f"a call was answered {head!r}"))
            return
        if self._answered % _SAMPLES_EVERY == 0:
            fields = head.lower().split(b"\r\n")
            line = next(field for field in fields if field.startswith(b"x-restate-id:"))
            position = head.lower().index(line) + len(b"x-restate-id:")
            self.samples.append(head[position : position + len(line)].split()[0].decode())
        self._answered += 1
        self._unanswered -= 1
        if self._unanswered == 0:
            self.done.set_result(None)

    def on_lost(self, error: Exception | None) -> None:
        if self._left and not self.done.done():
            self.done.set_exception(AssertionError(f"the server closed a connection: {error}"))


async def measure(folder: Path, invocations: int) -> BootFigures:
    """Load, kill, boot, and look that some of the results are there."""
    server = ServerProcess(folder)
    port = free_port()
    module = [sys.executable, "-m", "tests.process.echo_service"]
    service = ManagedProcess("echo", [*module, "--port", str(port)], folder / "echo.log")
    try:
        service.start()
        server.start()
        await wait_listening(service, port)
        await server.wait_healthy()
        await server.register(port)
        started = time.monotonic()
        samples = await load(server, invocations)
        loaded = time.monotonic()
        server.kill()
        size = sum(path.stat().st_blocks * 512 for path in server.data.rglob("*"))
        booted = time.monotonic()
        server.start()
        await server.wait_healthy()
        healthy = time.monotonic()
        answer = await request(server.ingress_port, "POST", f"/{SERVICE}/{HANDLER}", b"{}", JSON)
        first = time.monotonic()
        assert answer.body == RESULT, answer
        for invocation in samples:
            path = f"/restate/invocation/{invocation}/attach"
            answer = await request(server.ingress_port, "GET", path)
            assert (answer.status, answer.body) == (200, RESULT), (invocation, answer)
        assert server.terminate() == 0
    finally:
        server.close()
        service.close()
    return BootFigures(
        invocations=invocations,
        load_seconds=loaded - started,
        healthy_seconds=healthy - booted,
        first_result_seconds=first - booted,
        data_mib=size / 1024 / 1024,
    )


JSON = {"content-type": "application/json"}


async def load(server: ServerProcess, count: int) -> list[str]:
    """Have ``count`` invocations completed; returns the ids of some."""
    work = Load(count)
    loop = asyncio.get_running_loop()
    port = server.ingress_port
    for _ in range(_CONNECTIONS):
        await loop.create_connection(lambda: Loader(port, work), "127.0.0.1", port)
    await work.done
    return work.samples


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--invocations", type=int, default=100_000)
    arguments = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="perdure-boot-"))
    print(asyncio.run(measure(folder, arguments.invocations)))


if __name__ == "__main__":
    main()
