"""``perdure identity``: make and look at the key that requests to services are signed with."""

import os
from pathlib import Path

import click

from perdure.node.cli.output import emit_facts, emit_json, say
from perdure.node.cli.session import Verbs

_PRIVATE = 0o600


@click.group(cls=Verbs)
def identity() -> None:
    """Make and look at the key that requests to services are signed with."""


@identity.command()
@click.option(
    "--out",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; it must not exist yet.",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def create(out: Path, as_json: bool) -> None:
    """Make a key, write its private half to a file, and print its public half."""
    from perdure.node.invoker.identity import create_signing_key

    key, pem = create_signing_key()
    try:
        descriptor = os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _PRIVATE)
        with os.fdopen(descriptor, "wb") as file:
            file.write(pem)
    except OSError as error:
        raise click.FileError(str(out), error.strerror or str(error)) from error
    _show(out, key.public_form, as_json)
    say(
        "Give the public key to services (identity_keys), and the file to the node "
        "(invoker.request-identity-private-key-pem-file)."
    )


@identity.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print JSON to stdout.")
def show(file: Path, as_json: bool) -> None:
    """Print the public half of the key in FILE, as SDKs take it."""
    from perdure.node.invoker.identity import read_signing_key

    _show(file, read_signing_key(file).public_form, as_json)


def _show(file: Path, public_form: str, as_json: bool) -> None:
    if as_json:
        emit_json({"file": str(file), "public_key": public_form})
    else:
        emit_facts([("file", file), ("public key", public_form)])
