"""/invocations: what operators may do to invocations, one at a time or many."""

import asyncio
from collections.abc import Awaitable, Callable
from itertools import chain
from typing import Annotated

import msgspec

from perdure.core.entropy import ulid
from perdure.core.errors import (
    BadRequest,
    Conflict,
    Gone,
    NotFound,
    PerdureError,
    TooEarly,
    Unprocessable,
)
from perdure.core.ids import (
    InvocationId,
    PartitionId,
    format_invocation_id,
    make_invocation_id,
    partition_key_of,
    partition_of,
)
from perdure.core.limits import BATCH_INVOCATIONS_MAX
from perdure.core.telemetry import logger
from perdure.engine.actions import Verdict
from perdure.engine.commands import (
    Cancel,
    Command,
    Kill,
    Pause,
    Purge,
    PurgeJournal,
    Restart,
    Resume,
)
from perdure.node.admin.context import Context, Endpoint
from perdure.node.admin.elsewhere import Forward
from perdure.node.admin.requests import (
    Reply,
    Request,
    check_deployment_id,
    empty_reply,
    json_reply,
    parse_invocation,
)
from perdure.node.admin.routes import Route
from perdure.node.registry.manifest import PROTOCOL_VERSION_MAX
from perdure.storage.keys import index_suffix
from perdure.storage.tables.invocations import (
    Completed,
    HandlerKind,
    Inboxed,
    Invocation,
    Invoked,
    Paused,
    Pin,
    Scheduled,
    Suspended,
    Target,
)

log = logger("admin")

_KEEP, _LATEST = "keep", "latest"
_JOURNAL_INDEX_MAX = 0xFFFF_FFFF
_BATCH_PATH = "/internal/invocations_batch_operations"
_WORKFLOWS = (HandlerKind.WORKFLOW_RUN, HandlerKind.WORKFLOW_SHARED)
_VERBS: dict[str, type[Cancel | Kill | Purge | PurgeJournal | Pause]] = {
    "cancel": Cancel,
    "kill": Kill,
    "purge": Purge,
    "purge-journal": PurgeJournal,
    "pause": Pause,
}


class InvocationBatch(msgspec.Struct):
    """Invocations; `deployment` (`keep`, `latest`, an id) is for resume and restart-as-new."""

    invocation_ids: list[str]
    deployment: Annotated[str, msgspec.Meta(max_length=64)] | None = None


class BatchOutcome(msgspec.Struct):
    """What became of a batch; ``failed`` with the reasons."""

    succeeded: list[object]
    failed: list[dict[str, str]]


# --- What is done -------------------------------------------------------------------------------


async def act(context: Context, target: InvocationId, verb: str) -> int:
    """Cancel, kill, purge, purge-journal or pause; 200 when it is done, 202 when it will be.

    Raises:
        NotFound, Conflict: there is no such invocation; its state doesn't allow it.
    """
    command = _VERBS[verb](target)
    verdict = await _propose(context, target, command)
    if verdict is Verdict.DONE:
        return 200
    if verdict is Verdict.ACCEPTED:
        return 202
    raise _refusal(target, verb, verdict)


async def resume(context: Context, target: InvocationId, deployment: str) -> int:
    """Let an invocation go on; one that backs off tries again now.

    Raises:
        NotFound, Conflict, TooEarly: there is no such invocation; its state doesn't allow it.
        BadRequest: it can't go on with that deployment.
    """
    pin = _pin_to_resume_with(context, target, deployment) if deployment != _KEEP else None
    verdict = await _propose(context, target, Resume(target, pin))
    if verdict is Verdict.NOT_STARTED:
        raise TooEarly(f"{format_invocation_id(target)} has not started: it can't be resumed")
    if verdict is not Verdict.DONE:
        raise _refusal(target, "resume", verdict)
    run = context.gateway.run_of(target)
    if run is not None and run.is_backing_off:
        run.retry_now()
    return 200


