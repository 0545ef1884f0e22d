"""The commands against a real node and a real service."""

import contextlib
import http.client
import json
import os
import pty
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import pytest
from tests.node.cli.terminal import Done, Terminal

from perdure.node.admin.invocation_rows import ALIASES, STATUSES
from perdure.node.cli import exits, selection
from perdure.node.cli.client import AdminClient, Document

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[3]
_DEADLINE_SECONDS = 20.0


@dataclass(frozen=True, slots=True)
class Shop:
    """A node with a service to call."""

    terminal: Terminal
    node: dict[str, Any]
    service: str

    def type(self, *words: str, answer: str = "") -> Done:
        return self.terminal.type(*words, "--admin-url", self.node["admin_url"], answer=answer)

    def call(self, path: str, body: object = None) -> Any:
        address = urlsplit(str(self.node["ingress_url"]))
        connection = http.client.HTTPConnection(address.netloc, timeout=_DEADLINE_SECONDS)
        content = json.dumps(body) if body is not None else None
        headers = {"content-type": "application/json"} if body is not None else {}
        connection.request("POST", path, content, headers)
        answer = connection.getresponse().read()
        connection.close()
        return json.loads(answer) if answer else None

    def send(self, path: str, body: object = None) -> str:
        return str(self.call(f"{path}/send", body)["invocationId"])

    def describe(self, invocation: str) -> dict[str, Any]:
        document: dict[str, Any] = self.type("invocations", "describe", invocation, "--json").json
        return document

    def wait_status(self, invocation: str, status: str) -> None:
        self.wait(lambda: self.describe(invocation)["status"], status)

    def wait(self, read: Callable[[], object], wanted: object) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while (found := read()) != wanted:
            assert time.monotonic() < deadline, f"{found!r} instead of {wanted!r}"


@contextlib.contextmanager
def running(log: Path, *words: str) -> Generator[tuple[subprocess.Popen[str], str], None, None]:
    """A process, with the first line that it wrote to stdout."""
    environment = {name: value for name, value in os.environ.items() if "PERDURE" not in name}
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        ) as process,
    ):
        stdout: IO[str] | None = process.stdout
        assert stdout is not None
        try:
            line = stdout.readline()
            assert line, log.read_text()
            yield process, line
        finally:
            process.kill()


def node_words(verb: str, folder: Path) -> list[str]:
    addresses = ("--ingress-address", "--admin-address", "--bind-address")
    flags = [word for flag in addresses for word in (flag, "127.0.0.1:0")]
    return ["perdure", verb, "--json", "--base-dir", str(folder / "data"), *flags]


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, Any], str]]:
    folder = tmp_path_factory.mktemp("shop")
    with (
        running(folder / "node.log", *node_words("server", folder)) as (_, ready),
        running(folder / "service.log", "tests.node.cli.shop") as (_, port),
    ):
        yield json.loads(ready), f"http://127.0.0.1:{port.strip()}"


@pytest.fixture
def shop(processes: tuple[dict[str, Any], str], terminal: Terminal) -> Shop:
    node, service = processes
    shop = Shop(terminal, node, service)
    if not shop.type("deployments", "list", "--json").json["deployments"]:
        assert shop.type("deployments", "register", service).code == 0
    return shop


# --- Deployments and services ---------------------------------------------------------------------


def test_registers_and_shows_deployments(shop: Shop) -> None:
    again = shop.type("deployments", "register", shop.service.removeprefix("http://"))
    assert again.code == 0
    assert "Already registered as dp_" in again.err
    assert [row[0] for row in again.table] == ["SERVICE", "Greeter", "Till"]
    deployment = shop.type("deployments", "list", "--json").json["deployments"][0]["id"]
    listed = shop.type("deployments", "list")
    assert deployment in listed.out
    assert "Greeter (revision 1)" in listed.out
    shown = shop.type("deployments", "describe", deployment)
    assert f"{shop.service}/" in shown.out
    assert "both ways" in shown.out
    assert ["serves new calls of", "Greeter, Till"] in shown.table
    assert next(row[1] for row in shown.table if row[0] == "pinned invocations").isdigit()
    document = shop.type("deployments", "describe", deployment, "--json").json
    assert document["id"] == deployment


