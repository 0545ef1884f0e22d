"""What is etcd's own: its server goes away and comes back. Needs ``etcd`` on the path."""

import asyncio
import shutil
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.metadata.backends import EtcdServer, free_ports

from perdure.cluster.metadata import etcd
from perdure.cluster.metadata.etcd import EtcdMetadata, EtcdSettings
from perdure.cluster.metadata.store import Unknown, Versioned
from perdure.core.clock import SystemClock
from perdure.core.errors import MetadataNotEmpty, MetadataUnavailable

Story = Callable[[EtcdServer, EtcdMetadata], Coroutine[Any, Any, None]]


def tell(folder: Path, story: Story, user: str | None = None) -> None:
    """Run a story with a server that is up; one of the endpoints is nobody's."""
    server = EtcdServer(folder)

    async def main() -> None:
        endpoints = [f"127.0.0.1:{free_ports(1)[0]}", server.endpoint]
        settings = EtcdSettings(endpoints=endpoints, user=user, password="secret")
        store = EtcdMetadata(settings, SystemClock())
        try:
            await story(server, store)
        finally:
            await store.aclose()

    server.start()
    try:
        asyncio.run(main())
    finally:
        server.stop()


def etcd_goes_away_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "METADATA_CALL_MS", 1_500)

    async def story(server: EtcdServer, store: EtcdMetadata) -> None:
        assert await store.cas("a", None, b"1") == Versioned(1, b"1")
        server.stop()
        with pytest.raises(MetadataUnavailable):
            await store.get("a")
        assert await store.cas("a", 1, b"2") == Unknown()
        server.start_again()
        async with asyncio.timeout(30):
            while True:
                try:
                    found = await store.get("a")
                    break
                except MetadataUnavailable:
                    continue
        assert found == Versioned(1, b"1")  # nobody was there to hear the second write
        assert await store.cas("a", 1, b"3") == Versioned(2, b"3")

    tell(tmp_path, story)


def who_has_a_password_is_let_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd, "METADATA_CALL_MS", 1_500)

    async def story(server: EtcdServer, store: EtcdMetadata) -> None:
        assert await store.cas("open", None, b"1") == Versioned(1, b"1")  # nobody is asked yet
        server.want_password("me", "secret", "perdure/")
        async with asyncio.timeout(30):
            while True:
                try:
                    found = await store.get("open")
                    break
                except MetadataUnavailable:
                    continue
        assert found == Versioned(1, b"1")
        server.control_as("root", "secret", "auth/user/changepw", name="me", password="secret")
        # Every token became worthless; nobody notices.
        assert await store.cas("open", 1, b"2") == Versioned(2, b"2")
        is_told = asyncio.Event()
        store.watch("open", lambda key: is_told.set())
        async with asyncio.timeout(30):
            await is_told.wait()
        server.control_as("root", "secret", "auth/user/changepw", name="me", password="other")
        with pytest.raises(MetadataUnavailable, match="doesn't let 'me' in"):
            await store.get("open")
        assert isinstance(await store.cas("open", 2, b"3"), Unknown)

    tell(tmp_path, story, "me")


def registers_are_moved_with_their_versions(tmp_path: Path) -> None:
    registers = {"cluster": Versioned(1, b"c"), "p/0": Versioned(5, b"0"), "x": Versioned(2, b"")}

    async def story(server: EtcdServer, store: EtcdMetadata) -> None:
        await store.fill(registers)
        assert await store.scan("") == registers
        with pytest.raises(MetadataNotEmpty):
            await store.fill(registers)
        away, here = await store.look_each()
        assert away.failure is not None
        assert (here.place, here.failure, here.is_leader) == (server.endpoint, None, True)
        assert here.has_leader and here.term > 0 and here.detail.startswith("etcd 3.")

    tell(tmp_path, story)


if shutil.which("etcd") is not None:
    test_etcd_goes_away_and_comes_back = pytest.mark.slow(etcd_goes_away_and_comes_back)
    test_who_has_a_password_is_let_in = pytest.mark.slow(who_has_a_password_is_let_in)
    test_registers_are_moved_with_their_versions = pytest.mark.slow(
        registers_are_moved_with_their_versions
    )
