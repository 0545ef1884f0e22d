"""The registry in metadata: read once, changed by compare-and-set, followed by hints."""

import asyncio
import contextlib
from collections.abc import Callable

import msgspec

from perdure.cluster.metadata.store import MetadataStore, Versioned
from perdure.core.errors import MetadataConflict, MetadataUnavailable
from perdure.core.limits import REGISTER_REFRESH_MS
from perdure.core.telemetry import logger
from perdure.node.registry.effective import Catalogue, Defaults
from perdure.node.registry.model import Registry

log = logger("registry")

KEY = "schema"
_ATTEMPTS_MAX = 8


class RegistryStore:
    """Holds the catalogue in effect on this node."""

    def __init__(self, metadata: MetadataStore, defaults: Defaults) -> None:
        self._metadata = metadata
        self._defaults = defaults
        self._version: int | None = None
        self._listeners: list[Callable[[], None]] = []
        self.catalogue = Catalogue(Registry(), defaults)

    @property
    def registry(self) -> Registry:
        """What is registered."""
        return self.catalogue.registry

    def on_change(self, listener: Callable[[], None]) -> None:
        """Have ``listener`` called after each change."""
        self._listeners.append(listener)

    async def load(self) -> None:
        """Read the registry as it is in metadata."""
        found = await self._metadata.get(KEY)
        if found is not None:
            self._adopt(found.version, msgspec.msgpack.decode(found.value, type=Registry))

    async def follow(self) -> None:
        """Read it again when others have changed it; runs until cancelled.

        A hint says so, and now and then it is read because hints may be lost.
        """
        hinted = asyncio.Event()
        forget = self._metadata.watch(KEY, lambda _: hinted.set())
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(REGISTER_REFRESH_MS / 1000):
                        await hinted.wait()
                hinted.clear()
                try:
                    await self.load()
                except MetadataUnavailable as failure:
                    log.warning("registry.stale", reason=failure)
        finally:
            forget()

    async def change(self, edit: Callable[[Registry], Registry]) -> Registry:
        """Apply a pure edit to the current registry and store it.

        Raises:
            MetadataConflict: others kept changing it meanwhile.
            PerdureError: whatever ``edit`` raises; nothing is changed then.
        """
        for _ in range(_ATTEMPTS_MAX):
            changed = edit(self.registry)
            value = msgspec.msgpack.encode(changed)
            outcome = await self._metadata.cas(KEY, self._version, value)
            if isinstance(outcome, Versioned):
                self._adopt(outcome.version, changed)
                return changed
            await self.load()
        raise MetadataConflict("the registry keeps changing: try again")

    def _adopt(self, version: int, registry: Registry) -> None:
        if self._version is not None and version <= self._version:
            return
        self._version = version
        self.catalogue = Catalogue(registry, self._defaults)
        for listener in self._listeners:
            listener()
