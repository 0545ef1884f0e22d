"""What follows when disks are lost for good beyond what the rules of the log can bear.

The rest of the table is in ``core/errors.py``.
"""

from perdure.core.errors import PerdureError


class UnsafeCloseRefused(PerdureError):
    code = "LOG0009"
    title = "a segment of a log can't, or need not, be closed unsafely"
    http_status = 409


class HistoryForsaken(PerdureError):
    code = "STO0003"
    title = "a partition store has applied records that an unsafe close has cut off"
