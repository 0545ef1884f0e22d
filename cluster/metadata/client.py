"""Metadata as a node sees it: the port, served by whichever quorum member answers.

A write has a number of its own and is repeated under it, at another member if need be: members know
a number they have executed and answer as they did. When time runs out the outcome is Unknown. Hints
come from a long poll at one member; after a change of member every key is hinted at once.
"""

import asyncio
from collections.abc import Callable, Sequence
from typing import Protocol

from perdure.cluster.metadata.messages import (
    Answer,
    Ask,
    Changes,
    Done,
    Elsewhere,
    Export,
    Exported,
    Fill,
    Halt,
    Look,
    Read,
    Registers,
    Standing,
    Watch,
    Write,
)
from perdure.cluster.metadata.places import PlaceStanding
from perdure.cluster.metadata.quorum import QUORUM_KEY
from perdure.cluster.metadata.raft_state import (
    Conflicting,
    Expired,
    Outcome,
    Passed,
    Refused,
    Written,
)
from perdure.cluster.metadata.store import (
    CasOutcome,
    Conflict,
    Unknown,
    Versioned,
    check_size,
)
from perdure.core.clock import Clock
from perdure.core.entropy import Entropy
from perdure.core.errors import (
    MetadataConflict,
    MetadataNotEmpty,
    MetadataTooLarge,
    MetadataUnavailable,
)
from perdure.core.limits import (
    METADATA_CALL_MS,
    METADATA_IMPORT_BYTES_MAX,
    METADATA_PAUSE_MS,
    METADATA_TRY_MS,
    METADATA_WATCH_MS,
)

_ANSWER_SLACK_MS = 500  # a member answers in its own time, the way to it takes some too


class DoorClosed(Exception):
    """The member can't be asked, or its answer was lost; a question may have been heard."""


class Door(Protocol):
    """A way to one member."""

    async def ask(self, ask: Ask, timeout_s: float) -> Answer:
        """The member's answer.

        Raises:
            DoorClosed: there is none; whether the member heard is not known.
        """
        ...

    async def aclose(self) -> None: ...


