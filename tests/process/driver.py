"""One crash run: clients that submit programs under fire, and the checks of everything they saw.

A run is a workload and a number of kills, both drawn from one seed. The programs of a seed are
always the same (client 3's 17th program is client 3's 17th program); how many of them are reached
and where the kills fall depends on the machine's speed, so a failure is repeated by running the
seed again, maybe more than once.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from tests.process.calls import Answer, Unanswered, post_json, request
from tests.process.ledger import LedgerReader, Line, check_steps
from tests.process.model import (
    CellState,
    Observed,
    check_cells,
    check_lane,
    check_outcome,
)
from tests.process.processes import InterpreterProcess, ServerProcess, wait_listening
from tests.process.programs import (
    CELL,
    FLOW,
    RUNNER,
    AwaitPromise,
    Generator,
    Json,
    Program,
    awakeable_value,
    cell_key,
    encode,
    promise_value,
    walk,
)

_RETRY_SECONDS = 0.03
_RETRY_SECONDS_MAX = 0.3
_LEDGER_SECONDS = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class RunOptions:
    """What a run is. ``use_http_11``: the service is invoked in request/response mode."""

    seed: int
    kills: int
    clients: int = 8
    cells: int = 16
    use_http_11: bool = False
    finish_seconds: float = 120.0


@dataclass(slots=True)
class RunFigures:
    """What happened in a run, for the one line that it prints."""

    server_kills: int = 0
    service_kills: int = 0
    kills_on_ack: int = 0
    programs: int = 0
    invocations: int = 0
    retries: int = 0
    refused: Counter[int] = field(default_factory=Counter[int])
    awakeables: int = 0
    step_reruns: int = 0
    restart_seconds_max: float = 0.0


@dataclass(slots=True)
class Submission:
    """A top-level program and what was learned about its invocation."""

    program: Program
    invocation: str = ""
    outcome: Json = None


class CrashRun:
    """The state of a run. ``violations`` collects everything that must not happen."""

    def __init__(self, folder: Path, options: RunOptions, server: ServerProcess) -> None:
        self.options = options
        self.server = server
        self.service = InterpreterProcess(folder)
        self.ledger = LedgerReader(self.service.ledger_path)
        self.figures = RunFigures()
        self.submissions: list[Submission] = []
        self.lanes: dict[tuple[int, str], list[str]] = {}
        self.violations: list[str] = []
        self.on_ack: Callable[[], None] = lambda: None
        self.calm = asyncio.Event()
        self._never = asyncio.Event()

    async def start(self) -> None:
        """Bring both processes up and register the service."""
        self.server.start()
        self.service.start()
        await wait_listening(self.service, self.service.port)
        await self.server.wait_healthy()
        await self.server.register(self.service.port, use_http_11=self.options.use_http_11)

    @property
    def ingress_port(self) -> int:
        """Where the next request goes."""
        return self.server.ingress_port

    def check_alive(self) -> None:
        """Fail if the server ended by itself."""
        self.server.check_alive()

    def close(self) -> None:
        self.server.close()
        self.service.close()
        self.ledger.close()

    # --- Requests that survive restarts ---------------------------------------------------------

    async def insist(self, attempt: Callable[[], Awaitable[Answer]]) -> Answer:
        """Repeat a request until it is answered with something final.

        No answer and 503 are the only excuses: both say that the outcome is unknown or that
        nothing happened, and that the same request may be sent again.
        """
        delay = _RETRY_SECONDS
        while True:
            try:
                answer = await attempt()
            except Unanswered:
                self.figures.retries += 1
            else:
                if answer.status != 503:
                    return answer
                self.figures.refused[answer.status] += 1
            await pause(self._never, delay)
            delay = min(delay * 1.5, _RETRY_SECONDS_MAX)

    async def breathe(self) -> None:
        """Let a little time pass in a loop that polls."""
        await pause(self._never, _RETRY_SECONDS)

    async def post(self, path: str, document: Json, key: str | None = None) -> Answer:
        headers = {"idempotency-key": key} if key is not None else {}
        return await self.insist(lambda: post_json(self.ingress_port, path, document, headers))

    async def get(self, path: str) -> Answer:
        return await self.insist(lambda: request(self.ingress_port, "GET", path))

    def expect(self, condition: bool, text: str) -> None:
        if not condition:
            self.violations.append(text)

    # --- Programs -------------------------------------------------------------------------------

    async def call(self, program: Program) -> None:
        """Call, wait, compare later; the idempotency key makes the retries one invocation."""
        submission = self._submit(program)
        answer = await self.post(_path(program), encode(program), program.name)
        self.on_ack()
        self._take_outcome(submission, answer)

    async def send(self, program: Program) -> Submission:
        """Send until accepted. From then on the server owes the invocation."""
        submission = self._submit(program)
        key = None if program.service == FLOW else program.name
        answer = await self.post(f"{_path(program)}/send", encode(program), key)
        self.on_ack()
        if answer.status != 202:
            self.violations.append(f"{program.name} was not accepted: {answer}")
        else:
            submission.invocation = answer.json()["invocationId"]
        return submission

    async def attach(self, submission: Submission) -> None:
        """Wait for the result of an accepted send."""
        answer = await self.get(f"/restate/invocation/{submission.invocation}/attach")
        self._take_outcome(submission, answer)

    async def settle(self, program: Program) -> None:
        """Settle the promises of a top-level workflow."""
        for op in program.ops:
            if isinstance(op, AwaitPromise):
                value = promise_value(program.key, op.promise)
                answer = await self.post(
                    f"/{FLOW}/{program.key}/settle",
                    {"promise": op.promise, "value": value},
                    f"{program.name}:{op.promise}",
                )
                self.expect(answer.body == b'"ok"', f"settling {program.name} gave {answer}")

    def _submit(self, program: Program) -> Submission:
        submission = Submission(program)
        self.submissions.append(submission)
        self.figures.programs += 1
        return submission

    def _take_outcome(self, submission: Submission, answer: Answer) -> None:
        name = submission.program.name
        invocation = answer.headers.get("x-restate-id", "")
        if not submission.invocation:
            submission.invocation = invocation
        self.expect(
            invocation == submission.invocation,
            f"{name} was {submission.invocation} and is {invocation}",
        )
        outcome = _outcome(answer)
        if submission.outcome is not None:
            self.expect(
                submission.outcome == outcome,
                f"{name} gave {submission.outcome!r}, and now {outcome!r}",
            )
        submission.outcome = outcome

    # --- Clients --------------------------------------------------------------------------------

    async def client(self, number: int) -> None:
        """Submit this client's programs one after the other, until there is calm."""
        dice = random.Random(f"{self.options.seed}/client/{number}")
        generator = Generator(dice, self.options.cells)
        async with asyncio.TaskGroup() as waiting:
            ordinal = 0
            while not self.calm.is_set():
                name = f"c{number}-{ordinal}"
                ordinal += 1
                kind = dice.choices(("call", "send", "lane", "flow"), (40, 35, 20, 5))[0]
                pause_seconds = dice.uniform(0, 0.25)
                if kind == "flow":
                    program = generator.program(name, FLOW)
                    waiting.create_task(self.attach(await self.send(program)))
                    waiting.create_task(self.settle(program))
                elif kind == "lane":
                    key = cell_key(dice.randrange(2))
                    program = generator.lane(name, key)
                    waiting.create_task(self.attach(await self.send(program)))
                    self.lanes.setdefault((number, key), []).append(name)
                else:
                    program = generator.program(name, dice.choice((RUNNER, RUNNER, CELL)))
                    if kind == "call":
                        await self.call(program)
                    else:
                        waiting.create_task(self.attach(await self.send(program)))
                await pause(self.calm, pause_seconds)

    async def wake(self, done: asyncio.Event) -> None:
        """Resolve every awakeable that the ledger tells of, once per id and then once more."""
        resolved: set[str] = set()
        async with asyncio.TaskGroup() as requests:
            while not done.is_set():
                for line in self.ledger.read_new():
                    if line.kind == "wake" and line.value not in resolved:
                        resolved.add(line.value)
                        requests.create_task(self._resolve(line))
                await pause(done, _LEDGER_SECONDS)
        self.figures.awakeables = len(resolved)

    async def _resolve(self, line: Line) -> None:
        for _ in range(2):
            answer = await self.post(
                f"/restate/awakeables/{line.value}/resolve", awakeable_value(*line.place)
            )
            self.expect(answer.status == 202, f"resolving {line} gave {answer}")

    # --- The end --------------------------------------------------------------------------------

    async def wait_quiet(self) -> None:
        """Wait until every program has reached its end, also those that nobody waits for."""
        names = {item.name for top in self.submissions for item in walk(top.program)}
        self.figures.invocations = len(names)
        deadline = time.monotonic() + self.options.finish_seconds
        while missing := names - {line.name for line in self.ledger.lines if line.kind == "end"}:
            self.check_alive()
            if time.monotonic() > deadline:
                self.violations.append(f"never ran to the end: {sorted(missing)[:20]}")
                return
            await self.breathe()

    async def read_cells(self) -> dict[str, CellState]:
        """The final state of all cells."""
        cells: dict[str, CellState] = {}
        for number in range(self.options.cells):
            key = cell_key(number)
            answer = await self.get(f"/{CELL}/{quote(key, safe='')}/read")
            if answer.status != 200:
                self.violations.append(f"reading {key} gave {answer}")
                continue
            document = answer.json()
            cells[key] = CellState(document["count"], tuple(document["log"]))
        return cells

    async def attach_all(self) -> None:
        """Ask for every result again; ``_take_outcome`` compares."""
        for submission in self.submissions:
            await self.attach(submission)

    async def repeat_all(self) -> None:
        """Send every request again: the same invocation, accepted long ago."""
        for submission in self.submissions:
            program = submission.program
            key = None if program.service == FLOW else program.name
            answer = await self.post(f"{_path(program)}/send", encode(program), key)
            known = answer.status == 202 and answer.json() == {
                "invocationId": submission.invocation,
                "status": "PreviouslyAccepted",
            }
            self.expect(known, f"repeating {program.name} gave {answer}")

    def check(self, cells: dict[str, CellState]) -> None:
        """Compare everything with the model."""
        observed = Observed()
        for submission in self.submissions:
            check_outcome(submission.program, submission.outcome, observed)
        self.violations.extend(observed.violations)
        self.violations.extend(
            check_cells([item.program for item in self.submissions], cells, observed)
        )
        for (_, key), names in self.lanes.items():
            self.violations.extend(check_lane(names, key, cells[key]))
        self.ledger.read_new()
        steps = check_steps(self.ledger.lines)
        self.figures.step_reruns = steps.reruns
        self.violations.extend(steps.violations)
        self.violations.extend(
            f"{place} reported {nonce}, the handler saw {steps.seen.get(place)}"
            for place, nonce in observed.nonces.items()
            if steps.seen.get(place) != nonce
        )


async def pause(stop: asyncio.Event, seconds: float) -> None:
    """Wait for ``seconds``, or less if ``stop`` is set meanwhile."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


def _path(program: Program) -> str:
    key = f"/{quote(program.key, safe='')}" if program.key else ""
    return f"/{program.service}{key}/run"


def _outcome(answer: Answer) -> Json:
    if answer.status == 200:
        return {"returned": answer.json()}
    try:
        document = answer.json()
        return {"failed": document["message"], "code": document["code"]}
    except (ValueError, KeyError, TypeError):
        return {"failed": answer.body.decode(errors="replace"), "code": answer.status}
