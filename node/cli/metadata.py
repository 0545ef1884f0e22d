"""``perdure metadata``: how the cluster's registers are kept, what is in them, copies of them."""

import base64
import os
from pathlib import Path
from urllib.parse import quote

import click

from perdure.core.errors import UnexpectedAnswer
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_facts, emit_json, emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option
from perdure.node.cli.settings import settings_options
from perdure.node.config.resolve import Loaded


@click.group(cls=Verbs)
def metadata() -> None:
    """Look at the cluster's registers; copy them, and put copies back."""


@metadata.command()
@admin_options
def status(session: Session) -> None:
    """Show how the metadata is kept. Ends with code 1 while it can't be read."""
    document = session.client.get("/perdure/metadata")

    def show() -> None:
        facts = [("kept by", document.get("backend")), ("registers", document.get("registers"))]
        emit_facts([*facts, ("failure", document.get("failure"))])
        rows = rows_of(document, "places")
        if rows:
            click.echo()
            emit_table(
                ["PLACE", "STATE", "TERM", "DETAIL"],
                ([row.get(key) for key in ("place", "state", "term", "detail")] for row in rows),
            )

    session.emit(document, show)
    if document.get("failure"):
        raise click.exceptions.Exit(1)


@metadata.command("list")
@click.argument("prefix", default="")
@admin_options
def list_(session: Session, prefix: str) -> None:
    """List registers, those below PREFIX."""
    document = session.client.get("/perdure/metadata/registers", {"prefix": prefix})

    def show() -> None:
        emit_table(
            ["KEY", "VERSION"],
            ([row.get("key"), row.get("version")] for row in rows_of(document, "registers")),
        )

    session.emit(document, show)


@metadata.command()
@click.argument("key")
@admin_options
def get(session: Session, key: str) -> None:
    """Show the register KEY: its version, and its value as JSON."""
    document = session.client.get(f"/perdure/metadata/registers/{quote(key, safe='')}")

    def show() -> None:
        emit_facts([("key", document.get("key")), ("version", document.get("version"))])
        emit_json(document.get("value"))

    session.emit(document, show)


@metadata.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@admin_options
def backup(session: Session, file: Path) -> None:
    """Copy all registers into FILE, which must not exist.

    It holds headers of deployments, so only its owner may read it. It is of use only as long as
    no leader has changed and no node has started since.
    """
    document = session.client.get("/perdure/metadata/backup")
    content = document.get("content")
    if not isinstance(content, str):
        raise UnexpectedAnswer(f"{session.client.url} sent no copy of the registers")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise click.ClickException(f"{file} is there already: choose another name") from None
    except OSError as error:
        raise click.ClickException(f"{file} can't be written: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as target:
        size = target.write(base64.b64decode(content))
        target.flush()
        os.fsync(target.fileno())
    row = {"file": str(file), "bytes": size, "cluster": document.get("cluster")}
    session.emit(row, lambda: say(f"{file} holds the registers of {row['cluster']}."))


@metadata.command()
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False))
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
@settings_options
@confirm_option
def restore(loaded: Loaded, file: Path, yes: bool, as_json: bool) -> None:
    """Put the registers of FILE into the empty etcd that the settings name.

    All nodes are stopped. It asks no node. Whatever changed after the copy was made is not in it:
    nodes that have seen more refuse to start, and lose nothing.
    """
    from perdure.node.metadata_restore import describe_backup, restore_to_etcd

    found = describe_backup(file)
    words = f"cluster {found.fingerprint}, {len(found.registers)} registers"
    confirm(f"Put {words} into {', '.join(loaded.config.etcd.endpoints) or 'nowhere'}?", yes)
    restore_to_etcd(loaded.config, found)
    if as_json:
        emit_json({"fingerprint": found.fingerprint, "registers": len(found.registers)})
    say(f"The registers are there ({words}). Start the nodes.")
