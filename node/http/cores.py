"""Which HTTP core: by name, for either side.

``auto`` is the native core where it is installed, and the pure one elsewhere; DESIGN.md has the
evidence for that order. Core modules are imported when first used.
"""

import importlib
from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Protocol, cast

from perdure.node.http.ports import ClientCore, ServerCore

CORE_NAMES = ("auto", "zttp", "hyper")


class _Core(Protocol):
    """What every core module offers."""

    Client: Callable[[bool], ClientCore]
    Server: Callable[[], ServerCore]


def make_client_core(name: str, version: str, is_secure: bool) -> ClientCore:
    """A core that asks in ``version`` (``HTTP/1.1`` or ``HTTP/2.0``)."""
    return _load(name, version).Client(is_secure)


def make_server_core(name: str, version: str) -> ServerCore:
    """A core that answers in ``version``; ``HTTP/1.1`` includes 1.0."""
    return _load(name, version).Server()


@cache
def _load(name: str, version: str) -> _Core:
    if name not in CORE_NAMES:
        raise ValueError(f"no HTTP core is called {name!r}; there are {', '.join(CORE_NAMES)}")
    if name == "auto":
        name = "zttp" if find_spec("zttp") is not None else "hyper"
    suffix = "http2" if version == "HTTP/2.0" else "http1"
    return cast(_Core, importlib.import_module(f"perdure.node.http.{name}_{suffix}"))
