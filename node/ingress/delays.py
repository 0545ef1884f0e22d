"""``?delay=`` of a send: ISO 8601 or numbers with units, as elsewhere, and two forms more. Pure.

``PT1M30S`` · ``P1DT12H`` · ``1h30m`` · ``60 sec`` · ``1.5s`` · ``1 hour, 30 minutes`` · ``900ms``.
Commas may stand between the parts, and a bare integer is milliseconds, because one official client
sends it so. Months and years have no fixed length and are refused, as is anything negative.
"""

import re

from perdure.core.errors import BadRequest
from perdure.core.limits import DELAY_MS_MAX
from perdure.node.config.durations import exact_milliseconds

_SHOWN_LENGTH_MAX = 40
_BARE = re.compile(r"[0-9]{1,20}", re.ASCII)
_COMMA = re.compile(r"(?<=[a-zA-Zµ]) *, +(?=[0-9])")


def parse_delay_ms(text: str) -> int:
    """The delay in whole milliseconds, rounded down.

    Raises:
        BadRequest: not a duration, or longer than the limit.
    """
    if _BARE.fullmatch(text):
        delay_ms = int(text)
    else:
        try:
            delay_ms = int(exact_milliseconds(_COMMA.sub(" ", text)))
        except ValueError as error:
            shown = text[:_SHOWN_LENGTH_MAX]
            raise BadRequest(f"delay {shown!r} is not a duration: {error}") from error
    if delay_ms > DELAY_MS_MAX:
        raise BadRequest(f"a delay of {delay_ms} ms exceeds the limit of {DELAY_MS_MAX} ms")
    return delay_ms
