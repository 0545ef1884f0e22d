"""What a route of the admin API is for: the words and shapes its document is made of. Pure."""

from dataclasses import dataclass
from typing import Any

Schema = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Success:
    """An answer: what it says, and the name of its shape; None: no body."""

    meaning: str
    shape: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """``refusals``: the statuses of errors beyond those that any request may get.

    ``query``: parameters by name. ``only``: the one version of the API that takes it.
    """

    id: str
    group: str
    summary: str
    successes: dict[int, Success]
    refusals: tuple[int, ...] = ()
    query: dict[str, Schema] | None = None
    only: int | None = None
    is_deprecated: bool = False
