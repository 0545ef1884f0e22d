"""Small logs for tests: on a simulated disk, with fixed dice, and how to read them back."""

import random
from dataclasses import dataclass, field

from tests.sim.disk import SimDisk
from tests.sim.ports import SimEntropy

from perdure.storage.disk import Disk
from perdure.storage.wal import SegmentKey, Wal, WalIdentity, WalSizes
from perdure.storage.wal_format import Frame, FrameHeader, FrameType
from perdure.storage.wal_recovery import Recovered, open_wal

IDENTITY = WalIdentity(fingerprint=bytes(range(16)), storage_uuid=bytes(range(16, 32)))
SIZES = WalSizes(first_file=4096, file=4096, free_min=0, reserve=1024)


@dataclass
class Reading:
    """An opened log and every frame that was shown."""

    recovered: Recovered
    frames: list[tuple[int, int, FrameHeader, bytes]] = field(
        default_factory=list[tuple[int, int, FrameHeader, bytes]]
    )

    @property
    def wal(self) -> Wal:
        return self.recovered.wal

    @property
    def bodies(self) -> list[bytes]:
        """Bodies of the STORE frames."""
        return [body for _, _, header, body in self.frames if header.type == FrameType.STORE]


def new_disk() -> SimDisk:
    return SimDisk(random.Random(7))


def open_log(
    disk: Disk,
    sizes: WalSizes = SIZES,
    dead: tuple[SegmentKey, ...] = (),
    seed: int = 1,
    identity: WalIdentity = IDENTITY,
) -> Reading:
    """Open the log below ``disk``; segments in ``dead`` need nothing of it."""
    frames: list[tuple[int, int, FrameHeader, bytes]] = []

    def visit(file_seq: int, position: int, header: FrameHeader, body: bytes) -> None:
        frames.append((file_seq, position, header, body))

    recovered = open_wal(
        disk,
        identity,
        SimEntropy(random.Random(seed)),
        visit,
        lambda segment, _end: segment in dead,
        sizes,
    )
    return Reading(recovered, frames)


def store(offset: int, body: bytes, partition: int = 1, segment: int = 0) -> Frame:
    """A STORE frame of one record."""
    return Frame(FrameType.STORE, partition, segment, 3, 99, offset, 1, 0, (body,))


def checkpoint() -> Frame:
    return Frame(FrameType.CHECKPOINT, 0, 0, 0, 0, 0, 0, 0, (b"checkpoint",))


def write(wal: Wal, *groups: list[Frame]) -> None:
    """Append and sync each group."""
    for group in groups:
        wal.append(group)
        wal.sync()
