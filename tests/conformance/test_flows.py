"""Workflows: run once per key; promises from handlers before, while and after it runs."""

from tests.conformance.client import Options, wait_until
from tests.conformance.world import World, unique


def test_a_promise_from_a_shared_handler_finishes_the_run(world: World) -> None:
    key = unique("flow")
    run = world.start("Flow/run", "order", key)
    wait_until(lambda: world.value("Flow/status", key=key) == "waiting", "the run waits")
    assert world.value("Flow/peek", key=key) is None

    world.value("Flow/approve", "yes", key)

    assert world.result(run) == "order yes"
    assert world.value("Flow/status", key=key) == "done"
    assert world.value("Flow/peek", key=key) == "yes"


def test_a_promise_may_be_resolved_before_the_run(world: World) -> None:
    key = unique("early")
    world.value("Flow/approve", "early", key)
    assert world.value("Flow/wait", key=key) == "early"

    assert world.value("Flow/run", "order", key) == "order early"
    assert world.call("Flow/run", "order", key).status == 409


def test_a_rejected_promise_raises(world: World) -> None:
    key = unique("refused")
    run = world.start("Flow/run", "order", key)
    world.value("Flow/refuse", "no stock", key)

    assert world.result(run) == "order 500 no stock"
    assert world.call("Flow/wait", key=key).status == 500


def test_a_promise_is_completed_once(world: World) -> None:
    key = unique("once")
    world.value("Flow/approve", "first", key)

    assert world.call("Flow/approve", "second", key).status == 409
    assert world.call("Flow/refuse", "third", key).status == 409
    assert world.value("Flow/wait", key=key) == "first"


def test_several_wait_for_one_promise(world: World) -> None:
    key = unique("several")
    waiting = [world.start("Flow/wait", key=key) for _ in range(5)]
    run = world.start("Flow/run", "order", key)
    wait_until(lambda: world.value("Flow/status", key=key) == "waiting", "the run waits")
    world.value("Flow/approve", "all", key)

    assert [world.result(each) for each in waiting] == ["all"] * 5
    assert world.result(run) == "order all"


def test_a_workflow_runs_once_per_key(world: World) -> None:
    key = unique("single")
    first = world.start("Flow/run", "one", key)

    again = world.call("Flow/run", "two", key)
    assert (again.status, again.invocation_id) == (409, first)
    assert again.headers["x-restate-error-source"] == "invocation"
    sent = world.ingress.send(world.name("Flow"), "run", "three", Options(key=key))
    assert sent.json() == {"invocationId": first, "status": "PreviouslyAccepted"}

    world.value("Flow/approve", "ok", key)
    assert world.result(first) == "one ok"
    assert world.call("Flow/run", "four", key).status == 409


def test_attach_and_output_of_a_workflow(world: World) -> None:
    key = unique("attach")
    path = f"/restate/workflow/{world.name('Flow')}/{key}"
    assert world.ingress.get(f"{path}/output").status == 404
    run = world.start("Flow/run", "order", key)
    assert world.ingress.get(f"{path}/output").status == 470
    world.value("Flow/approve", "yes", key)

    attached = world.ingress.get(f"{path}/attach")

    assert attached.json() == "order yes"
    assert attached.invocation_id == run
    assert world.ingress.get(f"{path}/output").json() == "order yes"


def test_calling_a_workflow_from_a_handler(world: World) -> None:
    key = unique("called")
    caller = world.start("Calls/start_flow", {"key": key, "value": "order"})
    wait_until(lambda: world.value("Flow/status", key=key) == "waiting", "the run waits")
    assert world.value("Calls/start_flow", {"key": key, "value": "again"}) == {"code": 409}
    world.value("Flow/approve", "yes", key)

    assert world.result(caller) == {"value": "order yes"}


def test_a_run_takes_no_idempotency_key(world: World) -> None:
    assert world.call("Flow/run", "x", unique("key"), idempotency_key="k").status == 400


def test_purging_a_run_frees_its_key(world: World) -> None:
    key = unique("purged")
    world.value("Flow/approve", "first", key)
    run = world.start("Flow/run", "one", key)
    assert world.result(run) == "one first"

    assert world.admin.purge(run).status == 200

    wait_until(lambda: world.ingress.output(run).status == 404, "the run is forgotten")
    assert world.value("Flow/status", key=key) is None
    assert world.value("Flow/peek", key=key) is None
    world.value("Flow/approve", "second", key)
    assert world.value("Flow/run", "two", key) == "two second"
