"""``perdure version``: what is installed here."""

import platform

import click

import perdure
from perdure.core.build import IS_COMPILED
from perdure.node.cli.output import emit_facts, emit_json
from perdure.node.registry.manifest import PROTOCOL_VERSION_MAX, PROTOCOL_VERSION_MIN


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def version(as_json: bool) -> None:
    """Show the version, the service protocol versions it speaks, and whether it is compiled."""
    document = {
        "version": perdure.__version__,
        "service_protocol_versions": f"{PROTOCOL_VERSION_MIN} to {PROTOCOL_VERSION_MAX}",
        "code": "compiled" if IS_COMPILED else "interpreted",
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
    }
    if as_json:
        emit_json(document)
    else:
        emit_facts((name.replace("_", " "), value) for name, value in document.items())
