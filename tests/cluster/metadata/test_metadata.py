"""The metadata port: one suite for every backend.

etcd takes part where its server is installed (``apt-get install etcd-server``).
"""

import asyncio
import random
import shutil
from collections.abc import Callable, Generator
from pathlib import Path

import pytest
from tests.cluster.metadata.backends import (
    Backend,
    EtcdBackend,
    EtcdServer,
    LocalBackend,
    Opener,
    RaftBackend,
    SimLocalBackend,
    Store,
)
from tests.sim.registers import Found, Lost, Operation, Wrote, find_violation

from perdure.cluster.metadata.store import Conflict, Versioned
from perdure.core.errors import MetadataTooLarge
from perdure.core.limits import METADATA_KEY_BYTES_MAX, METADATA_VALUE_BYTES_MAX

BACKENDS = ["local", "local on a simulated disk", "raft"]
if shutil.which("etcd") is not None:
    BACKENDS.append("etcd")


@pytest.fixture(scope="module")
def etcd(tmp_path_factory: pytest.TempPathFactory) -> Generator[EtcdServer]:
    server = EtcdServer(tmp_path_factory.mktemp("etcd"))
    yield server
    server.stop()


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest, tmp_path: Path, etcd: EtcdServer) -> Backend:
    match request.param:
        case "local":
            return LocalBackend(tmp_path)
        case "local on a simulated disk":
            return SimLocalBackend()
        case "raft":
            return RaftBackend()
        case _:
            if etcd.process is None:
                etcd.start()
            return EtcdBackend(etcd.endpoint)


async def wait_for(condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds, at most 10 seconds of the loop's time."""
    for _ in range(1_000):
        if condition():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it never came true")


def test_a_register_that_was_never_written_is_absent(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        assert await store.get("cluster") is None
        assert await store.cas("cluster", 1, b"x") == Conflict(None)
        assert await store.get("cluster") is None

    backend.run(test)


def test_versions_start_at_one_and_grow_by_one(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        for version in range(1, 5):
            expected = version - 1 or None
            written = Versioned(version, b"%d" % version)
            assert await store.cas("p/1", expected, written.value) == written
            assert await store.get("p/1") == written

    backend.run(test)


def test_only_the_expected_version_is_replaced(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        await store.cas("p/1", None, b"a")
        await store.cas("p/1", 1, b"b")
        for expected in (None, 1, 3):
            assert await store.cas("p/1", expected, b"c") == Conflict(2)
        assert await store.get("p/1") == Versioned(2, b"b")

    backend.run(test)


def test_registers_are_independent(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        for key in ("p/1", "p/11", "p", "nodes/1"):
            await store.cas(key, None, key.encode())
        for key in ("p/1", "p/11", "p", "nodes/1"):
            assert await store.get(key) == Versioned(1, key.encode())

    backend.run(test)


def test_registers_are_listed_by_prefix(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        assert await store.scan("") == {}
        for key in ("p/1", "p/11", "p", "nodes/1"):
            await store.cas(key, None, key.encode())
        await store.cas("p/1", 1, b"again")
        assert await store.scan("p/") == {
            "p/1": Versioned(2, b"again"),
            "p/11": Versioned(1, b"p/11"),
        }
        assert set(await store.scan("")) == {"p/1", "p/11", "p", "nodes/1"}

    backend.run(test)


def test_values_are_bytes_of_any_kind(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        for version, value in enumerate((b"", bytes(range(256)), b"x" * 100_000)):
            await store.cas("k", version or None, value)
            assert await store.get("k") == Versioned(version + 1, value)

    backend.run(test)


def test_what_is_too_large_is_refused(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        for key, value in (
            ("k", bytes(METADATA_VALUE_BYTES_MAX + 1)),
            ("k" * (METADATA_KEY_BYTES_MAX + 1), b""),
        ):
            with pytest.raises(MetadataTooLarge):
                await store.cas(key, None, value)
        assert await store.scan("") == {}

    backend.run(test)


def test_what_was_written_survives_a_restart(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        await store.cas("p/1", None, b"a")
        await store.cas("p/1", 1, b"b")
        again = await open_store()
        assert await again.get("p/1") == Versioned(2, b"b")
        assert await again.cas("p/1", 2, b"c") == Versioned(3, b"c")

    backend.run(test)


def test_watchers_are_told_of_their_prefix(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        heard: list[str] = []
        forget = store.watch("p/", heard.append)
        await store.cas("p/1", None, b"a")
        await store.cas("nodes/1", None, b"a")
        await store.cas("p/2", None, b"a")
        await store.cas("p/2", 7, b"never")
        await wait_for(lambda: set(heard) == {"p/1", "p/2"})
        forget()
        forget()
        others: list[str] = []
        store.watch("", others.append)
        await store.cas("p/3", None, b"a")
        await wait_for(lambda: "p/3" in others)
        assert set(heard) == {"p/1", "p/2"}

    backend.run(test)


def test_concurrent_writers_lose_no_update(backend: Backend) -> None:
    async def add(store: Store) -> None:
        for _ in range(20):
            while True:
                found = await store.get("counter")
                count = int(found.value) if found else 0
                await asyncio.sleep(0)
                expected = found.version if found else None
                if isinstance(await store.cas("counter", expected, b"%d" % (count + 1)), Versioned):
                    break

    async def test(open_store: Opener) -> None:
        store = await open_store()
        await asyncio.gather(*(add(store) for _ in range(5)))
        assert await store.get("counter") == Versioned(100, b"100")

    backend.run(test)


async def live(store: Store, number: int, dice: random.Random, history: list[Operation]) -> None:
    """Read and write at random, and note what was answered when."""
    loop = asyncio.get_running_loop()
    known: dict[str, int | None] = {}
    for turn in range(30):
        key = dice.choice("ab")
        operation = Operation(key, loop.time())
        history.append(operation)
        if dice.random() < 0.4:
            found = await store.get(key)
            operation.answer = Found((found.version, found.value) if found else None)
            known[key] = found.version if found else None
        else:
            operation.expected, operation.value = known.get(key), b"%d.%d" % (number, turn)
            match await store.cas(key, operation.expected, operation.value):
                case Versioned(version, _):
                    operation.answer, known[key] = Wrote(version), version
                case Conflict(version):
                    operation.answer, known[key] = Lost(version), version
                case _:
                    continue
        operation.answered = loop.time()


def test_concurrent_clients_see_one_register_each(backend: Backend) -> None:
    async def test(open_store: Opener) -> None:
        store = await open_store()
        history: list[Operation] = []
        await asyncio.gather(
            *(live(store, number, random.Random(number), history) for number in range(4))
        )
        assert find_violation(history) is None
        assert sum(isinstance(operation.answer, Wrote) for operation in history) > 20

    backend.run(test)
