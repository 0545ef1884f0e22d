"""The metadata port: one suite for every backend, then what is the local one's own."""

import asyncio
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.disk import SimDisk

from perdure.cluster.metadata.local import FOLDER, LocalMetadata
from perdure.cluster.metadata.store import Conflict, MetadataStore, Versioned
from perdure.core.errors import DataDirectoryDamaged, DiskFull
from perdure.core.invariant import InvariantViolation
from perdure.storage.disk import OsDisk

Opener = Callable[[], MetadataStore]
"""Opens the same registers again, as another process life would."""


@pytest.fixture(params=["local", "local on a simulated disk"])
def opener(request: pytest.FixtureRequest, tmp_path: Path) -> Opener:
    if request.param == "local":
        return lambda: LocalMetadata(OsDisk(tmp_path))
    disk = SimDisk(random.Random(1))
    return lambda: LocalMetadata(disk)


def test_a_register_that_was_never_written_is_absent(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        assert await store.get("cluster") is None
        assert await store.cas("cluster", 1, b"x") == Conflict(None)
        assert await store.get("cluster") is None

    asyncio.run(main())


def test_versions_start_at_one_and_grow_by_one(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        for version in range(1, 5):
            expected = version - 1 or None
            written = Versioned(version, b"%d" % version)
            assert await store.cas("p/1", expected, written.value) == written
            assert await store.get("p/1") == written

    asyncio.run(main())


def test_only_the_expected_version_is_replaced(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        await store.cas("p/1", None, b"a")
        await store.cas("p/1", 1, b"b")
        for expected in (None, 1, 3):
            assert await store.cas("p/1", expected, b"c") == Conflict(2)
        assert await store.get("p/1") == Versioned(2, b"b")

    asyncio.run(main())


def test_registers_are_independent(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        for key in ("p/1", "p/11", "p", "nodes/1"):
            await store.cas(key, None, key.encode())
        for key in ("p/1", "p/11", "p", "nodes/1"):
            assert await store.get(key) == Versioned(1, key.encode())

    asyncio.run(main())


def test_values_are_bytes_of_any_kind(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        for version, value in enumerate((b"", bytes(range(256)), b"x" * 100_000)):
            await store.cas("k", version or None, value)
            assert await store.get("k") == Versioned(version + 1, value)

    asyncio.run(main())


def test_what_was_written_survives_a_restart(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        await store.cas("p/1", None, b"a")
        await store.cas("p/1", 1, b"b")
        again = opener()
        assert await again.get("p/1") == Versioned(2, b"b")
        assert await again.cas("p/1", 2, b"c") == Versioned(3, b"c")

    asyncio.run(main())


def test_watchers_are_told_of_their_prefix(opener: Opener) -> None:
    async def main() -> None:
        store = opener()
        heard: list[str] = []
        forget = store.watch("p/", heard.append)
        await store.cas("p/1", None, b"a")
        await store.cas("nodes/1", None, b"a")
        await store.cas("p/2", None, b"a")
        await store.cas("p/2", 7, b"never")
        assert [key for key in heard if key == "p/1"] != []
        assert set(heard) == {"p/1", "p/2"}
        forget()
        forget()
        await store.cas("p/3", None, b"a")
        assert set(heard) == {"p/1", "p/2"}

    asyncio.run(main())


def test_concurrent_writers_lose_no_update(opener: Opener) -> None:
    async def add(store: MetadataStore) -> None:
        for _ in range(20):
            while True:
                found = await store.get("counter")
                count = int(found.value) if found else 0
                await asyncio.sleep(0)
                expected = found.version if found else None
                if isinstance(await store.cas("counter", expected, b"%d" % (count + 1)), Versioned):
                    break

    async def main() -> None:
        store = opener()
        await asyncio.gather(*(add(store) for _ in range(5)))
        assert await store.get("counter") == Versioned(100, b"100")

    asyncio.run(main())


STEPS = st.lists(
    st.tuples(st.sampled_from("ab"), st.none() | st.integers(1, 5), st.binary(max_size=3)),
    max_size=30,
)


@given(STEPS)
@settings(deadline=None)
def test_the_local_store_agrees_with_a_dictionary(
    steps: list[tuple[str, int | None, bytes]],
) -> None:
    async def main() -> None:
        disk = SimDisk(random.Random(1))
        model: dict[str, Versioned] = {}
        for key, expected, value in steps:
            store = LocalMetadata(disk)
            known = model.get(key)
            outcome = await store.cas(key, expected, value)
            if expected == (known.version if known else None):
                model[key] = Versioned((known.version if known else 0) + 1, value)
                assert outcome == model[key]
            else:
                assert outcome == Conflict(known.version if known else None)
            for name in "ab":
                assert await store.get(name) == model.get(name)

    asyncio.run(main())


# --- The local store's own ------------------------------------------------------------------------


def test_a_write_is_whole_or_not_at_all_after_a_power_loss() -> None:
    async def main() -> None:
        seen: set[bytes] = set()
        for step in range(1, 12):
            for seed in range(8):
                disk = SimDisk(random.Random(seed))
                store = LocalMetadata(disk)
                await store.cas("p/1", None, b"old")
                disk.power_loss_at = disk.steps + step
                done = False
                try:
                    await store.cas("p/1", 1, b"new")
                    done = True
                except SystemExit:
                    pass
                disk.lose_power()
                found = await LocalMetadata(disk).get("p/1")
                assert found is not None
                assert found.value == b"new" or not done
                seen.add(found.value)
        assert seen == {b"old", b"new"}

    asyncio.run(main())


def test_every_changed_byte_is_refused(tmp_path: Path) -> None:
    disk = OsDisk(tmp_path)

    async def main() -> None:
        await LocalMetadata(disk).cas("nodes/1", None, b"value")
        path = tmp_path / FOLDER / "nodes.1"
        content = path.read_bytes()
        for position in range(len(content)):
            changed = bytearray(content)
            changed[position] ^= 0x20
            path.write_bytes(bytes(changed))
            with pytest.raises(DataDirectoryDamaged, match=r"metadata/nodes\.1"):
                LocalMetadata(disk)
        path.write_bytes(content[:10])
        with pytest.raises(DataDirectoryDamaged):
            LocalMetadata(disk)

    asyncio.run(main())


def test_a_full_disk_changes_nothing() -> None:
    async def main() -> None:
        disk = SimDisk(random.Random(1))
        store = LocalMetadata(disk)
        await store.cas("p/1", None, b"a")
        disk.capacity -= disk.free_bytes()
        with pytest.raises(DiskFull):
            await store.cas("p/1", 1, b"b")
        assert await store.get("p/1") == Versioned(1, b"a")
        disk.capacity = 1 << 30
        assert await store.cas("p/1", 1, b"b") == Versioned(2, b"b")

    asyncio.run(main())


def test_nothing_is_said_after_a_failed_sync() -> None:
    async def main() -> None:
        disk = SimDisk(random.Random(1))
        store = LocalMetadata(disk)
        await store.cas("p/1", None, b"a")
        disk.sync_failure_at = 0
        with pytest.raises(OSError, match="sync failure"):
            await store.cas("p/1", 1, b"b")
        with pytest.raises(OSError, match="can't be trusted"):
            await store.get("p/1")
        with pytest.raises(OSError, match="can't be trusted"):
            await store.cas("p/1", 1, b"b")

    asyncio.run(main())


def test_keys_map_to_files_one_to_one() -> None:
    async def main() -> None:
        store = LocalMetadata(SimDisk(random.Random(1)))
        for key in ("a.b", ""):
            with pytest.raises(InvariantViolation):
                await store.cas(key, None, b"")

    asyncio.run(main())
