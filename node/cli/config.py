"""``perdure config``: every setting in effect, and where its value came from."""

import click

from perdure.node.cli.output import emit_json, emit_table, say
from perdure.node.cli.settings import settings_options
from perdure.node.config.resolve import Loaded, SourceKind


@click.command()
@click.option("--changed", is_flag=True, help="Leave out what has its default.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
@settings_options
def config(loaded: Loaded, changed: bool, as_json: bool) -> None:
    """Show every setting and where its value came from.

    Takes what `perdure server` takes, and reads the same file and variables.
    """
    rows = [
        (setting, value, source)
        for setting, value, source in loaded.rows()
        if not changed or source.kind is not SourceKind.DEFAULT
    ]
    if as_json:
        shown = {setting.key for setting, _, _ in rows}
        emit_json({key: row for key, row in loaded.document().items() if key in shown})
    elif rows:
        emit_table(
            ["KEY", "VALUE", "FROM"],
            (
                [setting.key, setting.kind.show(value), source.name]
                for setting, value, source in rows
            ),
        )
    else:
        say("Everything has its default.")
    for notice in loaded.notices:
        say(f"note: {notice}")
