"""Random lives of invocations against a small twin, with crashes between any two log records.

The twin (lifecycle_model.py) shares nothing with the engine. After every step statuses, lengths,
results, awaited trees and queues must agree; at the end the tables must be what a replay makes of
the log, from nothing and from any checkpoint.
"""

from dataclasses import dataclass

import pytest
from hypothesis import Phase, example, given, settings
from hypothesis import strategies as st
from tests.engine import entries as e
from tests.engine.lifecycle_model import Life, Model
from tests.engine.memory_env import MemoryEnv
from tests.engine.world import FIRST_MS, PIN, Partition, World, any_of

from perdure.core.ids import InvocationId
from perdure.core.limits import EVENTS_PER_INVOCATION_MAX
from perdure.engine.actions import Outcome, Recorded, Stale, Verdict
from perdure.engine.apply import Origin
from perdure.engine.commands import (
    AttemptFailed,
    Cancel,
    Command,
    Effect,
    Effects,
    End,
    Fail,
    Kill,
    Pause,
    PauseAttempt,
    Purge,
    PurgeJournal,
    Resume,
    Suspend,
    Yield,
)
from perdure.storage.keys import sequence_suffix
from perdure.storage.tables.invocations import (
    Completed,
    Failure,
    Invoked,
    Success,
    Suspended,
    Target,
)
from perdure.storage.tables.journal import AttemptFailure
from perdure.storage.tables.objects import WaitingInvocation, WaitingMutation

KEYS = (None, None, "a", "b")
KEPT = ((0, 0), (3000, 3000), (3000, 500), (3000, 0))
VERBS: dict[str, type[Cancel | Kill | Purge | PurgeJournal | Pause | Resume]] = {
    "cancel": Cancel,
    "kill": Kill,
    "purge": Purge,
    "purge_journal": PurgeJournal,
    "pause": Pause,
    "resume": Resume,
}
LIVES_MAX = 12


class FragileWorld(World):
    """One partition whose node dies after some records: what was flushed and the log remain."""

    def __init__(self, rests: list[int]) -> None:
        super().__init__()
        self._rests = rests
        self._disk: dict[bytes, bytes] = {}
        self._records = 0

    def propose(self, command: Command, at: Partition, origin: Origin | None = None) -> Outcome:
        outcome = super().propose(command, self.partitions[0], origin)
        self._records += 1
        match self._rests[self._records % len(self._rests)] % 4:
            case 0:
                self._disk = self.partitions[0].tables()
            case 1:
                self.partitions[0] = reopened(self.partitions[0], self._disk)
            case _:
                pass
        return outcome


def reopened(partition: Partition, disk: dict[bytes, bytes]) -> Partition:
    """The partition of a new process: the disk, and the rest of the log."""
    fresh = Partition(partition.number, partition.count, MemoryEnv(disk))
    start = fresh.store.applied_lsn
    fresh.log = partition.log[:start]
    for record in partition.log[start:]:
        fresh.apply(record)
    return fresh


