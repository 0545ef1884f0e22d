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
from perdure.core.errors import MetadataUnavailable

Story = Callable[[EtcdServer, EtcdMetadata], Coroutine[Any, Any, None]]


def tell(folder: Path, story: Story) -> None:
    """Run a story with a server that is up; one of the endpoints is nobody's."""
    server = EtcdServer(folder)

    async def main() -> None:
        endpoints = [f"127.0.0.1:{free_ports(1)[0]}", server.endpoint]
        store = EtcdMetadata(EtcdSettings(endpoints=endpoints), SystemClock())
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


if shutil.which("etcd") is not None:
    test_etcd_goes_away_and_comes_back = pytest.mark.slow(etcd_goes_away_and_comes_back)
