"""``perdure log``: the logs of partitions, and whether their replicas agree."""

import getpass
import os
import socket
import threading
from collections.abc import Iterable
from typing import cast
from urllib.parse import urlencode

import click

from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_facts, emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option

_POLL_SECONDS = 0.2
_KINDS = ("missing", "under_replicated", "diverging")

partition_argument = click.argument("partition", type=click.IntRange(0))


@click.group(cls=Verbs)
def log() -> None:
    """Look at the logs of partitions; compare their replicas, end segments."""


@log.command("list")
@admin_options
def list_(session: Session) -> None:
    """List the logs: where they begin and end, and who stores them."""
    document = session.client.get("/perdure/logs")

    def show() -> None:
        emit_table(
            ["PARTITION", "LEADER", "EPOCH", "BEGINS", "ENDS", "SEGMENTS", "LOG ON", "COPIES"],
            (
                [
                    row.get("partition"),
                    row.get("leader") or "none",
                    row.get("epoch"),
                    row.get("begins_at"),
                    row.get("ends_at"),
                    row.get("segments"),
                    _names(row.get("nodeset")),
                    _copies(row),
                ]
                for row in rows_of(document, "logs")
            ),
        )

    session.emit(document, show)


@log.command()
@partition_argument
@admin_options
def describe(session: Session, partition: int) -> None:
    """Show the log of PARTITION, segment by segment."""
    _emit_log(session, session.client.get(f"/perdure/logs/{partition}"))


@log.command()
@click.argument("partitions", metavar="[PARTITION]...", type=click.IntRange(0), nargs=-1)
@admin_options
def verify(session: Session, partitions: tuple[int, ...]) -> None:
    """Compare the replicas of each PARTITION's log, or of all, by digest.

    It only reads, every record on every replica, beside all other work. Ends with code 1 when
    replicas differ, or records are missing or on fewer nodes than they should be.
    """
    if not partitions:
        rows = rows_of(session.client.get("/perdure/logs"), "logs")
        numbers = (row.get("partition") for row in rows)
        partitions = tuple(number for number in numbers if isinstance(number, int))
    found = [_verify(session, partition) for partition in partitions]
    session.emit({"verifications": found}, lambda: _show_verifications(found))
    if not all(row.get("is_sound") for row in found):
        raise click.exceptions.Exit(1)


@log.command()
@partition_argument
@admin_options
def reconfigure(session: Session, partition: int) -> None:
    """Have the leader of PARTITION go on in a new segment, on the log servers that are best now.

    No call fails. The controller does it by itself when nodes come and go.
    """
    answer = session.client.request("PATCH", f"/perdure/logs/{partition}/reconfigure")
    _emit_log(session, answer.document)
    if answer.status != 200:
        say("There is no new segment yet: look again, and at the log of the leader's node.")


@log.command()
@partition_argument
@confirm_option
@admin_options
def seal(session: Session, partition: int, yes: bool) -> None:
    """End the open segment of PARTITION, whatever its leader does.

    For a leader that hangs: it can commit nothing more, and whoever takes over opens the next
    segment. Calls under way fail over; nothing acknowledged is lost.
    """
    confirm(f"Take the log of partition {partition} away from its leader?", yes)
    document = session.client.request("PATCH", f"/perdure/logs/{partition}/seal").document

    def show() -> None:
        emit_facts(
            [
                ("partition", document.get("partition")),
                ("segment", document.get("segment")),
                ("sealed on", _names(document.get("sealed"))),
                ("not reached", _names(document.get("absent"))),
            ]
        )

    session.emit(document, show)
    if not document.get("is_ended"):
        say("Too few replicas were reached: the leader may still commit. Repeat it.")
        raise click.exceptions.Exit(1)


@log.command("unsafe-close")
@partition_argument
@click.option("--segment", type=click.IntRange(0), help="The open segment, with --yes.")
@click.option("--yes", is_flag=True, help="Do it.")
@admin_options
def unsafe_close(session: Session, partition: int, segment: int | None, yes: bool) -> None:
    """Close the open segment of PARTITION with what is left of it, once disks are lost for good.

    The last resort: acknowledged records that were only on the lost disks are gone. Without --yes
    it shows what is known, and changes nothing. It is refused while the rules can close the
    segment, or a disk may come back that was not given up with `perdure nodes mark-lost`.
    """
    path = f"/perdure/logs/{partition}/unsafe-close"
    if not yes:
        document = session.client.get(path)
        session.emit(document, lambda: _show_remains(document))
        if document.get("refusal"):
            raise click.exceptions.Exit(1)
        return
    if segment is None:
        raise click.UsageError("with --yes, name the segment: --segment N")
    query = urlencode({"segment": segment, "by": f"{_user()}@{socket.gethostname()}"})
    answer = session.client.request("PATCH", f"{path}?{query}")
    session.emit(answer.document, lambda: _show_remains(answer.document))
    if answer.status != 200:
        say("It is allowed, and not done yet: `perdure cluster status` says what is missing.")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a number without a name, as in some containers
        return str(os.getuid())


