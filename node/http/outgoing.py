"""Body bytes on their way out of an HTTP/2 stream: what no window has let out yet.

Cores are fed only what may leave soon. A core that parks a large body for a small window moves the
rest of it with every window update, which is quadratic; here a body is cut without being copied.
"""

from collections import deque


class Outgoing:
    """A queue of body pieces, and whether the body ends after them."""

    __slots__ = ("_pieces", "is_ended", "size")

    def __init__(self) -> None:
        self._pieces: deque[memoryview] = deque()
        self.size = 0
        self.is_ended = False

    def put(self, data: bytes) -> None:
        """Queue a piece."""
        if data:
            self._pieces.append(memoryview(data))
            self.size += len(data)

    def take(self, size_max: int) -> memoryview:
        """The next piece, at most ``size_max`` bytes of it; the queue must not be empty."""
        piece = self._pieces.popleft()
        if len(piece) > size_max:
            self._pieces.appendleft(piece[size_max:])
            piece = piece[:size_max]
        self.size -= len(piece)
        return piece
