"""What commands that talk to a node share: its address, the output format, confirmation."""

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

import click

from perdure.node.cli.client import DEFAULT_ADMIN_URL, AdminClient
from perdure.node.cli.exits import INTERRUPTED
from perdure.node.cli.output import emit_json, say

ADMIN_VARIABLES = ["PERDURE_ADMIN_URL", "RESTATE_ADMIN_URL"]


class Verbs(click.Group):
    """Lists its commands in the order in which they are written, each with all of its first
    paragraph."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, _first(command.help)) for name, command in self.commands.items()]
            )


@dataclass(frozen=True, slots=True)
class Session:
    """A command's node, and how it prints."""

    client: AdminClient
    as_json: bool

    def emit(self, document: object, show: Callable[[], None]) -> None:
        """Print data: the document for machines, or ``show`` for people."""
        if self.as_json:
            emit_json(document)
        else:
            show()


def admin_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--admin-url`` and ``--json``, and a ``Session`` as its first argument."""

    @click.option(
        "--admin-url",
        envvar=ADMIN_VARIABLES,
        default=DEFAULT_ADMIN_URL,
        show_default=True,
        callback=check_url,
        help="Where the node's admin API is; also PERDURE_ADMIN_URL.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
    @functools.wraps(command)
    def wrapped(admin_url: str, as_json: bool, **arguments: object) -> None:
        client = AdminClient(admin_url, read_token())
        try:
            command(Session(client, as_json), **arguments)
        finally:
            client.close()

    return wrapped


def confirm_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--yes``."""
    return click.option("--yes", is_flag=True, help="Don't ask for confirmation.")(command)


def confirm(question: str, yes: bool) -> None:
    """Ask, on stderr; anything but a yes ends the command."""
    if not yes and not click.confirm(question, err=True):
        say("Nothing was changed.")
        raise click.exceptions.Exit(INTERRUPTED)


def pairs(context: click.Context, parameter: click.Parameter, value: tuple[str, ...]) -> object:
    """Callback for repeated ``name=value`` options."""
    found: dict[str, str] = {}
    for text in value:
        name, equals, content = text.partition("=")
        if not equals or not name:
            raise click.BadParameter(f"{text!r}: write name=value", context, parameter)
        found[name] = content
    return found


def read_token() -> str | None:
    """The token for a proxy in front of the node."""
    return os.environ.get("PERDURE_AUTH_TOKEN") or os.environ.get("RESTATE_AUTH_TOKEN")


def check_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Callback of ``--admin-url``; None stays None."""
    if value is None:
        return None
    url = value if "://" in value else f"http://{value}"
    try:
        parts = urlsplit(url)
        is_usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        is_usable = False
    if not is_usable:
        raise click.BadParameter(
            f"{value!r}: write a URL such as {DEFAULT_ADMIN_URL}", context, parameter
        )
    return url


def _first(help: str | None) -> str:
    return " ".join((help or "").strip().partition("\n\n")[0].split())
