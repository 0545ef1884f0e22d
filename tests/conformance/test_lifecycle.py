"""What operators may do to an invocation in each of its states, and what becomes of it."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.conformance import dialogue as say
from tests.conformance.client import Options, Response, wait_until
from tests.conformance.conftest import deploying
from tests.conformance.raw import Attempt, manifest, service
from tests.conformance.server import Server
from tests.conformance.world import unique

from perdure.core.ids import format_awakeable_id, parse_invocation_id
from perdure.proto import service_pb2 as pb

ABSENT = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"
AN_HOUR_MS = 3_600_000


async def hold(attempt: Attempt) -> None:
    """Wait for a signal that never comes; end when cancelled, suspend when asked to."""
    _, entries = await say.replay(attempt)
    if say.SIGNAL in say.kinds(entries):
        await fail(attempt)
        return
    got = await attempt.receive()
    if got is None:
        attempt.send(say.SUSPENSION, say.suspension(7, [], [17, 1]))
        attempt.end()
        return
    assert got.code == say.SIGNAL
    await fail(attempt)


async def fail(attempt: Attempt) -> None:
    failure = pb.Failure(code=409, message="cancelled")
    attempt.send(say.OUTPUT, pb.OutputCommandMessage(failure=failure))
    await say.close(attempt, say.END)


async def back_off(attempt: Attempt) -> None:
    if attempt.number > 1:
        await hold(attempt)
        return
    await say.replay(attempt)
    attempt.send(say.ERROR, say.error("not now", delay_ms=AN_HOUR_MS))
    attempt.end()


async def pause(attempt: Attempt) -> None:
    if attempt.number > 1:
        await hold(attempt)
        return
    await say.replay(attempt)
    attempt.send(say.ERROR, pb.ErrorMessage(code=500, message="stop", behavior=pb.PAUSE))
    attempt.end()


async def finish(attempt: Attempt) -> None:
    await say.replay(attempt)
    await say.finish(attempt, b'"done"')


class Stage:
    """Brings invocations into any state."""

    def __init__(self, server: Server, name: str) -> None:
        self.ingress, self.admin = server.ingress, server.admin
        self.name = name
        self._started: list[str] = []

    def start(self, handler: str, options: Options | None = None, suffix: str = "") -> str:
        answer = self.ingress.send(f"{self.name}{suffix}", handler, "x", options)
        assert answer.status == 202, answer.body
        self._started.append(answer.invocation_id)
        return answer.invocation_id

    def bring(self, state: str) -> str:
        """A fresh invocation in this state."""
        match state:
            case "absent":
                return ABSENT
            case "scheduled":
                invocation = self.start("finish", Options(delay="1h"))
            case "pending":
                key = unique("key")
                holder = self.start("hold", Options(key=key), ".Object")
                self.admin.await_status(holder, "running")
                invocation = self.start("hold", Options(key=key), ".Object")
            case "suspended":
                invocation = self.start("hold", suffix=".Impatient")
            case "completed":
                invocation = self.start("finish")
            case _:
                handlers = {"running": "hold", "backing-off": "back_off", "paused": "pause"}
                invocation = self.start(handlers[state])
        self.admin.await_status(invocation, state)
        return invocation

    def act(self, invocation: str, verb: str) -> Response:
        return self.admin.request("PATCH", f"/invocations/{invocation}/{verb}")

    def clear(self) -> None:
        for invocation in self._started:
            self.admin.kill(invocation)


@pytest.fixture(scope="module")
def name(server: Server) -> Iterator[str]:
    name = unique("Lifecycle")
    scripts = {
        "hold": hold,
        "back_off": back_off,
        "pause": pause,
        "finish": finish,
    }
    services = [
        service(name, *scripts),
        service(f"{name}.Object", *scripts, ty="VIRTUAL_OBJECT"),
        service(f"{name}.Impatient", *scripts, inactivityTimeout=50),
    ]
    targets = {
        f"{name}{suffix}/{handler}": script
        for suffix in ("", ".Object", ".Impatient")
        for handler, script in scripts.items()
    }
    with deploying(server) as deploy:
        deploy(manifest(services), targets)
        yield name


@pytest.fixture
def stage(server: Server, name: str) -> Iterator[Stage]:
    stage = Stage(server, name)
    yield stage
    stage.clear()


# In which state which verb is answered how, and the state that follows.
MATRIX: dict[str, dict[str, tuple[int, str]]] = {
    "cancel": {
        "absent": (404, "absent"),
        "scheduled": (200, "absent"),
        "pending": (200, "absent"),
        "running": (202, "completed"),
        "backing-off": (202, "backing-off"),
        "suspended": (202, "completed"),
        "paused": (202, "completed"),
        "completed": (409, "completed"),
    },
    "kill": {
        "absent": (404, "absent"),
        "scheduled": (200, "absent"),
        "pending": (200, "absent"),
        "running": (200, "completed"),
        "backing-off": (200, "completed"),
        "suspended": (200, "completed"),
        "paused": (200, "completed"),
        "completed": (409, "completed"),
    },
    "pause": {
        "absent": (404, "absent"),
        "scheduled": (409, "scheduled"),
        "pending": (409, "pending"),
        "running": (202, "paused"),
        "backing-off": (202, "paused"),
        "suspended": (202, "paused"),
        "paused": (200, "paused"),
        "completed": (409, "completed"),
    },
    "resume": {
        "absent": (404, "absent"),
        "scheduled": (425, "scheduled"),
        "pending": (425, "pending"),
        "running": (200, "running"),
        "backing-off": (200, "running"),
        "suspended": (200, "suspended"),
        "paused": (200, "running"),
        "completed": (409, "completed"),
    },
    "purge": {
        "absent": (404, "absent"),
        "scheduled": (409, "scheduled"),
        "pending": (409, "pending"),
        "running": (409, "running"),
        "backing-off": (409, "backing-off"),
        "suspended": (409, "suspended"),
        "paused": (409, "paused"),
        "completed": (200, "absent"),
    },
    "purge-journal": {
        "absent": (404, "absent"),
        "scheduled": (409, "scheduled"),
        "pending": (409, "pending"),
        "running": (409, "running"),
        "backing-off": (409, "backing-off"),
        "suspended": (409, "suspended"),
        "paused": (409, "paused"),
        "completed": (200, "completed"),
    },
    "restart-as-new": {
        "absent": (404, "absent"),
        "scheduled": (425, "scheduled"),
        "pending": (425, "pending"),
        "running": (409, "running"),
        "backing-off": (409, "backing-off"),
        "suspended": (409, "suspended"),
        "paused": (409, "paused"),
        "completed": (200, "completed"),
    },
}
DIFFERENT = {("pause", "suspended"): "pausing a suspended invocation pauses it"}


_CASES = [
    pytest.param(
        verb,
        state,
        answer,
        after,
        id=f"{verb} {state}",
        marks=[pytest.mark.differs(DIFFERENT[verb, state])] if (verb, state) in DIFFERENT else [],
    )
    for verb, row in MATRIX.items()
    for state, (answer, after) in row.items()
]


@pytest.mark.parametrize(("verb", "state", "answer", "after"), _CASES)
def test_a_verb_in_a_state(stage: Stage, verb: str, state: str, answer: int, after: str) -> None:
    invocation = stage.bring(state)

    done = stage.act(invocation, verb)

    assert done.status == answer, done.body
    stage.admin.await_status(invocation, after)


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("absent", 404),
        ("scheduled", 470),
        ("pending", 470),
        ("running", 470),
        ("backing-off", 470),
        ("suspended", 470),
        ("paused", 470),
        ("completed", 200),
    ],
)
def test_the_output_in_a_state(stage: Stage, state: str, status: int) -> None:
    answer = stage.ingress.output(stage.bring(state))

    assert answer.status == status


@pytest.mark.parametrize("state", ["running", "backing-off", "suspended", "paused"])
def test_who_attached_is_told_of_the_kill(stage: Stage, state: str) -> None:
    key = unique("waited")
    handler, suffix = {
        "running": ("hold", ""),
        "backing-off": ("back_off", ""),
        "suspended": ("hold", ".Impatient"),
        "paused": ("pause", ""),
    }[state]
    options = Options(idempotency_key=key)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stage.ingress.call, f"{stage.name}{suffix}", handler, "x", options)
        invocation = stage.start(handler, options, suffix)
        stage.admin.await_status(invocation, state)
        assert stage.act(invocation, "kill").status == 200
        answer = waiting.result()

    assert answer.status == 409
    assert answer.headers["x-restate-error-source"] == "invocation"
    assert answer.invocation_id == invocation


@pytest.mark.parametrize("verb", ["cancel", "kill"])
def test_who_waits_for_what_never_began_is_told(stage: Stage, verb: str) -> None:
    key = unique("key")
    holder = stage.start("hold", Options(key=key), ".Object")
    stage.admin.await_status(holder, "running")
    options = Options(key=key, idempotency_key=key)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(stage.ingress.call, f"{stage.name}.Object", "finish", "x", options)
        invocation = stage.start("finish", options, ".Object")
        stage.admin.await_status(invocation, "pending")
        assert stage.act(invocation, verb).status == 200
        # Whoever comes to attach only now finds nothing; who called before hears of the end.
        answer = waiting.result()

    assert answer.status == 409
    assert stage.ingress.attach(invocation).status == 404


@pytest.mark.parametrize("verb", ["cancel", "kill"])
@pytest.mark.parametrize("delay", ["P3650D", "36000d"])
def test_what_is_far_in_the_future_can_be_ended(stage: Stage, verb: str, delay: str) -> None:
    invocation = stage.start("finish", Options(delay=delay))
    stage.admin.await_status(invocation, "scheduled")

    assert stage.act(invocation, verb).status == 200

    assert stage.ingress.output(invocation).status == 404
    assert stage.act(invocation, verb).status == 404


def test_a_journal_that_is_purged_leaves_the_result(stage: Stage) -> None:
    invocation = stage.bring("completed")
    stage.act(invocation, "purge-journal")

    def journal() -> list[dict[str, object]]:
        return stage.admin.query(f"select index from sys_journal where id = '{invocation}'")

    wait_until(lambda: journal() == [], "the journal is gone")
    assert stage.ingress.output(invocation).json() == "done"
    assert stage.act(invocation, "restart-as-new").status == 410


def test_a_restart_takes_the_input_and_leaves_the_original(stage: Stage) -> None:
    invocation = stage.bring("completed")
    answer = stage.act(invocation, "restart-as-new")
    fresh = answer.json()["new_invocation_id"]

    assert fresh != invocation
    assert stage.ingress.attach(fresh).json() == "done"
    assert stage.ingress.output(invocation).json() == "done"
    assert stage.act(invocation, "restart-as-new?from=999").status == 400
    stage.act(invocation, "purge")
    stage.admin.await_status(invocation, "absent")
    assert stage.admin.status(fresh) == "completed"


def test_what_is_completed_late_is_ignored(stage: Stage) -> None:
    """An awakeable of an invocation that is over, or that never was: accepted, without effect."""
    for state in ("completed", "absent"):
        invocation = stage.bring(state)
        answer = stage.ingress.resolve(
            format_awakeable_id(parse_invocation_id(invocation), 17), "late"
        )
        assert answer.status == 202
        assert stage.admin.status(invocation) == state


# --- Retention ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def forgetful(server: Server) -> Iterator[str]:
    """A service, an object and a workflow that keep nothing once they have ended."""
    name = unique("Forgetful")
    nothing = {"idempotencyRetention": 0, "journalRetention": 0}
    services = [
        service(name, "finish", **nothing),
        service(f"{name}.Journal", "finish", idempotencyRetention=AN_HOUR_MS, journalRetention=0),
        service(
            f"{name}.Flow",
            ty="WORKFLOW",
            handlers=[{"name": "finish", "ty": "WORKFLOW", "workflowCompletionRetention": 0}],
        ),
    ]
    scripts = {f"{entry['name']}/finish": finish for entry in services}
    with deploying(server) as deploy:
        deploy(manifest(services), scripts)
        yield name


def test_without_retention_the_result_goes_to_who_waits_and_to_nobody_later(
    server: Server, forgetful: str
) -> None:
    answer = server.ingress.call(forgetful, "finish", "x")

    assert answer.json() == "done"
    assert "idempotency-expires" not in answer.headers
    assert server.ingress.output(answer.invocation_id).status == 404
    assert server.ingress.attach(answer.invocation_id).status == 404
    assert server.admin.purge(answer.invocation_id).status == 404


def test_an_idempotency_key_without_retention_is_free_again(server: Server, forgetful: str) -> None:
    options = Options(idempotency_key=unique("key"))
    first = server.ingress.call(forgetful, "finish", "x", options)
    second = server.ingress.call(forgetful, "finish", "x", options)

    assert first.json() == second.json() == "done"
    assert first.invocation_id == second.invocation_id, "ids derive from keys"
    assert "idempotency-expires" not in second.headers


def test_a_workflow_without_retention_runs_again(server: Server, forgetful: str) -> None:
    options = Options(key=unique("key"))
    for _ in range(2):
        assert server.ingress.call(f"{forgetful}.Flow", "finish", "x", options).json() == "done"


def test_a_result_may_be_kept_without_its_journal(server: Server, forgetful: str) -> None:
    options = Options(idempotency_key=unique("key"))
    first = server.ingress.call(f"{forgetful}.Journal", "finish", "x", options)
    again = server.ingress.call(f"{forgetful}.Journal", "finish", "x", options)

    assert again.json() == "done"
    assert "idempotency-expires" in again.headers
    restart = f"/invocations/{first.invocation_id}/restart-as-new"
    assert server.admin.request("PATCH", restart).status == 410