def _show_remains(document: Document) -> None:
    done = cast(Document, document.get("done") or {})
    emit_facts(
        [
            ("partition", document.get("partition")),
            ("segment", document.get("segment")),
            ("begins at", document.get("base_lsn")),
            ("replicas needed", document.get("needed")),
            ("given up", _names(document.get("given_up")) or "-"),
            ("away", _names(document.get("silent")) or "-"),
            ("committed for sure", document.get("committed_lsn")),
            ("kept up to", _before(done.get("tail_lsn")) or document.get("last_lsn")),
            ("log begins then at", document.get("begins_lsn")),
        ]
    )
    click.echo()
    rows = rows_of(document, "counted")
    columns = ("name", "committed_lsn", "last_lsn")
    emit_table(
        ["REPLICA LEFT", "COMMITTED", "LAST"], ([row.get(c) for c in columns] for row in rows)
    )
    click.echo()
    rows = rows_of(document, "tables")
    emit_table(
        ["TABLES ON", "APPLIED"], ([row.get("name"), row.get("applied_lsn")] for row in rows)
    )
    if done:
        say(f"It ends with record {_before(done.get('tail_lsn'))} now, and the partition goes on.")
    elif document.get("refusal"):
        say(f"It can't be closed unsafely: {document['refusal']}.")
    else:
        number, last = document.get("partition"), document.get("last_lsn")
        say(
            f"Lost will be whatever was acknowledged after record {last} and is only on "
            f"{_names(document.get('given_up'))}; nobody can tell any more whether there is any. "
            "Nodes that have applied such records must be wiped; calls between this partition and "
            "others that were in them stay unanswered, and hold up later ones. To do it:\n"
            f"perdure log unsafe-close {number} --segment {document.get('segment')} --yes"
        )


def _before(lsn: object) -> int | None:
    return lsn - 1 if isinstance(lsn, int) else None


def _verify(session: Session, partition: int) -> Document:
    path = f"/perdure/logs/{partition}/verify"
    document = session.client.request("POST", path).document
    while document.get("is_under_way"):
        threading.Event().wait(_POLL_SECONDS)
        document = session.client.get(path)
    return document


def _show_verifications(found: list[Document]) -> None:
    emit_table(
        ["PARTITION", "SEGMENT", "FROM", "TO", "ANSWERED", "ABSENT", "RESULT"],
        (
            [
                document.get("partition"),
                row.get("segment"),
                row.get("lower_lsn"),
                row.get("upper_lsn"),
                _names(row.get("answered")),
                _names(row.get("absent")) or "-",
                "sound" if row.get("is_sound") else _findings(row),
            ]
            for document in found
            for row in rows_of(document, "segments")
        ),
    )
    for document in found:
        if document.get("failure"):
            say(f"partition {document.get('partition')}: {document['failure']}")


def _findings(row: Document) -> str:
    return "; ".join(
        f"{kind.replace('_', '-')} {_ranges(rows_of(row, kind))}"
        for kind in _KINDS
        if rows_of(row, kind)
    )


def _ranges(rows: Iterable[Document]) -> str:
    return ", ".join(f"{row.get('lower_lsn')}-{_last(row)}" for row in rows)


def _last(row: Document) -> int:
    upper = row.get("upper_lsn")
    return upper - 1 if isinstance(upper, int) else 0


def _emit_log(session: Session, document: Document) -> None:
    def show() -> None:
        emit_facts(
            [
                ("partition", document.get("partition")),
                ("leader", document.get("leader") or "none"),
                ("epoch", document.get("epoch")),
                ("begins at", document.get("begins_at")),
                ("ends at", document.get("ends_at")),
            ]
        )
        click.echo()
        emit_table(
            ["SEGMENT", "FROM", "TO", "EPOCH", "WRITER", "LOG ON", "COPIES"],
            (
                [
                    row.get("segment"),
                    row.get("base_lsn"),
                    "open" if row.get("is_open") else _tail(row),
                    row.get("epoch"),
                    row.get("writer"),
                    _names(row.get("nodeset")),
                    _copies(row),
                ]
                for row in rows_of(document, "chain")
            ),
        )

    session.emit(document, show)


def _tail(row: Document) -> int:
    tail = row.get("tail_lsn")
    return tail - 1 if isinstance(tail, int) else 0


def _copies(row: Document) -> str:
    short = ", too few" if row.get("is_under_replicated") else ""
    return f"{row.get('replication', '-')}{short}"


def _names(value: object) -> str:
    return ", ".join(str(name) for name in cast(list[object], value or []))
