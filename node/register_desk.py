"""The cluster's metadata for operators: how it is kept, what is in it, and a copy of it."""

import asyncio
from dataclasses import dataclass
from typing import Protocol, cast, runtime_checkable

import msgspec

from perdure.cluster.core.chain import PartitionMeta
from perdure.cluster.core.membership import CLUSTER_KEY, NODES_PREFIX, ClusterMeta, NodeMeta
from perdure.cluster.membership import PARTITIONS_PREFIX
from perdure.cluster.metadata.places import PlaceStanding
from perdure.cluster.metadata.provision import encode_backup
from perdure.cluster.metadata.quorum import QUORUM_KEY, Quorums
from perdure.cluster.metadata.store import MetadataStore, Versioned
from perdure.core.errors import MetadataUnavailable, NotFound
from perdure.core.limits_telling import METADATA_LOOK_MS
from perdure.core.telemetry import logger

log = logger("metadata")

_TYPES: tuple[tuple[str, type[msgspec.Struct]], ...] = (
    (CLUSTER_KEY, ClusterMeta),
    (NODES_PREFIX, NodeMeta),
    (PARTITIONS_PREFIX, PartitionMeta),
    (QUORUM_KEY, Quorums),
)


class Listable(MetadataStore, Protocol):
    """A store whose registers can be listed."""

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        """All registers below ``prefix``."""
        ...


@runtime_checkable
class Placed(Protocol):
    """A store that is kept in several places."""

    async def look_each(self) -> list[PlaceStanding]:
        """How each of them is."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreStanding:
    """How the metadata is kept: in ``places``, none of a single node's. ``failure``: why it can't
    be read now."""

    places: tuple[PlaceStanding, ...] = ()
    register_count: int | None = None
    failure: str | None = None

    @property
    def reached(self) -> int:
        """Places that say how they are."""
        return sum(place.failure is None for place in self.places)

    @property
    def term(self) -> int:
        """The newest that any place knows."""
        return max((place.term for place in self.places), default=0)


@dataclass(frozen=True, slots=True)
class Register:
    """A register; ``value`` for people: built-in types, bytes in hex."""

    key: str
    version: int
    value: object


class RegisterDesk:
    """``fingerprint``: of the cluster, which copies are of."""

    def __init__(self, store: Listable, fingerprint: str) -> None:
        self._store = store
        self._fingerprint = fingerprint
        self.latest = StoreStanding()

    async def run(self) -> None:
        """Look now and then, for metrics and status, until cancelled."""
        while True:
            self.latest = await self.standing()
            await asyncio.sleep(METADATA_LOOK_MS / 1000)

    async def standing(self) -> StoreStanding:
        """How it is kept, and whether it can be read now."""
        places = tuple(await self._store.look_each()) if isinstance(self._store, Placed) else ()
        try:
            count = len(await self._store.scan(""))
        except MetadataUnavailable as failure:
            return StoreStanding(places=places, failure=failure.message)
        return StoreStanding(places=places, register_count=count)

    async def registers(self, prefix: str) -> list[Register]:
        """All below a prefix, by key.

        Raises:
            MetadataUnavailable: not now.
        """
        found = await self._store.scan(prefix)
        return [_register(key, at) for key, at in sorted(found.items())]

    async def get(self, key: str) -> Register:
        """One of them.

        Raises:
            NotFound: it was never written.
            MetadataUnavailable: not now.
        """
        found = await self._store.get(key)
        if found is None:
            raise NotFound(f"there is no register {key!r}: `perdure metadata list` shows them all")
        return _register(key, found)

    async def backup(self) -> bytes:
        """All of them as of one moment, as a file.

        Raises:
            MetadataUnavailable: not now.
        """
        return encode_backup(self._fingerprint, await self._store.scan(""))


def _register(key: str, found: Versioned) -> Register:
    kind = next((kind for prefix, kind in _TYPES if key.startswith(prefix)), None)
    try:
        if kind is not None:
            value = readable(msgspec.msgpack.decode(found.value, type=kind))
        else:
            value = readable(cast(object, msgspec.msgpack.decode(found.value)))
    except msgspec.MsgspecError:
        value = found.value.hex()
    return Register(key, found.version, value)


def readable(value: object) -> object:
    """Structs as objects with their fields' names, bytes in hex."""
    if isinstance(value, msgspec.Struct):
        fields = msgspec.structs.fields(value)
        return {field.name: readable(getattr(value, field.name)) for field in fields}
    if isinstance(value, bytes):
        return value.hex()
    if isinstance(value, dict):
        items = cast(dict[object, object], value)
        return {str(name): readable(item) for name, item in items.items()}
    if isinstance(value, list | tuple):
        return [readable(item) for item in cast(list[object], value)]
    return value
