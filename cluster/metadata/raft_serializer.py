"""Dumps of the register map: written by each member for itself, sent to one that fell behind.

Stands in for the library's serializer (method names are the library's). A dump is one file: magic,
CRC u32 of the rest, then msgpack of the two log entries it ends with and of the map. It is replaced
atomically and synced before the journal may drop what it covers. At start the journal and the dump
are brought in line; whatever doesn't fit together is refused, never repaired by guessing.

The library swallows exceptions here: they are kept in ``failure``, and ``check`` raises them before
anything else leaves the member.
"""

import zlib
from collections.abc import Callable

import msgspec

from perdure.cluster.metadata.raft_journal import DurableJournal, Entry
from perdure.cluster.metadata.raft_state import RegisterMap
from perdure.core.errors import DataDirectoryDamaged
from perdure.core.limits import METADATA_DUMP_PIECE_BYTES
from perdure.storage.disk import Disk, DiskFullError

NAME = "dump"
_MAGIC = b"PRDMETAD"
_HEAD_BYTES = len(_MAGIC) + 4

Piece = tuple[bytes, bool, bool]
"""Bytes of a dump; whether they are its first; whether they are its end (then there are none)."""


class Dump(msgspec.Struct, frozen=True, array_like=True):
    """The map after ``last``; the entry before it comes along, because appends name it."""

    last: Entry
    previous: Entry
    state: bytes


_decoder = msgspec.msgpack.Decoder(Dump)


def encode_dump(dump: Dump) -> bytes:
    body = msgspec.msgpack.encode(dump)
    return _MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def decode_dump(content: bytes) -> Dump:
    """Raises DataDirectoryDamaged: these are not the bytes of a dump."""
    body = content[_HEAD_BYTES:]
    if content[:_HEAD_BYTES] != _MAGIC + zlib.crc32(body).to_bytes(4, "little"):
        raise DataDirectoryDamaged(f"the metadata member's {NAME} is damaged")
    try:
        return _decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise DataDirectoryDamaged(f"the metadata member's {NAME} makes no sense") from error


class DumpSerializer:
    """Writes, reads, sends and receives dumps of one member."""

    def __init__(
        self,
        disk: Disk,
        journal: DurableJournal,
        state: RegisterMap,
        translate: Callable[[bool | None], object],
    ) -> None:
        """``translate`` says in the library's words: written, not written, nothing under way."""
        self._disk = disk
        self._journal = journal
        self._state = state
        self._translate = translate
        self._written: bool | None = None  # the outcome that the library hasn't asked for yet
        self._current_id = 0
        self._content = b""  # of the newest dump
        self.end = (0, 0)  # index and term of the last entry that it covers
        self._sent: dict[object, int] = {}
        self._received: bytearray | None = None
        self.failure: BaseException | None = None

    def check(self) -> None:
        """Raise what was swallowed."""
        if self.failure is not None:
            raise self.failure

    def has_dump(self) -> bool:
        return self._disk.exists(NAME)

    # --- The library's serializer ---------------------------------------------------------------

    def checkSerializing(self) -> tuple[object, int]:
        written, self._written = self._written, None
        if written:
            self._sent.clear()
        return self._translate(written), self._current_id

    def serialize(self, data: tuple[None, Entry, Entry, object], id: int) -> None:
        """Dump the map as it is: ``data`` names the last applied entry and the one before."""
        _, last, previous, _ = data
        self._current_id = id
        try:
            content = encode_dump(Dump(last, previous, self._state.encode()))
            self._disk.replace(NAME, content)
            self._content, self.end = content, (last[1], last[2])
            self._written = True
        except DiskFullError:
            self._written = False  # the log goes on growing; its own file has its room already
        except BaseException as error:  # bulkhead: kept for check
            self.failure = error
            raise

    def deserialize(self) -> tuple[None, Entry, Entry, frozenset[object]]:
        """Load the dump into the map and bring the journal in line with it."""
        try:
            self._content = self._disk.read_file(NAME)
            dump = decode_dump(self._content)
            self._align(dump)
            self._state.load(dump.state)
            self.end = (dump.last[1], dump.last[2])
            return None, dump.last, dump.previous, frozenset()
        except BaseException as error:  # bulkhead: kept for check
            self.failure = error
            raise

    def getTransmissionData(self, transmissionID: object) -> Piece | None:
        if self._written is not None or not self._content:
            return None
        start = self._sent.get(transmissionID, 0)
        piece = self._content[start : start + METADATA_DUMP_PIECE_BYTES]
        self._sent[transmissionID] = start + len(piece)
        if not piece:
            del self._sent[transmissionID]
        return piece, start == 0, not piece

    def setTransmissionData(self, data: Piece | None) -> bool:
        """Take a piece; true when the dump is whole and has replaced ours, durably."""
        if data is None:
            return False
        piece, is_first, is_last = data
        if is_first:
            self._received = bytearray()
        if self._received is None:
            return False  # its beginning was lost with another connection
        self._received += piece
        if not is_last:
            return False
        content, self._received = bytes(self._received), None
        try:
            decode_dump(content)
        except DataDirectoryDamaged:
            return False  # the sender's is damaged or pieces of two were mixed: ours stands
        try:
            self._disk.replace(NAME, content)
        except BaseException as error:  # bulkhead: kept for check
            self.failure = error
            raise
        return True

    def cancelTransmisstion(self, id: object) -> None:
        """Begin again with a member (the library spells it so)."""
        self._sent.pop(id, None)

    # --- Inside ---------------------------------------------------------------------------------

    def _align(self, dump: Dump) -> None:
        # A crash between writing the dump and dropping the entries it covers leaves both.
        journal = self._journal
        first = journal[0][1]
        if first > dump.previous[1]:
            raise DataDirectoryDamaged(
                f"the metadata member's journal starts at {first}, its dump ends at {dump.last[1]}"
            )
        position = dump.previous[1] - first
        if journal[position : position + 2] == [dump.previous, dump.last]:
            journal.deleteEntriesTo(position)
