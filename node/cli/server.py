"""``perdure server``: run a node in the foreground, for containers and service managers."""

import click

from perdure.node.cli.serving import emit_ready, serve
from perdure.node.cli.settings import settings_options
from perdure.node.config.resolve import Loaded
from perdure.node.server import ReadyInfo


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON once the node serves.")
@settings_options
def server(loaded: Loaded, as_json: bool) -> int:
    """Run a node in the foreground.

    Events are written to stderr. SIGTERM and SIGINT stop it: callers are answered first.
    """

    def on_ready(info: ReadyInfo) -> None:
        if as_json:
            emit_ready(info)

    return serve(loaded, on_ready)
