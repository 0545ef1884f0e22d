"""Restarting: from the input or a prefix, with late completions, seed, pin and the key's lock."""

import pytest
from tests.engine import entries as e
from tests.engine.test_lifecycle import bring
from tests.engine.world import PIN, World

from perdure.core.ids import InvocationId
from perdure.engine.actions import Accepted, Outcome, Verdict
from perdure.engine.commands import Effect, Effects, End, Kill, Restart, Resume
from perdure.storage.tables.invocations import Pin, SourceKind, Success, Target


def restart(
    world: World, id: InvocationId, from_index: int = 0, pin: Pin | None = None
) -> tuple[InvocationId, Outcome]:
    fresh = world.new_id()
    command = Restart(id, fresh, from_index, pin, e.DAY_MS, e.DAY_MS)
    return fresh, world.propose(command, world.of(id))


def worked(world: World) -> InvocationId:
    """A completed invocation whose sleep and call were completed late."""
    invocation, child = world.invoke(body=b"in"), world.new_id()
    world.effects(
        invocation,
        e.run(1),
        e.run_result(1, b"r"),
        e.call(3, child, e.OTHER),
        e.sleep(4, world.now_ms + 10),
        e.run(5),
    )
    world.end(child, e.output(b"child"))
    world.effects(invocation, e.run_result(5, b"s"))
    world.advance(10)
    world.end(invocation, e.output(b"done"))
    return invocation


@pytest.mark.parametrize(
    ("state", "verdict"),
    [
        ("free", Verdict.NOT_FOUND),
        ("scheduled", Verdict.NOT_STARTED),
        ("inboxed", Verdict.NOT_STARTED),
        ("invoked", Verdict.NOT_COMPLETED),
        ("suspended", Verdict.NOT_COMPLETED),
        ("paused", Verdict.NOT_COMPLETED),
        ("completed", Accepted(0)),
    ],
)
def test_by_state(state: str, verdict: Outcome) -> None:
    world = World()
    assert restart(world, bring(world, state))[1] == verdict


def test_from_the_input_is_a_fresh_call() -> None:
    world = World()
    old = worked(world)
    fresh, outcome = restart(world, old)
    assert outcome == Accepted(0)
    assert world.journal(fresh) == ["Input"]
    row = world.started(fresh)
    assert (row.progress.pin, row.spec.prefix) == (None, None)
    assert (row.spec.source.kind, row.spec.source.invocation) == (SourceKind.RESTART, old)
    assert row.spec.idempotency_key is None
    world.end(fresh, e.output(b"again"))
    assert world.result(fresh) == Success(b"again")
    assert world.result(old) == Success(b"done")
    world.check()


@pytest.mark.parametrize(
    ("from_index", "journal"),
    [
        (1, ["Input", "Run(1)", "RunCompletion(1)"]),
        (2, ["Input", "Run(1)", "RunCompletion(1)"]),
        (
            3,
            [
                "Input",
                "Run(1)",
                "RunCompletion(1)",
                "Call(3)",
                "CallInvocationIdCompletion(2)",
                "CallCompletion(3)",
            ],
        ),
        (
            5,
            [
                "Input",
                "Run(1)",
                "RunCompletion(1)",
                "Call(3)",
                "CallInvocationIdCompletion(2)",
                "Sleep(4)",
                "CallCompletion(3)",
                "SleepCompletion(4)",
            ],
        ),
    ],
)
def test_prefix_takes_its_completions_along(from_index: int, journal: list[str]) -> None:
    world = World()
    old = worked(world)
    fresh, outcome = restart(world, old, from_index)
    assert outcome == Accepted(0)
    assert world.journal(fresh) == journal
    row = world.started(fresh)
    assert row.progress.journal_length == len(journal)
    commands = [entry for entry in journal if "Completion" not in entry]
    assert row.progress.command_count == len(commands)
    assert row.progress.pin == PIN
    assert row.spec.prefix is not None
    assert row.spec.prefix.seed_of == old
    # The copied completions count when it suspends.
    world.suspend(fresh, 1, "#1", delivered=0)
    assert world.status(fresh) == "invoked"
    world.check()


