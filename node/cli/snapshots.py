"""``perdure snapshots``: take, list, show, check and restore snapshots of all state.

``create`` asks a running node; the others read the destination itself, so they work when there is
no node any more.
"""

import functools
import threading
from collections.abc import Callable
from dataclasses import replace

import click

from perdure.core.errors import InvalidConfiguration
from perdure.node.admin.snapshot_rows import set_row
from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_facts, emit_json, emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options
from perdure.node.cli.settings import settings_options
from perdure.node.config.resolve import Loaded
from perdure.storage.object_store import ObjectStore
from perdure.storage.snapshot_format import SetMember, SnapshotSet

_POLL_SECONDS = 0.5


@click.group(cls=Verbs)
def snapshots() -> None:
    """Take, check and restore snapshots of all state.

    A set is a snapshot of every partition at one moment, with what is registered.
    """


def destination_options(command: Callable[..., int | None]) -> Callable[..., int | None]:
    """Give a command ``--destination``, ``--json`` and the settings; it gets the store itself."""

    @click.option(
        "--destination",
        metavar="URL",
        help="s3://bucket/prefix or file:///directory; snapshots.destination unless given.",
    )
    @click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
    @settings_options
    @functools.wraps(command)
    def wrapped(loaded: Loaded, destination: str | None, **arguments: object) -> int | None:
        return command(_store(loaded, destination), loaded, **arguments)

    return wrapped


@snapshots.command("list")
@destination_options
def list_(store: ObjectStore, loaded: Loaded, as_json: bool) -> None:
    """List the sets at the destination, the newest first."""
    from perdure.storage.snapshots import list_sets, read_owner

    owner = read_owner(store)
    found = list(list_sets(store, owner.fingerprint)) if owner is not None else []
    rows = [set_row(document) for document in found]
    if as_json:
        emit_json(
            {
                "cluster": owner.name if owner is not None else None,
                "fingerprint": owner.fingerprint if owner is not None else None,
                "sets": rows,
            }
        )
    elif rows:
        emit_table(
            ["SET", "CREATED", "PARTITIONS", "BYTES", "CLUSTER", "SOFTWARE"],
            (
                [
                    row["name"],
                    row["created_at"],
                    len(rows_of(row, "partitions")),
                    row["size"],
                    row["cluster"],
                    row["software"],
                ]
                for row in rows
            ),
        )
    else:
        say("There is no set of snapshots here.")


@snapshots.command()
@click.argument("set_name", metavar="[SET]", required=False)
@destination_options
def show(store: ObjectStore, loaded: Loaded, set_name: str | None, as_json: bool) -> None:
    """Show what SET, or the newest one, has of each partition."""
    from perdure.node.restore import find_set

    row = set_row(find_set(store, set_name))
    if as_json:
        emit_json(row)
        return
    facts = [("set", row["name"]), ("created", row["created_at"]), ("cluster", row["cluster"])]
    emit_facts([*facts, ("software", row["software"]), ("bytes", row["size"])])
    click.echo()
    emit_table(
        ["PARTITION", "LSN", "SNAPSHOT", "BYTES"],
        (
            [item[key] for key in ("partition", "lsn", "snapshot", "size")]
            for item in rows_of(row, "partitions")
        ),
    )


@snapshots.command()
@admin_options
def create(session: Session) -> None:
    """Have the node take a set now, and wait for it."""
    before = {row.get("name") for row in _sets(session)}
    answer = session.client.request("POST", "/perdure/snapshots")
    document = answer.document if answer.status == 200 else _wait_for_new(session, before)

    def show() -> None:
        facts = [("set", document.get("name")), ("created", document.get("created_at"))]
        emit_facts([*facts, ("bytes", document.get("size"))])

    session.emit(document, show)


@snapshots.command()
@click.argument("set_name", metavar="[SET]", required=False)
@destination_options
def verify(store: ObjectStore, loaded: Loaded, set_name: str | None, as_json: bool) -> None:
    """Read every byte of SET, or of the newest, and check it."""
    from perdure.node.restore import find_set, verify_set

    document = find_set(store, set_name)
    verify_set(store, document, _progress(document, "checked"))
    _emit_done(document, as_json, f"{document.name} is whole.")


@snapshots.command()
@click.argument("set_name", metavar="[SET]", required=False)
@destination_options
def restore(store: ObjectStore, loaded: Loaded, set_name: str | None, as_json: bool) -> None:
    """Make the data directory of a node out of SET, or of the newest.

    The directory is that of --base-dir and --node-name, and must be empty. The node that starts on
    it is a new cluster with the old state: give it a destination of its own for its snapshots.
    """
    from perdure.core.entropy import SystemEntropy
    from perdure.node.restore import Target, find_set
    from perdure.node.restore import restore as restore_set

    document = find_set(store, set_name)
    config = loaded.config
    target = Target(
        folder=config.base_dir / config.node_name,
        cluster=config.cluster_name,
        node=config.node_name,
    )
    restore_set(store, document, target, SystemEntropy(), _progress(document, "restored"))
    _emit_done(
        document,
        as_json,
        f"{target.folder} holds the state of {set_row(document)['created_at']}; what was recorded "
        "later is not in it. Before you start the node, make sure that the old one never runs "
        "again, and set snapshots.destination to another prefix.",
    )


def _store(loaded: Loaded, destination: str | None) -> ObjectStore:
    from perdure.node.config.values import parse_destination
    from perdure.node.snapshots import open_store

    config = loaded.config.snapshots
    if destination is not None:
        try:
            config = replace(config, destination=parse_destination(destination))
        except ValueError as error:
            raise click.UsageError(f"--destination {destination}: {error}") from error
    store = open_store(config)
    if store is None:
        raise InvalidConfiguration(
            "no destination is set: say --destination s3://bucket/prefix, or set "
            "snapshots.destination"
        )
    return store


def _progress(document: SnapshotSet, done: str) -> Callable[[SetMember], None]:
    def tell(member: SetMember) -> None:
        number, count = member.partition + 1, len(document.members)
        say(f"{done} {number}/{count}: partition {member.partition} at {member.snapshot.lsn}")

    return tell


def _emit_done(document: SnapshotSet, as_json: bool, words: str) -> None:
    if as_json:
        emit_json(set_row(document))
    say(words)


def _sets(session: Session) -> list[Document]:
    return rows_of(session.client.get("/perdure/snapshots"), "sets")


def _wait_for_new(session: Session, before: set[object]) -> Document:
    say("It takes a while; interrupting this command doesn't stop it.")
    while True:
        threading.Event().wait(_POLL_SECONDS)
        status = session.client.get("/perdure/snapshots")
        fresh = [row for row in rows_of(status, "sets") if row.get("name") not in before]
        if fresh:
            return fresh[0]
        if not status.get("is_taking"):
            raise click.ClickException(str(status.get("last_failure") or "no set was taken"))
