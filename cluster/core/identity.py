"""Whether a data directory may serve: the marker on the disk against the published generation.

The marker's generation is written before it is published, so at a start it equals the published
one, or is one ahead after a crash in between. Anything else is a disk that was swapped, cloned or
rolled back, or metadata that lost a write (invariants I-19, I-21).
"""

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """What to do at a start."""

    JOIN = "join"
    START = "start"
    DATA_LOSS = "data_loss"
    METADATA_REGRESSED = "metadata_regressed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """What metadata says of this node. ``was_writable``: its storage state is past provisioning."""

    generation: int
    was_writable: bool


def judge(marker_generation: int | None, published: Published | None) -> Verdict:
    """Compare the marker (None: none, and an empty directory) with what was published."""
    if marker_generation is None:
        if published is not None and published.was_writable:
            return Verdict.DATA_LOSS
        return Verdict.JOIN
    known = published.generation if published is not None else 0
    if marker_generation in (known, known + 1):
        return Verdict.START
    return Verdict.DATA_LOSS if marker_generation < known else Verdict.METADATA_REGRESSED