def test_seed_survives_a_restart_of_a_restart() -> None:
    world = World()
    old = worked(world)
    second, _ = restart(world, old, 2)
    world.end(second, e.output())
    third, _ = restart(world, second, 2)
    prefix = world.started(third).spec.prefix
    assert prefix is not None
    assert prefix.seed_of == old


def test_prefix_with_something_that_never_came() -> None:
    world = World()
    invocation = world.invoke()
    world.end(invocation, e.run(1), e.output())
    assert restart(world, invocation, 1)[1] == Verdict.NOT_RESTARTABLE
    assert restart(world, invocation, 0)[1] == Accepted(0)


def test_prefix_beyond_the_journal() -> None:
    world = World()
    invocation = bring(world, "completed")
    assert restart(world, invocation, 2)[1] == Verdict.JOURNAL_TOO_SHORT
    gone = world.invoke(retention=(1000, 0))
    world.end(gone, e.output())
    assert restart(world, gone)[1] == Verdict.JOURNAL_TOO_SHORT


def test_prefix_needs_version_6() -> None:
    world = World()
    invocation = world.invoke()
    command: list[Effect] = [e.run(1), e.run_result(1, b""), e.output(), End()]
    session = world.session(invocation)
    old = Effects(invocation, session, Pin("dp_old", 5), command)
    world.propose(old, world.of(invocation))
    assert restart(world, invocation, 1)[1] == Verdict.NOT_RESTARTABLE


@pytest.mark.parametrize("target", [e.workflow("k"), e.workflow_shared("k")])
def test_workflows_run_once(target: Target) -> None:
    world = World()
    invocation = world.invoke(target)
    world.end(invocation, e.output())
    assert restart(world, invocation)[1] == Verdict.NOT_RESTARTABLE


def test_restarted_object_call_takes_its_turn() -> None:
    world = World()
    old = world.invoke(e.exclusive("k"))
    world.end(old, e.run(1), e.run_result(1, b"r"), e.output())
    holder = world.invoke(e.exclusive("k"))
    fresh, _ = restart(world, old, 1)
    assert world.status(fresh) == "inboxed"
    world.end(holder, e.output())
    assert world.status(fresh) == "invoked"
    assert world.started(fresh).progress.journal_length == 3
    world.check()


def test_killing_a_restarted_invocation_spares_what_the_old_one_called() -> None:
    world = World()
    old, child = world.invoke(), world.new_id()
    world.end(old, e.send(1, child, e.OTHER), e.output())
    fresh, _ = restart(world, old, 1)
    world.operate(Kill, fresh)
    assert world.status(child) == "invoked"


def test_other_deployment_for_a_restart_and_a_resume() -> None:
    world = World()
    newer = Pin("dp_newer", 7)
    fresh, _ = restart(world, worked(world), 2, newer)
    assert world.started(fresh).progress.pin == newer
    newest = Pin("dp_newest", 7)
    world.pause(fresh)
    world.propose(Resume(fresh, newest), world.of(fresh))
    assert world.started(fresh).progress.pin == newest


def test_resume_pins_nothing_that_was_not_pinned() -> None:
    world = World()
    invocation = bring(world, "paused")
    world.propose(Resume(invocation, PIN), world.of(invocation))
    assert world.started(invocation).progress.pin is None


def test_restart_from_the_input_on_a_chosen_deployment() -> None:
    world = World()
    chosen = Pin("dp_chosen", 6)
    fresh, _ = restart(world, worked(world), 0, chosen)
    row = world.started(fresh)
    assert (row.progress.pin, row.progress.journal_length) == (chosen, 1)
    # Nothing of the old one is replayed: it draws from its own seed.
    assert row.spec.prefix is not None
    assert row.spec.prefix.seed_of == fresh