def test_registering_what_is_not_there_says_why(shop: Shop, free_port: int) -> None:
    done = shop.type("deployments", "register", f"http://127.0.0.1:{free_port}")
    assert done.code == exits.FAILED
    assert done.out == ""
    assert "error: [META0003]" in done.err
    assert f"where: POST {shop.node['admin_url']}deployments (answered 500)" in done.err
    assert "next:  is the service running" in done.err


def test_a_dry_run_registers_nothing(shop: Shop) -> None:
    before = shop.type("deployments", "list", "--json").json
    done = shop.type("deployments", "register", shop.service, "--dry-run", "--force")
    assert done.code == 0
    assert "nothing was registered" in done.err
    assert shop.type("deployments", "list", "--json").json == before


def test_forcing_discovers_again(shop: Shop) -> None:
    before = shop.type("services", "describe", "Till", "--json").json["revision"]
    done = shop.type(
        "deployments", "register", shop.service, "--force", "--metadata", "team=blue", "--json"
    )
    assert "Registered again as dp_" in done.err
    assert shop.type("services", "describe", "Till", "--json").json["revision"] == before + 1
    assert "blue" in shop.type("deployments", "describe", done.json["id"]).out


def test_a_deployment_in_use_is_not_removed_by_accident(shop: Shop) -> None:
    deployment = shop.type("deployments", "list", "--json").json["deployments"][0]["id"]
    done = shop.type("deployments", "remove", deployment, "--yes")
    assert done.code == exits.FAILED
    assert "serves new calls of Greeter, Till" in done.err
    unknown = shop.type("deployments", "remove", "dp_nothing", "--yes")
    assert unknown.code == exits.FAILED
    assert "error: [" in unknown.err
    removed = shop.type("deployments", "remove", deployment, "--yes", "--force", "--json")
    assert removed.json == {"removed": deployment}
    assert shop.type("services", "list", "--json").json == {"services": []}


def test_shows_services(shop: Shop) -> None:
    listed = shop.type("services", "list")
    assert [row[0] for row in listed.table] == ["SERVICE", "Greeter", "Till"]
    shown = shop.type("services", "describe", "Greeter")
    assert "front desk" in shown.out
    assert "stumble" in shown.out
    unknown = shop.type("services", "describe", "Nothing")
    assert unknown.code == exits.FAILED
    assert "next:  see `perdure services list`" in unknown.err


def test_changes_settings_of_a_service(shop: Shop) -> None:
    done = shop.type(
        "services", "config", "patch", "Till", "--private", "--abort-timeout", "5m", "--json"
    )
    assert done.code == 0
    assert (done.json["public"], done.json["abort_timeout"]) == (False, "5m")
    shown = shop.type("services", "config", "view", "Till")
    assert ["abort timeout", "5m"] in shown.table
    assert ["public", "no"] in shown.table
    assert shop.type("services", "config", "patch", "Till", "--public").code == 0
    nothing = shop.type("services", "config", "patch", "Till")
    assert nothing.code == exits.USAGE
    bad = shop.type("services", "config", "patch", "Till", "--abort-timeout", "soon")
    assert bad.code == exits.FAILED
    assert "soon" in bad.err or "abort_timeout" in bad.err


# --- Invocations ----------------------------------------------------------------------------------


def test_lists_and_describes_invocations(shop: Shop) -> None:
    done = shop.send("/Greeter/greet", "Ada")
    shop.wait_status(done, "completed")
    refused = shop.send("/Greeter/refuse")
    shop.wait_status(refused, "completed")
    rows = {row[0]: row[1:] for row in shop.type("invocations", "list").table}
    assert rows[done][:2] == ["Greeter/greet", "completed"]
    assert rows[refused][-1] == "failed: [409] out of stock"
    narrow = shop.type("invocations", "list", "--handler", "refuse", "--json").json["invocations"]
    assert {row["handler"] for row in narrow} == {"refuse"}
    shown = shop.type("invocations", "describe", done)
    assert ["target", "Greeter/greet"] in shown.table
    assert next(row[:3] for row in shown.table if row[:1] == ["1"]) == ["1", "Run", "compose"]


