"""What commands print: data to stdout as a table or JSON, talk to stderr.

Everything that comes from a node is made harmless for the terminal first.
"""

import json
import sys
from collections.abc import Iterable, Sequence

import click

# Tables in pipes are never folded.
_PIPE_COLUMNS = 100_000


def plain(value: object) -> str:
    """A value for people: one line, without control characters; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = (
        value if isinstance(value, str) else json.dumps(value) if _is_nested(value) else f"{value}"
    )
    return "".join(
        character if character.isprintable() else repr(character)[1:-1] for character in text
    )


def emit_json(document: object) -> None:
    """Data for machines."""
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def emit_table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Data for people: a column per fact, no borders."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, column in enumerate(columns):
        # The first column identifies the row: it is there to be copied.
        table.add_column(column, overflow="fold", no_wrap=index == 0)
    for row in rows:
        table.add_row(*(Text(plain(value)) for value in row))
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    Console(file=sys.stdout, width=width, highlight=False).print(table)


def emit_facts(facts: Iterable[tuple[str, object]]) -> None:
    """Data for people: a line per fact that is known."""
    known = [(name, plain(value)) for name, value in facts if value not in (None, "", [], {})]
    width = max((len(name) for name, _ in known), default=0)
    for name, value in known:
        click.echo(f"{name:<{width}}  {value}")


def say(message: str) -> None:
    """Talk."""
    click.echo(message, err=True)


def complain(
    message: str, code: str | None = None, where: str | None = None, advice: str | None = None
) -> None:
    """What happened, where, and the next step."""
    label = click.style("error:", fg="red", bold=True)
    say(f"{label} {f'[{code}] ' if code else ''}{plain(message)}")
    if where:
        say(f"  where: {plain(where)}")
    if advice:
        say(f"  next:  {advice}")


def _is_nested(value: object) -> bool:
    return isinstance(value, dict | list)
