"""What is the local metadata store's own: its files, and what it does when a disk fails."""

import asyncio
import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.sim.disk import SimDisk

from perdure.cluster.metadata.local import FOLDER, LocalMetadata
from perdure.cluster.metadata.store import Conflict, Versioned
from perdure.core.errors import DataDirectoryDamaged, DiskFull
from perdure.core.invariant import InvariantViolation
from perdure.storage.disk import OsDisk

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