def test_pages_are_followed(shop: Shop) -> None:
    sent = {shop.send("/Till/pages/add", 1) for _ in range(5)}
    words = ("invocations", "list", "--service", "Till", "--key", "pages", "--json")
    assert {row["id"] for row in shop.type(*words).json["invocations"]} == sent
    two = shop.type(*words, "--limit", "2")
    assert len(two.json["invocations"]) == 2
    assert "--limit shows more" in two.err
    last = sorted(sent)[-1]
    shop.wait_status(last, "completed")
    short = shop.type("invocations", "describe", last, "--journal", "2")
    assert "--journal shows more" in short.err


def test_cancels_kills_and_purges(shop: Shop) -> None:
    first, second = shop.send("/Greeter/wait"), shop.send("/Greeter/wait")
    done = shop.type("invocations", "cancel", first, "--yes", "--json")
    assert done.code == 0
    assert done.json == {"operation": "cancel", "succeeded": [first], "failed": []}
    shop.wait_status(first, "completed")
    assert shop.type("invocations", "kill", second, "--yes").code == 0
    shop.wait_status(second, "completed")
    mixed = shop.type("invocations", "purge", first, "inv_nonsense", second, "--yes", "--json")
    assert mixed.code == exits.FAILED
    assert mixed.json["succeeded"] == [first, second]
    assert [row["invocation_id"] for row in mixed.json["failed"]] == ["inv_nonsense"]
    assert "where: inv_nonsense" in mixed.err
    gone = shop.type("invocations", "describe", first)
    assert gone.code == exits.FAILED
    assert first in gone.err


def test_pauses_and_resumes(shop: Shop) -> None:
    stumbling = shop.send("/Greeter/stumble")
    shop.wait_status(stumbling, "paused")
    listed = shop.type("invocations", "list", "--status", "paused")
    assert stumbling in listed.out
    assert "out of order" in listed.out
    shown = shop.type("invocations", "describe", stumbling)
    assert "transient_error" in shown.out
    assert shop.type("invocations", "resume", stumbling).code == 0
    assert shop.type("invocations", "kill", stumbling, "--yes").code == 0
    shop.wait_status(stumbling, "completed")
    again = shop.type("invocations", "pause", stumbling)
    assert again.code == exits.FAILED
    assert stumbling in again.err


def test_acts_on_all_that_match(shop: Shop) -> None:
    sent = sorted(shop.send("/Greeter/wait") for _ in range(3))
    words = ("--service", "Greeter", "--handler", "wait")
    done = shop.type("invocations", "pause", *words, answer="n\n")
    assert done.code == exits.INTERRUPTED
    assert "Pause 3 invocations? [y/N]" in done.err
    done = shop.type("invocations", "pause", *words, "--yes", "--json")
    assert sorted(done.json["succeeded"]) == sent
    for invocation in sent:
        shop.wait_status(invocation, "paused")
    done = shop.type("invocations", "resume", *words, "--deployment", "latest", "--yes")
    assert (done.code, "resume: 3 of 3 done" in done.err) == (0, True)
    assert "Nothing matches." in shop.type("invocations", "resume", *words, "--yes").err
    assert shop.type("invocations", "kill", *words, "--yes").code == 0
    shop.wait(lambda: [shop.describe(id)["status"] for id in sent], ["completed"] * 3)
    assert shop.type("invocations", "purge-journal", sent[0], "--yes").code == 0
    assert shop.describe(sent[0])["journal_length"] == 0
    completed = ("--status", "completed", *words, "--yes", "--json")
    purged = shop.type("invocations", "purge", *completed)
    assert set(purged.json["succeeded"]) >= set(sent)
    assert shop.type("invocations", "describe", sent[0]).code == exits.FAILED
    for wrong in ([], [sent[0], *words]):
        assert shop.type("invocations", "kill", *wrong, "--yes").code == exits.USAGE


def test_restarts_as_new(shop: Shop) -> None:
    old = shop.send("/Greeter/greet", "Ada")
    shop.wait_status(old, "completed")
    done = shop.type("invocations", "restart-as-new", old, "--from", "2")
    assert done.code == 0
    fresh = done.out.strip()
    assert fresh != old
    shop.wait_status(fresh, "completed")
    assert [entry["type"] for entry in shop.describe(fresh)["journal"]][:2] == ["Input", "Run"]
    refused = shop.type("invocations", "restart-as-new", old, "--from", "99")
    assert refused.code == exits.FAILED
    assert "from=99" in refused.err


