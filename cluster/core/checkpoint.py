"""What a CHECKPOINT frame says of all replicas of a log server, so that a start reads less."""

import msgspec


class SegmentSummary(msgspec.Struct, frozen=True, array_like=True):
    """A segment in a CHECKPOINT frame: all of a replica but its records.

    ``crcs`` as in ``Segment``: files that hold the records may be gone by the time it is read.
    """

    partition: int
    segment: int
    epoch: int
    incarnation: int
    local_tail: int
    kgt: int
    trim: int
    tail_at_seal: int | None
    closed_tail: int | None
    crcs: list[tuple[int, int]]
    is_unsafe: bool = False


class Checkpoint(msgspec.Struct, frozen=True, array_like=True):
    """Body of a CHECKPOINT frame: every live segment; per partition, the highest epoch seen, the
    lowest segment index that still lives, and the highest version of the chain acted on."""

    segments: list[SegmentSummary]
    epochs: list[tuple[int, int]]
    floors: list[tuple[int, int]]
    versions: list[tuple[int, int]] = []