async def restart(
    context: Context, target: InvocationId, from_index: int, deployment: str
) -> InvocationId:
    """Run a completed invocation once more, from a journal index, as a new one; its id.

    Raises:
        NotFound, TooEarly, Conflict, Unprocessable, Gone: it can't be restarted.
        BadRequest: not from there, or not with that deployment.
    """
    text = format_invocation_id(target)
    store = context.gateway.store(partition_key_of(target))
    row = _completed(store.invocations.get(target), text)
    spec = row.spec
    if spec.target.kind in _WORKFLOWS:
        raise Unprocessable(f"{text} belongs to a workflow, which runs once per key")
    entry = store.journal.get(target, index_suffix(0))
    if entry is None:
        raise Gone(f"the journal of {text} is no longer retained: its input is gone")
    if from_index >= row.progress.journal_length:
        raise BadRequest(
            f"from={from_index}: the journal has {row.progress.journal_length} entries"
        )
    route = context.registry.catalogue.latest(spec.target.service, spec.target.handler)
    pin = _pin_to_restart_with(context, row, from_index, deployment)
    retention = (
        route.effective.retention(spec.target.kind, False)
        if route is not None
        else (spec.completion_retention_ms, spec.journal_retention_ms)
    )
    fresh = make_invocation_id(
        partition_key_of(target), ulid(context.clock.now_ms(), context.entropy)
    )
    outcome = await context.propose(
        Restart(target, fresh, from_index, pin, *retention), partition_key_of(target)
    )
    if outcome is Verdict.NOT_RESTARTABLE:
        raise Unprocessable(
            f"{text} can't be restarted from={from_index}: a step before has no result, or was "
            "recorded with service protocol 5"
        )
    if isinstance(outcome, Verdict):
        raise _refusal(target, "restart-as-new", outcome)
    log.info("admin.invocation.restarted", id=text, new_id=format_invocation_id(fresh))
    return fresh


# --- Endpoints ----------------------------------------------------------------------------------


def _acting(verb: str) -> Endpoint:
    async def endpoint(context: Context, request: Request) -> Reply:
        target = parse_invocation(request.parameters["id"])
        return empty_reply(await act(context, target, verb))

    return endpoint


async def resume_one(context: Context, request: Request) -> Reply:
    """Resume an invocation."""
    target = parse_invocation(request.parameters["id"])
    deployment = _choice(request.query.get("deployment"), _KEEP)
    return empty_reply(await resume(context, target, deployment))


async def restart_one(context: Context, request: Request) -> Reply:
    """Restart a completed invocation as a new one."""
    target = parse_invocation(request.parameters["id"])
    from_index = request.number("from", 0, 0, _JOURNAL_INDEX_MAX)
    # Replay wants the code that recorded the steps; the input alone is fit for any.
    usual = _KEEP if from_index > 0 else _LATEST
    deployment = _choice(request.query.get("deployment"), usual)
    fresh = await restart(context, target, from_index, deployment)
    return json_reply(200, {"new_invocation_id": format_invocation_id(fresh)})


async def terminate(context: Context, request: Request) -> Reply:
    """The old form: always 202, whatever becomes of it."""
    target = parse_invocation(request.parameters["id"])
    mode = request.query.get("mode", "cancel")
    if mode.lower() not in ("cancel", "kill", "purge"):
        raise BadRequest(f"mode {mode!r}: expected cancel, kill or purge")
    await _propose(context, target, _VERBS[mode.lower()](target))
    return empty_reply(202)


