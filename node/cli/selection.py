"""Which invocations a verb of ``perdure invocations`` acts on: those named, or those that match."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import click

from perdure.core.limits import BATCH_INVOCATIONS_MAX
from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import complain, say
from perdure.node.cli.session import Session, confirm

# As the admin API shows them; "inboxed" and "invoked" stand for several.
STATUSES = (
    "scheduled",
    "pending",
    "ready",
    "running",
    "backing-off",
    "suspended",
    "paused",
    "completed",
    "inboxed",
    "invoked",
)
_UNFINISHED = ("scheduled", "inboxed", "invoked", "suspended", "paused")
# What a verb can do something to; without --status, these are selected.
ELIGIBLE = {
    "cancel": _UNFINISHED,
    "kill": _UNFINISHED,
    "purge": ("completed",),
    "purge-journal": ("completed",),
    "pause": ("invoked", "suspended"),
    "resume": ("paused", "backing-off"),
}
_PAGE = 500
_CODE = re.compile(r"\[([A-Z]{2,5}[0-9]{4})\]\s*", re.ASCII)


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Ids, or what to select by. ``query``: filters of the admin API."""

    ids: tuple[str, ...]
    query: dict[str, str]

    @property
    def is_by_match(self) -> bool:
        return not self.ids

    def find(self, session: Session, verb: str) -> list[str]:
        """The ids of what matches now."""
        query = {"status": ",".join(ELIGIBLE[verb]), **self.query, "limit": str(_PAGE)}
        found: list[str] = []
        while True:
            document = session.client.get("/perdure/invocations", query)
            found += [str(row["id"]) for row in rows_of(document, "invocations")]
            if "cursor" not in document:
                return found
            query["cursor"] = str(document["cursor"])


def selection_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``ID...`` or ``--service``, ``--handler``, ``--key``, ``--status``."""
    for option in (
        click.option(
            "--status", type=click.Choice(STATUSES), multiple=True, help="Those in this state."
        ),
        click.option("--key", metavar="KEY", help="Those of the object with this key."),
        click.option("--handler", metavar="NAME", help="Those of this handler."),
        click.option("--service", metavar="NAME", help="Those of this service."),
        click.argument("ids", metavar="[ID...]", nargs=-1),
    ):
        command = option(command)
    return command


def selected(
    ids: tuple[str, ...],
    service: str | None,
    handler: str | None,
    key: str | None,
    status: tuple[str, ...],
) -> Selection:
    """What the options of ``selection_options`` select.

    Raises:
        click.UsageError: nothing, or in two ways.
    """
    given = {"service": service, "handler": handler, "key": key, "status": ",".join(status)}
    query = {name: value for name, value in given.items() if value}
    if ids and query:
        raise click.UsageError("name invocations, or select them by options: not both")
    if not ids and not query:
        raise click.UsageError("name invocations, or select them: --service, --status, …")
    return Selection(ids=ids, query=query)


def act_on_matching(
    session: Session,
    verb: str,
    selection: Selection,
    question: Callable[[str], str],
    yes: bool,
    extra: Document,
) -> None:
    """Select, ask, and act on all of them; what is refused fails the command."""
    ids = selection.find(session, verb)
    if not ids:
        session.emit(
            {"operation": verb, "succeeded": [], "failed": []}, lambda: say("Nothing matches.")
        )
        return
    what = ids[0] if len(ids) == 1 else f"{len(ids)} invocations"
    confirm(question(what), yes)
    succeeded: list[object] = []
    failed: list[Document] = []
    for start in range(0, len(ids), BATCH_INVOCATIONS_MAX):
        body: Document = {"invocation_ids": ids[start : start + BATCH_INVOCATIONS_MAX], **extra}
        path = f"/internal/invocations_batch_operations/{verb}"
        answer = session.client.request("POST", path, body).document
        succeeded += cast(list[object], answer.get("succeeded") or [])
        failed += [_refusal(row) for row in rows_of(answer, "failed")]
    for row in failed:
        code, where = row["code"], str(row["invocation_id"])
        complain(str(row["message"]), str(code) if code else None, where=where)

    def show() -> None:
        say(f"{verb}: {len(succeeded)} of {len(ids)} done")

    session.emit({"operation": verb, "succeeded": succeeded, "failed": failed}, show)
    if failed:
        raise click.exceptions.Exit(1)


def _refusal(row: Document) -> Document:
    text = str(row.get("error"))
    prefix = _CODE.match(text)
    return {
        "invocation_id": row.get("invocation_id"),
        "code": prefix[1] if prefix else None,
        "message": text[prefix.end() :] if prefix else text,
    }