@dataclass
class Pair:
    """The engine and its twin, told the same."""

    world: World
    model: Model
    ids: list[InvocationId]
    tokens: int = 0

    def life(self, choice: int, *statuses: str) -> Life | None:
        found = [life for life in self.model.lives if not statuses or life.status in statuses]
        return found[choice % len(found)] if found else None

    def token(self) -> int:
        """A new completion id; calls take two."""
        self.tokens += 2
        return self.tokens

    # --- Steps ----------------------------------------------------------------------------------

    def submit(self, a: int, b: int, c: int) -> None:
        if len(self.ids) >= LIVES_MAX:
            return
        key, kept, delay = KEYS[a % 4], KEPT[b % 4], (c % 3) * 250
        id = self.world.new_id()
        self.ids.append(id)
        execute_at_ms = self.world.now_ms + delay if delay else 0
        self.world.submit(target_of(key), id, execute_at_ms=execute_at_ms, retention=kept)
        self.model.submit(key, delay, kept)

    def attempt(self, a: int, b: int, c: int) -> None:
        life = self.life(a, "invoked")
        if life is None:
            return
        effect = (
            self._step,
            self._sleep,
            self._call,
            self._suspend,
            self._suspend,
            self._fail,
            self._give_up,
            self._end,
            self._late,
        )[b % 9]
        effect(life, c)

    def _apply(self, life: Life, *effects: Effect) -> None:
        outcome = self.world.effects(self.ids[life.number], *effects)
        assert isinstance(outcome, Recorded)

    def _step(self, life: Life, _c: int) -> None:
        number = self.token()
        self._apply(life, e.run(number), e.run_result(number, b"r"))
        self.model.record(life, 2)
        life.arrived[str(number)] = life.length - 1

    def _sleep(self, life: Life, c: int) -> None:
        number, duration = self.token(), 1 + c * 100
        self._apply(life, e.sleep(number, self.world.now_ms + duration))
        self.model.sleep(life, str(number), duration)

    def _call(self, life: Life, c: int) -> None:
        if len(self.ids) >= LIVES_MAX:
            self._step(life, c)
            return
        number, key = self.token(), KEYS[c % 4]
        child = self.world.new_id()
        self.ids.append(child)
        if c % 3:
            self._apply(life, e.call(number, child, target_of(key)))
            self.model.call(life, key, 0, str(number))
        else:
            delay = (c % 2) * 400
            at = self.world.now_ms + delay if delay else 0
            self._apply(life, e.send(number, child, target_of(key), invoke_time=at))
            self.model.call(life, key, delay, None)
            life.arrived[str(number)] = life.length - 1

    def _suspend(self, life: Life, c: int) -> None:
        candidates = [str(number) for number in range(2, self.tokens + 1, 2)][-4:]
        waits = candidates[: c % 4] + (["#1"] if c % 2 else []) + (["#17"] if c % 3 else [])
        waits = waits or ["#17"]
        delivered = life.length if c % 5 else 0
        leaves = [token if token.startswith("#") else int(token) for token in waits]
        self._apply(life, Suspend(any_of(*leaves), delivered))
        self.model.suspend(life, frozenset(waits), delivered)

    def _fail(self, life: Life, c: int) -> None:
        """The attempt fails; if a pause was asked for, that is all."""
        failure = AttemptFailure(500, f"no {c % 2}")
        if c % 2:
            self._apply(life, AttemptFailed(failure))
        else:
            self._apply(life, Yield(failure))
            self.model.give_up(life, only_if_asked=True)

    def _give_up(self, life: Life, _c: int) -> None:
        self._apply(life, PauseAttempt(AttemptFailure(500, "often")))
        self.model.give_up(life, only_if_asked=False)

    def _end(self, life: Life, c: int) -> None:
        id = self.ids[life.number]
        if c % 4:
            assert isinstance(self.world.end(id, e.output(b"done")), Recorded)
            self.model.record(life, 1)
            self.model.finish(life, "done")
        else:
            self._apply(life, Fail(Failure(418, "teapot")))
            self.model.finish(life, "teapot")

    def _late(self, life: Life, _c: int) -> None:
        """An attempt of another session has no say."""
        id = self.ids[life.number]
        session = self.world.session(id) - 1
        assert self.world.effects(id, e.output(), session=session) == Stale()

    def operate(self, a: int, b: int, _c: int) -> None:
        life = self.life(a)
        if life is not None:
            verb = sorted(VERBS)[b % len(VERBS)]
            verdict = self.world.operate(VERBS[verb], self.ids[life.number])
            assert verdict is Verdict(self.model.operate(verb, life))

    def signal(self, a: int, _b: int, _c: int) -> None:
        life = self.life(a)
        if life is not None:
            self.world.signal(self.ids[life.number], 17)
            self.model.arrive(life, "#17")

    def wait(self, a: int, b: int, _c: int) -> None:
        duration = (a + 1) * (b + 1) * 20
        self.world.advance(duration)
        self.model.advance(duration)

    # --- Comparing --------------------------------------------------------------------------------

    def check(self) -> None:
        store = self.world.partitions[0].store
        for life, id in zip(self.model.lives, self.ids, strict=True):
            assert self.world.status(id) == life.status, life
            row = self.world.row(id)
            assert len(store.events.scan(id)) <= EVENTS_PER_INVOCATION_MAX
            match row:
                case Invoked():
                    assert row.is_pausing == life.is_pausing
                    assert row.progress.journal_length == life.length
                    assert (row.progress.pin is not None) == life.is_pinned
                case Suspended():
                    assert _leaves(row) == life.waits
                case Completed():
                    result = self.world.result(id)
                    text = "done" if isinstance(result, Success) else ""
                    text = result.message if isinstance(result, Failure) else text
                    assert (text, row.progress.journal_length) == (life.result, life.length)
                case _:
                    pass
            assert len(store.journal.scan(id)) == (life.length if row is not None else 0)
        for key in ("a", "b"):
            queue = self.model.queues.get(key, [])
            assert self._queue(key) == [self.ids[life.number] for life in queue]

    def _queue(self, key: str) -> list[InvocationId]:
        """The holder of a key's lock, and who waits behind it."""
        store = self.world.partitions[0].store
        for group, lock in store.locks.scan(b"", 100):
            holder = self.world.row(lock.holder)
            assert holder is not None
            if holder.spec.target.key == key:
                waiting = [
                    row
                    for sequence in range(lock.head, lock.tail)
                    if (row := store.inbox.get(group, sequence_suffix(sequence))) is not None
                ]
                return [lock.holder, *(_id_of(row) for row in waiting)]
        return []


def _id_of(row: WaitingInvocation | WaitingMutation) -> InvocationId:
    assert isinstance(row, WaitingInvocation)
    return row.id


def _leaves(row: Suspended) -> frozenset[str]:
    awaiting = row.awaiting
    return frozenset(
        [*map(str, awaiting.completions), *(f"#{index}" for index in awaiting.signals)]
    )


def target_of(key: str | None) -> Target:
    return e.SERVICE if key is None else e.exclusive(key)


