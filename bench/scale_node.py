"""A node without its HTTP: the host as in production over a service that answers at once.

For filling tables fast, and for looking at log, engine and tables alone. Handlers: ``echo`` ends
with its input's twin, ``sleep`` suspends for a century.
"""

import asyncio
import json
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from time import perf_counter

from perdure.cluster.metadata.local import LocalMetadata
from perdure.core.clock import SystemClock
from perdure.core.entropy import SystemEntropy, ulid
from perdure.core.errors import PerdureError
from perdure.core.ids import InvocationId, PartitionId, make_invocation_id, partition_key_of
from perdure.core.offload import ThreadOffload
from perdure.engine.actions import Outcome
from perdure.engine.commands import Invoke
from perdure.engine.notifications import input_entry
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamListener
from perdure.node.identity import establish
from perdure.node.partition.host import Host
from perdure.node.partition.ports import HostOptions, HostPorts
from perdure.node.registry.effective import Defaults, Route
from perdure.node.registry.evolve import Candidate, register
from perdure.node.registry.manifest import parse_manifest
from perdure.node.registry.store import RegistryStore
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType, encode_frame
from perdure.storage.data_directory import PARTITIONS_FOLDER, lock_folder, open_disk
from perdure.storage.env import Env, LmdbEnv
from perdure.storage.tables.invocations import HandlerKind, Result, Source, SourceKind, Target

CLUSTER, NODE = "scale", "n1"
SERVICE = "Scale"
PARTITIONS = 8
DAY_MS = 24 * 3600 * 1000
CENTURY_MS = 36_500 * DAY_MS
RESULT = b'"%s"' % (b"r" * 62)
"""64 bytes, as long as the input."""

_MANIFEST = {
    "protocolMode": "BIDI_STREAM",
    "minProtocolVersion": 5,
    "maxProtocolVersion": 5,
    "services": [
        {"name": SERVICE, "ty": "SERVICE", "handlers": [{"name": "echo"}, {"name": "sleep"}]}
    ],
}
_INPUT = input_entry([], RESULT)


class ShiftedClock(SystemClock):
    """The machine's clock, ``shift_ms`` ahead."""

    def __init__(self, shift_ms: int) -> None:
        self.shift_ms = shift_ms

    def now_ms(self) -> int:
        return super().now_ms() + self.shift_ms


class InstantService:
    """Opens attempts that are answered in the next turn of the loop."""

    def __init__(self) -> None:
        value = pb.OutputCommandMessage(value=pb.Value(content=RESULT))
        echo = encode_frame(MessageType.OUTPUT_COMMAND, value.SerializeToString())
        nap = pb.SleepCommandMessage(wake_up_time=2 * CENTURY_MS, result_completion_id=1)
        sleep = encode_frame(MessageType.SLEEP_COMMAND, nap.SerializeToString())
        suspension = pb.SuspensionMessage(waiting_completions=[1])
        self._answers = {
            f"/invoke/{SERVICE}/echo": echo + encode_frame(MessageType.END, b""),
            f"/invoke/{SERVICE}/sleep": sleep
            + encode_frame(MessageType.SUSPENSION, suspension.SerializeToString()),
        }

    def open(
        self, route: Route, path: str, headers: Headers, listener: StreamListener
    ) -> "_InstantStream":
        return _InstantStream(self._answers[path], dict(headers)[b"content-type"], listener)


class _InstantStream:
    def __init__(self, answer: bytes, content_type: bytes, listener: StreamListener) -> None:
        self._answer = answer
        self._content_type = content_type
        self._listener = listener
        self._is_closed = False
        asyncio.get_running_loop().call_soon(self._respond)

    def write(self, data: bytes) -> None:
        pass

    def end(self) -> None:
        pass

    def reset(self) -> None:
        self._is_closed = True

    def is_writable(self) -> bool:
        return True

    def consumed(self, size: int) -> None:
        pass

    def _respond(self) -> None:
        if self._is_closed:
            return
        self._listener.on_response(200, [(b"content-type", self._content_type)])
        self._listener.on_body(self._answer)
        if not self._is_closed:
            self._listener.on_end()


