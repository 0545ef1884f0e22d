"""The durable journal of a metadata member: log entries, term and vote, behind explicit barriers.

What the Raft library changes is staged in memory; ``barrier`` writes everything staged as one
group and syncs it. A group counts wholly or not at all, so a crash never shows half of a change.
The file:

    sector 0    magic, salt of this file, CRC
    then        groups, each from a sector's start: magic u32, payload length u32, sequence u64,
                CRC u32 of salt, length, sequence and payload, payload (msgpack), zeros

A group that isn't valid ends the journal, for it was never answered for; a valid group behind it
means damage. A full file is replaced by one that holds what is still needed, as a single group.
After a failed write nothing may be believed any more: every later barrier raises.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import overload

import msgspec

from perdure.core.entropy import Entropy
from perdure.core.errors import DataDirectoryDamaged
from perdure.core.invariant import invariant
from perdure.core.limits import METADATA_JOURNAL_BYTES, SECTOR_BYTES
from perdure.storage.disk import Disk

NAME = "journal"
_TEMPORARY = "journal.new"

Entry = tuple[bytes, int, int]
"""Command, index, term: the library's order."""

_HEADER = struct.Struct("<8sQ")
_MAGIC = b"PRDMETAJ"
_GROUP = struct.Struct("<4sIQI")
_GROUP_MAGIC = b"\xf5GRP"
_CRC = struct.Struct("<I")
_SALTED = struct.Struct("<QIQ")


class _Add(msgspec.Struct, frozen=True, tag=1, array_like=True):
    command: bytes
    index: int
    term: int


class _Cut(msgspec.Struct, frozen=True, tag=2, array_like=True):
    first_index: int  # of those that go, to the end


class _Drop(msgspec.Struct, frozen=True, tag=3, array_like=True):
    first_index: int  # of those that stay


class _Clear(msgspec.Struct, frozen=True, tag=4, array_like=True):
    pass


class _Vote(msgspec.Struct, frozen=True, tag=5, array_like=True):
    term: int
    voted_for: int | None


_Change = _Add | _Cut | _Drop | _Clear | _Vote
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(list[_Change])


def create_journal(disk: Disk, entropy: Entropy, file_bytes: int = METADATA_JOURNAL_BYTES) -> None:
    """Lay an empty journal; ``DurableJournal`` opens it."""
    _write_file(disk, entropy, [], file_bytes)


