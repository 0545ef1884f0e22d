"""Named places where a test may make the world fail.

Production code calls ``failpoint("wal.before_sync")`` at the instants that matter; nothing happens
until a test or the simulator arms the name. Arming takes a callable that may raise, pause or kill.
"""

from collections.abc import Callable

_armed: dict[str, Callable[[], None]] = {}


def failpoint(name: str) -> None:
    """Run what is armed under ``name``; free of charge when nothing is armed at all."""
    if _armed and (action := _armed.get(name)) is not None:
        action()


def arm(name: str, action: Callable[[], None]) -> None:
    """Make ``failpoint(name)`` call ``action`` from now on."""
    _armed[name] = action


def disarm_all() -> None:
    """Forget every armed failpoint."""
    _armed.clear()