@asynccontextmanager
async def running(folder: Path, clock: SystemClock) -> AsyncGenerator[Host]:
    """A host over ``folder``, laid out as a node's data directory."""
    root = folder / NODE
    lock = lock_folder(root)
    disk = open_disk(root)
    metadata, entropy = LocalMetadata(disk), SystemEntropy()
    identity = await establish(disk, metadata, entropy, (CLUSTER, NODE), PARTITIONS)
    candidate = Candidate(
        id="dp_scale",
        uri="http://127.0.0.1:9080",
        http_version="HTTP/2.0",
        discovered=parse_manifest(json.dumps(_MANIFEST).encode(), None),
        headers={},
        metadata={},
        created_at_ms=0,
        allows_breaking=False,
        overwrites=False,
    )
    registry = RegistryStore(metadata, Defaults())
    await registry.load()
    await registry.change(lambda known: register(known, candidate).registry)

    def open_env(partition: PartitionId) -> Env:
        name = f"{PARTITIONS_FOLDER}/{partition}"
        disk.make_folder(name)
        return LmdbEnv(disk.root / name)

    def on_failure(error: BaseException) -> None:
        raise SystemExit(f"the node failed: {error!r}")

    ports = HostPorts(
        disk=disk,
        open_env=open_env,
        metadata=metadata,
        clock=clock,
        entropy=entropy,
        log_thread=ThreadOffload("log"),
        housekeeping_thread=ThreadOffload("housekeeping"),
        storage_thread=ThreadOffload("storage"),
        caller=InstantService(),
        catalogue=lambda: registry.catalogue,
        on_failure=on_failure,
    )
    host = Host(identity, ports, HostOptions(slots=1_000, software="bench"))
    await host.open()
    try:
        yield host
    finally:
        await host.close()
        lock.release()


class Driver:
    """Keeps a number of invocations under way.

    ``derived``: their ids are hashes, as under idempotency keys; else they begin with the time.
    """

    def __init__(self, host: Host, clock: SystemClock, seed: int, derived: bool = False) -> None:
        self._host = host
        self._clock = clock
        self._entropy = SystemEntropy()
        self._dice = random.Random(seed)
        self._derived = derived

    def next_id(self) -> InvocationId:
        uuid = (
            self._dice.getrandbits(128)
            if self._derived
            else ulid(self._clock.now_ms(), self._entropy)
        )
        return make_invocation_id(self._dice.getrandbits(64), uuid)

    async def call(self, handler: str, invocation: InvocationId) -> float:
        """One invocation from its acceptance to its result; seconds."""
        done = asyncio.get_running_loop().create_future()
        started = perf_counter()
        self._invoke(handler, invocation, 0, lambda: done.set_result(None), waits=True)
        await done
        return perf_counter() - started

    async def run(
        self,
        handler: str,
        count: int,
        *,
        concurrency: int = 256,
        delay_ms: int = 0,
        waits: bool = True,
        on_id: Callable[[InvocationId], None] = lambda _: None,
    ) -> None:
        """``count`` invocations, accepted and, if ``waits``, ended."""
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        begun = ended = 0

        def begin() -> None:
            nonlocal begun
            begun += 1
            invocation = self.next_id()
            on_id(invocation)
            at_ms = self._clock.now_ms() + delay_ms if delay_ms else 0
            self._invoke(handler, invocation, at_ms, over, waits=waits)

        def over() -> None:
            nonlocal ended
            ended += 1
            if ended == count:
                done.set_result(None)
            elif begun < count:
                begin()

        for _ in range(min(concurrency, count)):
            begin()
        await done

    def _invoke(
        self,
        handler: str,
        invocation: InvocationId,
        execute_at_ms: int,
        over: Callable[[], None],
        *,
        waits: bool,
    ) -> None:
        command = Invoke(
            id=invocation,
            target=Target(SERVICE, handler, None, HandlerKind.SERVICE),
            source=Source(SourceKind.INGRESS),
            sink=None,
            execute_at_ms=execute_at_ms,
            idempotency_key=None,
            completion_retention_ms=DAY_MS,
            journal_retention_ms=DAY_MS,
            input=_INPUT,
        )

        def on_end(result: Result | PerdureError) -> None:
            if isinstance(result, PerdureError):
                raise result
            over()

        def on_applied(outcome: Outcome) -> None:
            if waits:
                self._host.gateway.wait(invocation, on_end)
            else:
                over()

        def on_lost(error: PerdureError) -> None:
            raise error

        key = partition_key_of(invocation)
        self._host.gateway.propose(command, key, on_applied, on_lost)