def _batch(verb: str) -> Endpoint:
    async def endpoint(context: Context, request: Request) -> Reply:
        body = request.json(InvocationBatch)
        targets = _targets(body)
        deployment = _choice(body.deployment, _LATEST if verb == "restart-as-new" else _KEEP)

        async def one(target: InvocationId) -> object:
            if verb == "restart-as-new":
                fresh = await restart(context, target, 0, deployment)
                return {
                    "old_invocation_id": format_invocation_id(target),
                    "new_invocation_id": format_invocation_id(fresh),
                }
            if verb == "resume":
                await resume(context, target, deployment)
            else:
                await act(context, target, verb)
            return format_invocation_id(target)

        if verb in _VERBS:  # commands find their way by themselves
            outcomes = [await _gather(targets, one)]
        else:
            here, elsewhere = _by_home(context, targets)
            outcomes = await asyncio.gather(
                _gather(here, one),
                *(
                    _gather_elsewhere(context, partition, verb, theirs, body.deployment)
                    for partition, theirs in elsewhere.items()
                ),
            )
        succeeded = list(chain.from_iterable(outcome.succeeded for outcome in outcomes))
        failed = list(chain.from_iterable(outcome.failed for outcome in outcomes))
        return json_reply(200, {"succeeded": succeeded, "failed": failed})

    return endpoint


def _by_home(
    context: Context, targets: list[InvocationId]
) -> tuple[list[InvocationId], dict[PartitionId, list[InvocationId]]]:
    """What is decided by tables is decided where they are led: those here, those elsewhere."""
    here: list[InvocationId] = []
    elsewhere: dict[PartitionId, list[InvocationId]] = {}
    for target in targets:
        home = partition_of(partition_key_of(target), context.gateway.partition_count)
        if context.elsewhere.is_here(home):
            here.append(target)
        else:
            elsewhere.setdefault(home, []).append(target)
    return here, elsewhere


async def _gather_elsewhere(
    context: Context,
    partition: PartitionId,
    verb: str,
    targets: list[InvocationId],
    deployment: str | None,
) -> BatchOutcome:
    batch = InvocationBatch([format_invocation_id(target) for target in targets], deployment)
    body, path = msgspec.json.encode(batch), f"{_BATCH_PATH}/{verb}"
    asked = Forward(partition, "POST", path, "application/json", None, body)
    try:
        reply = await context.elsewhere.ask(asked)
        return msgspec.json.decode(reply.body, type=BatchOutcome)
    except PerdureError as error:
        return _all_failed(targets, str(error))
    except msgspec.MsgspecError:  # of a release that answers otherwise
        return _all_failed(targets, f"the leader of partition {partition} refused the batch")


def _all_failed(targets: list[InvocationId], reason: str) -> BatchOutcome:
    failed = [
        {"invocation_id": format_invocation_id(target), "error": reason} for target in targets
    ]
    return BatchOutcome([], failed)


async def _gather(
    targets: list[InvocationId], one: Callable[[InvocationId], Awaitable[object]]
) -> BatchOutcome:
    outcomes = await asyncio.gather(*(_outcome(one, target) for target in targets))
    done = BatchOutcome([], [])
    for target, outcome in zip(targets, outcomes, strict=True):
        if isinstance(outcome, PerdureError):
            error = {"invocation_id": format_invocation_id(target), "error": str(outcome)}
            done.failed.append(error)
        else:
            done.succeeded.append(outcome)
    return done


async def _outcome(
    one: Callable[[InvocationId], Awaitable[object]], target: InvocationId
) -> object:
    try:
        return await one(target)
    except PerdureError as error:
        return error


# --- Rules --------------------------------------------------------------------------------------


async def _propose(context: Context, target: InvocationId, command: Command) -> Verdict:
    outcome = await context.propose(command, partition_key_of(target))
    assert isinstance(outcome, Verdict)
    if outcome in (Verdict.DONE, Verdict.ACCEPTED):
        verb = type(command).__name__.lower()
        log.info("admin.invocation.changed", verb=verb, id=format_invocation_id(target))
    return outcome


def _refusal(target: InvocationId, verb: str, verdict: Verdict) -> PerdureError:
    text = format_invocation_id(target)
    match verdict:
        case Verdict.NOT_FOUND:
            return NotFound(f"there is no invocation {text}")
        case Verdict.COMPLETED:
            return Conflict(f"{text} has completed: {verb} is for invocations that have not")
        case Verdict.NOT_COMPLETED:
            return Conflict(f"{text} has not completed yet: {verb} is for invocations that have")
        case _:
            return Conflict(f"{text} has not started yet: {verb} is for invocations that have")


