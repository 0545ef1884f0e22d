"""Which invocations need a deployment, and its removal once none does.

An invocation stays with the deployment where its first step was recorded until it has completed.
One whose attempt is under way there may be about to record that step: it counts as well.
"""

import asyncio
from dataclasses import dataclass

from perdure.core.errors import Conflict, DeploymentNotFound
from perdure.core.ids import InvocationId, PartitionId
from perdure.core.telemetry import logger
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.elsewhere import PARTITION
from perdure.node.admin.inspection import Position, scan
from perdure.node.admin.requests import (
    Reply,
    Request,
    check_deployment_id,
    empty_reply,
    json_reply,
)
from perdure.node.admin.routes import Route
from perdure.node.registry.evolve import remove_deployment
from perdure.node.registry.model import Registry
from perdure.storage.tables.invocations import Completed, Inboxed, Invocation, Invoked, Scheduled

log = logger("admin")


@dataclass(frozen=True, slots=True)
class Uses:
    """What keeps a deployment: services that have their latest revision there, invocations."""

    services: tuple[str, ...]
    invocations: int


async def uses_of(context: Context, deployment_id: str) -> Uses:
    """Look through all invocations, in short turns; what starts meanwhile may be missed.

    Raises:
        DeploymentNotFound: there is none of this id.
    """
    services = _latest(context.registry.registry, deployment_id)
    counts = [
        await _pinned(context, deployment_id, each)
        for each in range(context.gateway.partition_count)
    ]
    return Uses(services, sum(counts))


async def _pinned(context: Context, deployment_id: str, partition: int) -> int:
    """The invocations of a partition that need a deployment, counted by who leads it."""
    if not context.elsewhere.is_here(PartitionId(partition)):
        path = f"/perdure/deployments/{deployment_id}"
        found = (await context.elsewhere.ask_part(partition, path, {}))["pinned_invocations"]
        assert isinstance(found, int)
        return found
    count = 0
    position: Position | None = Position(partition, b"")
    while position is not None:
        chunk, position = scan(context, position, partition + 1)
        count += sum(_needs(context, id, row, deployment_id) for id, row in chunk)
        await asyncio.sleep(0)
    return count


async def get_uses(context: Context, request: Request) -> Reply:
    """What a deployment is needed for."""
    deployment_id = check_deployment_id(request.parameters["id"])
    if PARTITION in request.query:
        services = _latest(context.registry.registry, deployment_id)
        only = await _pinned(context, deployment_id, int(request.query[PARTITION]))
        uses = Uses(services, only)
    else:
        uses = await uses_of(context, deployment_id)
    return json_reply(
        200,
        {
            "id": deployment_id,
            "latest_of": list(uses.services),
            "pinned_invocations": uses.invocations,
            "is_removable": not uses.services and not uses.invocations,
        },
    )


async def delete_deployment(context: Context, request: Request) -> Reply:
    """Forget a deployment: without ``force`` only if nothing needs it."""
    deployment_id = check_deployment_id(request.parameters["id"])
    is_forced = request.flag("force", False)
    if not is_forced:
        uses = await uses_of(context, deployment_id)
        if not uses.services and uses.invocations:
            raise Conflict(
                f"{uses.invocations} invocations need {deployment_id} until they have completed; "
                "force=true removes it all the same, and they retry until they are resumed "
                "elsewhere or cancelled"
            )

    def edit(registry: Registry) -> Registry:
        # Looked at again where nothing can come in between.
        services = _latest(registry, deployment_id)
        if services and not is_forced:
            raise Conflict(
                f"{deployment_id} serves new calls of {', '.join(services)}: register their next "
                "revision elsewhere first; force=true removes it all the same"
            )
        return remove_deployment(registry, deployment_id)

    await context.registry.change(edit)
    log.info("admin.deployment.removed", id=deployment_id)
    return empty_reply(202)


def _latest(registry: Registry, deployment_id: str) -> tuple[str, ...]:
    if deployment_id not in registry.deployments:
        raise DeploymentNotFound(f"there is no deployment {deployment_id}")
    return tuple(sorted(name for name, at in registry.latest.items() if at == deployment_id))


def _needs(context: Context, invocation: InvocationId, row: Invocation, deployment_id: str) -> bool:
    match row:
        case Completed():
            return False
        case Scheduled() | Inboxed():
            # Restarted from steps that were recorded there.
            pin = row.spec.prefix.pin if row.spec.prefix is not None else None
        case _:
            pin = row.progress.pin
    if pin is not None:
        return pin.deployment_id == deployment_id
    if not isinstance(row, Invoked):
        return False
    run = context.gateway.run_of(invocation)
    return run is not None and run.live is not None and run.last_deployment_id == deployment_id


ROUTES: list[Route[Endpoint]] = [
    Route("DELETE", "/deployments/{id}", delete_deployment),
    Route("GET", "/perdure/deployments/{id}", get_uses),
]
