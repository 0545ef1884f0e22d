"""The language of the scripts in this folder: commands in, transcript out.

A script is a list of blocks: a command, perhaps with lines of its own, then ``----`` and what the
server did because of it, up to an empty line. ``pytest --rewrite`` writes the transcripts anew.

    deploy <id> <Service/handler[:kind]> … [version=5-6] [mode=bidi|request]
           [inactivity=ms] [abort=ms]
    forget <id>                     the deployment is removed
    give-up kill|pause              what happens when retries are exhausted
    invoke <name> <Service/handler> [key=…] [body=…]
    answer <name> [status] [content-type=…] [retry-after=…]
    say <name>                      frames follow, one a line (words.py), behind a head if need be
    raw <name> <hex>                bytes of the response body
    hang-up <name>                  the response ends
    lose <name> <kind>              the stream is lost (connect, refused, lost, broken)
    reads <name>|all yes|no         whether the service takes bytes; all: from the next attempts on
    log refuses|takes|<ms>          whether the log takes proposals, and how long it takes it
    cancel|kill|pause|resume|purge <name>
    signal <name> <index> <text>
    wait <ms>
    show <name>                     status, journal and events
"""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from tests.golden import words
from tests.golden.stage import ServiceStream, Stage

from perdure.core.ids import format_awakeable_id, format_invocation_id
from perdure.core.limits import ATTEMPTS_BUSY_MAX
from perdure.engine.commands import Cancel, Kill, Pause, Purge, Resume, Signal
from perdure.node.http.ports import Headers
from perdure.node.http.stream import StreamFailure
from perdure.node.registry.model import (
    Deployment,
    Handler,
    InputRules,
    OnMaxAttempts,
    Options,
    OutputRules,
    Service,
    ServiceType,
)
from perdure.proto import service_pb2 as pb
from perdure.storage.tables.invocations import HandlerKind, Target
from perdure.storage.tables.journal import EventKind

_KINDS = {
    "service": (HandlerKind.SERVICE, ServiceType.SERVICE),
    "exclusive": (HandlerKind.EXCLUSIVE, ServiceType.VIRTUAL_OBJECT),
    "shared": (HandlerKind.SHARED, ServiceType.VIRTUAL_OBJECT),
    "run": (HandlerKind.WORKFLOW_RUN, ServiceType.WORKFLOW),
    "click": (HandlerKind.WORKFLOW_SHARED, ServiceType.WORKFLOW),
}
_OPERATIONS: dict[str, type[Cancel | Kill | Pause | Resume | Purge]] = {
    "cancel": Cancel,
    "kill": Kill,
    "pause": Pause,
    "resume": Resume,
    "purge": Purge,
}


def play(script: str) -> str:
    """The script with the transcripts as they came out."""
    with closing(Playbook()) as playbook:
        return _play(script, playbook)


def _play(script: str, playbook: "Playbook") -> str:
    blocks: list[str] = []
    for block in script.strip().split("\n\n"):
        command, _, _ = block.partition("\n----")
        lines = [line for line in command.splitlines() if not line.startswith("#")]
        if not lines:
            blocks.append(block)
            continue
        output = playbook.run(lines[0], lines[1:])
        blocks.append("\n".join([command, "----", *output]))
    return "\n\n".join(blocks) + "\n"


def check(path: Path, rewrite: bool) -> None:
    """Play a script file; compare, or write it anew."""
    script = path.read_text()
    played = play(script)
    if rewrite:
        path.write_text(played)
    assert played == path.read_text()


