"""What invocations are told to do and become, in a few words: the twin of the lifecycle.

It knows no journals, sessions, messages or timers of the engine; only who waits for whom and for
how long. Invocations are numbered in the order in which they were made.
"""

from collections import deque
from dataclasses import dataclass, field

STARTED = ("invoked", "suspended", "paused")


@dataclass(slots=True)
class Life:
    """An invocation. ``waits``: tokens of which any resumes it; ``arrived``: token to length."""

    number: int
    key: str | None
    kept: tuple[int, int]
    caller: tuple["Life", str] | None
    status: str = "free"
    is_pausing: bool = False
    is_pinned: bool = False
    length: int = 1
    result: str = ""
    waits: frozenset[str] = frozenset()
    delivered: int = 0
    arrived: dict[str, int] = field(default_factory=dict[str, int])
    children: list["Life"] = field(default_factory=list["Life"])


@dataclass(slots=True)
class Model:
    """All lives; ``queues``: who waits behind the holder of a key, itself at the front."""

    now_ms: int
    lives: list[Life] = field(default_factory=list[Life])
    queues: dict[str, list[Life]] = field(default_factory=dict[str, list[Life]])
    timers: list[tuple[int, int, int, str]] = field(default_factory=list[tuple[int, int, int, str]])

    # --- Beginning ------------------------------------------------------------------------------

    def submit(
        self,
        key: str | None,
        delay_ms: int,
        kept: tuple[int, int],
        caller: tuple[Life, str] | None = None,
    ) -> Life:
        life = Life(len(self.lives), key, kept, caller)
        self.lives.append(life)
        if delay_ms:
            life.status = "scheduled"
            self.timers.append((self.now_ms + delay_ms, 1, life.number, "start"))
        else:
            self._enter(life)
        return life

    def _enter(self, life: Life) -> None:
        life.status = "invoked"
        if life.key is not None:
            queue = self.queues.setdefault(life.key, [])
            queue.append(life)
            if queue[0] is not life:
                life.status = "inboxed"

    # --- What attempts do -----------------------------------------------------------------------

    def record(self, life: Life, entries: int) -> None:
        life.length += entries
        life.is_pinned = True

    def sleep(self, life: Life, token: str, duration_ms: int) -> None:
        self.record(life, 1)
        self.timers.append((self.now_ms + duration_ms, 0, life.number, token))

    def call(self, life: Life, key: str | None, delay_ms: int, token: str | None) -> Life:
        self.record(life, 2)  # the command, and the id of the child
        caller = (life, token) if token is not None else None
        child = self.submit(key, delay_ms, (86_400_000, 86_400_000), caller)
        life.children.append(child)
        return child

    def suspend(self, life: Life, waits: frozenset[str], delivered: int) -> None:
        life.waits, life.delivered = waits, delivered
        if life.is_pausing:
            self._stop(life)
        elif not any(self._has_arrived(life, token) for token in waits):
            life.status = "suspended"

    def give_up(self, life: Life, *, only_if_asked: bool) -> None:
        if life.is_pausing or not only_if_asked:
            self._stop(life)

    def finish(self, life: Life, result: str) -> None:
        life.status, life.result, life.is_pausing = "completed", result, False
        kept, journal = life.kept
        if not kept or not journal:
            life.length = 0
        if not kept:
            life.status = "free"
        else:
            self.timers.append((self.now_ms + kept, 2, life.number, "forget"))
            if journal and journal < kept:
                self.timers.append((self.now_ms + journal, 3, life.number, "drop"))
        if life.key is not None:
            queue = self.queues[life.key]
            assert queue.pop(0) is life
            if queue:
                queue[0].status = "invoked"
        self._answer(life)

    def _answer(self, life: Life) -> None:
        if life.caller is not None:
            self.arrive(*life.caller)

    def _stop(self, life: Life) -> None:
        life.status, life.is_pausing = "paused", False

    # --- What reaches them ----------------------------------------------------------------------

    def arrive(self, life: Life, token: str) -> None:
        if life.status not in STARTED:
            return
        life.arrived[token] = life.length
        life.length += 1
        is_awaited = token in life.waits and self._has_arrived(life, token)
        if life.status == "suspended" and is_awaited:
            life.status = "invoked"

    def _has_arrived(self, life: Life, token: str) -> bool:
        index = life.arrived.get(token)
        if index is None:
            return False
        return index >= life.delivered if token.startswith("#") else True

    def advance(self, duration_ms: int) -> None:
        self.now_ms += duration_ms
        due = sorted(timer for timer in self.timers if timer[0] <= self.now_ms)
        # Retention comes last: it is in no hurry.
        due.sort(key=lambda timer: timer[1] >= 2)
        self.timers = [timer for timer in self.timers if timer[0] > self.now_ms]
        for _, kind, number, token in due:
            life = self.lives[number]
            if kind == 0:
                self.arrive(life, token)
            elif kind == 1 and life.status == "scheduled":
                self._enter(life)
            elif kind == 2:
                life.status, life.length = "free", 0
            elif kind == 3 and life.status == "completed":
                life.length = 0

    # --- What operators do ------------------------------------------------------------------------

    def operate(self, verb: str, life: Life) -> str:
        """Do it; the verdict."""
        if life.status == "free":
            return "not_found"
        if verb in ("purge", "purge_journal"):
            return self._purge(life, verb)
        if life.status == "completed":
            return "completed"
        if life.status in ("scheduled", "inboxed"):
            return self._end_unstarted(life) if verb in ("cancel", "kill") else "not_started"
        started = {
            "cancel": self._cancel,
            "kill": self._kill,
            "pause": self._pause,
            "resume": self._resume,
        }
        return started[verb](life)

    def _purge(self, life: Life, verb: str) -> str:
        if life.status != "completed":
            return "not_completed"
        life.length = 0
        if verb == "purge":
            life.status = "free"
        return "done"

    def _end_unstarted(self, life: Life) -> str:
        if life.status == "inboxed":
            assert life.key is not None
            self.queues[life.key].remove(life)
        life.status, life.length = "free", 0
        self._answer(life)
        return "done"

    def _cancel(self, life: Life) -> str:
        was_paused = life.status == "paused"
        life.is_pausing = False
        self.arrive(life, "#1")
        if was_paused:
            life.status = "invoked"
        return "accepted"

    def _kill(self, life: Life) -> str:
        """Word goes through a family level by level: grandchildren hear it after all children."""
        told = deque([life])
        while told:
            member = told.popleft()
            if member.status in STARTED:
                self.finish(member, "killed")
                told.extend(member.children)
            elif member.status in ("scheduled", "inboxed"):
                self._end_unstarted(member)
        return "done"

    def _pause(self, life: Life) -> str:
        if life.status == "paused":
            return "done"
        if life.status == "invoked":
            life.is_pausing = True
        else:
            self._stop(life)
        return "accepted"

    def _resume(self, life: Life) -> str:
        life.status, life.is_pausing = "invoked", False
        return "done"
