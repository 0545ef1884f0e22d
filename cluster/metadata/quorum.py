"""The register ``quorum``: who holds the metadata, and who is to hold it next. Pure edits.

The members of a quorum never change. Others take over as a whole: the register names them, the
quorum is stopped at just that version of the register, and the next one begins with what it was
then. At most one move is under way, and once the quorum was stopped there is no way back.
"""

import msgspec

from perdure.core.errors import MembershipRefused
from perdure.core.limits import METADATA_MEMBERS_MAX

QUORUM_KEY = "quorum"
FIRST = 1


class Quorum(msgspec.Struct, frozen=True):
    """``members``: addresses of their nodes, by name, in the order of their numbers, from 1. By
    number: ``storages``, and ``disks``, the nodes' own; on another one nobody may make a storage.
    """

    number: int
    cluster: str
    members: dict[str, str]
    storages: dict[int, str]
    disks: dict[int, str]

    def place_of(self, name: str) -> int | None:
        """A node's number among the members."""
        names = list(self.members)
        return names.index(name) + 1 if name in names else None

    @property
    def majority(self) -> int:
        return len(self.members) // 2 + 1


class Quorums(msgspec.Struct, frozen=True):
    """The register's value. ``current``: None is the first one, as it was configured."""

    current: Quorum | None = None
    following: Quorum | None = None

    @property
    def number(self) -> int:
        """Of the current one."""
        return self.current.number if self.current is not None else FIRST


def decode_quorums(value: bytes) -> Quorums:
    return msgspec.msgpack.decode(value, type=Quorums)


def begin_move(known: Quorums | None, wanted: Quorum) -> Quorums:
    """Have the members of ``wanted`` follow, whatever its number.

    Raises:
        MembershipRefused: another move is under way, or they are too many or an even number.
    """
    known = known if known is not None else Quorums()
    count = len(wanted.members)
    if count % 2 == 0 or count > METADATA_MEMBERS_MAX:
        raise MembershipRefused(
            f"the metadata is held by 1, 3 or 5 nodes, not by {count}: an even number bears no "
            "more losses than one less, more than 5 are slow"
        )
    if known.following is not None:
        names = ", ".join(known.following.members)
        raise MembershipRefused(f"the metadata is moving to {names}: wait until it is there")
    following = msgspec.structs.replace(wanted, number=known.number + 1)
    return Quorums(known.current, following)


def finish_move(known: Quorums | None, number: int) -> Quorums | None:
    """The quorum of this number serves; None: that is known."""
    if known is None or known.following is None or known.following.number != number:
        return None
    return Quorums(known.following, None)
