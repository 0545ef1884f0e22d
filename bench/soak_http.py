"""Does an HTTP core survive a million streams? ``python -m bench.soak_http [streams] [core]``.

Client and server, a process each, over loopback, HTTP/2; connections are retired on the way as in
production. Says requests per second, CPU and memory of the server, and fails unless every single
request was answered.
"""

import asyncio
import resource
import sys
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection

import uvloop

from bench.loadgen import Load, drive
from perdure.core.clock import SystemClock
from perdure.node.http.cores import make_server_core
from perdure.node.http.server import Exchange, HttpServer

STREAMS = 1_000_000
ROUNDS = 10


class _Echo:
    body_bytes_max = 1024 * 1024

    def on_exchange(self, exchange: Exchange) -> None:
        exchange.respond(200, [(b"content-type", b"application/json")], exchange.body)

    def on_oversize(self, exchange: Exchange, is_declared: bool) -> None:
        exchange.respond(413, [])


def serve_echo(pipe: Connection, core: str) -> None:
    """Serve until the parent says anything; answers with (CPU seconds, RSS KiB) each time."""

    async def main() -> None:
        server = HttpServer(_Echo(), partial(make_server_core, core), SystemClock())
        pipe.send(await server.listen("127.0.0.1", 0))
        is_stopped = asyncio.Event()

        def on_word() -> None:
            word = pipe.recv()
            usage = resource.getrusage(resource.RUSAGE_SELF)
            pipe.send((usage.ru_utime + usage.ru_stime, usage.ru_maxrss))
            if word == "stop":
                is_stopped.set()

        asyncio.get_running_loop().add_reader(pipe.fileno(), on_word)
        await is_stopped.wait()
        asyncio.get_running_loop().remove_reader(pipe.fileno())
        await server.aclose(1.0)

    uvloop.run(main())


def soak(streams: int, core: str, http_version: str = "HTTP/2.0") -> bool:
    """Put the streams through; whether every one was answered."""
    ours, theirs = get_context("spawn").Pipe()
    process = get_context("spawn").Process(target=serve_echo, args=(theirs, core))
    process.start()
    port = ours.recv()
    failures = 0
    for round_ in range(ROUNDS):
        ours.send("usage")
        before, _ = ours.recv()
        count = streams // ROUNDS
        load = Load(port, "/echo", b'"hello"', count, 64, http_version, core)
        outcome = drive(load)
        ours.send("usage")
        cpu, memory = ours.recv()
        failures += outcome.failures
        print(
            f"{core} {http_version} {(round_ + 1) * count:>9,} streams: "
            f"{count / outcome.seconds:,.0f}/s, server {(cpu - before) / count * 1e6:.1f} us each, "
            f"server peak {memory / 1024:.0f} MiB, {failures} not answered",
            flush=True,
        )
    ours.send("stop")
    process.join()
    return failures == 0


if __name__ == "__main__":
    asked = int(sys.argv[1]) if len(sys.argv) > 1 else STREAMS
    name = sys.argv[2] if len(sys.argv) > 2 else "zttp"
    sys.exit(0 if soak(asked, name) else 1)
