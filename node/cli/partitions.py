"""``perdure partitions``: who leads what, and moving it."""

import click

from perdure.node.cli.cluster import emit_partitions
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options


@click.group(cls=Verbs)
def partitions() -> None:
    """Look at partitions; move, pin and freeze their leaders."""


@partitions.command("list")
@admin_options
def list_(session: Session) -> None:
    """List all partitions."""
    document = session.client.get("/perdure/partitions")
    session.emit(document, lambda: emit_partitions(rows_of(document, "partitions")))


@partitions.command()
@click.argument("partition", type=click.IntRange(0))
@admin_options
def describe(session: Session, partition: int) -> None:
    """Show a partition and each of its replicas."""
    document = session.client.get(f"/perdure/partitions/{partition}")

    def show() -> None:
        emit_partitions([document])
        click.echo()
        emit_table(
            ["REPLICA", "ROLE", "APPLIED", "DURABLE", "LAG"],
            (
                [row.get(key) for key in ("node", "role", "applied_lsn", "durable_lsn")]
                + [row.get("lag_records")]
                for row in rows_of(document, "replicas")
            ),
        )

    session.emit(document, show)


@partitions.command()
@click.argument("partition", type=click.IntRange(0), required=False)
@admin_options
def replicas(session: Session, partition: int | None) -> None:
    """List the replicas of all partitions, or of PARTITION: how far each of them is."""
    path = "/perdure/partitions" if partition is None else f"/perdure/partitions/{partition}"
    document = session.client.get(path)
    rows = rows_of(document, "partitions") if partition is None else [document]

    def show() -> None:
        emit_table(
            ["PARTITION", "NODE", "ROLE", "EPOCH", "APPLIED", "DURABLE", "TRIM", "LAG"],
            (
                [
                    row.get("partition"),
                    f"{replica.get('node')}{' (coming)' * bool(replica.get('is_coming'))}",
                    replica.get("role"),
                    row.get("epoch"),
                    replica.get("applied_lsn"),
                    replica.get("durable_lsn"),
                    row.get("trim_lsn"),
                    replica.get("lag_records", "-"),
                ]
                for row in rows
                for replica in rows_of(row, "replicas")
            ),
        )

    session.emit({"partitions": rows}, show)


@partitions.command()
@click.argument("partition", type=click.IntRange(0))
@click.option("--to", required=True, metavar="NODE", help="Who is to lead.")
@admin_options
def lead(session: Session, partition: int, to: str) -> None:
    """Have PARTITION led by a node, now; no call fails.

    Balance may move it again: `perdure partitions pin` keeps it there.
    """
    answer = session.client.request(
        "PATCH", f"/perdure/partitions/{partition}/lead", None, {"to": to}
    )
    session.emit(answer.document, lambda: emit_partitions([answer.document]))
    if answer.status != 200:
        say(f"{to} doesn't lead it yet: look again, and at the logs of both nodes.")


@partitions.command()
@click.argument("partition", type=click.IntRange(0))
@click.option("--to", required=True, metavar="NODE", help="Who is to lead whenever it can.")
@admin_options
def pin(session: Session, partition: int, to: str) -> None:
    """Want a node to lead PARTITION whenever it can."""
    _change(session, partition, "pin", {"to": to})


@partitions.command()
@click.argument("partition", type=click.IntRange(0))
@admin_options
def unpin(session: Session, partition: int) -> None:
    """Want no node in particular to lead PARTITION."""
    _change(session, partition, "unpin")


@partitions.command()
@click.argument("partition", type=click.IntRange(0))
@admin_options
def freeze(session: Session, partition: int) -> None:
    """Don't move the leader of PARTITION for balance."""
    _change(session, partition, "freeze")


@partitions.command()
@click.argument("partition", type=click.IntRange(0))
@admin_options
def unfreeze(session: Session, partition: int) -> None:
    """Let balance move the leader of PARTITION again."""
    _change(session, partition, "unfreeze")


def _change(
    session: Session, partition: int, verb: str, query: dict[str, str] | None = None
) -> None:
    path = f"/perdure/partitions/{partition}/{verb}"
    document = session.client.request("PATCH", path, None, query).document
    session.emit(document, lambda: emit_partitions([document]))
