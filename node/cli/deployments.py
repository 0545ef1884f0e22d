"""``perdure deployments``: register endpoints of services, look at them, take them away."""

from collections.abc import Iterable
from typing import cast
from urllib.parse import quote

import click

from perdure.node.cli.client import Document
from perdure.node.cli.output import emit_facts, emit_table, say
from perdure.node.cli.session import Session, Verbs, admin_options, confirm, confirm_option, pairs


@click.group(cls=Verbs)
def deployments() -> None:
    """Register services and look at deployments."""


@deployments.command()
@click.argument("address", metavar="URL|ARN")
@click.option("--force", is_flag=True, help="Discover again what is known at this address already.")
@click.option("--breaking", is_flag=True, help="Allow services to change their type.")
@click.option("--dry-run", is_flag=True, help="Only show what would be registered.")
@click.option("--use-http1.1", "use_http_11", is_flag=True, help="Call it over HTTP/1.1.")
@click.option(
    "--assume-role-arn", metavar="ARN", help="The role to call an AWS Lambda function in."
)
@click.option(
    "--extra-header",
    "headers",
    multiple=True,
    metavar="NAME=VALUE",
    callback=pairs,
    help="Sent with each request to the service; may be repeated.",
)
@click.option(
    "--metadata",
    multiple=True,
    metavar="NAME=VALUE",
    callback=pairs,
    help="Kept with the deployment; may be repeated.",
)
@admin_options
def register(
    session: Session,
    address: str,
    force: bool,
    breaking: bool,
    dry_run: bool,
    use_http_11: bool,
    assume_role_arn: str | None,
    headers: dict[str, str],
    metadata: dict[str, str],
) -> None:
    """Discover the services at URL, or in an AWS Lambda function, and register them.

    URL is where the service listens, seen from the node; http:// may be left out. ARN names a
    function and its version or alias.
    """
    body: Document = {"force": force, "breaking": breaking, "dry_run": dry_run}
    body.update(_address(address, use_http_11, assume_role_arn))
    if headers:
        body["additional_headers"] = headers
    if metadata:
        body["metadata"] = metadata
    answer = session.client.request("POST", "/deployments", body)

    def show() -> None:
        emit_table(
            ["SERVICE", "TYPE", "REVISION", "HANDLERS"],
            (
                [
                    service.get("name"),
                    service.get("ty"),
                    service.get("revision"),
                    ", ".join(str(each.get("name")) for each in rows_of(service, "handlers")),
                ]
                for service in rows_of(answer.document, "services")
            ),
        )

    session.emit(answer.document, show)
    say(_what_happened(answer.status, answer.document, force, dry_run))


@deployments.command("list")
@admin_options
def list_(session: Session) -> None:
    """List all deployments."""
    document = session.client.get("/deployments")

    def show() -> None:
        emit_table(
            ["ID", "ADDRESS", "PROTOCOL", "SERVICES", "SDK", "CREATED"],
            (
                [
                    row.get("id"),
                    row.get("uri") or row.get("arn"),
                    _protocol(row),
                    _services(row),
                    row.get("sdk_version"),
                    row.get("created_at"),
                ]
                for row in sorted(
                    rows_of(document, "deployments"), key=lambda row: str(row.get("created_at"))
                )
            ),
        )

    session.emit(document, show)


@deployments.command()
@click.argument("deployment_id", metavar="ID")
@admin_options
def describe(session: Session, deployment_id: str) -> None:
    """Show a deployment and the services it carries."""
    path = f"/deployments/{quote(deployment_id, safe='')}"
    uses = session.client.get(f"/perdure{path}")
    document = {**session.client.get(path), **uses}

    def show() -> None:
        latest_of = cast(list[str], uses.get("latest_of") or [])
        emit_facts(
            [
                ("id", document.get("id")),
                ("address", document.get("uri") or document.get("arn")),
                ("protocol", _protocol(document)),
                ("role", document.get("assume_role_arn")),
                ("service protocol", _range(document)),
                ("SDK", document.get("sdk_version")),
                ("created", document.get("created_at")),
                ("headers", ", ".join(cast(Document, document.get("additional_headers") or {}))),
                ("metadata", document.get("metadata")),
                ("services", _services(document)),
                ("serves new calls of", ", ".join(latest_of)),
                ("pinned invocations", uses.get("pinned_invocations")),
            ]
        )

    session.emit(document, show)


@deployments.command()
@click.argument("deployment_id", metavar="ID")
@click.option("--force", is_flag=True, help="Even if services or invocations need it.")
@confirm_option
@admin_options
def remove(session: Session, deployment_id: str, force: bool, yes: bool) -> None:
    """Take a deployment away.

    Refused while new calls would go there, and while invocations are pinned to it. With --force
    those can't go on: they retry until they are resumed on another deployment, or cancelled.
    """
    path = f"/deployments/{quote(deployment_id, safe='')}"
    document = session.client.get(path)
    confirm(f"Remove {document.get('uri') or document.get('arn')} ({deployment_id})?", yes)
    session.client.request("DELETE", path, query={"force": str(force).lower()})
    session.emit({"removed": deployment_id}, lambda: say(f"Removed {deployment_id}."))


def rows_of(document: Document, name: str) -> list[Document]:
    """A list of documents inside a document."""
    rows = document.get(name)
    if not isinstance(rows, list):
        return []
    return [cast(Document, row) for row in cast(Iterable[object], rows) if isinstance(row, dict)]


def _address(address: str, use_http_11: bool, assume_role_arn: str | None) -> Document:
    if address.startswith("arn:"):
        if use_http_11:
            raise click.UsageError("--use-http1.1 is for services at a URL")
        role: Document = {"assume_role_arn": assume_role_arn} if assume_role_arn else {}
        return {"arn": address, **role}
    if assume_role_arn is not None:
        raise click.UsageError("--assume-role-arn is for AWS Lambda functions")
    uri = address if "://" in address else f"http://{address}"
    return {"uri": uri, "use_http_11": use_http_11}


def _services(row: Document) -> str:
    services = rows_of(row, "services")
    return ", ".join(f"{each.get('name')} (revision {each.get('revision')})" for each in services)


def _protocol(row: Document) -> str:
    if row.get("arn"):
        return "AWS Lambda"
    style = {"BidiStream": "both ways", "RequestResponse": "request/response"}
    parts = [row.get("http_version"), style.get(str(row.get("protocol_type")))]
    return ", ".join(str(part) for part in parts if part)


def _range(row: Document) -> str:
    return f"{row.get('min_protocol_version')} to {row.get('max_protocol_version')}"


def _what_happened(status: int, document: Document, force: bool, dry_run: bool) -> str:
    deployment = document.get("id")
    if dry_run:
        return "Dry run: nothing was registered."
    if status == 201:
        return f"Registered as {deployment}."
    if force:
        return f"Registered again as {deployment}."
    return f"Already registered as {deployment}; --force discovers it again."