class DurableJournal:
    """Implements what the library asks of a journal (its method names are the library's)."""

    def __init__(
        self, disk: Disk, entropy: Entropy, file_bytes: int = METADATA_JOURNAL_BYTES
    ) -> None:
        """Read the journal back.

        Raises:
            DataDirectoryDamaged: it is missing, or not what was written.
        """
        self._disk = disk
        self._entropy = entropy
        self._file_bytes = file_bytes
        self._entries: list[Entry] = []
        self._term = 0
        self._voted_for: int | None = None
        self._staged: list[_Change] = []
        self._failure: BaseException | None = None
        self.entries_bytes = 0
        self._sequence = 0
        if not disk.exists(NAME):
            raise DataDirectoryDamaged(f"{NAME} of the metadata member is missing")
        if disk.exists(_TEMPORARY):
            disk.remove(_TEMPORARY)
        self._recover()

    # --- The library's journal ------------------------------------------------------------------

    def add(self, command: bytes, idx: int, term: int) -> None:
        self._stage(_Add(bytes(command), idx, term))

    def clear(self) -> None:
        self._stage(_Clear())

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        if entryFrom < len(self._entries):
            self._stage(_Cut(self._entries[entryFrom][1]))

    def deleteEntriesTo(self, entryTo: int) -> None:
        if entryTo > 0:
            invariant(entryTo < len(self._entries), "a journal keeps an entry", position=entryTo)
            self._stage(_Drop(self._entries[entryTo][1]))

    @overload
    def __getitem__(self, item: int) -> Entry: ...
    @overload
    def __getitem__(self, item: slice) -> list[Entry]: ...
    def __getitem__(self, item: int | slice) -> Entry | list[Entry]:
        return self._entries[item]

    def __len__(self) -> int:
        return len(self._entries)

    def getRaftCommitIndex(self) -> int:
        return 1  # learned again from a leader, never restored

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """Not kept."""

    def setCurrentTerm(self, term: int, votedForNodeId: int | None) -> None:
        self._stage(_Vote(term, votedForNodeId))

    def getCurrentTerm(self) -> int:
        return self._term

    def getVotedForNodeId(self) -> int | None:
        return self._voted_for

    def onOneSecondTimer(self) -> None:
        """Nothing is deferred."""

    def _destroy(self) -> None:
        self._file.close()

    # --- Durability -----------------------------------------------------------------------------

    def barrier(self) -> None:
        """Make all that was staged durable.

        Raises:
            OSError: the disk failed, now or before.
        """
        if self._failure is not None:
            raise OSError(f"the journal can't be trusted since: {self._failure}")
        if not self._staged:
            return
        try:
            group = _frame(self._salt, self._sequence + 1, self._staged)
            if self._end + len(group) > self._file_size:
                self._rewrite()
            else:
                self._file.write([group], self._end)
                self._file.sync_data()
                self._end += len(group)
                self._sequence += 1
        except BaseException as error:  # bulkhead: noted, so that nobody goes on, and raised
            self._failure = error
            raise
        self._staged.clear()

    # --- Inside ---------------------------------------------------------------------------------

    def _stage(self, change: _Change) -> None:
        self._perform(change)
        self._staged.append(change)

    def _perform(self, change: _Change) -> None:
        entries = self._entries
        match change:
            case _Add():
                if entries and change.index != entries[-1][1] + 1:
                    raise ValueError(f"entry {change.index} follows {entries[-1][1]}")
                entries.append((change.command, change.index, change.term))
                self.entries_bytes += len(change.command)
                return
            case _Vote():
                self._term, self._voted_for = change.term, change.voted_for
                return
            case _Cut():
                del entries[change.first_index - entries[0][1] :]
            case _Drop():
                del entries[: change.first_index - entries[0][1]]
            case _Clear():
                entries.clear()
        self.entries_bytes = sum(len(entry[0]) for entry in entries)

    def _rewrite(self) -> None:
        self._file.close()
        kept: list[_Change] = [_Add(*entry) for entry in self._entries]
        _write_file(
            self._disk,
            self._entropy,
            [_Vote(self._term, self._voted_for), *kept],
            self._file_bytes,
        )
        self._open()

    def _open(self) -> bytes:
        self._file = self._disk.open(NAME)
        self._file_size = self._file.size()
        content = self._file.read(self._file_size, 0)
        magic, self._salt = _HEADER.unpack_from(content.ljust(_HEADER.size))
        crc = content[_HEADER.size : _HEADER.size + _CRC.size]
        if magic != _MAGIC or crc != _CRC.pack(zlib.crc32(content[: _HEADER.size])):
            raise DataDirectoryDamaged(f"the header of the metadata member's {NAME} is damaged")
        self._end, self._sequence = SECTOR_BYTES, 0
        for end, sequence, _ in _groups(content, self._salt):
            self._end, self._sequence = end, sequence
        return content

    def _recover(self) -> None:
        content = self._open()
        for _, sequence, payload in _groups(content, self._salt):
            try:
                for change in _decoder.decode(payload):
                    self._perform(change)
            except (msgspec.MsgspecError, ValueError, IndexError) as error:
                raise DataDirectoryDamaged(
                    f"group {sequence} of the metadata member's {NAME} makes no sense: {error}"
                ) from error
        rest = content[self._end :]
        if not any(rest):
            return
        position = rest.find(_GROUP_MAGIC)
        while position >= 0:
            if _parse(rest, position, self._salt) is not None:
                raise DataDirectoryDamaged(
                    f"the metadata member's {NAME} is damaged behind group {self._sequence}"
                )
            position = rest.find(_GROUP_MAGIC, position + 1)
        self._file.write([bytes(len(rest))], self._end)  # what was torn must not show up again
        self._file.sync_data()


def _frame(salt: int, sequence: int, changes: list[_Change]) -> bytes:
    payload = _encoder.encode(changes)
    crc = zlib.crc32(payload, zlib.crc32(_SALTED.pack(salt, len(payload), sequence)))
    group = _GROUP.pack(_GROUP_MAGIC, len(payload), sequence, crc) + payload
    return group.ljust(-(-len(group) // SECTOR_BYTES) * SECTOR_BYTES, b"\0")


def _parse(content: bytes, position: int, salt: int) -> tuple[int, bytes] | None:
    """The sequence and payload of a valid group at ``position``."""
    if position + _GROUP.size > len(content):
        return None
    magic, length, sequence, crc = _GROUP.unpack_from(content, position)
    start = position + _GROUP.size
    if magic != _GROUP_MAGIC or start + length > len(content):
        return None
    payload = content[start : start + length]
    if crc != zlib.crc32(payload, zlib.crc32(_SALTED.pack(salt, length, sequence))):
        return None
    return sequence, payload


def _groups(content: bytes, salt: int) -> Iterator[tuple[int, int, bytes]]:
    """Each valid group in order: where the next would start, its sequence, its payload."""
    position, expected = SECTOR_BYTES, 1
    while (found := _parse(content, position, salt)) is not None and found[0] == expected:
        position += -(-(_GROUP.size + len(found[1])) // SECTOR_BYTES) * SECTOR_BYTES
        expected += 1
        yield position, found[0], found[1]


def _write_file(disk: Disk, entropy: Entropy, changes: list[_Change], file_bytes: int) -> None:
    salt = entropy.bits(64)
    header = _HEADER.pack(_MAGIC, salt)
    head = (header + _CRC.pack(zlib.crc32(header))).ljust(SECTOR_BYTES, b"\0")
    group = _frame(salt, 1, changes)
    size = max(file_bytes, 2 * (len(head) + len(group)))
    if disk.exists(_TEMPORARY):
        disk.remove(_TEMPORARY)
    file = disk.create_zeroed(_TEMPORARY, -(-size // SECTOR_BYTES) * SECTOR_BYTES)
    file.write([head, group], 0)
    file.sync_data()
    file.close()
    disk.rename(_TEMPORARY, NAME)
    disk.sync_folder("")