Choice = tuple[int, int, int, int]
_STEPS: st.SearchStrategy[list[Choice]] = st.lists(
    st.tuples(st.integers(0, 9), st.integers(0, 11), st.integers(0, 11), st.integers(0, 11)),
    min_size=50,  # shrunk to submissions past the most, which do nothing
    max_size=90,
)


def play(pair: Pair, steps: list[Choice]) -> None:
    """Tell both the same, and compare after each step."""
    for kind, a, b, c in steps:
        step = (
            pair.submit,
            pair.submit,
            pair.attempt,
            pair.attempt,
            pair.attempt,
            pair.attempt,
            pair.operate,
            pair.operate,
            pair.signal,
            pair.wait,
        )[kind]
        step(a, b, c)
        pair.check()


# The holder of a key and who waits behind it are killed with their family: the holder is a child,
# the other one a grandchild, which hears of it when the lock is already its own.
_KILLED_BEHIND_AN_UNCLE: list[Choice] = [
    (0, 0, 0, 0),
    (2, 0, 2, 0),  # calls the parent of the grandchild
    (2, 0, 2, 11),  # and the holder of the key "b"
    (2, 1, 2, 11),  # behind which the grandchild waits
    (6, 0, 1, 0),
]


@pytest.mark.slow
@given(_STEPS, st.lists(st.integers(0, 7), min_size=1, max_size=9), st.integers(0, 1000))
@example(_KILLED_BEHIND_AN_UNCLE, [0], 0)
# Shrinking takes over a minute; to find the shortest history of a failure, add Phase.shrink.
@settings(max_examples=150, deadline=None, phases=(Phase.explicit, Phase.reuse, Phase.generate))
def test_lives_are_what_the_twin_says(steps: list[Choice], rests: list[int], cut: int) -> None:
    world = FragileWorld(rests)
    play(Pair(world, Model(FIRST_MS), []), steps)
    world.check()
    (partition,) = world.partitions
    # From any checkpoint as from none.
    head = Partition(0, 1)
    for record in partition.log[: cut % (len(partition.log) + 1)]:
        head.apply(record)
    disk = head.tables() if head.log else {}
    assert reopened(partition, disk).tables() == partition.tables()


def test_the_twin_tells_lives_apart() -> None:
    """The steps reach every status, so that agreement means something."""
    world = World()
    pair = Pair(world, Model(FIRST_MS), [])
    seen: set[str] = set()
    steps: list[Choice] = [
        (0, 2, 1, 0),  # holds the key "a"
        (0, 2, 1, 0),  # waits behind it
        (0, 0, 1, 1),  # scheduled
        (0, 0, 1, 0),
        (2, 0, 1, 3),  # sleeps
        (2, 0, 3, 3),  # and suspends
        (6, 0, 4, 0),
        (2, 1, 6, 0),  # gives up
        (2, 2, 7, 1),
        (9, 11, 11, 0),
    ]
    for step in steps:
        play(pair, [step])
        seen |= {life.status for life in pair.model.lives}
    assert seen >= {"invoked", "inboxed", "scheduled", "suspended", "paused"}


# --- In the same millisecond ---------------------------------------------------------------------


def test_cancel_after_the_end_in_the_same_millisecond_is_too_late() -> None:
    world = World()
    invocation = world.invoke()
    world.end(invocation, e.output(b"done"))
    assert world.operate(Cancel, invocation) is Verdict.COMPLETED
    assert world.result(invocation) == Success(b"done")
    world.check()


@pytest.mark.parametrize("verb", [Cancel, Kill, Pause])
def test_the_end_after_a_request_in_the_same_millisecond(
    verb: type[Cancel | Kill | Pause],
) -> None:
    """A cancel and a pause come too late for an attempt that ends; after a kill it is stale."""
    world = World()
    invocation = world.invoke()
    session = world.session(invocation)
    assert world.operate(verb, invocation) in (Verdict.ACCEPTED, Verdict.DONE)
    outcome = world.effects(invocation, e.output(b"done"), End(), session=session)
    if verb is Kill:
        assert outcome == Stale()
        assert world.result(invocation) == Failure(409, "killed")
    else:
        assert world.result(invocation) == Success(b"done")
    world.check()


def test_caller_and_child_end_in_the_same_millisecond_as_the_kill() -> None:
    """Each is answered once, and what comes late finds nobody."""
    world = World(partition_count=2)
    caller = world.invoke(id=world.new_id(0))
    child, grandchild = world.new_id(1), world.new_id(0)
    world.effects(caller, e.call(2, child, e.OTHER))
    world.effects(child, e.call(2, grandchild, e.OTHER))
    # The child's end is on its way while the caller is killed.
    ended = Effects(child, world.session(child), PIN, [e.output(), End()])
    world.propose(ended, world.of(child))
    world.propose(Kill(caller), world.of(caller))
    world.shuffle()
    assert world.result(caller) == Failure(409, "killed")
    assert world.result(child) == Success(b"ok")
    assert world.status(grandchild) == "invoked"  # the child was no longer there to be killed
    world.check()
