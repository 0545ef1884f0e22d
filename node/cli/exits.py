"""Exit codes of the ``perdure`` command, and which error ends with which."""

from typing import Final

from perdure.core.errors import (
    AddressInUse,
    InvalidConfiguration,
    NodeUnreachable,
    PerdureError,
    UnexpectedAnswer,
    UnreadableConfiguration,
)

FAILED: Final = 1
USAGE: Final = 2
CONFIGURATION: Final = 3
START: Final = 4
UNREACHABLE: Final = 5
BUG: Final = 70
INTERRUPTED: Final = 130

MEANINGS: Final = {
    0: "done",
    FAILED: "the node refused the request, or had to stop",
    USAGE: "the command line is wrong",
    CONFIGURATION: "the configuration is wrong",
    START: "the node can't start: its address or data directory is taken, foreign or damaged",
    UNREACHABLE: "no node answers at the admin address",
    BUG: "a bug in perdure",
    INTERRUPTED: "interrupted, or a question was not answered with yes",
}


def exit_code(error: PerdureError) -> int:
    """The code that the process ends with."""
    match error:
        case InvalidConfiguration() | UnreadableConfiguration():
            return CONFIGURATION
        case AddressInUse():
            return START
        case NodeUnreachable() | UnexpectedAnswer():
            return UNREACHABLE
        case _:
            is_start = error.code.startswith(("DIR", "LOG", "STO", "PART"))
            return START if is_start else FAILED
