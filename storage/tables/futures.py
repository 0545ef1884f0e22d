"""What a suspended invocation waits for: a tree of combinators over notification ids."""

from enum import IntEnum

import msgspec


class Combinator(IntEnum):
    """How a node's children make its outcome (service protocol 7; numbers as on the wire)."""

    UNKNOWN = 0
    FIRST_COMPLETED = 1
    ALL_COMPLETED = 2
    FIRST_SUCCEEDED_OR_ALL_FAILED = 3
    ALL_SUCCEEDED_OR_FIRST_FAILED = 4


class Future(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A node: its leaves are completion ids, signal indices and signal names."""

    combinator: int
    completions: tuple[int, ...] = ()
    signals: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    nested: tuple["Future", ...] = ()