class Playbook:
    """Runs the commands of one script on a stage of its own."""

    def __init__(self, slots: int = 1000, busy_max: int = ATTEMPTS_BUSY_MAX) -> None:
        self.stage = Stage(slots, busy_max)
        self._commands: dict[str, Callable[[list[str], list[str]], None]] = {
            "deploy": self._deploy,
            "forget": lambda args, _: self.stage.forget(args[0]),
            "give-up": lambda args, _: self.stage.give_up_by(OnMaxAttempts(args[0].capitalize())),
            "invoke": self._invoke,
            "answer": self._answer,
            "say": self._say,
            "raw": lambda args, _: self._hear(args[0], bytes.fromhex(args[1])),
            "hang-up": lambda args, _: self._hang_up(args[0]),
            "lose": lambda args, _: self._lose(args[0], args[1]),
            "reads": self._reads,
            "log": self._log,
            "signal": self._signal,
            "wait": lambda args, _: self.stage.wait(float(args[0])),
            "show": lambda args, _: self._show(args[0]),
        }

    def close(self) -> None:
        self.stage.loop.discard()

    def run(self, line: str, more: list[str]) -> list[str]:
        """What the server did because of a command."""
        verb, *args = line.split()
        if verb in _OPERATIONS:
            self.stage.propose(_OPERATIONS[verb](self.stage.names[args[0]]))
        else:
            self._commands[verb](args, more)
        self.stage.wait(0)
        lines, self.stage.lines = self.stage.lines, []
        return lines

    # --- Commands -----------------------------------------------------------------------------

    def _deploy(self, args: list[str], _lines: list[str]) -> None:
        id, *rest = args
        settings = dict(item.split("=") for item in rest if "=" in item)
        options = Options(
            inactivity_timeout_ms=_number(settings.get("inactivity")),
            abort_timeout_ms=_number(settings.get("abort")),
        )
        services: dict[str, Service] = {}
        for item in rest:
            if "=" in item:
                continue
            path, _, kind = item.partition(":")
            name, _, handler = path.partition("/")
            number, type_ = _KINDS[kind or "service"]
            known = services.get(name)
            handlers = known.handlers if known is not None else {}
            made = Handler(handler, number, InputRules(is_open=True), OutputRules())
            services[name] = Service(name, type_, {**handlers, handler: made}, options=options)
        lower, _, upper = settings.get("version", "5-6").rpartition("-")
        is_bidi = settings.get("mode", "bidi") == "bidi"
        deployment = Deployment(
            id,
            "http://services:9080/base",
            "HTTP/2.0" if is_bidi else "HTTP/1.1",
            is_bidi,
            int(lower or 5),
            int(upper),
            0,
            services,
        )
        self.stage.register(deployment, list(services.values()))

    def _invoke(self, args: list[str], _lines: list[str]) -> None:
        name, path, *rest = args
        settings = dict(item.split("=", 1) for item in rest)
        service, _, handler = path.partition("/")
        route = self.stage.catalogue.latest(service, handler)
        kind = route.handler.kind if route is not None else HandlerKind.SERVICE
        target = Target(service, handler, settings.get("key"), kind)
        self.stage.invoke(name, target, settings.get("body", "").encode())

    def _answer(self, args: list[str], _lines: list[str]) -> None:
        name, *rest = args
        status = int(rest.pop(0)) if rest and rest[0].isdigit() else 200
        headers = [tuple(item.split("=", 1)) for item in rest]
        self._respond(self._stream(name), status, headers)

    def _respond(self, stream: ServiceStream, status: int, headers: list[tuple[str, ...]]) -> None:
        stream.is_answered = True
        encoded: Headers = [(key.encode(), value.encode()) for key, value in headers]
        self._inside(lambda: stream.listener.on_response(status, encoded))

    def _say(self, args: list[str], lines: list[str]) -> None:
        stream = self._stream(args[0])
        if not stream.is_answered:
            version = self._version(args[0])
            kind = f"application/vnd.restate.invocation.v{version}"
            self._respond(stream, 200, [("content-type", kind)])
        self._hear(args[0], b"".join(words.parse(self._named(line)) for line in lines))

    def _version(self, name: str) -> int:
        run = self.stage.invoker.run_of(self.stage.names[name])
        assert run is not None
        assert run.live is not None
        return run.live.attempt.version

    def _hear(self, name: str, data: bytes) -> None:
        stream = self._stream(name)
        self._inside(lambda: stream.listener.on_body(data))

    def _hang_up(self, name: str) -> None:
        stream = self._stream(name)
        stream.is_closed = True
        self._inside(stream.listener.on_end)

    def _lose(self, name: str, kind: str) -> None:
        stream = self._stream(name)
        stream.is_closed = True
        failure = StreamFailure(kind, f"the script says {kind}")
        self._inside(lambda: stream.listener.on_failed(failure))

    def _reads(self, args: list[str], _lines: list[str]) -> None:
        if args[0] == "all":
            self.stage.is_reading = args[1] == "yes"
            return
        stream = self._stream(args[0])
        stream.is_reading = args[1] == "yes"
        if stream.is_reading:
            self._inside(stream.listener.on_writable)

    def _log(self, args: list[str], _lines: list[str]) -> None:
        self.stage.is_refusing = args[0] == "refuses"
        if args[0].isdigit():
            self.stage.log_delay_ms = float(args[0])

    def _signal(self, args: list[str], _lines: list[str]) -> None:
        name, index, text = args
        message = pb.NotificationMessage(
            signal_idx=int(index), value=pb.Value(content=text.encode())
        )
        id = self.stage.names[name]
        self.stage.propose(Signal(id, int(index), "", message.SerializeToString(), False))

    def _show(self, name: str) -> None:
        id = self.stage.names[name]
        world = self.stage.world
        self.stage.note(f"{name} is {world.status(id)}: {', '.join(world.journal(id))}")
        for _, event in world.of(id).store.events.scan(id):
            failure = event.failure
            text = "by an operator" if event.awaiting is None else words.future(event.awaiting)
            if failure is not None:
                text = f"[{failure.error_code}] {failure.code} {failure.message}"
            kind = EventKind(event.kind).name.lower().replace("_", " ")
            self.stage.note(f"{name}   after entry {event.after_index}: {kind} {text}")

    # --- Inside -------------------------------------------------------------------------------

    def _stream(self, name: str) -> ServiceStream:
        stream = self.stage.streams[name]
        assert not stream.is_closed, f"the stream of {name} is closed"
        return stream

    def _inside(self, callback: Callable[[], object]) -> None:
        self.stage.loop.call_soon(callback)
        self.stage.wait(0)

    def _named(self, line: str) -> str:
        """``<name>`` is an invocation's id, ``<name#17>`` the id of its awakeable."""
        for name, id in self.stage.names.items():
            line = line.replace(f"<{name}>", format_invocation_id(id))
            for index in range(17, 20):
                line = line.replace(f"<{name}#{index}>", format_awakeable_id(id, index))
        return line


def _number(text: str | None) -> int | None:
    return None if text is None else int(text)
