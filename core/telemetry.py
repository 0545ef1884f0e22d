"""Structured events: a stable dotted name and typed fields, one line per state transition.

``log = telemetry.logger("wal")`` then ``log.info("wal.file.rolled", seq=3)``. Nothing at ``error``
that an operator cannot act on.
"""

import json
import logging
import sys
from typing import Final, Literal

ROOT: Final = "perdure"
LogFormat = Literal["pretty", "compact", "json"]

_LEVEL_COLOURS = {"DEBUG": "2", "INFO": "32", "WARNING": "33", "ERROR": "31;1"}


class EventLogger:
    """Writes events of one area; fields are passed as keywords."""

    __slots__ = ("_logger",)

    def __init__(self, area: str) -> None:
        self._logger = logging.getLogger(f"{ROOT}.{area}")

    def is_debug(self) -> bool:
        """Whether debug events are written: guard fields that are costly to make."""
        return self._logger.isEnabledFor(logging.DEBUG)

    def debug(self, event: str, **fields: object) -> None:
        self._write(logging.DEBUG, event, fields, None)

    def info(self, event: str, **fields: object) -> None:
        self._write(logging.INFO, event, fields, None)

    def warning(self, event: str, **fields: object) -> None:
        self._write(logging.WARNING, event, fields, None)

    def error(self, event: str, cause: BaseException | None = None, **fields: object) -> None:
        self._write(logging.ERROR, event, fields, cause)

    def _write(
        self, level: int, event: str, fields: dict[str, object], cause: BaseException | None
    ) -> None:
        if self._logger.isEnabledFor(level):
            exc_info = (type(cause), cause, cause.__traceback__) if cause is not None else None
            self._logger.log(level, event, extra={"fields": fields}, exc_info=exc_info)


def logger(area: str) -> EventLogger:
    """The event logger of an area (``wal``, ``invoker``, …)."""
    return EventLogger(area)


def configure(level: str, log_format: LogFormat, colours: bool | None = None) -> None:
    """Send events of ``level`` and above to stderr; idempotent.

    Raises:
        ValueError: ``level`` is not a level's name.
    """
    handler = logging.StreamHandler(sys.stderr)
    has_colours = sys.stderr.isatty() if colours is None else colours
    handler.setFormatter(_JsonFormatter() if log_format == "json" else _LineFormatter(has_colours))
    root = logging.getLogger(ROOT)
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    root.propagate = False


_process_fields: dict[str, object] = {}


def name_process(**fields: object) -> None:
    """Have these fields in every event of this process, for those that share one stderr."""
    _process_fields.update(fields)


def _fields(record: logging.LogRecord) -> dict[str, object]:
    fields: dict[str, object] = getattr(record, "fields", {})
    return {**_process_fields, **fields} if _process_fields else fields


class _LineFormatter(logging.Formatter):
    def __init__(self, colours: bool) -> None:
        super().__init__()
        self._colours = colours

    def format(self, record: logging.LogRecord) -> str:
        level = f"{record.levelname:<7}"
        if self._colours:
            level = f"\x1b[{_LEVEL_COLOURS.get(record.levelname, '0')}m{level}\x1b[0m"
        stamp = self.formatTime(record, "%Y-%m-%dT%H:%M:%S")
        pairs = "".join(f" {name}={_plain(value)}" for name, value in _fields(record).items())
        line = f"{stamp}.{int(record.msecs):03d} {level} {record.getMessage()}{pairs}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        document: dict[str, object] = {
            "timestamp": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname,
            "event": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            document["exception"] = self.formatException(record.exc_info)
        return json.dumps(document, default=str)


def _plain(value: object) -> str:
    text = value.hex() if isinstance(value, bytes) else str(value)
    return json.dumps(text) if " " in text or "\n" in text or not text else text
