"""The port under the sessions: connections, and wires that carry frames in order until they break.

A wire is one bidirectional stream of frames; a connection carries several. They promise order and
nothing else: a frame that was written may never arrive, and what arrives may come from anybody.
``cluster/fabric.py`` makes sessions of them; TCP, gRPC and the simulator implement them.
"""

from collections.abc import Callable
from typing import Protocol


class WireBroken(Exception):
    """The connection or wire is gone, or never came to be; it says why.

    ``is_vacant``: the machine itself said that no process listens there.
    """

    def __init__(self, reason: str, *, is_vacant: bool = False) -> None:
        super().__init__(reason)
        self.is_vacant = is_vacant


class Wire(Protocol):
    """A bidirectional stream of frames of at most ``limits.FABRIC_FRAME_BYTES_MAX`` each."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """What the certificate of whoever dialled names; None: the wire proves nothing."""
        ...

    @property
    def is_private(self) -> bool:
        """Nobody between the two ends can read or change frames."""
        ...

    @property
    def remote(self) -> str:
        """Where the other end is, for people to read."""
        ...

    async def read(self) -> bytes | None:
        """The next frame; None when there will be no more, whatever the reason."""
        ...

    def write_soon(self, frame: bytes) -> bool:
        """Hand a frame over now. False: it was not taken, because that would need waiting, or there
        is nobody to take it any more; ``write`` does."""
        ...

    async def write(self, frame: bytes) -> None:
        """Hand a frame over; waits while the other side doesn't read.

        Raises:
            WireBroken: the frame may or may not arrive, later ones won't.
        """
        ...

    def close(self) -> None:
        """Break it: reads end, writes fail, the other side will notice. Idempotent."""
        ...


class Connection(Protocol):
    """A connection that this side dialled."""

    async def open(self) -> Wire:
        """A new wire to the other side.

        Raises:
            WireBroken: there is no connection (yet, or any more).
        """
        ...

    async def aclose(self) -> None:
        """End the connection and all its wires. Idempotent."""
        ...


class Wires(Protocol):
    """A network."""

    def connect(self, address: str) -> Connection:
        """A connection to ``host:port``, made when its first wire is opened."""
        ...

    async def listen(self, accept: Callable[[Wire], None]) -> str:
        """Give each wire that others open to ``accept``; returns the address listened on.

        Raises:
            AddressInUse: somebody else has it.
            InvalidConfiguration: it may not be listened on like this.
        """
        ...

    async def aclose(self) -> None:
        """Stop listening and break all wires. Idempotent."""
        ...
