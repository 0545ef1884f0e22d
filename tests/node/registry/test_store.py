"""The registry in metadata: what is stored comes back, edits meet, listeners hear."""

import asyncio
from pathlib import Path

import msgspec
import pytest
from tests.node.registry.test_evolve import candidate, offers

from perdure.cluster.metadata.local import LocalMetadata
from perdure.cluster.metadata.store import CasOutcome, Conflict
from perdure.core.errors import DeploymentNotFound, MetadataConflict
from perdure.node.registry.effective import Defaults
from perdure.node.registry.evolve import register, remove_deployment
from perdure.node.registry.model import Registry
from perdure.node.registry.store import RegistryStore
from perdure.storage.disk import OsDisk


def test_what_was_stored_comes_back(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RegistryStore(LocalMetadata(OsDisk(tmp_path)), Defaults())
        await store.load()
        first = candidate(1, offers("A"))
        await store.change(lambda registry: register(registry, first).registry)
        again = RegistryStore(LocalMetadata(OsDisk(tmp_path)), Defaults())
        await again.load()
        assert again.registry == store.registry
        assert again.catalogue.latest("A", "run") is not None

    asyncio.run(scenario())


def test_what_older_releases_stored_is_read() -> None:
    stored: dict[str, object] = {
        "id": "dp_1",
        "uri": "http://h/",
        "http_version": "HTTP/2.0",
        "is_bidirectional": True,
        "protocol_version_min": 5,
        "protocol_version_max": 6,
        "created_at_ms": 1,
        "services": {},
    }
    value = msgspec.msgpack.encode({"deployments": {"dp_1": stored}, "latest": {}})
    registry = msgspec.msgpack.decode(value, type=Registry)
    deployment = registry.deployments["dp_1"]
    assert (deployment.function, deployment.address) == (None, "http://h/")
    # What has no function is stored without a word of functions.
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(registry))["deployments"]["dp_1"] == stored


def test_two_nodes_edits_are_both_kept(tmp_path: Path) -> None:
    async def scenario() -> None:
        metadata = LocalMetadata(OsDisk(tmp_path))
        one, two = RegistryStore(metadata, Defaults()), RegistryStore(metadata, Defaults())
        heard: list[str] = []
        two.on_change(lambda: heard.append("two"))
        await one.change(lambda registry: register(registry, candidate(1, offers("A"))).registry)
        await two.change(lambda registry: register(registry, candidate(2, offers("B"))).registry)
        assert set(two.registry.latest) == {"A", "B"}
        assert heard

    asyncio.run(scenario())


def test_an_edit_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RegistryStore(LocalMetadata(OsDisk(tmp_path)), Defaults())
        heard: list[str] = []
        store.on_change(lambda: heard.append("changed"))
        with pytest.raises(DeploymentNotFound):
            await store.change(lambda registry: remove_deployment(registry, "dp_1"))
        assert store.registry == Registry() and not heard

    asyncio.run(scenario())


class _Contended(LocalMetadata):
    """Somebody else is always faster."""

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        return Conflict(expected)


def test_a_registry_that_keeps_changing_is_a_conflict(tmp_path: Path) -> None:
    async def scenario() -> None:
        store = RegistryStore(_Contended(OsDisk(tmp_path)), Defaults())
        with pytest.raises(MetadataConflict):
            await store.change(lambda registry: registry)

    asyncio.run(scenario())
