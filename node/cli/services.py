"""``perdure services``: look at services and their handlers, change their settings."""

from urllib.parse import quote

import click

from perdure.node.cli.client import Document
from perdure.node.cli.deployments import rows_of
from perdure.node.cli.output import emit_facts, emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options

# Settings of a service as the admin API names them, in the order of ``describe``.
_SETTINGS = (
    "public",
    "idempotency_retention",
    "workflow_completion_retention",
    "journal_retention",
    "inactivity_timeout",
    "abort_timeout",
    "enable_lazy_state",
    "retry_policy",
)


@click.group(cls=Verbs)
def services() -> None:
    """Look at services and change their settings."""


@services.command("list")
@admin_options
def list_(session: Session) -> None:
    """List all services."""
    document = session.client.get("/services")

    def show() -> None:
        emit_table(
            ["SERVICE", "TYPE", "REVISION", "DEPLOYMENT", "PUBLIC", "HANDLERS"],
            (
                [
                    row.get("name"),
                    row.get("ty"),
                    row.get("revision"),
                    row.get("deployment_id"),
                    row.get("public"),
                    ", ".join(str(each.get("name")) for each in rows_of(row, "handlers")),
                ]
                for row in sorted(
                    rows_of(document, "services"), key=lambda row: str(row.get("name"))
                )
            ),
        )

    session.emit(document, show)


@services.command()
@click.argument("name", metavar="SERVICE")
@admin_options
def describe(session: Session, name: str) -> None:
    """Show a service, its settings and its handlers."""
    document = session.client.get(_path(name))

    def show() -> None:
        emit_facts(
            [
                ("service", document.get("name")),
                ("type", document.get("ty")),
                ("revision", document.get("revision")),
                ("deployment", document.get("deployment_id")),
                ("documentation", document.get("documentation")),
                ("metadata", document.get("metadata")),
                *_settings(document),
            ]
        )
        click.echo()
        emit_table(
            ["HANDLER", "TYPE", "INPUT", "OUTPUT", "PUBLIC"],
            (
                [
                    row.get("name"),
                    row.get("ty"),
                    row.get("input_description"),
                    row.get("output_description"),
                    row.get("public"),
                ]
                for row in rows_of(document, "handlers")
            ),
        )

    session.emit(document, show)


@services.group(cls=Verbs)
def config() -> None:
    """Look at a service's settings and change them."""


@config.command()
@click.argument("name", metavar="SERVICE")
@admin_options
def view(session: Session, name: str) -> None:
    """Show a service's settings."""
    document = session.client.get(_path(name))
    settings = {key: document[key] for key in _SETTINGS if key in document}
    session.emit(settings, lambda: emit_facts(_settings(document)))


@config.command()
@click.argument("name", metavar="SERVICE")
@click.option("--public/--private", "public", default=None, help="Whether callers may reach it.")
@click.option("--idempotency-retention", metavar="DURATION", help="Such as 1d.")
@click.option("--workflow-completion-retention", metavar="DURATION", help="Such as 7d.")
@click.option("--journal-retention", metavar="DURATION", help="Such as 1d; 0s keeps none.")
@click.option("--inactivity-timeout", metavar="DURATION", help="Such as 5m.")
@click.option("--abort-timeout", metavar="DURATION", help="Such as 10m.")
@admin_options
def patch(session: Session, name: str, **settings: bool | str | None) -> None:
    """Change settings of a service; what isn't named stays.

    Holds for calls from now on, until the service is registered again.
    """
    body: Document = {key: value for key, value in settings.items() if value is not None}
    if not body:
        raise click.UsageError("name at least one setting to change")
    answer = session.client.request("PATCH", _path(name), body)
    session.emit(answer.document, lambda: emit_facts(_settings(answer.document)))
    say(f"Changed {name}.")


def _path(name: str) -> str:
    return f"/services/{quote(name, safe='')}"


def _settings(document: Document) -> list[tuple[str, object]]:
    return [(key.replace("_", " "), document.get(key)) for key in _SETTINGS]
