"""Virtual objects and workflows: one holder per key, strict FIFO, mutations in line, promises."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.engine.entries import (
    OTHER,
    exclusive,
    get_promise,
    output,
    peek_promise,
    reject_promise,
    resolve_promise,
    run,
    set_state,
    shared,
    sleep,
    workflow,
    workflow_shared,
)
from tests.engine.world import World, result_text

from perdure.core.ids import InvocationId
from perdure.engine.commands import Cancel, Kill, PatchState, Purge, Resume
from perdure.engine.objects import state_entries, state_version
from perdure.storage.keys import object_group
from perdure.storage.tables.objects import listeners_group


def patch(world: World, key: str, version: str | None = None, **entries: bytes) -> None:
    rows = tuple((name.encode(), value) for name, value in sorted(entries.items()))
    world.propose(PatchState("Counter", key, True, version, rows), world.partitions[0])


def state(world: World, key: str, service: str = "Counter") -> dict[bytes, bytes]:
    group = object_group(service, key)
    return {e.key: e.value for e in state_entries(world.partitions[0].store, group)}


# --- The lock and its inbox ----------------------------------------------------------------------


def test_one_at_a_time_per_key_in_order_of_acceptance() -> None:
    world = World()
    queue = [world.invoke(exclusive("k")) for _ in range(4)]
    elsewhere = world.invoke(exclusive("other"))
    assert world.status(elsewhere) == "invoked"
    for position, invocation in enumerate(queue):
        statuses = [world.status(each) for each in queue[position:]]
        assert statuses == ["invoked"] + ["inboxed"] * (len(statuses) - 1)
        world.end(invocation, output())
    assert world.partitions[0].store.locks.get(object_group("Counter", "k")) is None
    world.check()


def test_shared_handlers_never_wait() -> None:
    world = World()
    world.invoke(exclusive("k"))
    readers = [world.invoke(shared("k")) for _ in range(3)]
    assert [world.status(reader) for reader in readers] == ["invoked"] * 3
    for reader in readers:
        world.end(reader, output())
    assert world.partitions[0].store.locks.get(object_group("Counter", "k")) is not None


def test_two_services_share_no_lock() -> None:
    world = World()
    world.invoke(exclusive("k"))
    other = type(exclusive("k"))("Account", "add", "k", exclusive("k").kind)
    assert world.status(world.invoke(other)) == "invoked"


def test_key_without_characters_is_a_key() -> None:
    world = World()
    first, second = world.invoke(exclusive("")), world.invoke(exclusive(""))
    assert (world.status(first), world.status(second)) == ("invoked", "inboxed")


@pytest.mark.parametrize("hold", ["suspend", "pause", "fail"])
def test_lock_is_held_through(hold: str) -> None:
    world = World()
    holder, waiting = world.invoke(exclusive("k")), world.invoke(exclusive("k"))
    world.effects(holder, sleep(1, world.now_ms + 10))
    match hold:
        case "suspend":
            world.suspend(holder, 1)
        case "pause":
            world.pause(holder)
        case _:
            world.effects(holder, run(2))  # an attempt that then fails leaves only this
    assert world.status(waiting) == "inboxed"
    world.advance(10)
    assert world.status(waiting) == "inboxed"
    if hold == "pause":
        world.operate(Resume, holder)
    world.end(holder, output())
    assert world.status(waiting) == "invoked"
    world.check()


@pytest.mark.parametrize("held", ["invoked", "suspended", "paused"])
def test_kill_hands_the_lock_on(held: str) -> None:
    world = World()
    holder, waiting = world.invoke(exclusive("k")), world.invoke(exclusive("k"))
    if held == "suspended":
        world.suspend(holder, "#17")
    elif held == "paused":
        world.pause(holder)
    assert world.status(holder) == held
    world.operate(Kill, holder)
    assert world.status(waiting) == "invoked"
    world.check()


@pytest.mark.parametrize("operation", [Cancel, Kill])
def test_leaving_the_inbox_leaves_the_others_in_order(operation: type[Cancel | Kill]) -> None:
    world = World()
    queue = [world.invoke(exclusive("k")) for _ in range(5)]
    world.operate(operation, queue[1])
    world.operate(operation, queue[3])
    assert [world.status(each) for each in queue] == [
        "invoked",
        "free",
        "inboxed",
        "free",
        "inboxed",
    ]
    world.end(queue[0], output())
    assert world.status(queue[2]) == "invoked"
    world.end(queue[2], output())
    assert world.status(queue[4]) == "invoked"
    world.end(queue[4], output())
    assert world.partitions[0].store.inbox.scan(object_group("Counter", "k")) == []
    world.check()


# --- Mutations -----------------------------------------------------------------------------------


def test_mutation_of_a_free_object_is_applied_at_once() -> None:
    world = World()
    patch(world, "k", a=b"1", b=b"2")
    assert state(world, "k") == {b"a": b"1", b"b": b"2"}
    patch(world, "k", c=b"3")  # the whole state is replaced
    assert state(world, "k") == {b"c": b"3"}


def test_mutation_waits_in_line() -> None:
    world = World()
    first = world.invoke(exclusive("k"))
    patch(world, "k", a=b"operator")
    second = world.invoke(exclusive("k"))
    world.effects(first, set_state(b"a", b"first"), set_state(b"b", b"first"))
    assert state(world, "k") == {b"a": b"first", b"b": b"first"}
    world.end(first, output())
    assert world.status(second) == "invoked"
    assert state(world, "k") == {b"a": b"operator"}
    world.check()


def test_mutations_alone_in_the_inbox_leave_the_key_unlocked() -> None:
    world = World()
    first = world.invoke(exclusive("k"))
    patch(world, "k", a=b"1")
    patch(world, "k", a=b"2")
    world.end(first, output())
    assert state(world, "k") == {b"a": b"2"}
    assert world.status(world.invoke(exclusive("k"))) == "invoked"
    world.check()


def test_mutation_of_another_version_is_dropped() -> None:
    world = World()
    patch(world, "k", a=b"1")
    seen = state_version([(b"a", b"1")])
    patch(world, "k", seen, a=b"2")
    assert state(world, "k") == {b"a": b"2"}
    patch(world, "k", seen, a=b"3")
    assert state(world, "k") == {b"a": b"2"}


def test_version_depends_on_content_and_not_on_order() -> None:
    rows = [(b"a", b"1"), (b"b", b"2")]
    assert state_version(rows) == state_version(rows[::-1])
    assert state_version(rows) != state_version([(b"a", b"12"), (b"b", b"")])
    assert state_version([]) != state_version([(b"", b"")])


def test_names_of_long_keys_are_remembered() -> None:
    world = World()
    key = "k" * 300
    flow = world.invoke(workflow(key))
    world.effects(flow, set_state(b"a", b"1"))
    group = object_group("Signup", key)
    names = world.partitions[0].store.names.get(group)
    assert names is not None
    assert (names.service, names.key) == ("Signup", key)
    assert state(world, key, "Signup") == {b"a": b"1"}


# --- A small model of locks and inboxes ----------------------------------------------------------


class Model:
    """Who holds each key, who waits, what mutations were applied: lists and nothing else."""

    def __init__(self) -> None:
        self.queues: dict[str, list[object]] = {}
        self.applied: dict[str, list[bytes]] = {}

    def arrive(self, key: str, who: object) -> None:
        self.queues.setdefault(key, []).append(who)
        self._settle(key)

    def leave(self, key: str, who: object) -> None:
        self.queues[key].remove(who)
        self._settle(key)

    def holder(self, key: str) -> object | None:
        queue = self.queues.get(key)
        return queue[0] if queue else None

    def _settle(self, key: str) -> None:
        queue = self.queues[key]
        while queue and isinstance(text := queue[0], str):
            del queue[0]
            self.applied.setdefault(key, []).append(text.encode())


_STEP = st.tuples(
    st.sampled_from(["arrive", "arrive", "mutate", "end", "kill", "cancel", "suspend", "pause"]),
    st.sampled_from(["a", "b"]),
    st.integers(0, 5),
)


@given(st.lists(_STEP, max_size=40))
@settings(max_examples=150, deadline=None)
def test_locks_and_inboxes_follow_the_model(steps: list[tuple[str, str, int]]) -> None:
    world, model = World(), Model()
    for serial, (action, key, pick) in enumerate(steps):
        waiting = [who for who in model.queues.get(key, []) if not isinstance(who, str)]
        if action == "arrive":
            model.arrive(key, world.invoke(exclusive(key)))
        elif action == "mutate":
            text = f"m{serial}"
            patch(world, key, seen=text.encode())
            model.arrive(key, text)
        elif waiting:
            _act(world, model, (action, key), waiting[pick % len(waiting)])
        _compare(world, model)
    world.check()


def _act(world: World, model: Model, step: tuple[str, str], who: object) -> None:
    action, key = step
    assert isinstance(who, bytes)
    invocation = InvocationId(who)
    status = world.status(invocation)
    if action == "kill" or (action == "cancel" and status == "inboxed"):
        world.operate(Kill if action == "kill" else Cancel, invocation)
        model.leave(key, who)
    elif action == "end" and status == "invoked":
        world.end(invocation, output())
        model.leave(key, who)
    elif action == "suspend" and status == "invoked":
        world.suspend(invocation, "#17")
    elif action == "pause" and status in ("invoked", "suspended"):
        world.pause(invocation)


def _compare(world: World, model: Model) -> None:
    store = world.partitions[0].store
    for key, queue in model.queues.items():
        group = object_group("Counter", key)
        lock = store.locks.get(group)
        assert (lock.holder if lock is not None else None) == model.holder(key)
        behind = [getattr(row, "id", None) for _, row in store.inbox.scan(group)]
        assert behind == [who if isinstance(who, bytes) else None for who in queue[1:]]
        applied = model.applied.get(key)
        assert state(world, key).get(b"seen") == (applied[-1] if applied else None)


# --- Workflows and promises ----------------------------------------------------------------------


def test_shared_handlers_run_beside_the_run_and_even_before_it() -> None:
    world = World()
    early = world.invoke(workflow_shared("k"))
    flow = world.invoke(workflow("k"))
    late = world.invoke(workflow_shared("k"))
    assert [world.status(each) for each in (early, flow, late)] == ["invoked"] * 3


def test_promise_completed_before_the_run_ever_started() -> None:
    world = World()
    early = world.invoke(workflow_shared("k"))
    world.effects(early, resolve_promise(1, "clicked", b"yes"))
    flow = world.invoke(workflow("k"))
    world.effects(flow, get_promise(1, "clicked"))
    assert world.journal(flow)[-1] == "GetPromiseCompletion(1)"
    assert world.last(flow) == "value yes"
    world.check()


def test_first_completion_of_a_promise_wins() -> None:
    world = World()
    flow = world.invoke(workflow("k"))
    world.effects(flow, peek_promise(1, "p"))
    assert world.last(flow) == "void"
    world.effects(flow, resolve_promise(2, "p", b""))
    assert world.last(flow) == "void"
    world.effects(flow, reject_promise(3, "p", 418, "late"))
    assert world.last(flow) == "failure 409 promise was already completed"
    world.effects(flow, peek_promise(4, "p"))
    message = world.notification(flow, 8)
    assert (message.WhichOneof("result"), message.value.content) == ("value", b"")


def test_rejected_promise_is_a_failure_for_who_waits_and_who_peeks() -> None:
    world = World()
    flow, other = world.invoke(workflow("k")), world.invoke(workflow_shared("k"))
    world.effects(flow, get_promise(1, "p"))
    world.effects(other, reject_promise(1, "p", 418, "teapot"), peek_promise(2, "p"))
    assert world.last(flow) == "failure 418 teapot"
    assert world.last(other) == "failure 418 teapot"


def test_own_completion_comes_before_that_of_the_listener() -> None:
    world = World()
    flow = world.invoke(workflow("k"))
    world.effects(flow, get_promise(1, "p"), resolve_promise(2, "p", b"x"))
    assert world.journal(flow)[1:] == [
        "GetPromise(1)",
        "CompletePromise(2)",
        "CompletePromiseCompletion(2)",
        "GetPromiseCompletion(1)",
    ]


def test_listener_is_woken_and_one_that_ended_is_forgotten() -> None:
    world = World()
    flow, gone, clicker = (
        world.invoke(workflow("k")),
        world.invoke(workflow_shared("k", "wait")),
        world.invoke(workflow_shared("k")),
    )
    world.effects(flow, get_promise(1, "p"))
    world.suspend(flow, 1)
    world.effects(gone, get_promise(1, "p"))
    world.operate(Kill, gone)
    world.effects(clicker, resolve_promise(1, "p", b"click"))
    assert world.status(flow) == "invoked"
    assert world.last(flow) == "value click"
    assert world.status(gone) == "completed"
    world.check()


def test_everybody_who_waits_for_a_promise_is_told_and_only_those() -> None:
    world = World()
    waiting = [world.invoke(workflow_shared("k", "wait")) for _ in range(20)]
    for number, each in enumerate(waiting):
        name = "p" if number % 2 else "q" * 300  # a name that its key cuts short
        world.effects(each, get_promise(1, name))
        if number == 10:
            world.partitions[0].flush()
    world.effects(world.invoke(workflow_shared("k")), resolve_promise(1, "p", b"x"))
    told = [world.journal(each)[-1] for each in waiting]
    assert told == ["GetPromise(1)", "GetPromiseCompletion(1)"] * 10
    assert not world.partitions[0].store.listeners.scan(
        listeners_group(object_group("Signup", "k"), b"p")
    )
    world.check()


def test_who_waits_for_a_promise_of_a_purged_run_is_not_told_of_the_next_run() -> None:
    world = World()
    flow, waiting = world.invoke(workflow("k")), world.invoke(workflow_shared("k", "wait"))
    world.effects(waiting, get_promise(1, "p"))
    world.end(flow, output())
    world.operate(Purge, flow)
    world.effects(world.invoke(workflow("k")), resolve_promise(1, "p", b"x"))
    assert len(world.journal(waiting)) == 2
    world.check()


def test_promises_of_two_keys_are_apart() -> None:
    world = World()
    one, two = world.invoke(workflow("a")), world.invoke(workflow("b"))
    world.effects(one, resolve_promise(1, "p", b"x"))
    world.effects(two, peek_promise(1, "p"))
    assert world.last(two) == "void"


@pytest.mark.parametrize("how", ["purge", "expiry"])
def test_state_and_promises_go_with_the_run(how: str) -> None:
    world = World()
    flow = world.invoke(workflow("k"), retention=(1000, 1000))
    world.end(flow, set_state(b"a", b"1"), resolve_promise(1, "p", b"x"), output())
    assert state(world, "k", "Signup") == {b"a": b"1"}
    if how == "purge":
        world.operate(Purge, flow)
    else:
        world.advance(1000)
    assert state(world, "k", "Signup") == {}
    reader = world.invoke(workflow_shared("k"))
    world.effects(reader, peek_promise(1, "p"))
    assert world.last(reader) == "void"
    world.check()


def test_purging_anything_else_leaves_state_alone() -> None:
    world = World()
    counter, reader = world.invoke(exclusive("k")), world.invoke(workflow_shared("k"))
    world.end(counter, set_state(b"a", b"1"), output())
    world.effects(reader, resolve_promise(1, "p", b"x"))
    world.end(reader, output())
    world.operate(Purge, counter)
    world.operate(Purge, reader)
    assert state(world, "k") == {b"a": b"1"}
    peeker = world.invoke(workflow_shared("k"))
    world.effects(peeker, peek_promise(1, "p"))
    assert result_text(world.notification(peeker, 2)) == "value x"


def test_killing_the_run_keeps_its_promises() -> None:
    world = World()
    flow, other = world.invoke(workflow("k")), world.invoke(OTHER)
    world.effects(flow, resolve_promise(1, "p", b"x"))
    world.operate(Kill, flow)
    reader = world.invoke(workflow_shared("k"))
    world.effects(reader, peek_promise(1, "p"))
    assert world.last(reader) == "value x"
    assert world.status(other) == "invoked"
