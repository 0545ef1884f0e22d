"""The replicated register map: what every member computes from the same entries, and nothing else.

``apply`` is a pure function of the state and the entry, and it never raises: an entry that is
nonsense is refused with the same answer on all members.

A request carries its client, its number, and ``since``: how many entries had been applied when it
was first sent. The outcomes of the last requests are kept, so a repeated request finds its own. One
that is so old that its outcome may have been dropped is answered ``Expired``, never executed again.

A map can be stopped, for good: what it is then is the beginning of another quorum's (``begin``).
From there on it answers what it had answered, and ``Moved`` to everything else.
"""

from collections import deque
from collections.abc import Iterable

import msgspec

from perdure.cluster.metadata.store import Versioned
from perdure.core.limits import METADATA_OUTCOMES_KEPT


class Cas(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """Write ``value`` if the register's version is ``expected`` (None: if absent)."""

    client: int
    number: int
    since: int
    key: str
    expected: int | None
    value: bytes


class Barrier(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """Changes nothing; whoever sees it applied has seen all that was committed before it."""

    client: int
    number: int


class Import(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """Fill an empty map with registers as they are, versions kept."""

    client: int
    number: int
    since: int
    registers: list[tuple[str, int, bytes]]


class Stop(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """Change nothing any more, if the register ``key`` has ``version``: it says who goes on."""

    client: int
    number: int
    key: str
    version: int


Command = Cas | Barrier | Import | Stop


class Written(msgspec.Struct, frozen=True, tag=1, array_like=True):
    """The write happened; the register has this version now."""

    version: int


class Conflicting(msgspec.Struct, frozen=True, tag=2, array_like=True):
    """Nothing was written: the register has this version (None: it is absent)."""

    version: int | None


class Passed(msgspec.Struct, frozen=True, tag=3, array_like=True):
    """A barrier was applied."""


class Expired(msgspec.Struct, frozen=True, tag=4, array_like=True):
    """The request is older than the outcomes kept: whether it was executed can't be told."""


class Refused(msgspec.Struct, frozen=True, tag=5, array_like=True):
    """The entry is no command, or doesn't fit the state it met."""

    reason: str


class Moved(msgspec.Struct, frozen=True, tag=6, array_like=True):
    """The map was stopped before: another quorum has it now, and has not seen this request."""


Outcome = Written | Conflicting | Passed | Expired | Refused | Moved


class Applied(msgspec.Struct, frozen=True, array_like=True):
    """An outcome, and of which request; compare before believing that it is yours."""

    client: int
    number: int
    outcome: Outcome


class _Encoded(msgspec.Struct, frozen=True, array_like=True):
    applied_count: int
    dropped_count: int
    registers: list[tuple[str, int, bytes]]
    outcomes: list[tuple[int, Applied]]
    is_stopped: bool = False


_command_decoder = msgspec.msgpack.Decoder(Command)
_state_decoder = msgspec.msgpack.Decoder(_Encoded)
_encoder = msgspec.msgpack.Encoder()


def encode_command(command: Command) -> bytes:
    return _encoder.encode(command)


class RegisterMap:
    """Registers and the outcomes of recent requests."""

    def __init__(self) -> None:
        self._changed: set[str] = set()
        self.is_stopped = False
        self.registers: dict[str, Versioned] = {}
        self.applied_count = 0
        self.bytes_held = 0  # keys and values
        self._dropped_count = 0  # outcomes of the first so many entries may be gone
        self._outcomes: dict[tuple[int, int], Applied] = {}
        self._order: deque[tuple[int, tuple[int, int]]] = deque()

    def apply(self, blob: bytes) -> Applied:
        """Execute an entry. The same entries in the same order give the same map everywhere."""
        if not self.is_stopped:
            self.applied_count += 1
        try:
            command = _command_decoder.decode(blob)
            return self._turn_away(command) if self.is_stopped else self._execute(command)
        except Exception as error:  # bulkhead: an entry that raised would stop every member
            return Applied(0, 0, Refused(type(error).__name__))

    def encode(self) -> bytes:
        """The whole state; equal states give equal bytes."""
        registers = sorted((key, at.version, at.value) for key, at in self.registers.items())
        outcomes = [(count, self._outcomes[request]) for count, request in self._order]
        return _encoder.encode(
            _Encoded(self.applied_count, self._dropped_count, registers, outcomes, self.is_stopped)
        )

    def load(self, content: bytes) -> None:
        """Become what ``encode`` wrote; every key that differs counts as written.

        Raises:
            msgspec.MsgspecError: the content is something else; nothing has changed.
        """
        encoded = _state_decoder.decode(content)
        before = self.registers
        self.registers = _registers(encoded.registers)
        self.bytes_held = _bytes_of(self.registers)
        self.applied_count = encoded.applied_count
        self._dropped_count = encoded.dropped_count
        self.is_stopped = encoded.is_stopped
        self._order = deque((count, (at.client, at.number)) for count, at in encoded.outcomes)
        self._outcomes = {(at.client, at.number): at for _, at in encoded.outcomes}
        self._changed.update(
            key for key, register in self.registers.items() if before.get(key) != register
        )

    def begin(self, content: bytes) -> None:
        """Go on from where another quorum's map was stopped. Raises: as ``load``."""
        self.load(content)
        self.is_stopped = False

    def take_changed(self) -> list[str]:
        """The keys written since the last call, sorted."""
        taken = sorted(self._changed)
        self._changed.clear()
        return taken

    def _execute(self, command: Command) -> Applied:
        if isinstance(command, Barrier):
            return Applied(command.client, command.number, Passed())
        request = (command.client, command.number)
        if isinstance(command, Stop):
            return Applied(*request, self._stop(command))
        known = self._outcomes.get(request)
        if known is not None:
            return known
        if command.since < self._dropped_count:
            return Applied(*request, Expired())
        outcome = self._write(command) if isinstance(command, Cas) else self._import(command)
        applied = Applied(*request, outcome)
        self._outcomes[request] = applied
        self._order.append((self.applied_count, request))
        while len(self._order) > METADATA_OUTCOMES_KEPT:
            self._dropped_count, oldest = self._order.popleft()
            del self._outcomes[oldest]
        return applied

    def _turn_away(self, command: Command) -> Applied:
        request = (command.client, command.number)
        if isinstance(command, Stop):
            return Applied(*request, Passed())
        return self._outcomes.get(request) or Applied(*request, Moved())

    def _stop(self, command: Stop) -> Outcome:
        known = self.registers.get(command.key)
        version = known.version if known is not None else None
        if version != command.version:
            return Conflicting(version)
        self.is_stopped = True
        self._changed.add(command.key)
        return Passed()

    def _write(self, command: Cas) -> Outcome:
        known = self.registers.get(command.key)
        version = known.version if known is not None else None
        if version != command.expected:
            return Conflicting(version)
        self.bytes_held += len(command.value) - len(known.value if known is not None else b"")
        self.bytes_held += len(command.key) if known is None else 0
        self.registers[command.key] = Versioned((version or 0) + 1, command.value)
        self._changed.add(command.key)
        return Written((version or 0) + 1)

    def _import(self, command: Import) -> Outcome:
        if self.registers:
            return Refused("only an empty map takes an import")
        if len({key for key, _, _ in command.registers}) != len(command.registers):
            return Refused("a key is imported twice")
        if any(version < 1 for _, version, _ in command.registers):
            return Refused("versions start at 1")
        self.registers.update(_registers(command.registers))
        self.bytes_held = _bytes_of(self.registers)
        self._changed.update(self.registers)
        return Written(len(command.registers))


def _registers(rows: Iterable[tuple[str, int, bytes]]) -> dict[str, Versioned]:
    return {key: Versioned(version, value) for key, version, value in rows}


def _bytes_of(registers: dict[str, Versioned]) -> int:
    return sum(len(key) + len(at.value) for key, at in registers.items())
