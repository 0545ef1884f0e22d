"""The command as such: verbs, help, exit codes, and what is said when things go wrong."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from tests.node.cli.terminal import Terminal

import perdure
from perdure.core import attempt_errors, loss_errors
from perdure.core.build import IS_COMPILED
from perdure.core.errors import (
    AddressInUse,
    DataDirectoryLocked,
    DiskFull,
    InvalidConfiguration,
    NodeUnreachable,
    NotFound,
    PerdureError,
    UnreadableConfiguration,
    catalogue,
)
from perdure.node.cli import exits, main
from perdure.node.cli.main import VERBS, cli
from perdure.node.cli.output import plain

PAGE = Path(__file__).resolve().parents[3] / "docs" / "cli.md"


def commands(command: click.Command, words: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    if not isinstance(command, click.Group):
        return [words]
    context = click.Context(command)
    found: list[tuple[str, ...]] = []
    for name in command.list_commands(context):
        inner = command.get_command(context, name)
        assert inner is not None
        found += commands(inner, (*words, name))
    return found


COMMANDS = commands(cli)


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_has_help_and_json(terminal: Terminal, words: tuple[str, ...]) -> None:
    done = terminal.type(*words, "--help")
    assert done.code == 0
    assert f"Usage: perdure {' '.join(words)}" in done.out
    assert "--json" in done.out
    assert done.err == ""


@pytest.mark.parametrize("words", COMMANDS, ids=" ".join)
def test_every_command_is_on_the_page(words: tuple[str, ...]) -> None:
    assert f"perdure {' '.join(words)}" in PAGE.read_text()


@pytest.mark.parametrize("verb", VERBS)
def test_lists_of_commands_cut_nothing_off(terminal: Terminal, verb: str) -> None:
    command = cli.get_command(click.Context(cli), verb)
    assert command is not None
    shown = " ".join(terminal.type(verb, "--help").out.split())
    for inner in command.commands.values() if isinstance(command, click.Group) else ():
        first = (inner.help or "").partition("\n\n")[0]
        assert first and f"{inner.name} {' '.join(first.split())}" in shown


def test_the_list_of_verbs_says_what_the_verbs_say() -> None:
    context = click.Context(cli)
    for name, (_, line) in VERBS.items():
        command = cli.get_command(context, name)
        assert command is not None
        assert (command.help or "").splitlines()[0] == line


def test_exit_codes_are_listed(terminal: Terminal) -> None:
    help_text = " ".join(terminal.type("--help").out.split())
    page = PAGE.read_text()
    for code, meaning in exits.MEANINGS.items():
        assert f"{code} {meaning}" in help_text
        assert f"| {code} | {meaning} |" in page


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidConfiguration, exits.CONFIGURATION),
        (UnreadableConfiguration, exits.CONFIGURATION),
        (AddressInUse, exits.START),
        (DataDirectoryLocked, exits.START),
        (DiskFull, exits.START),
        (NodeUnreachable, exits.UNREACHABLE),
        (NotFound, exits.FAILED),
    ],
)
def test_errors_have_exit_codes(error: type[PerdureError], code: int) -> None:
    assert exits.exit_code(error("")) == code


def test_every_error_has_an_exit_code_that_is_listed() -> None:
    kinds = (attempt_errors.AttemptError, loss_errors.HistoryForsaken)
    assert {kind.code for kind in kinds} <= catalogue().keys()  # the whole table is loaded
    assert {exits.exit_code(kind("")) for kind in catalogue().values()} <= set(exits.MEANINGS)


def test_version(terminal: Terminal) -> None:
    assert terminal.type("--version").out == f"perdure {perdure.__version__}\n"
    assert terminal.type("version", "--json").json["version"] == perdure.__version__
    assert perdure.__version__ in terminal.type("version").out
    assert terminal.type("version", "--json").json["code"] == (
        "compiled" if IS_COMPILED else "interpreted"
    )


def test_a_wrong_command_line_is_a_usage_error(terminal: Terminal) -> None:
    for words in (["nonsense"], ["deployments", "register"], ["--nonsense"]):
        done = terminal.type(*words)
        assert done.code == exits.USAGE
        assert done.out == ""
        assert "perdure" in done.err


def test_no_node_says_how_to_start_one(terminal: Terminal, free_port: int) -> None:
    done = terminal.type("deployments", "list", "--admin-url", f"127.0.0.1:{free_port}")
    assert done.code == exits.UNREACHABLE
    assert done.out == ""
    assert f"[CLI0001] nothing answers at http://127.0.0.1:{free_port}" in done.err
    assert "connection refused" in done.err
    assert "perdure up" in done.err


def test_an_unknown_host_is_named(terminal: Terminal) -> None:
    done = terminal.type("services", "list", "--admin-url", "http://nowhere.invalid:1")
    assert done.code == exits.UNREACHABLE
    assert "http://nowhere.invalid:1" in done.err


def test_the_admin_address_may_come_from_variables(
    terminal: Terminal, free_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RESTATE_ADMIN_URL", "http://elsewhere.invalid")
    monkeypatch.setenv("PERDURE_ADMIN_URL", f"http://127.0.0.1:{free_port}")
    assert f"127.0.0.1:{free_port}" in terminal.type("services", "list").err


@pytest.mark.parametrize("url", ["ftp://x", "http://", "http://x:99999"])
def test_a_bad_admin_address_is_a_usage_error(terminal: Terminal, url: str) -> None:
    done = terminal.type("services", "list", "--admin-url", url)
    assert done.code == exits.USAGE
    assert "write a URL such as" in done.err


def test_a_bug_is_told_as_one(terminal: Terminal, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(VERBS, "broken", ("perdure.node.cli.nothing:here", ""))
    done = terminal.type("broken")
    assert done.code == exits.BUG
    assert "Traceback" in done.err
    assert "this is a bug in perdure" in done.err


def test_main_leaves_with_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main.main(["nonsense"])
    assert left.value.code == exits.USAGE
    assert "nonsense" in capsys.readouterr().err


def test_values_are_harmless_for_the_terminal() -> None:
    assert plain("a\x1b[31mb\nc\u202e") == "a\\x1b[31mb\\nc\\u202e"
    assert plain("Grüße 🎉") == "Grüße 🎉"
    assert [plain(value) for value in (None, True, 3, {"a": 1})] == ["", "yes", "3", '{"a": 1}']


def test_verbs_load_only_what_they_need() -> None:
    program = (
        "import sys; from perdure.node.cli.main import run; run(['--version']); "
        "print([n for n in ('rich', 'asyncio', 'ssl', 'perdure.node.server') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_closed_pipe_is_no_drama() -> None:
    program = "from perdure.node.cli.main import main; main(['config', '--json'])"
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=30) == exits.FAILED


@pytest.mark.parametrize(
    "words",
    [
        ("arn:aws:lambda:eu-central-1:123456789012:function:f:1", "--use-http1.1"),
        ("localhost:9080", "--assume-role-arn", "arn:aws:iam::123456789012:role/r"),
    ],
)
def test_options_of_the_other_kind_of_address_are_refused(
    terminal: Terminal, words: tuple[str, ...]
) -> None:
    done = terminal.type("deployments", "register", *words)
    assert done.code == exits.USAGE
    assert words[1] in done.err
