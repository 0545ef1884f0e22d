"""``perdure nodes``: look at the nodes of a cluster; drain, resume, give up, remove them."""

from typing import cast
from urllib.parse import quote

import click

from perdure.node.cli.client import Document
from perdure.node.cli.cluster import emit_nodes
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_facts, plain, say
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option

_FACTS = ("state", "storage", "worker", "metadata", "leads", "holds", "zone", "software")


@click.group(cls=Verbs)
def nodes() -> None:
    """Look at the nodes of a cluster; drain, resume, remove them."""


@nodes.command("list")
@admin_options
def list_(session: Session) -> None:
    """List all nodes."""
    document = session.client.get("/perdure/nodes")
    session.emit(document, lambda: emit_nodes(rows_of(document, "nodes")))


@nodes.command()
@click.argument("name", metavar="NODE")
@admin_options
def describe(session: Session, name: str) -> None:
    """Show a node, and what keeps it from being removed."""
    _emit(session, session.client.get(_path(name)))


@nodes.command()
@click.argument("name", metavar="NODE")
@admin_options
def drain(session: Session, name: str) -> None:
    """Begin to move everything off NODE: leaders at once, then tables, then log.

    It takes until the log that NODE stores was trimmed. `perdure nodes describe NODE` tells what
    holds it still; when nothing does, stop it and remove it.
    """
    _change(session, name, "drain")


@nodes.command()
@click.argument("name", metavar="NODE")
@admin_options
def undrain(session: Session, name: str) -> None:
    """Give work to NODE again."""
    _change(session, name, "undrain")


@nodes.command()
@click.argument("name", metavar="NODE")
@admin_options
def resume(session: Session, name: str) -> None:
    """Let NODE, whose log was lost or is off, offer storage again from its next start."""
    _change(session, name, "resume")
    say(f"Restart {name}: it offers its storage when it starts.")


@nodes.command("mark-lost")
@click.argument("name", metavar="NODE")
@confirm_option
@admin_options
def mark_lost(session: Session, name: str, yes: bool) -> None:
    """Say that the disk of NODE, which is gone, will never come back.

    What it stored counts no more, even if it comes back.
    """
    confirm(f"Give up the disk of {name} for ever?", yes)
    _change(session, name, "mark-lost")


@nodes.command()
@click.argument("name", metavar="NODE")
@confirm_option
@admin_options
def remove(session: Session, name: str, yes: bool) -> None:
    """Take NODE out of the cluster for good; refused while something holds it."""
    confirm(f"Remove {name}? Its data directory can't join again", yes)
    document = session.client.request("DELETE", _path(name)).document
    session.emit(document, lambda: say(f"{name} was removed."))


def _change(session: Session, name: str, verb: str) -> None:
    _emit(session, session.client.request("PATCH", f"{_path(name)}/{verb}").document)


def _emit(session: Session, document: Document) -> None:
    def show() -> None:
        addresses = cast(dict[str, object], document.get("addresses") or {})
        emit_facts(
            [
                ("node", document.get("name")),
                ("id", f"N{document.get('id')}:{document.get('generation')}"),
                *((key, document.get(key)) for key in _FACTS),
                *addresses.items(),
            ]
        )
        held = cast(list[object], document.get("held_by") or [])
        click.echo("held by" if held else "held by nothing: it can be removed")
        for reason in held:
            click.echo(f"  {plain(reason)}")

    session.emit(document, show)


def _path(name: str) -> str:
    return f"/perdure/nodes/{quote(name, safe='')}"
