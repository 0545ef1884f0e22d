"""``perdure state``: read and change the state of virtual objects and workflows."""

import base64
import json
from urllib.parse import quote

import click

from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_table, say
from perdure.node.cli.session import (
    Session,
    Verbs,
    admin_options,
    confirm,
    confirm_option,
    pairs,
)

_ACCEPTED = "Accepted: it is applied after the exclusive calls under way."


@click.group(cls=Verbs)
def state() -> None:
    """Read and change the state of objects."""


@state.command()
@click.argument("service")
@click.argument("key")
@click.argument("name", required=False)
@admin_options
def get(session: Session, service: str, key: str, name: str | None) -> None:
    """Show the state of the object KEY of SERVICE; with NAME, that value alone and as it is."""
    document = _read(session, service, key)
    rows = rows_of(document, "entries")
    if name is not None:
        rows = [row for row in rows if row.get("name") == name]
        if not rows:
            raise click.ClickException(f"{service}/{key} has no state {name!r}")
        if not _has_value(rows[0]):
            raise click.ClickException(
                f"the state {name!r} of {service}/{key} is too large to be shown"
            )

    def show() -> None:
        if name is not None:
            click.echo(_value(rows[0]), nl=False)
        else:
            emit_table(
                ["NAME", "BYTES", "VALUE"],
                ([row.get("name"), row.get("size"), _shown(row)] for row in rows),
            )

    session.emit({**document, "entries": rows}, show)


@state.command()
@click.argument("service")
@click.argument("key")
@click.option(
    "--set",
    "values",
    multiple=True,
    metavar="NAME=JSON",
    callback=pairs,
    help="Set to a JSON value; may be repeated.",
)
@click.option(
    "--set-text",
    "texts",
    multiple=True,
    metavar="NAME=TEXT",
    callback=pairs,
    help="Set to text as it is; may be repeated.",
)
@click.option("--unset", multiple=True, metavar="NAME", help="Remove; may be repeated.")
@click.option("--force", is_flag=True, help="Even if the state changes meanwhile.")
@confirm_option
@admin_options
def edit(
    session: Session,
    service: str,
    key: str,
    values: dict[str, str],
    texts: dict[str, str],
    unset: tuple[str, ...],
    force: bool,
    yes: bool,
) -> None:
    """Change the state of the object KEY of SERVICE; what isn't named stays.

    Dropped if the state changes before it is applied, unless --force is said.
    """
    for name, text in values.items():
        try:
            json.loads(text)
        except ValueError as error:
            raise click.UsageError(f"--set {name}: not JSON ({error}); --set-text?") from error
    if not values and not texts and not unset:
        raise click.UsageError("say what to change: --set, --set-text or --unset")
    document = _read(session, service, key)
    if document.get("is_partial"):
        raise click.ClickException(f"the state of {service}/{key} is too large to be edited")
    found = {str(row.get("name")): _value(row) for row in rows_of(document, "entries")}
    for name in unset:
        if found.pop(name, None) is None:
            raise click.ClickException(f"{service}/{key} has no state {name!r}")
    found |= {name: text.encode() for name, text in (values | texts).items()}
    confirm(f"Change {', '.join([*values, *texts, *unset])} of {service}/{key}?", yes)
    version = None if force else document.get("version")
    _write(session, service, key, found, version)


@state.command()
@click.argument("service")
@click.argument("key")
@confirm_option
@admin_options
def clear(session: Session, service: str, key: str, yes: bool) -> None:
    """Remove all state of the object KEY of SERVICE."""
    confirm(f"Remove all state of {service}/{key}?", yes)
    _write(session, service, key, {}, None)


def _read(session: Session, service: str, key: str) -> Document:
    return session.client.get(f"/perdure/state/{quote(service, safe='')}/{quote(key, safe='')}")


def _write(
    session: Session, service: str, key: str, values: dict[str, bytes], version: object
) -> None:
    new_state = {name: _encoded(value) for name, value in values.items()}
    body: Document = {"object_key": key, "new_state": new_state}
    if version is not None:
        body["version"] = version
    session.client.request("POST", f"/services/{quote(service, safe='')}/state", body)
    document = {"service": service, "key": key, "names": sorted(values)}
    session.emit(document, lambda: say(_ACCEPTED))


def _value(row: Document) -> bytes:
    text = row.get("value")
    if isinstance(text, str):
        return text.encode()
    return base64.b64decode(str(row.get("value_base64", "")))


def _has_value(row: Document) -> bool:
    return "value" in row or "value_base64" in row


def _shown(row: Document) -> object:
    if not _has_value(row):
        return "(left out)"
    return row["value"] if "value" in row else f"base64 {row['value_base64']}"


def _encoded(value: bytes) -> str | list[int]:
    """Text where it is text: an octet takes up to four characters in a list."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return list(value)
