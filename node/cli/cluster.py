"""``perdure cluster``: how the cluster stands, what is wrong first."""

import asyncio
from collections.abc import Iterable
from typing import cast
from urllib.parse import quote

import click

from perdure.core.errors import InvalidConfiguration
from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_facts, emit_json, emit_table, plain, say
from perdure.node.cli.session import Session, Verbs, admin_options
from perdure.node.cli.settings import settings_options
from perdure.node.config.resolve import Loaded

_COLOURS = {"critical": "red", "warning": "yellow"}


@click.group(cls=Verbs)
def cluster() -> None:
    """Show how a cluster stands: what is wrong first; make one of a single node."""


@cluster.command()
@admin_options
def status(session: Session) -> None:
    """Show what is wrong and what to do about it, then nodes and partitions.

    It is what the node that is asked sees; when something is odd, ask another one too. Ends with
    code 1 while something is critical.
    """
    document = session.client.get("/perdure/cluster")

    def show() -> None:
        emit_facts(
            [
                ("cluster", document.get("name")),
                ("fingerprint", document.get("fingerprint")),
                ("seen by", document.get("seen_by")),
                ("controller", document.get("controller")),
                ("log copies", document.get("replication")),
                ("table copies", document.get("partition_replicas")),
            ]
        )
        click.echo()
        _show_problems(rows_of(document, "problems"))
        click.echo()
        emit_nodes(rows_of(document, "nodes"))
        click.echo()
        emit_partitions(rows_of(document, "partitions"))

    session.emit(document, show)
    if any(row.get("severity") == "critical" for row in rows_of(document, "problems")):
        raise click.exceptions.Exit(1)


@cluster.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
@settings_options
def provision(loaded: Loaded, as_json: bool) -> None:
    """Make the cluster in the etcd that the settings name, before any node starts.

    Its first node would do the same: this is for who wants to see it done, with the number of
    partitions and copies that the settings say. What is there already stays as it is. The nodes of
    cluster.members need nothing of it: they make the cluster when they start.
    """
    from perdure.core.clock import SystemClock
    from perdure.core.entropy import SystemEntropy

    config = loaded.config
    if not config.etcd.endpoints:
        raise InvalidConfiguration(
            "etcd.endpoints names no etcd: the first of cluster.members makes the cluster when it "
            "starts together with the others, there is nothing to provision"
        )
    from perdure.node.etcd import provision_cluster

    made = asyncio.run(provision_cluster(config, SystemClock(), SystemEntropy()))
    document: Document = {
        "name": made.name,
        "fingerprint": made.fingerprint,
        "partitions": made.partition_count,
        "replication": made.replication,
        "partition_replicas": made.partition_replicas,
    }
    if as_json:
        emit_json(document)
    else:
        emit_facts(document.items())


