"""``perdure sql``: a statement over the tables of a node, shown as a table or as JSON."""

import json
from typing import cast

import click

from perdure.core.errors import UnexpectedAnswer
from perdure.node.cli.client import Document
from perdure.node.cli.output import emit_table, say
from perdure.node.cli.session import Session, admin_options


@click.command()
@click.argument("statement")
@click.option("--jsonl", "as_lines", is_flag=True, help="Print a line of JSON per row to stdout.")
@admin_options
def sql(session: Session, statement: str, as_lines: bool) -> None:
    """Ask the tables of a node: a statement that only reads.

    `SHOW TABLES` lists what there is, `DESCRIBE state` the columns of a table.

    Columns that are NULL are left out of JSON rows.
    """
    document = session.client.request("POST", "/query", {"query": statement}).document
    rows = document.get("rows")
    if not isinstance(rows, list):
        raise UnexpectedAnswer("the answer to a statement has no rows")
    found = cast(list[Document], rows)
    if as_lines:
        for row in found:
            click.echo(json.dumps(row, ensure_ascii=False))
        return
    session.emit(found, lambda: _show(found))


def _show(rows: list[Document]) -> None:
    columns = _columns(rows)
    if columns:
        emit_table(columns, ([row.get(name) for name in columns] for row in rows))
    say(f"{len(rows)} row{'' if len(rows) == 1 else 's'}")


def _columns(rows: list[Document]) -> list[str]:
    """Names in the statement's order. Rows leave out what is NULL: only together they know all."""
    columns: list[str] = []
    for row in rows:
        place = 0
        for name in row:
            if name not in columns:
                columns.insert(place, name)
            place = columns.index(name) + 1
    return columns