def test_watches_until_the_end(shop: Shop) -> None:
    words = ("--json", "--interval", "0.05")
    selling = shop.send("/Greeter/sell", "watched")
    lines = [
        json.loads(line)
        for line in shop.type("invocations", "watch", selling, *words).out.splitlines()
    ]
    steps = {line["type"]: line for line in lines if line["change"] == "step"}
    assert list(steps)[:3] == ["Input", "Sleep", "SleepCompletion"]
    assert steps["Call"]["invocation_id"].startswith("inv_")
    assert {line["event"] for line in lines if line["change"] == "event"} <= {"suspended"}
    assert lines[-1]["result"] == {"kind": "success"}
    assert [line["change"] for line in lines].count("ended") == 1
    again = shop.type("invocations", "watch", selling)
    assert "#1 Sleep think" in again.out
    assert again.out.splitlines()[-1].endswith("ended: success")
    unknown = shop.type("invocations", "watch", "inv_nonsense")
    assert unknown.code == exits.FAILED


def test_watches_on_a_terminal(shop: Shop) -> None:
    stumbling = shop.send("/Greeter/stumble")
    shop.wait_status(stumbling, "paused")
    assert shop.type("invocations", "kill", stumbling, "--yes").code == 0
    command = ["invocations", "watch", stumbling, "--admin-url", shop.node["admin_url"]]
    master, terminal = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "perdure", *command], cwd=ROOT, stdout=terminal, text=True
    ) as process:
        os.close(terminal)
        shown = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while piece := os.read(master, 4096):
                shown += piece
        assert process.wait(timeout=_DEADLINE_SECONDS) == 0
    os.close(master)
    text = shown.decode()
    assert "Greeter/stumble" in text
    assert "[409] killed" in text
    assert "out of order" in text


def test_what_destroys_asks_first(shop: Shop) -> None:
    waiting = shop.send("/Greeter/wait")
    for answer in ("n\n", "\n", ""):
        done = shop.type("invocations", "kill", waiting, answer=answer)
        assert done.code == exits.INTERRUPTED
        assert (done.out, f"Kill {waiting}, without any clean-up? [y/N]" in done.err) == ("", True)
    assert shop.describe(waiting)["status"] != "completed"
    assert shop.type("invocations", "kill", waiting, answer="y\n").code == 0
    shop.wait_status(waiting, "completed")


def test_statuses_are_the_nodes_own() -> None:
    assert set(selection.STATUSES) == {*STATUSES, *ALIASES}


# --- State ----------------------------------------------------------------------------------------


def test_shows_and_changes_state(shop: Shop) -> None:
    assert shop.call("/Till/a%2Fb/add", 5) == 5
    shown = shop.type("state", "get", "Till", "a/b")
    assert shown.table == [["NAME", "BYTES", "VALUE"], ["total", "1", "5"]]
    assert shop.type("state", "get", "Till", "a/b", "total").out == "5"
    words = ("state", "edit", "Till", "a/b", "--yes")
    done = shop.type(*words, "--set", "total=41", "--set-text", "note=hey", "--json")
    assert done.code == 0
    assert done.json["names"] == ["note", "total"]
    get = ("state", "get", "Till", "a/b", "--json")
    shop.wait(lambda: {row["name"]: row["value"] for row in shop.type(*get).json["entries"]},
              {"total": "41", "note": "hey"})  # fmt: skip
    assert shop.call("/Till/a%2Fb/add", 1) == 42
    assert shop.type(*words, "--unset", "note").code == 0
    shop.wait(lambda: [row["name"] for row in shop.type(*get).json["entries"]], ["total"])
    assert shop.type("state", "clear", "Till", "a/b", "--yes").code == 0
    shop.wait(lambda: shop.type(*get).json["entries"], [])
    assert shop.call("/Till/a%2Fb/add", 1) == 1


