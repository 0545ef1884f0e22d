"""``perdure state``: read and change the state of virtual objects and workflows."""

from urllib.parse import quote

import click

from perdure.node.cli.client import Document
from perdure.node.cli.output import say
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option


@click.group(cls=Verbs)
def state() -> None:
    """Read and change the state of objects."""


@state.command()
@click.argument("service")
@click.argument("key")
@confirm_option
@admin_options
def clear(session: Session, service: str, key: str, yes: bool) -> None:
    """Remove all state of the object KEY of SERVICE."""
    confirm(f"Remove all state of {service}/{key}?", yes)
    body: Document = {"object_key": key, "new_state": dict[str, object]()}
    session.client.request("POST", f"/services/{quote(service, safe='')}/state", body)
    session.emit(
        {"service": service, "key": key, "state": {}},
        lambda: say("Accepted: applied once exclusive calls under way are over."),
    )