@cluster.command()
@click.option("--undo", is_flag=True, help="Take it back, before the node has been started again.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
@settings_options
def promote(loaded: Loaded, undo: bool, as_json: bool) -> None:
    """Make the stopped single node here the first node of a cluster.

    Give it the settings that the node is to run with from then on: it comes first in
    cluster.members. Nothing happens yet: its next start, together with those of the other members
    on empty data directories, makes the cluster, with all that the node had.
    """
    from perdure.core.entropy import SystemEntropy
    from perdure.node import promotion

    config = loaded.config
    if undo:
        promotion.undo(config)
        if as_json:
            emit_json({"name": config.node_name, "is_promoted": False})
        say(f"{config.node_name} is a single node again.")
        return
    intent = asyncio.run(promotion.promote(config, SystemEntropy()))
    if as_json:
        row = {"name": config.node_name, "is_promoted": True, "fingerprint": intent.cluster}
        emit_json(row)
    members = ", ".join(name for name, _ in config.cluster.members)
    say(
        f"{config.node_name} is the first of a cluster from its next start on, which waits for all "
        f"of {members}. --undo takes it back until then."
    )


@cluster.command()
@click.argument("names", metavar="[NODE]...", nargs=-1)
@admin_options
def voters(session: Session, names: tuple[str, ...]) -> None:
    """Show which nodes hold the metadata, or have these NODEs hold it: one, three or five.

    They take all of it over from those that hold it now, of which a majority must be there. It
    takes a second or two, in which nobody can become leader; calls go on.
    """
    if not names:
        document = session.client.get("/perdure/metadata/voters")
    else:
        query = "names=" + ",".join(quote(name, safe="") for name in names)
        document = session.client.request("PATCH", f"/perdure/metadata/voters?{query}").document

    def show() -> None:
        facts = [("voters", ", ".join(str(name) for name in _names(document, "voters")))]
        if following := _names(document, "following"):
            facts.append(("moving to", ", ".join(str(name) for name in following)))
        emit_facts(facts)

    session.emit(document, show)


def emit_nodes(rows: Iterable[Document]) -> None:
    """Nodes as a table."""
    emit_table(
        ["NODE", "ID", "STATE", "STORAGE", "WORKER", "METADATA", "LEADS", "HOLDS", "ZONE", "NOTES"],
        (
            [
                row.get("name"),
                f"N{row.get('id')}:{row.get('generation')}",
                row.get("state"),
                row.get("storage"),
                row.get("worker"),
                row.get("metadata"),
                row.get("leads"),
                row.get("holds"),
                row.get("zone") or "-",
                ", ".join(_notes(row)),
            ]
            for row in rows
        ),
    )


def emit_partitions(rows: Iterable[Document]) -> None:
    """Partitions as a table."""
    emit_table(
        [
            "PARTITION",
            "LEADER",
            "EPOCH",
            "REPLICAS",
            "APPLIED",
            "LAG",
            "LOG ON",
            "SEGMENTS",
            "TRIM",
        ],
        (
            [
                row.get("partition"),
                _leader(row),
                row.get("epoch"),
                ", ".join(_replica(replica) for replica in rows_of(row, "replicas")),
                max((_number(r, "applied_lsn") for r in rows_of(row, "replicas")), default=0),
                max((_number(r, "lag_records") for r in rows_of(row, "replicas")), default=0),
                ", ".join(str(name) for name in _names(row, "nodeset")) or "-",
                row.get("segments"),
                row.get("trim_lsn"),
            ]
            for row in rows
        ),
    )


def _show_problems(rows: list[Document]) -> None:
    if not rows:
        click.echo("All is well.")
        return
    width = max(len(str(row.get("severity"))) for row in rows)
    for row in rows:
        severity = str(row.get("severity"))
        label = click.style(f"{severity:<{width}}", fg=_COLOURS.get(severity), bold=True)
        click.echo(f"{label}  {plain(row.get('what'))}")
        click.echo(f"{'next:':>{width}}  {plain(row.get('advice'))}")


def _notes(row: Document) -> Iterable[str]:
    if row.get("is_controller"):
        yield "controller"
    if row.get("is_disk_full"):
        yield "disk full"
    lag = row.get("loop_lag_ms")
    if isinstance(lag, int) and lag >= 100:
        yield f"stands still {lag} ms"


def _leader(row: Document) -> str:
    leader = str(row.get("leader") or "none")
    if row.get("pinned"):
        leader += f" (pinned to {row['pinned']})"
    return f"{leader} (frozen)" if row.get("is_frozen") else leader


def _replica(row: Document) -> str:
    name, role = str(row.get("node")), row.get("role")
    if row.get("is_coming"):
        return f"{name} (coming)"
    return name if role in ("leader", "follower") else f"{name} ({role})"


def _number(row: Document, name: str) -> int:
    value = row.get(name)
    return value if isinstance(value, int) else 0


def _names(row: Document, name: str) -> list[object]:
    return cast(list[object], row.get(name) or [])
