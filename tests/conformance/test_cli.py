"""Restate's command line tool does what it does elsewhere, command by command."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.conformance.client import wait_until
from tests.conformance.command_line import CommandLine
from tests.conformance.raw import RawEndpoint, manifest, service
from tests.conformance.server import Server
from tests.conformance.services import KINDS, Services
from tests.conformance.world import World, unique

pytestmark = pytest.mark.slow
KIND = replace(KINDS[0], label="Cli")


@pytest.fixture(scope="module")
def cli(server: Server, suite_directory: Path) -> CommandLine:
    home = suite_directory / "cli"
    home.mkdir()
    return CommandLine(server, home)


@pytest.fixture(scope="module")
def services(suite_directory: Path) -> Iterator[Services]:
    services = Services(KIND, suite_directory)
    services.start()
    yield services
    services.process.kill()


@pytest.fixture(scope="module")
def world(server: Server, services: Services) -> World:
    services.register(server)
    return World(server, KIND, services.ledger)


@pytest.fixture
def endpoint() -> Iterator[RawEndpoint]:
    """An endpoint that answers discovery with a service and an object."""
    endpoint = make_endpoint(unique("Cli"))
    endpoint.start()
    yield endpoint
    endpoint.stop()


def make_endpoint(name: str, object_type: str = "VIRTUAL_OBJECT") -> RawEndpoint:
    entries: list[dict[str, Any]] = [
        service(name, "go"),
        {"name": f"{name}.Object", "ty": object_type, "handlers": [{"name": "take"}]},
    ]
    return RawEndpoint(manifest(entries))


def names_of(endpoint: RawEndpoint) -> list[str]:
    return [entry["name"] for entry in json.loads(endpoint.discovery.body)["services"]]


def deployment_at(server: Server, endpoint: RawEndpoint) -> dict[str, Any]:
    listed = server.admin.get("/deployments").json()["deployments"]
    (found,) = (each for each in listed if each["uri"] == f"{endpoint.uri}/")
    return dict(found)


# --- The node -----------------------------------------------------------------------------------


def test_whoami(cli: CommandLine, server: Server) -> None:
    done = cli.run("whoami")

    assert f"Admin Service '{server.admin.url}/' is healthy" in done.text
    assert done.row("Advertised", "ingress", "address") == [f"{server.ingress.url}/"]


# --- Deployments --------------------------------------------------------------------------------


def test_registering_a_deployment(cli: CommandLine, server: Server, endpoint: RawEndpoint) -> None:
    flags = ["--metadata", "team=shop", "--metadata", "v=1", "--extra-header", "x-extra=yes"]
    done = cli.run("deployments", "register", endpoint.uri, *flags)

    found = deployment_at(server, endpoint)
    assert done.row("Deployment", "ID:") == [found["id"]]
    assert found["metadata"] == {"team": "shop", "v": "1"}
    assert found["additional_headers"] == {"x-extra": "yes"}
    assert found["http_version"] == "HTTP/2.0"
    for name in names_of(endpoint):
        assert server.admin.get(f"/services/{name}").json()["revision"] == 1

    again = cli.run("deployments", "register", endpoint.uri)
    assert f"already exists with id {found['id']}" in again.text

    cli.run("deployments", "register", endpoint.uri, "--force")
    assert deployment_at(server, endpoint)["id"] == found["id"]
    assert server.admin.get(f"/services/{names_of(endpoint)[0]}").json()["revision"] == 2


def test_registering_a_breaking_change(
    cli: CommandLine, server: Server, endpoint: RawEndpoint
) -> None:
    cli.run("deployments", "register", endpoint.uri)
    name = names_of(endpoint)[0]
    changed = make_endpoint(name, object_type="SERVICE")
    changed.start()
    try:
        refused = cli.try_to("deployments", "register", changed.uri)
        assert refused.code == 1
        assert "META0006" in refused.text

        cli.run("deployments", "register", changed.uri, "--breaking")
        document = server.admin.get(f"/services/{name}.Object").json()
        assert (document["ty"], document["revision"]) == ("Service", 2)

        described = cli.run("services", "describe", name)
        assert described.row("Revision:") == ["2"]
        older = described.row(f"{endpoint.uri}/")
        assert older == ["HTTP", "1", "0", deployment_at(server, endpoint)["id"]]
    finally:
        changed.stop()


def test_registering_over_http_1(cli: CommandLine, server: Server, tmp_path: Path) -> None:
    services = Services(replace(KINDS[1], label="CliTurn"), tmp_path)
    services.start()
    try:
        cli.run("deployments", "register", services.uri, "--use-http1.1")
        name = f"{services.kind.prefix}Basics"
        deployment = server.admin.get(f"/services/{name}").json()["deployment_id"]

        described = cli.run("deployments", "describe", deployment)

        assert described.row("Transport:") == ["HTTP/1.1"]
        assert described.row("Protocol", "Style:") == ["Request/Response"]
        assert described.row("SDK", "Version") == ["restate-sdk-python/1.3.0"]
        assert server.ingress.call(name, "greet", "you").json() == "hello you"
    finally:
        services.process.kill()


def test_registering_where_nobody_listens(cli: CommandLine) -> None:
    done = cli.try_to("deployments", "register", make_endpoint("Nobody").uri)

    assert done.code == 1
    assert "META0003" in done.text


def test_looking_at_deployments(cli: CommandLine, world: World, services: Services) -> None:
    name = world.name("Basics")
    deployment = world.admin.get(f"/services/{name}").json()["deployment_id"]
    url = f"{services.uri}/"
    key = unique("active")
    waiting = world.start("Waiting/awakeable", key)
    world.await_entry(key)
    # It is pinned, and so counted, once it has recorded something.
    busy = world.start("Queue/hold", key, key)
    world.admin.await_status(busy, "running")

    assert cli.run("deployments", "list").row(url)[:2] == ["HTTP", deployment]
    row = cli.run("deployments", "list", "--extra").row(url)
    assert row[:2] == ["HTTP", "Active"]
    assert row[3] == deployment

    described = cli.run("deployments", "describe", deployment)
    assert described.row("ID:") == [deployment]
    assert described.row("Transport:") == ["HTTP/2.0"]
    assert described.row("Protocol", "Style:") == ["Bidirectional", "Stream"]
    assert described.row("Protocol:") == ["[5,", "7]"]
    assert described.row("greet") == ["JSON", "string", "JSON", "string"]
    extra = cli.run("deployments", "describe", deployment, "--extra")
    assert extra.row("greet") == ["JSON", "string", "JSON", "string", "0"]

    for invocation in (waiting, busy):
        world.admin.kill(invocation)


def test_removing_a_deployment(cli: CommandLine, server: Server, endpoint: RawEndpoint) -> None:
    cli.run("deployments", "register", endpoint.uri)
    deployment = deployment_at(server, endpoint)["id"]

    # It is the latest of its services: that takes force.
    cli.try_to("deployments", "remove", deployment)
    assert server.admin.get(f"/deployments/{deployment}").status == 200

    cli.run("deployments", "remove", deployment, "--force")
    assert server.admin.get(f"/deployments/{deployment}").status == 404
    assert cli.try_to("deployments", "describe", deployment).code == 1


# --- Services -----------------------------------------------------------------------------------


def test_looking_at_services(cli: CommandLine, world: World) -> None:
    store, hidden = world.name("Store"), world.name("Hidden")
    deployment = world.admin.get(f"/services/{store}").json()["deployment_id"]

    listed = cli.run("services", "list")
    revision = str(world.admin.get(f"/services/{store}").json()["revision"])
    tail = [revision, "virtual", "object", "HTTP", deployment]
    assert listed.row("[public]", store) == tail
    assert listed.row("[private]", hidden)
    assert cli.run("services", "list", "--extra").row("[public]", store)[:5] == tail
    assert hidden not in cli.run("services", "list", "--public-only").text

    described = cli.run("services", "describe", store)
    assert described.row("Name:") == [store]
    assert described.row("Service", "type:") == ["VirtualObject"]
    assert described.row("Deployment", "ID:") == [deployment]
    assert described.row("add") == ["JSON", "integer", "JSON", "integer"]
    assert cli.try_to("services", "describe", "Nobody").code == 1


def test_the_status_of_services(cli: CommandLine, world: World) -> None:
    key, held = unique("status"), unique("hold")
    queue = world.name("Queue")
    holder = world.start("Queue/hold", held, key)
    world.await_entry(held)
    inboxed = world.start("Queue/pass_through", "x", key)
    scheduled = world.start("Queue/passed", key=unique("status"), delay="1h")
    world.admin.await_status(inboxed, "pending")

    done = cli.run("services", "status", queue)

    assert done.row("pass_through")[:6] == ["1", "-", "-", "-", "-", "-"]
    assert done.row("passed")[:2] == ["-", "1"]
    assert done.row("hold")[3] == "1"
    assert done.row(key)[:3] == ["1", holder, "(running)"]
    assert inboxed in done.text
    assert cli.run("services", "status").row(queue)
    for invocation in (scheduled, inboxed, holder):
        assert world.admin.kill(invocation).status == 200


def test_the_configuration_of_a_service(cli: CommandLine, world: World) -> None:
    flow = world.name("Flow")
    cli.run("services", "config", "patch", flow, "--idempotency-retention", "2h")
    flags = ["--abort-timeout", "30s", "--workflow-completion-retention", "1h", "--public", "false"]
    cli.run("services", "config", "patch", flow, *flags)

    shown = cli.run("services", "config", "view", flow)
    document = world.admin.get(f"/services/{flow}").json()

    assert shown.row("Idempotent", "requests", "retention:") == ["2h"]
    assert shown.row("Abort", "timeout:") == ["30s"]
    assert shown.row("Public:") == ["false"]
    assert document["public"] is False
    assert world.call("Flow/status", key="k").status == 400
    cli.run("services", "config", "patch", flow, "--public", "true")
    assert world.call("Flow/status", key="k").status == 200

    refused = ["--workflow-completion-retention", "1h"]
    assert cli.try_to("services", "config", "patch", world.name("Runs"), *refused).code == 1


def test_editing_the_configuration_of_a_service(cli: CommandLine, world: World) -> None:
    runs = world.name("Runs")
    before = world.admin.get(f"/services/{runs}").json()
    unchanged = cli.edit("", "services", "config", "edit", runs)
    assert "No changes requested" in unchanged.text

    example = '# abort_timeout = "10min"'
    changes = f"assert {example!r} in text\n" + "text = text.replace({!r}, {!r})"
    cli.edit(changes.format(example, 'abort_timeout = "45s"'), "services", "config", "edit", runs)
    document = world.admin.get(f"/services/{runs}").json()
    assert cli.run("services", "config", "view", runs).row("Abort", "timeout:") == ["45s"]
    same = {"public", "idempotency_retention", "inactivity_timeout"}
    assert {name: document[name] for name in same} == {name: before[name] for name in same}


# --- Invocations --------------------------------------------------------------------------------


def test_listing_invocations(cli: CommandLine, world: World) -> None:
    key = unique("listed")
    suspended = world.start("Suspending/awakeable", key)
    scheduled = world.start("Store/add", 1, key, delay="1h")
    paused = world.start("Failing/until_healed_pause", key)
    world.admin.await_status(suspended, "suspended")
    world.admin.await_status(paused, "paused")
    # Last, and not within the same millisecond: the order of ages is looked at below.
    failed = world.start("Failing/terminally", {"code": 418, "message": "teapot"})
    assert world.ingress.attach(failed).status == 418

    def found(*flags: str) -> set[str]:
        text = cli.run("invocations", "list", "--limit", "200", *flags).text
        everything = {suspended, scheduled, paused, failed}
        return {each for each in everything if each in text}

    assert found() == {suspended, scheduled, paused}
    assert found("--all") == {suspended, scheduled, paused, failed}
    assert found("--status", "suspended") == {suspended}
    assert found("--status", "paused", "--status", "scheduled") == {paused, scheduled}
    assert found("--status", "completed") == {failed}
    assert found("--service", world.name("Failing"), "--all") == {paused, failed}
    assert found("--handler", "awakeable") == {suspended}
    assert found("--key", key) == {scheduled}
    assert found("--zombie") == set()
    assert found("--virtual-objects-only") == {scheduled}
    assert found("--completion-result", "failure") == {failed}
    assert found("--completion-result", "success") == set()
    oldest = cli.run(
        "invocations", "list", "--service", world.name("Failing"), "--all", "--oldest-first"
    )
    assert oldest.text.index(paused) < oldest.text.index(failed)
    deployment = world.admin.get(f"/services/{world.name('Failing')}").json()["deployment_id"]
    assert failed in cli.run("invocations", "list", "--all", "--deployment", deployment).text
    assert "[418] teapot" in cli.run("invocations", "list", "--all").text
    for invocation in (suspended, scheduled, paused):
        assert world.admin.kill(invocation).status == 200


def test_describing_invocations(cli: CommandLine, world: World) -> None:
    key = unique("described")
    completed = world.start("Runs/once", {"key": key, "value": 1}, idempotency_key=key)
    world.result(completed)
    suspended = world.start("Suspending/awakeable", key)
    world.admin.await_status(suspended, "suspended")

    text = cli.run("invocations", "describe", completed).text
    assert f"{world.name('Runs')}/once" in text
    assert "completed with success" in text
    assert key in text
    for line in ("Command: Input", "Command: Run [once]", "Notification: Run", "Command: Output"):
        assert line in text

    assert cli.run("invocations", "describe", suspended).row("Status:")[0] == "suspended"
    missing = "inv_1gf3qgbvqBGZ3Wg62ENp11QEVhGegZNT7N"
    assert cli.try_to("invocations", "describe", missing).code == 1
    world.admin.kill(suspended)


def test_cancelling_and_killing(cli: CommandLine, world: World) -> None:
    key = unique("ended")
    cancelled, killed = (world.start("Suspending/awakeable", f"{key}{n}") for n in (1, 2))
    scheduled = [world.start("Store/add", 1, key, delay="1h") for _ in range(3)]
    world.admin.await_status(cancelled, "suspended")
    world.admin.await_status(killed, "suspended")

    assert "Cancelled 1 invocations" in cli.run("invocations", "cancel", cancelled).text
    assert "Killed 1 invocations" in cli.run("invocations", "kill", killed).text

    # The Python handler catches the cancellation as an error and returns it.
    assert world.result(cancelled) == {"code": 409, "message": "cancelled"}
    assert world.ingress.attach(killed).status == 409

    done = cli.run("invocations", "cancel", f"{world.name('Store')}/{key}")
    assert "Cancelled 3 invocations" in done.text
    assert {world.admin.status(each) for each in scheduled} == {"absent"}
    assert cli.try_to("invocations", "kill", killed).code == 1

    name = world.name("Store")
    for query in (name, f"{name}/{key}/add"):
        last = world.start("Store/add", 1, key, delay="1h")
        assert "Killed 1 invocations" in cli.run("invocations", "cancel", "--kill", query).text
        assert world.admin.status(last) == "absent"


def test_purging_and_restarting(cli: CommandLine, world: World) -> None:
    key = unique("again")
    first = world.start("Runs/once", {"key": key, "value": "v"})
    world.result(first)

    restarted = cli.run("invocations", "restart-as-new", first)
    assert "Restarted 1 invocations" in restarted.text
    wait_until(lambda: world.ledger.count(key) == 2, "it ran a second time")

    assert "Purged 1 invocations" in cli.run("invocations", "purge", first).text
    wait_until(lambda: world.admin.status(first) == "absent", "it is forgotten")
    assert cli.try_to("invocations", "restart-as-new", first).code == 1


def test_pausing_and_resuming(cli: CommandLine, world: World) -> None:
    key = unique("paused")
    invocation = world.start("Waiting/awakeable", key)
    name = world.await_entry(key)
    world.admin.await_status(invocation, "running")

    assert "Paused 1 invocations" in cli.run("invocations", "pause", invocation).text
    world.admin.await_status(invocation, "paused")
    world.ingress.resolve(name, "meanwhile")
    assert "Resumed 1 invocations" in cli.run("invocations", "resume", invocation).text

    assert world.result(invocation) == {"value": "meanwhile"}


def test_resuming_on_a_chosen_deployment(cli: CommandLine, world: World) -> None:
    key, store = unique("chosen"), world.name("Store")
    invocation = world.start("Failing/until_healed_pause", key)
    world.admin.await_status(invocation, "paused")
    deployment = world.admin.get(f"/services/{store}").json()["deployment_id"]
    world.ledger.add(f"{key} healed")

    cli.run("invocations", "resume", invocation, "--deployment", "latest")

    assert world.result(invocation) == 4
    described = cli.run("invocations", "describe", invocation)
    assert described.row("Deployment:")[0] == deployment


# --- State and SQL ------------------------------------------------------------------------------


def test_state(cli: CommandLine, world: World) -> None:
    key, store = unique("state"), world.name("Store")
    world.value("Store/write", {"total": 5, "name": "x", "list": [1, 2]}, key)

    def plain() -> Any:
        return json.loads(cli.run("state", "get", store, key, "--plain").output)

    assert cli.run("state", "get", store, key).row("total") == ["5"]
    assert plain() == {"total": 5, "name": "x", "list": [1, 2]}
    assert cli.run("state", "get", store, key, "--binary").row("total") == ['"NQ=="']

    patch = [
        {"op": "replace", "path": "/total", "value": 7},
        {"op": "remove", "path": "/name"},
    ]
    cli.run("state", "patch", store, key, "--patch", json.dumps(patch))
    wait_until(lambda: world.value("Store/total", key=key) == 7, "the patch is applied")
    assert plain() == {"total": 7, "list": [1, 2]}

    change = [{"op": "replace", "path": "/total", "value": 8}]
    cli.run("state", "patch", store, key, "--force", "--patch", json.dumps(change))
    wait_until(lambda: world.value("Store/total", key=key) == 8, "the patch is applied")

    cli.run("state", "clear", f"{store}/{key}")
    wait_until(lambda: world.value("Store/names", key=key) == [], "the state is cleared")
    assert plain() == {}
    assert cli.try_to("state", "get", world.name("Basics"), key).code == 1


def test_editing_state(cli: CommandLine, world: World) -> None:
    key, store = unique("edited"), world.name("Store")
    world.value("Store/write", {"total": 5, "list": [1, 2]}, key)

    cli.edit(
        "assert '\"total\": 5' in text\ntext = text.replace('\"total\": 5', '\"total\": 6')",
        *("state", "edit", store, key),
    )
    wait_until(lambda: world.value("Store/total", key=key) == 6, "the edit is applied")
    assert world.value("Store/names", key=key) == ["list", "total"]

    cli.edit("text = '{\"total\": 7}'", "state", "edit", store, key)
    wait_until(lambda: world.value("Store/total", key=key) == 7, "the edit is applied")
    assert world.value("Store/names", key=key) == ["total"]


def test_editing_state_that_changes_meanwhile(cli: CommandLine, world: World) -> None:
    key, store = unique("raced"), world.name("Store")
    world.value("Store/write", {"total": 5}, key)
    url = f"{world.server.ingress.url}/{store}/{key}/write"
    headers = {"content-type": "application/json"}

    def race(total: int) -> str:
        body = json.dumps({"total": total}).encode()
        request = f"urllib.request.Request({url!r}, {body!r}, {headers!r})"
        return f"urllib.request.urlopen({request}).read()\ntext = '{{\"total\": 1}}'"

    cli.edit(race(8), "state", "edit", store, key)
    # Edits wait in the queue of the key: this call is behind it.
    assert world.value("Store/total", key=key) == 8

    cli.edit(race(9), "state", "edit", "--force", store, key)
    wait_until(lambda: world.value("Store/total", key=key) == 1, "the edit is applied")


def test_sql(cli: CommandLine, world: World) -> None:
    key = unique("sql")
    ids = sorted(world.start("Store/add", n, f"{key}-{n}", delay="1h") for n in range(3))
    where = f"from sys_invocation where target_service_key like '{key}-%'"

    table = cli.run("sql", f"select id, status {where} order by id")
    assert [table.row(each) for each in ids] == [["scheduled"]] * 3
    assert table.row("3", "rows.")
    counted = cli.run("sql", f"select count(*) as n {where}", "--json")
    assert json.loads(counted.output) == [{"n": 3}]
    lines = cli.run("sql", f"select id {where} order by id", "--jsonl").output.splitlines()
    assert [json.loads(line)["id"] for line in lines] == ids
    assert cli.run("sql", f"select id {where} and status = 'paused'").row("0", "rows.")
    assert cli.try_to("sql", "select nothing from nowhere").code == 1
    for invocation in ids:
        assert world.admin.kill(invocation).status == 200


@pytest.mark.parametrize("what", ["kafka-clusters", "subscriptions", "rules", "vqueues"])
def test_there_are_none_of_these(cli: CommandLine, what: str) -> None:
    done = cli.run(what, "list")

    assert done.text.startswith("No ")


@pytest.mark.differs("concurrency rules (`/limits/rules`)")
def test_a_rule_is_refused(cli: CommandLine) -> None:
    done = cli.try_to("rules", "set", "scope/*", "--concurrency", "3")

    assert done.code == 1
    assert "REQ0008" in done.text