def test_state_that_is_no_text_is_kept_as_it_is(shop: Shop) -> None:
    client = AdminClient(shop.node["admin_url"])
    body: Document = {"object_key": "raw", "new_state": {"blob": [255, 0], "text": "a"}}
    assert client.request("POST", "/services/Till/state", body).status == 202
    client.close()
    get = ("state", "get", "Till", "raw", "--json")
    shop.wait(lambda: [row["name"] for row in shop.type(*get).json["entries"]], ["blob", "text"])
    assert "base64 /wA=" in shop.type("state", "get", "Till", "raw").out
    assert shop.type("state", "edit", "Till", "raw", "--unset", "text", "--yes").code == 0
    blob = [{"name": "blob", "size": 2, "value_base64": "/wA="}]
    shop.wait(lambda: shop.type(*get).json["entries"], blob)


def test_state_that_is_too_large_is_shown_in_part(shop: Shop) -> None:
    sizes = {"a": 5_000_000, "b": 5_000_001, "c": 10}
    shop.call("/Till/large/fill", sizes)
    document = shop.type("state", "get", "Till", "large", "--json").json
    assert [(row["name"], "value" in row) for row in document["entries"]] == [
        ("a", True),
        ("b", False),
        ("c", True),
    ]
    assert document["is_partial"]
    assert ["b", "5000003", "(left out)"] in shop.type("state", "get", "Till", "large").table
    edit = shop.type("state", "edit", "Till", "large", "--set", "c=1", "--yes")
    assert edit.code == exits.FAILED
    assert "too large to be edited" in edit.err
    one = shop.type("state", "get", "Till", "large", "b")
    assert one.code == exits.FAILED
    assert "too large to be shown" in one.err
    assert shop.type("state", "clear", "Till", "large", "--yes").code == 0


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["edit", "Till", "x", "--yes"], exits.USAGE, "say what to change"),
        (["edit", "Till", "x", "--set", "a=b"], exits.USAGE, "not JSON"),
        (["edit", "Till", "x", "--set", "a"], exits.USAGE, "write name=value"),
        (["edit", "Till", "x", "--unset", "a", "--yes"], exits.FAILED, "has no state 'a'"),
        (["get", "Till", "x", "a"], exits.FAILED, "has no state 'a'"),
        (["edit", "Greeter", "x", "--set", "a=1", "--yes"], exits.FAILED, "no state"),
    ],
)
def test_refuses_bad_edits(shop: Shop, words: list[str], code: int, message: str) -> None:
    done = shop.type("state", *words)
    assert done.code == code
    assert message in done.err


# --- Serving --------------------------------------------------------------------------------------


def test_up_serves_stops_and_goes_on(tmp_path: Path, terminal: Terminal) -> None:
    for generation in (1, 2):
        log = tmp_path / f"up-{generation}.log"
        with running(log, *node_words("up", tmp_path)) as (process, line):
            ready = json.loads(line)
            assert ready["event"] == "ready"
            assert ready["pid"] == process.pid
            assert Path(ready["data_directory"]) == tmp_path / "data" / "node-1"
            done = terminal.type("services", "list", "--admin-url", ready["admin_url"])
            assert done.code == 0
            process.terminate()
            assert process.wait(timeout=_DEADLINE_SECONDS) == 0
        assert "goes on where this left off" in log.read_text()


@pytest.mark.parametrize("host", ["", "*", "[::]", "0.0.0.0"])
def test_every_interface_takes_ipv4(tmp_path: Path, free_port: int, host: str) -> None:
    words = [*node_words("server", tmp_path), "--ingress-address", f"{host}:{free_port}"]
    with running(tmp_path / "node.log", *words) as (_, line):
        assert json.loads(line)["ingress_url"] == f"http://localhost:{free_port}/"
        with socket.create_connection(("127.0.0.1", free_port), timeout=_DEADLINE_SECONDS):
            pass


def test_a_second_node_on_the_same_data_is_refused(tmp_path: Path, terminal: Terminal) -> None:
    words = node_words("server", tmp_path)
    with running(tmp_path / "node.log", *words):
        done = terminal.type(*words[1:])
    assert done.code == exits.START
    assert "error: [DIR0001]" in done.err


def test_the_ingress_is_not_mistaken_for_the_admin_api(shop: Shop) -> None:
    done = shop.terminal.type("services", "list", "--admin-url", shop.node["ingress_url"])
    assert done.code in (exits.FAILED, exits.UNREACHABLE)
    assert shop.node["ingress_url"].rstrip("/") in done.err
