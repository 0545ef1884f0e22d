"""An answer on its way from the thread that makes it to the event loop that sends it."""

from collections.abc import Callable
from typing import NamedTuple

JSON_TYPE = "application/json"
ARROW_TYPE = "application/vnd.apache.arrow.stream"


class Piece(NamedTuple):
    """Bytes of an answer. Who got it calls ``taken`` when there is room for another."""

    data: bytes
    is_last: bool
    taken: Callable[[], None]


Deliver = Callable[[Piece], None]
"""Hands a piece over, from the thread; it must not wait."""
