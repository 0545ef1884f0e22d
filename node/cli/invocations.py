"""``perdure invocations``: look at invocations; cancel, kill, purge, pause and resume them."""

from urllib.parse import quote

import click

from perdure.node.cli.client import Document, Refused
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import complain, emit_facts, emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option

_STATUSES = ("scheduled", "inboxed", "invoked", "suspended", "paused", "completed")
_COLUMNS = ("id", "target", "status", "retry_count", "created_at", "modified_at")
_LIMIT = 50
_LIMIT_MAX = 10_000


@click.group(cls=Verbs)
def invocations() -> None:
    """Look at invocations; cancel, kill, pause, resume, purge them."""


@invocations.command("list")
@click.option("--service", metavar="NAME", help="Only calls of this service.")
@click.option("--handler", metavar="NAME", help="Only calls of this handler.")
@click.option("--key", metavar="KEY", help="Only calls of the object with this key.")
@click.option(
    "--status", type=click.Choice(_STATUSES), multiple=True, help="Only these; may be repeated."
)
@click.option(
    "--limit",
    type=click.IntRange(1, _LIMIT_MAX),
    default=_LIMIT,
    show_default=True,
    help="At most this many.",
)
@admin_options
def list_(
    session: Session,
    service: str | None,
    handler: str | None,
    key: str | None,
    status: tuple[str, ...],
    limit: int,
) -> None:
    """List invocations."""
    given = {"service": service, "handler": handler, "key": key, "status": ",".join(status)}
    query = {name: value for name, value in given.items() if value}
    document = session.client.get("/perdure/invocations", {**query, "limit": str(limit)})
    rows = rows_of(document, "invocations")

    def show() -> None:
        columns = [name for name in _COLUMNS if any(row.get(name) is not None for row in rows)]
        emit_table(
            [name.replace("_", " ").upper() for name in columns],
            ([row.get(name) for name in columns] for row in rows),
        )

    session.emit(document, show)
    if len(rows) == limit:
        say(f"The first {limit}; --limit shows more.")


@invocations.command()
@click.argument("invocation_id", metavar="ID")
@admin_options
def describe(session: Session, invocation_id: str) -> None:
    """Show an invocation and its journal."""
    document = session.client.get(f"/perdure/invocations/{quote(invocation_id, safe='')}")

    def show() -> None:
        emit_facts(
            (name.replace("_", " "), value) for name, value in document.items() if name != "journal"
        )
        entries = rows_of(document, "journal")
        if entries:
            columns = list(dict.fromkeys(name for entry in entries for name in entry))
            click.echo()
            emit_table(
                [name.replace("_", " ").upper() for name in columns],
                ([entry.get(name) for name in columns] for entry in entries),
            )

    session.emit(document, show)


def _ids(command: click.decorators.FC) -> click.decorators.FC:
    return click.argument("ids", metavar="ID...", nargs=-1, required=True)(command)


@invocations.command()
@_ids
@confirm_option
@admin_options
def cancel(session: Session, ids: tuple[str, ...], yes: bool) -> None:
    """Cancel invocations: their handlers may clean up and compensate."""
    confirm(f"Cancel {_count(ids)}?", yes)
    _each(session, "cancel", ids, {})


@invocations.command()
@_ids
@confirm_option
@admin_options
def kill(session: Session, ids: tuple[str, ...], yes: bool) -> None:
    """End invocations at once: nothing is cleaned up or compensated."""
    confirm(f"Kill {_count(ids)}, without any clean-up?", yes)
    _each(session, "kill", ids, {})


@invocations.command()
@_ids
@confirm_option
@admin_options
def purge(session: Session, ids: tuple[str, ...], yes: bool) -> None:
    """Forget completed invocations, with result and journal, before their retention is over."""
    confirm(f"Forget {_count(ids)}?", yes)
    _each(session, "purge", ids, {})


@invocations.command()
@_ids
@admin_options
def pause(session: Session, ids: tuple[str, ...]) -> None:
    """Stop running invocations where they are, until they are resumed."""
    _each(session, "pause", ids, {})


@invocations.command()
@_ids
@click.option(
    "--deployment",
    metavar="latest|keep|ID",
    help="Go on at another deployment: its code must fit the journal.",
)
@admin_options
def resume(session: Session, ids: tuple[str, ...], deployment: str | None) -> None:
    """Let paused invocations go on; retry at once those that back off."""
    _each(session, "resume", ids, {"deployment": deployment} if deployment else {})


def _each(session: Session, operation: str, ids: tuple[str, ...], query: dict[str, str]) -> None:
    """Do it to each; what is refused doesn't keep the others from it, but fails the command."""
    succeeded: list[str] = []
    failed: list[Document] = []
    for invocation in ids:
        path = f"/invocations/{quote(invocation, safe='')}/{operation}"
        try:
            session.client.request("PATCH", path, query=query)
            succeeded.append(invocation)
        except Refused as refused:
            failed.append(
                {"invocation_id": invocation, "code": refused.code, "message": refused.message}
            )
            complain(refused.message, refused.code, where=invocation)

    def show() -> None:
        for invocation in succeeded:
            say(f"{operation}: {invocation} done")

    session.emit({"operation": operation, "succeeded": succeeded, "failed": failed}, show)
    if failed:
        raise click.exceptions.Exit(1)


def _count(ids: tuple[str, ...]) -> str:
    return ids[0] if len(ids) == 1 else f"{len(ids)} invocations"
