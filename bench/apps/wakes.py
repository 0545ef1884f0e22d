"""When the members of a sleeping crowd were woken, and how late."""

import time


class Wakes:
    """Counts each member once, at its first wake-up."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[float, float]] = {}

    def note(self, member: str, due_ms: float) -> None:
        now = time.time() * 1e3
        self._seen.setdefault(member, (now, now - due_ms))

    def report(self, is_reset: bool) -> dict[str, float]:
        """Their number, first and last wake-up (ms of the epoch), lateness in ms."""
        moments = sorted(moment for moment, _ in self._seen.values())
        late = sorted(lateness for _, lateness in self._seen.values())
        if is_reset:
            self._seen.clear()
        if not moments:
            return {"count": 0}
        return {
            "count": len(moments),
            "first_ms": moments[0],
            "last_ms": moments[-1],
            "late_min_ms": late[0],
            "late_p50_ms": late[len(late) // 2],
            "late_p99_ms": late[len(late) * 99 // 100],
        }
