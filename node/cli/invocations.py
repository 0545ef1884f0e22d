"""``perdure invocations``: look at invocations; cancel, kill, purge, pause and resume them."""

from typing import TypedDict, Unpack, cast
from urllib.parse import quote

import click

from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import complain, emit_facts, emit_table, plain, say
from perdure.node.cli.refused import Refused
from perdure.node.cli.selection import (
    STATUSES,
    Selection,
    act_on_matching,
    selected,
    selection_options,
)
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option
from perdure.node.cli.watch import watch
from perdure.node.config.durations import format_duration

# What asks only before it is done to many.
_HARMLESS = ("pause",)
_LIMIT = 50
_LIMIT_MAX = 100_000
_PAGE = 500
_JOURNAL_LIMIT = 200
# Shown in columns or lines of their own; what else an entry has goes into the last column.
_ENTRY_COLUMNS = ("index", "type", "name", "size", "appended_at")


@click.group(cls=Verbs)
def invocations() -> None:
    """Look at invocations; cancel, kill, pause, resume, purge them."""


invocations.add_command(watch)


class Chosen(TypedDict):
    """What ``selection_options`` pass."""

    ids: tuple[str, ...]
    service: str | None
    handler: str | None
    key: str | None
    status: tuple[str, ...]


@invocations.command("list")
@click.option("--service", metavar="NAME", help="Only calls of this service.")
@click.option("--handler", metavar="NAME", help="Only calls of this handler.")
@click.option("--key", metavar="KEY", help="Only calls of the object with this key.")
@click.option(
    "--status", type=click.Choice(STATUSES), multiple=True, help="Only these; may be repeated."
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
    rows: list[Document] = []
    document: Document = {}
    while len(rows) < limit:
        query["limit"] = str(min(limit - len(rows), _PAGE))
        document = session.client.get("/perdure/invocations", query)
        rows += rows_of(document, "invocations")
        if "cursor" not in document:
            break
        query["cursor"] = str(document["cursor"])

    def show() -> None:
        emit_table(
            ["ID", "TARGET", "STATUS", "CREATED", "NOTE"],
            (
                [
                    row.get("id"),
                    row.get("target"),
                    row.get("status"),
                    row.get("created_at"),
                    _note(row),
                ]
                for row in rows
            ),
        )

    session.emit({**document, "invocations": rows}, show)
    if "cursor" in document:
        say(f"There may be more than these {len(rows)}: --limit shows more.")


@invocations.command()
@click.argument("invocation_id", metavar="ID")
@click.option(
    "--journal",
    "journal_limit",
    type=click.IntRange(1, _LIMIT_MAX),
    default=_JOURNAL_LIMIT,
    show_default=True,
    help="At most this many entries.",
)
@admin_options
def describe(session: Session, invocation_id: str, journal_limit: int) -> None:
    """Show an invocation, its journal, and what happened to its attempts."""
    path = f"/perdure/invocations/{quote(invocation_id, safe='')}"
    document = session.client.get(path, {"limit": str(min(journal_limit, _PAGE))})
    journal = rows_of(document, "journal")
    page = document
    while "next_from" in page and len(journal) < journal_limit:
        limit = min(journal_limit - len(journal), _PAGE)
        page = session.client.get(path, {"from": str(page["next_from"]), "limit": str(limit)})
        journal += rows_of(page, "journal")
    document = {**document, "journal": journal}
    document.pop("next_from", None)
    if "next_from" in page:
        document["next_from"] = page["next_from"]
    session.emit(document, lambda: _show(document))
    if "next_from" in document:
        say(f"The journal is longer than these {len(journal)} entries: --journal shows more.")


def _show(document: Document) -> None:
    emit_facts(
        _fact(name, value)
        for name, value in document.items()
        if name not in ("journal", "events", "next_from")
    )
    journal = rows_of(document, "journal")
    if journal:
        click.echo()
        emit_table(
            ["INDEX", "ENTRY", "NAME", "BYTES", "APPENDED", ""],
            ([*(entry.get(name) for name in _ENTRY_COLUMNS), _rest(entry)] for entry in journal),
        )
    events = rows_of(document, "events")
    if events:
        click.echo()
        emit_table(
            ["AT", "EVENT", "AFTER ENTRY", "WHY"],
            (
                [
                    event.get("at"),
                    event.get("event"),
                    event.get("after_index"),
                    _text(event.get("failure") or event.get("awaiting")),
                ]
                for event in events
            ),
        )


def _fact(name: str, value: object) -> tuple[str, object]:
    words = name.replace("_", " ")
    if isinstance(value, int) and words.endswith(" ms"):
        return words.removesuffix(" ms"), format_duration(value)
    return words, _text(value)


def _note(row: Document) -> str:
    """What matters most about an invocation in its state."""
    result, failure = row.get("result"), row.get("last_failure")
    if isinstance(result, dict):
        outcome = cast(Document, result)
        return "" if outcome.get("kind") == "success" else f"failed: {_text(outcome)}"
    if row.get("status") == "scheduled":
        return f"at {row.get('scheduled_at')}"
    if failure is not None:
        retries = f"retry {row['retry_count']}: " if row.get("retry_count") else ""
        return f"{retries}{_text(failure)}"
    return ""


def _text(value: object) -> object:
    """Failures as a line, everything else as it is."""
    if not isinstance(value, dict):
        return value
    failure = cast(Document, value)
    if "message" not in failure:
        return failure.get("kind", failure) if len(failure) == 1 else failure
    code = failure.get("error_code") or failure.get("code")
    where = " ".join(
        str(failure[name])
        for name in ("command_type", "command_name", "command_index")
        if failure.get(name) is not None
    )
    return f"[{code}] {failure['message']}" + (f" (at {where})" if where else "")


def _rest(entry: Document) -> str:
    known = (*_ENTRY_COLUMNS, "is_command")
    return ", ".join(
        f"{name.replace('_', ' ')} {plain(_text(value))}"
        for name, value in entry.items()
        if name not in known
    )


def _act(verb: str, question: str, session: Session, selection: Selection, yes: bool) -> None:
    if selection.is_by_match:
        act_on_matching(session, verb, selection, question.format, yes, {})
        return
    if verb not in _HARMLESS:
        confirm(question.format(_count(selection.ids)), yes)
    _each(session, verb, selection.ids, {})


@invocations.command()
@selection_options
@confirm_option
@admin_options
def cancel(session: Session, yes: bool, **chosen: Unpack[Chosen]) -> None:
    """Cancel invocations: their handlers may clean up and compensate."""
    _act("cancel", "Cancel {}?", session, selected(**chosen), yes)


@invocations.command()
@selection_options
@confirm_option
@admin_options
def kill(session: Session, yes: bool, **chosen: Unpack[Chosen]) -> None:
    """End invocations and what they called, at once: nothing is cleaned up or compensated."""
    _act("kill", "Kill {}, without any clean-up?", session, selected(**chosen), yes)


@invocations.command()
@selection_options
@confirm_option
@admin_options
def purge(session: Session, yes: bool, **chosen: Unpack[Chosen]) -> None:
    """Forget completed invocations, with result and journal, before their retention is over."""
    _act("purge", "Forget {}?", session, selected(**chosen), yes)


@invocations.command("purge-journal")
@selection_options
@confirm_option
@admin_options
def purge_journal(session: Session, yes: bool, **chosen: Unpack[Chosen]) -> None:
    """Forget the journals of completed invocations and keep their results."""
    _act("purge-journal", "Forget the journal of {}?", session, selected(**chosen), yes)


@invocations.command()
@selection_options
@confirm_option
@admin_options
def pause(session: Session, yes: bool, **chosen: Unpack[Chosen]) -> None:
    """Stop running invocations, once they finished the step they are at, until they are resumed."""
    _act("pause", "Pause {}?", session, selected(**chosen), yes)


@invocations.command()
@selection_options
@click.option(
    "--deployment",
    metavar="latest|keep|ID",
    help="Go on at another deployment: its code must fit the journal.",
)
@confirm_option
@admin_options
def resume(session: Session, deployment: str | None, yes: bool, **chosen: Unpack[Chosen]) -> None:
    """Let paused invocations go on; retry at once those that back off."""
    selection = selected(**chosen)
    if selection.is_by_match:
        extra: Document = {"deployment": deployment} if deployment else {}
        act_on_matching(session, "resume", selection, "Resume {}?".format, yes, extra)
    else:
        _each(session, "resume", selection.ids, {"deployment": deployment} if deployment else {})


@invocations.command("restart-as-new")
@click.argument("invocation_id", metavar="ID")
@click.option(
    "--from",
    "from_index",
    type=click.IntRange(0),
    help="Keep the steps up to this entry of the journal; without it, only the input.",
)
@click.option(
    "--deployment",
    metavar="latest|keep|ID",
    help="Where it runs: the latest from the input on, else where the steps were recorded.",
)
@admin_options
def restart_as_new(
    session: Session, invocation_id: str, from_index: int | None, deployment: str | None
) -> None:
    """Run a completed invocation once more, as a new one."""
    given = {"from": from_index, "deployment": deployment}
    query = {name: str(value) for name, value in given.items() if value is not None}
    path = f"/invocations/{quote(invocation_id, safe='')}/restart-as-new"
    document = session.client.request("PATCH", path, query=query).document
    session.emit(document, lambda: click.echo(plain(document.get("new_invocation_id"))))


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