class RaftMetadata:
    """Implements ``MetadataStore`` and ``RegisterSource`` over doors to members, best first."""

    def __init__(self, doors: Sequence[Door], clock: Clock, entropy: Entropy) -> None:
        self._doors = list(doors)
        self._members = len(self._doors)
        self._door = 0
        self._clock = clock
        self._client = entropy.bits(62)
        self._number = 0
        self._since = 0
        self._closed = ""  # why a door was, the last time
        self._hints: list[tuple[str, Callable[[str], None]]] = []
        self._watcher: asyncio.Task[None] | None = None
        self.on_elsewhere: Callable[[bytes], None] = lambda register: None

    def set_doors(self, doors: Sequence[Door], spare: Sequence[Door] = ()) -> None:
        """Ask there from now on; the ones before are closed by whoever made them.

        ``spare``: ways to nodes that may have a member. It may be of a quorum that was stopped: it
        says so then, and the next one is asked.
        """
        self._doors = [*doors, *spare]
        self._members = len(doors)
        self._door = 0
        if self._watcher is not None:
            self._watcher.cancel()
            self._watch()

    # --- The port ---------------------------------------------------------------------------------

    async def get(self, key: str) -> Versioned | None:
        """The register's value as of now.

        Raises:
            MetadataUnavailable: no quorum answered in time.
        """
        return (await self._read(key, is_prefix=False)).get(key)

    async def scan(self, prefix: str) -> dict[str, Versioned]:
        """All registers below ``prefix`` as of one moment.

        Raises:
            MetadataUnavailable: no quorum answered in time.
        """
        return await self._read(prefix, is_prefix=True)

    async def cas(self, key: str, expected: int | None, value: bytes) -> CasOutcome:
        """Write ``value`` if the version is ``expected`` (None: if absent).

        Raises:
            MetadataTooLarge: key or value exceed the limit; nothing was sent.
        """
        check_size(key, value)
        self._number += 1
        number, since = self._number, self._since
        outcome = await self._write(
            lambda is_first: Write(
                self._client, number, since, is_first, key, expected, value, METADATA_TRY_MS
            )
        )
        match outcome:
            case Written(version):
                return Versioned(version, value)
            case Conflicting(version):
                return Conflict(version)
            case Refused(reason):
                raise MetadataTooLarge(f"metadata key {key} was not written: {reason}")
            case _:
                return Unknown()

    def watch(self, prefix: str, hint: Callable[[str], None]) -> Callable[[], None]:
        """Call ``hint(key)`` when a key below ``prefix`` may have changed."""
        entry = (prefix, hint)
        self._hints.append(entry)
        if self._watcher is None:
            self._watch()

        def forget() -> None:
            if entry in self._hints:
                self._hints.remove(entry)

        return forget

    # --- For operators ----------------------------------------------------------------------------

    async def fill(self, registers: dict[str, Versioned]) -> None:
        """Put registers into the empty store, versions kept.

        Raises:
            MetadataNotEmpty: it has registers already.
            MetadataTooLarge: they are more than one import takes; none was put.
            MetadataUnavailable: no quorum answered in time; they may have been put.
        """
        # Who held the ones that these are a copy of is not who holds these.
        kept = {key: at for key, at in registers.items() if key != QUORUM_KEY}
        rows = [(key, at.version, at.value) for key, at in sorted(kept.items())]
        for key, _, value in rows:
            check_size(key, value)
        if sum(len(key) + len(value) for key, _, value in rows) > METADATA_IMPORT_BYTES_MAX:
            raise MetadataTooLarge("the registers together exceed what one import takes")
        self._number += 1
        number, since = self._number, self._since
        outcome = await self._write(
            lambda is_first: Fill(self._client, number, since, is_first, rows, METADATA_CALL_MS)
        )
        match outcome:
            case Written():
                return
            case Refused(reason):
                raise MetadataNotEmpty(f"the registers were not imported: {reason}")
            case _:
                raise MetadataUnavailable("the import was not confirmed: look before you repeat it")

    async def look(self) -> Standing:
        """How the member that answers is.

        Raises:
            MetadataUnavailable: none answers.
        """
        answer = await self._ask(lambda is_first: Look())
        if isinstance(answer, Standing):
            return answer
        raise MetadataUnavailable(f"no metadata member answers{self._closed}")

    async def halt(self, quorum: int, key: str, version: int) -> None:
        """Stop the quorum of this number for good, if the register ``key`` has this version.

        Raises:
            MetadataConflict: it has another.
            MetadataUnavailable: it could not be stopped in time, or was.
        """
        self._number += 1
        number = self._number
        outcome = await self._write(
            lambda is_first: Halt(self._client, number, quorum, key, version, METADATA_TRY_MS)
        )
        if isinstance(outcome, Conflicting):
            raise MetadataConflict(f"metadata key {key} has changed: version {outcome.version}")
        if not isinstance(outcome, Passed):
            raise MetadataUnavailable("the metadata quorum could not be stopped in time")

    async def export(self, quorum: int) -> bytes:
        """All that the quorum of this number was when it was stopped.

        Raises:
            MetadataUnavailable: none of its members answers, or it was not stopped.
        """
        answer = await self._ask(lambda is_first: Export(quorum))
        if isinstance(answer, Exported):
            return answer.content
        raise MetadataUnavailable("no member of the quorum that was stopped answers")

    async def look_each(self) -> list[PlaceStanding]:
        """How each member is, the nearest first."""
        return list(await asyncio.gather(*map(self._look_at, range(self._members))))

    async def aclose(self) -> None:
        """Stop watching and close the doors."""
        if self._watcher is not None:
            self._watcher.cancel()
            await asyncio.wait([self._watcher])
        for door in self._doors:
            await door.aclose()

    # --- Inside -----------------------------------------------------------------------------------

    async def _look_at(self, number: int) -> PlaceStanding:
        try:
            answer = await self._doors[number].ask(Look(), METADATA_TRY_MS / 1000)
        except DoorClosed as closed:
            return PlaceStanding(place="a member", failure=str(closed))
        if not isinstance(answer, Standing):
            return PlaceStanding(place="a member", failure="it doesn't say how it is")
        ago = answer.committed_ago_ms
        return PlaceStanding(
            place=f"member {answer.node}",
            is_leader=answer.leader == answer.node,
            has_leader=answer.leader is not None,
            term=answer.term,
            detail=f"{answer.register_count} registers, entry {answer.applied_index}, connected to "
            f"{len(answer.connected)}"
            + (f", a commit {ago} ms ago" if ago is not None else ", no commit seen yet"),
        )

    def _watch(self) -> None:
        self._watcher = asyncio.get_running_loop().create_task(self._poll(), name="metadata-watch")

    async def _read(self, key: str, *, is_prefix: bool) -> dict[str, Versioned]:
        answer = await self._ask(lambda is_first: Read(key, is_prefix, METADATA_TRY_MS))
        if not isinstance(answer, Registers):
            raise MetadataUnavailable(f"metadata key {key} could not be read in time{self._closed}")
        self._since = max(self._since, answer.applied_count)
        return {key: Versioned(version, value) for key, version, value in answer.registers}

    async def _write(self, make: Callable[[bool], Ask]) -> Outcome:
        answer = await self._ask(make)
        if not isinstance(answer, Done):
            return Expired()
        self._since = max(self._since, answer.applied_count)
        return answer.applied.outcome

    async def _ask(self, make: Callable[[bool], Ask]) -> Answer | None:
        """Ask members in turn until one has an answer; None when time is up."""
        deadline = self._clock.monotonic() + METADATA_CALL_MS / 1000
        is_first = True
        while (left := deadline - self._clock.monotonic()) > 0:
            door = self._doors[self._door % len(self._doors)]
            ask = make(is_first)
            is_first = False
            own_ms = METADATA_TRY_MS if isinstance(ask, Look | Export) else ask.timeout_ms
            try:
                answer = await door.ask(ask, min(left, (own_ms + _ANSWER_SLACK_MS) / 1000))
            except DoorClosed as closed:
                self._closed = f": {closed}"
                self._door += 1
                await asyncio.sleep(METADATA_PAUSE_MS / 1000)
                continue
            if isinstance(answer, Registers | Done | Standing | Exported):
                return answer
            self._door += 1
            if isinstance(answer, Elsewhere):
                self.on_elsewhere(answer.register)
            if isinstance(answer, Elsewhere) or isinstance(ask, Export | Halt):
                await asyncio.sleep(METADATA_PAUSE_MS / 1000)  # it came at once
        return None

    async def _poll(self) -> None:
        """Long-poll for changes as long as this object lives."""
        boot, position = 0, 0
        while True:
            door = self._doors[self._door % len(self._doors)]
            ask = Watch(boot, position, METADATA_WATCH_MS)
            try:
                answer = await door.ask(ask, (METADATA_WATCH_MS + _ANSWER_SLACK_MS) / 1000)
            except DoorClosed:
                boot = 0
                await asyncio.sleep(METADATA_PAUSE_MS / 1000)
                continue
            if isinstance(answer, Changes):
                boot, position = answer.boot, answer.position
                for key in answer.keys:
                    self._tell(key)

    def _tell(self, key: str) -> None:
        for prefix, hint in list(self._hints):
            if key.startswith(prefix):
                hint(key)
