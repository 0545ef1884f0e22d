"""Settings that are one word of a few."""

from enum import Enum


class LogLevel(Enum):
    """Events of this level and above are written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(Enum):
    """How events are written."""

    PRETTY = "pretty"
    COMPACT = "compact"
    JSON = "json"


class LogColours(Enum):
    """Whether lines are coloured; ``AUTO``: if stderr is a terminal."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class HttpCore(Enum):
    """Which protocol core HTTP stands on."""

    AUTO = "auto"
    ZTTP = "zttp"
    HYPER = "hyper"
