"""Reading, watching and editing typed registers: the compare-and-set loop and its unknown outcomes.

``RegisterCache`` keeps the newest value of every register below some prefixes. It never goes back:
a register that answers with less than this process has already seen was rolled back (I-19).
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import msgspec

from perdure.cluster.metadata.store import Conflict, MetadataStore, Versioned
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import MetadataConflict, MetadataRegressed, MetadataUnavailable
from perdure.core.limits import (
    FORMATION_TELL_MS,
    METADATA_PAUSE_MS,
    REGISTER_EDIT_ROUNDS_MAX,
    REGISTER_HINTS_MAX,
    REGISTER_REFRESH_MS,
    REGISTER_RETRY_MS,
)
from perdure.core.telemetry import logger

log = logger("metadata")

T = TypeVar("T")


class Registers(MetadataStore, Protocol):
    """A store whose registers can also be listed."""

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        """All registers below ``prefix`` as of one moment.

        Raises:
            MetadataUnavailable: they could not be read in time.
        """
        ...


@dataclass(frozen=True, slots=True)
class Edited(Generic[T]):
    """What the register holds now. ``is_changed``: by this edit."""

    version: int
    value: T
    is_changed: bool


async def edit_register(
    store: MetadataStore,
    key: str,
    kind: type[T],
    change: Callable[[T | None], T | None],
) -> Edited[T] | None:
    """Apply ``change`` to the register until it sticks.

    ``change`` gets None while the register is absent, and returns None to leave it as it is; it may
    be called several times. None: the register is absent and was left so.

    Raises:
        MetadataConflict: others were faster each time.
        MetadataUnavailable: metadata can't be reached; the change may have been made.
    """
    found = await store.get(key)
    for _ in range(REGISTER_EDIT_ROUNDS_MAX):
        known = msgspec.msgpack.decode(found.value, type=kind) if found is not None else None
        wanted = change(known)
        if wanted is None:
            return Edited(found.version, known, False) if found and known is not None else None
        value = msgspec.msgpack.encode(wanted)
        version = found.version if found is not None else None
        outcome = await store.cas(key, version, value)
        if isinstance(outcome, Versioned):
            return Edited(outcome.version, wanted, True)
        if not isinstance(outcome, Conflict):
            await asyncio.sleep(METADATA_PAUSE_MS / 1000)
        found = await store.get(key)
        # The same bytes in the place where ours were to be: they are ours, or as good.
        if found is not None and found == Versioned((version or 0) + 1, value):
            return Edited(found.version, wanted, True)
    raise MetadataConflict(f"metadata key {key} kept changing while this node wrote it")


async def insist(work: Callable[[], Awaitable[T]], what: str, clock: Clock, entropy: Entropy) -> T:
    """Do what a start can't go on without, for as long as metadata is away or others are faster.

    ``what`` is waited for, as the log says now and then. Ends otherwise only when it is cancelled.
    """
    told_at = clock.monotonic()
    while True:
        try:
            return await work()
        except (MetadataConflict, MetadataUnavailable) as failure:
            if clock.monotonic() - told_at >= FORMATION_TELL_MS / 1000:
                told_at = clock.monotonic()
                log.warning("metadata.awaited", what=what, reason=failure)
        await asyncio.sleep(entropy.jitter(REGISTER_RETRY_MS) / 1000)


class RegisterCache:
    """The registers below ``prefixes``, as new as hints and a slow poll keep them."""

    def __init__(self, store: Registers, prefixes: Iterable[str], entropy: Entropy) -> None:
        self.store = store
        self._prefixes = tuple(prefixes)
        self._entropy = entropy
        self._found: dict[str, Versioned] = {}
        self._hinted: set[str] = set()
        self._is_hinted = asyncio.Event()
        self._on_change: list[Callable[[str, Versioned], None]] = []

    def on_change(self, callback: Callable[[str, Versioned], None]) -> None:
        """Be told each new value, once, in order of versions per key."""
        self._on_change.append(callback)

    def get(self, key: str) -> Versioned | None:
        """The newest value seen."""
        return self._found.get(key)

    def hint(self, key: str) -> None:
        """The register may have changed: read it soon."""
        if key.startswith(self._prefixes):
            self._hinted.add(key)
            self._is_hinted.set()

    def note(self, key: str, found: Versioned) -> None:
        """This process has read or written this value itself."""
        known = self._found.get(key)
        if known is not None and found.version <= known.version:
            return
        self._found[key] = found
        for callback in self._on_change:
            callback(key, found)

    async def refresh(self) -> None:
        """Read everything.

        Raises:
            MetadataUnavailable: not now.
            MetadataRegressed: a register has lost what this process has seen.
        """
        before = dict(self._found)
        found: dict[str, Versioned] = {}
        for prefix in self._prefixes:
            found.update(await self.store.scan(prefix))
        for key, known in before.items():
            _check(key, known, found.get(key))
        for key, value in found.items():
            self.note(key, value)

    async def run(self) -> None:
        """Follow hints, and read everything now and then because hints may be lost.

        Raises:
            MetadataRegressed: as ``refresh``.
        """
        ends = [self.store.watch(prefix, self.hint) for prefix in self._prefixes]
        try:
            while True:
                try:
                    await self._follow()
                except MetadataUnavailable as failure:
                    log.warning("metadata.unavailable", reason=str(failure))
                    pause = REGISTER_RETRY_MS + self._entropy.jitter(REGISTER_RETRY_MS)
                    await asyncio.sleep(pause / 1000)
        finally:
            for end in ends:
                end()

    async def _follow(self) -> None:
        """Read everything, then what is hinted at; returns when it is time to begin again."""
        await self.refresh()
        loop = asyncio.get_running_loop()
        due = loop.time() + REGISTER_REFRESH_MS / 1000
        while loop.time() < due:
            try:
                async with asyncio.timeout_at(due):
                    await self._is_hinted.wait()
            except TimeoutError:
                return
            self._is_hinted.clear()
            hinted, self._hinted = self._hinted, set()
            if len(hinted) > REGISTER_HINTS_MAX:
                return
            for key in sorted(hinted):
                await self._read(key)

    async def _read(self, key: str) -> None:
        known = self._found.get(key)
        found = await self.store.get(key)
        if known is not None:
            _check(key, known, found)
        if found is not None:
            self.note(key, found)


def _check(key: str, known: Versioned, found: Versioned | None) -> None:
    """``known`` was seen before ``found`` was asked for."""
    if found is None or found.version < known.version:
        raise MetadataRegressed(
            f"metadata key {key} had version {known.version} and is now at "
            f"{found.version if found is not None else 'nothing'}: restore metadata from its "
            "newest copy"
        )
