"""The port of metadata: linearizable registers with compare-and-set, and hints of change.

This is all the rest of the system may assume. Values are bytes; versions start at 1 and grow by
one with each successful ``cas``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from perdure.core.errors import MetadataTooLarge
from perdure.core.limits import METADATA_KEY_BYTES_MAX, METADATA_VALUE_BYTES_MAX


@dataclass(frozen=True, slots=True)
class Versioned:
    """A register's value."""

    version: int
    value: bytes


@dataclass(frozen=True, slots=True)
class Conflict:
    """The register was not as expected; ``version`` is what it has, None when absent."""

    version: int | None


@dataclass(frozen=True, slots=True)
class Unknown:
    """The outcome can't be told: read again and compare what you find with what you wrote."""


CasOutcome = Versioned | Conflict | Unknown


class MetadataStore(Protocol):
    """Linearizable registers."""

    async def get(self, key: str) -> Versioned | None:
        """The register's value; None when it was never written.

        Raises:
            MetadataUnavailable: it could not be read in time.
        """
        ...

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        """Write ``value`` if the version is ``expected`` (None: if absent).

        Raises:
            MetadataTooLarge: nothing was written.
        """
        ...

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        """Call ``hint(key)`` when a key below ``prefix`` may have changed.

        Hints may be lost, late or repeated; the returned call ends them.
        """
        ...


class RegisterSource(Protocol):
    """A store whose registers can be listed."""

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        """All registers below ``prefix`` as of one moment.

        Raises:
            MetadataUnavailable: they could not be read in time.
        """
        ...


def check_size(key: str, value: bytes) -> None:
    """Raise MetadataTooLarge if a register would exceed the limits."""
    if len(key.encode()) > METADATA_KEY_BYTES_MAX or len(value) > METADATA_VALUE_BYTES_MAX:
        raise MetadataTooLarge(f"metadata key {key[:100]}, {len(value)} bytes: over the limit")