def _completed(row: Invocation | None, text: str) -> Completed:
    match row:
        case None:
            raise NotFound(f"there is no invocation {text}")
        case Completed():
            return row
        case Scheduled() | Inboxed():
            raise TooEarly(f"{text} has not started: it can't be restarted")
        case _:
            raise Conflict(f"{text} is still running: cancel or kill it first")


def _pin_to_resume_with(context: Context, target: InvocationId, deployment: str) -> Pin | None:
    text = format_invocation_id(target)
    row = context.gateway.store(partition_key_of(target)).invocations.get(target)
    match row:
        case None:
            raise NotFound(f"there is no invocation {text}")
        case Invoked() | Completed():
            raise Conflict(f"{text} is neither paused nor suspended: its deployment stays")
        case Suspended() | Paused():
            pin = row.progress.pin
            if pin is None and deployment != _LATEST:
                raise Conflict(f"{text} is not pinned: it will run on the latest deployment")
            if pin is None:
                return None
            return _repin(context, row.spec.target, pin.protocol_version, deployment)
        case _:
            return None  # not started: refused when it is resumed


def _pin_to_restart_with(
    context: Context, row: Completed, from_index: int, deployment: str
) -> Pin | None:
    """None: the usual one, which is the old pin behind the input, else whatever is the latest."""
    pin = row.progress.pin
    if from_index > 0:
        if deployment == _KEEP or pin is None:
            return None
        return _repin(context, row.spec.target, pin.protocol_version, deployment)
    if deployment == _LATEST:
        return None
    if deployment == _KEEP:
        return pin
    return _repin(context, row.spec.target, None, deployment)


def _repin(context: Context, target: Target, version: int | None, choice: str) -> Pin:
    """A pin to the chosen deployment, for a journal of protocol ``version`` or a new one."""
    catalogue = context.registry.catalogue
    route = (
        catalogue.latest(target.service, target.handler)
        if choice == _LATEST
        else catalogue.pinned(choice, target.service, target.handler)
    )
    if route is None:
        raise BadRequest(f"deployment: {choice} doesn't serve {target.service}/{target.handler}")
    lower, upper = route.protocol_version_min, min(route.protocol_version_max, PROTOCOL_VERSION_MAX)
    wanted = upper if version is None else version
    if not lower <= wanted <= upper:
        raise BadRequest(
            f"deployment: {route.deployment_id} speaks protocol versions {lower} to {upper}, the "
            f"journal was recorded with {wanted}"
        )
    return Pin(route.deployment_id, wanted)


def _choice(text: str | None, default: str) -> str:
    if text is None:
        return default
    if text.lower() in (_KEEP, _LATEST):
        return text.lower()
    return check_deployment_id(text)


def _targets(body: InvocationBatch) -> list[InvocationId]:
    if len(body.invocation_ids) > BATCH_INVOCATIONS_MAX:
        raise BadRequest(f"invocation_ids: at most {BATCH_INVOCATIONS_MAX} at once")
    try:
        return [parse_invocation(text) for text in body.invocation_ids]
    except BadRequest as error:
        raise Unprocessable(error.message) from error


ROUTES: list[Route[Endpoint]] = [
    *(Route("PATCH", f"/invocations/{{id}}/{verb}", _acting(verb)) for verb in _VERBS),
    Route("PATCH", "/invocations/{id}/resume", resume_one),
    Route("PATCH", "/invocations/{id}/restart-as-new", restart_one),
    Route("DELETE", "/invocations/{id}", terminate),
    *(
        Route("POST", f"{_BATCH_PATH}/{verb}", _batch(verb), InvocationBatch)
        for verb in (*_VERBS, "resume", "restart-as-new")
    ),
]
