"""The workers as processes: started, watched, started again when they die, stopped in order.

``Workers.run`` is what ``perdure up --workers N`` does instead of being a node. It does nothing
else: no loop, no threads, so that a worker can be forked off it at any time. Workers can't outlive
it, however it ends.
"""

import ctypes
import os
import select
import signal
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace

import msgspec

from perdure.core import telemetry
from perdure.core.clock import Clock
from perdure.core.errors import AddressInUse, InvalidConfiguration
from perdure.core.limits import WORKER_RESTART_MS_INITIAL, WORKER_RESTART_MS_MAX, WORKER_STOP_MS
from perdure.core.retry import RetryPolicy
from perdure.node.config.model import Config
from perdure.node.config.values import Address
from perdure.node.server import ReadyInfo

log = telemetry.logger("workers")

Work = Callable[[Config, Callable[[ReadyInfo], None]], int]
"""Is a worker until it ends, in a process of its own; returns the exit code."""

_BACKOFF = RetryPolicy(
    initial_ms=WORKER_RESTART_MS_INITIAL,
    factor=2,
    interval_ms_max=WORKER_RESTART_MS_MAX,
    attempts_max=None,
)
_PR_SET_PDEATHSIG = 1
# The exit code of who met something that may pass: the first worker isn't there yet, for one.
_PASSING = 1
_READ_BYTES = 65_536


@dataclass(slots=True)
class _Worker:
    """``tries``: starts since it last was ready. ``told``: what it has said of being ready."""

    config: Config
    process: int | None = None
    pipe: int | None = None
    tries: int = 0
    restart_at: float | None = None
    told: bytearray = field(default_factory=bytearray)
    ready: ReadyInfo | None = None

    @property
    def name(self) -> str:
        return self.config.node_name


class Workers:
    """Runs one process per configuration."""

    def __init__(self, configs: list[Config], work: Work, clock: Clock) -> None:
        self._workers = [_Worker(config) for config in configs]
        self._work = work
        self._clock = clock
        self._signals: list[int] = []
        self._wakeup = (-1, -1)
        self._is_announced = False
        self._failed: int | None = None

    def run(self, on_ready: Callable[[list[ReadyInfo]], None]) -> int:
        """Until a signal ends it, or a worker can't be started in the first place; the exit code.
        ``on_ready`` is told once all serve."""
        with ExitStack() as stack:
            self._catch_signals(stack)
            for worker in self._workers:
                self._start(worker)
            while not self._wants_end():
                self._wait()
                self._reap()
                for worker in self._workers:
                    if self._is_due(worker):
                        self._start(worker)
                infos = [worker.ready for worker in self._workers if worker.ready is not None]
                if not self._is_announced and len(infos) == len(self._workers):
                    self._is_announced = True
                    on_ready(infos)
            code = self._stop()
        return self._failed if self._failed is not None else code

    # --- Watching -------------------------------------------------------------------------------

    def _catch_signals(self, stack: ExitStack) -> None:
        self._wakeup = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        for each in self._wakeup:
            stack.callback(os.close, each)
        stack.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(self._wakeup[1]))
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
            before = signal.signal(number, lambda number, _: self._signals.append(number))
            stack.callback(signal.signal, number, before)

    def _wants_end(self) -> bool:
        return self._failed is not None or any(
            number in (signal.SIGTERM, signal.SIGINT) for number in self._signals
        )

    def _wait(self, until: float | None = None) -> None:
        """Until a worker says something or ends, a signal comes, or it is time for something."""
        times = [worker.restart_at for worker in self._workers if worker.restart_at is not None]
        if until is not None:
            times = [until]
        timeout = max(min(times) - self._clock.monotonic(), 0.0) if times else None
        pipes = {worker.pipe: worker for worker in self._workers if worker.pipe is not None}
        found, _, _ = select.select([self._wakeup[0], *pipes], [], [], timeout)
        for each in found:
            if each in pipes:
                self._hear(pipes[each])
        with suppress(BlockingIOError):
            os.read(self._wakeup[0], _READ_BYTES)

    def _hear(self, worker: _Worker) -> None:
        assert worker.pipe is not None
        said = os.read(worker.pipe, _READ_BYTES)
        worker.told += said
        if said:
            return
        os.close(worker.pipe)
        worker.pipe = None
        with suppress(msgspec.DecodeError):  # it died before it had said all
            worker.ready = msgspec.json.decode(worker.told, type=ReadyInfo, dec_hook=_read_path)
            worker.tries = 0

    def _reap(self) -> None:
        for worker in self._workers:
            if worker.process is None:
                continue
            process, status = os.waitpid(worker.process, os.WNOHANG)
            if process == 0:
                continue
            code = os.waitstatus_to_exitcode(status)
            was_ready = worker.ready is not None
            worker.process, worker.ready = None, None
            if self._wants_end():
                continue
            if not self._is_announced and not was_ready and code > _PASSING:
                self._failed = code  # it has said why
                return
            delay_ms = _BACKOFF.delay_ms(max(worker.tries, 1))
            assert delay_ms is not None  # it never gives up
            worker.restart_at = self._clock.monotonic() + delay_ms / 1000
            log.error("worker.ended", worker=worker.name, code=code, restart_ms=delay_ms)

    def _is_due(self, worker: _Worker) -> bool:
        is_due = worker.restart_at is not None and worker.restart_at <= self._clock.monotonic()
        return is_due and worker.process is None and not self._wants_end()

    # --- Starting and stopping ------------------------------------------------------------------

    def _start(self, worker: _Worker) -> None:
        if worker.pipe is not None:
            os.close(worker.pipe)
            worker.pipe = None
        worker.tries += 1
        worker.restart_at = None
        worker.told.clear()
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        process = os.fork()
        if process == 0:
            self._become(worker, theirs, parent)
        os.close(theirs)
        worker.process, worker.pipe = process, ours
        log.info("worker.started", worker=worker.name, process=process, starts=worker.tries)

    def _become(self, worker: _Worker, pipe: int, parent: int) -> None:
        """In the new process; never returns."""
        code = 70
        try:
            die_with(parent)
            # The terminal's interrupts are for the one that stops all in order.
            os.setpgid(0, 0)
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD):
                signal.signal(number, signal.SIG_DFL)
            for each in (*self._wakeup, *(other.pipe for other in self._workers)):
                if each is not None:
                    os.close(each)
            telemetry.name_process(worker=worker.name)

            def on_ready(info: ReadyInfo) -> None:
                os.write(pipe, msgspec.json.encode(info, enc_hook=str))
                os.close(pipe)

            code = self._work(worker.config, on_ready)
        finally:
            with suppress(OSError):
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)

    def _stop(self) -> int:
        """The first worker ends last: the others need its metadata to leave. The worst exit code.
        Who doesn't end in time, or is in somebody's way, is killed: the log is the truth."""
        codes = [0]
        for group in (self._workers[1:], self._workers[:1]):
            self._signals.clear()
            for worker in group:
                self._send(worker, signal.SIGTERM)
            wait_ms = self._workers[0].config.shutdown_timeout_ms + WORKER_STOP_MS
            ends_at = self._clock.monotonic() + wait_ms / 1000
            while left := [worker for worker in group if self._is_running(worker, codes)]:
                is_late = self._clock.monotonic() >= ends_at
                if is_late or signal.SIGTERM in self._signals or signal.SIGINT in self._signals:
                    for worker in left:
                        self._send(worker, signal.SIGKILL)
                self._wait(ends_at if not is_late else None)
        for worker in self._workers:
            if worker.pipe is not None:
                os.close(worker.pipe)
                worker.pipe = None
        return max(codes)

    @staticmethod
    def _is_running(worker: _Worker, codes: list[int]) -> bool:
        """Whether it hasn't ended; if it just has, its exit code is added."""
        if worker.process is None:
            return False
        process, status = os.waitpid(worker.process, os.WNOHANG)
        if process == 0:
            return True
        worker.process = None
        codes.append(abs(os.waitstatus_to_exitcode(status)))
        return False

    @staticmethod
    def _send(worker: _Worker, number: signal.Signals) -> None:
        if worker.process is not None:
            os.kill(worker.process, number)


def _read_path(kind: type, raw: object) -> object:
    return kind(raw)


def die_with(parent: int) -> None:
    """Have the kernel kill this process when its parent ends, in whatever way."""
    library = ctypes.CDLL(None, use_errno=True)
    if library.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        os._exit(1)  # it was too late


# --- Ports ----------------------------------------------------------------------------------------


class SharedPorts:
    """Addresses that all workers listen on. Held from the first check on: nobody else may take
    them while a worker is away."""

    def __init__(self) -> None:
        self._held: list[socket.socket] = []

    def hold(self, address: Address, key: str) -> Address:
        """Take an address; the one that it is, where any port would do.

        Raises:
            AddressInUse: somebody has it.
        """
        port = address.port
        try:
            found = socket.getaddrinfo(
                address.listen_host or None,
                port,
                type=socket.SOCK_STREAM,
                flags=socket.AI_PASSIVE,
            )
            for family, kind, protocol, _, where in found:
                # Only who doesn't want to share it learns that it is taken.
                with _bound(
                    family, kind, protocol, (str(where[0]), port), is_shared=False
                ) as probe:
                    port = probe.getsockname()[1]
                self._held.append(
                    _bound(family, kind, protocol, (str(where[0]), port), is_shared=True)
                )
        except OSError as error:
            raise AddressInUse.at(address, error, key) from error
        return Address(address.host, port)

    def close(self) -> None:
        """Let go of them."""
        for each in self._held:
            each.close()


def share_ports(config: Config, shared: SharedPorts) -> Config:
    """The configuration with the ports that are held for all workers.

    Raises:
        InvalidConfiguration: ports can't be shared here.
        AddressInUse: somebody has one.
    """
    if sys.platform != "linux":
        raise InvalidConfiguration("several workers behind one port take Linux: leave --workers")
    ingress = shared.hold(config.ingress.bind_address, "ingress.bind-address")
    admin = shared.hold(config.admin.bind_address, "admin.bind-address")
    return replace(
        config,
        ingress=replace(config.ingress, bind_address=ingress),
        admin=replace(config.admin, bind_address=admin),
    )


def _bound(
    family: int, kind: int, protocol: int, where: tuple[str, int], *, is_shared: bool
) -> socket.socket:
    found = socket.socket(family, kind, protocol)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        found.bind(where)
    except OSError:
        found.close()
        raise
    return found
