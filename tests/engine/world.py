"""A cluster's engines in memory: commands in, outcomes out, tables and actions to look at.

``World`` applies commands partition by partition and keeps the log, so that every test can end by
replaying it: ``check`` demands that tables rebuilt from the log are the same byte for byte.
"""

from dataclasses import dataclass, field

from google.protobuf import text_format
from tests.engine.entries import DAY_MS, SERVICE
from tests.engine.memory_env import MemoryEnv

from perdure.core.ids import InvocationId, PartitionId, partition_key_of, partition_of
from perdure.engine.actions import (
    Accepted,
    Action,
    Existing,
    InvocationEnded,
    MessageApplied,
    NoOutput,
    Outcome,
    Recorded,
    SendMessage,
    Stale,
    StartAttempt,
    Verdict,
)
from perdure.engine.apply import Machine, Origin
from perdure.engine.commands import (
    Cancel,
    Command,
    Effect,
    Effects,
    End,
    Fail,
    FireTimers,
    Invoke,
    Kill,
    Pause,
    Purge,
    PurgeJournal,
    Resume,
    Signal,
    Suspend,
    TrimOutbox,
    Yield,
    decode_command,
    encode_command,
)
from perdure.engine.invoke import expires_at_ms
from perdure.engine.notifications import input_entry
from perdure.proto import service_pb2 as pb
from perdure.proto.frames import MessageType
from perdure.storage.keys import index_suffix, outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.futures import Combinator, Future
from perdure.storage.tables.invocations import (
    STATUS_OF,
    Completed,
    Failure,
    Invocation,
    Invoked,
    Paused,
    Pin,
    Result,
    Source,
    SourceKind,
    Status,
    Suspended,
    Target,
    split_status_key,
    status_key,
    target_key,
)
from perdure.storage.tables.journal import Entry

FINGERPRINT = b"f" * 16
PIN = Pin("dp_15mdtU1BEGtqYqnNyeRqqEF", 7)
FIRST_MS = 1_700_000_000_000


@dataclass(frozen=True, slots=True)
class Logged:
    """A record: what it takes to apply it again."""

    now_ms: int
    payload: bytes
    origin: Origin | None


class Partition:
    """One engine over its store, and the log that made it."""

    def __init__(self, number: int, count: int, env: MemoryEnv | None = None) -> None:
        self.number = number
        self.count = count
        self.env = env if env is not None else MemoryEnv()
        self.store = PartitionStore(self.env, FINGERPRINT, number)
        self.machine = Machine(self.store, PartitionId(number), count)
        self.log: list[Logged] = []
        self.actions: list[Action] = []

    def apply(self, record: Logged) -> Outcome:
        self.log.append(record)
        lsn = self.store.applied_lsn + 1
        command = decode_command(record.payload)
        outcome, actions = self.machine.apply(lsn, 1, record.now_ms, command, record.origin)
        self.actions.extend(actions)
        return outcome

    def flush(self) -> None:
        flush = self.store.freeze()
        flush.run()
        self.store.finish(flush)

    def tables(self) -> dict[bytes, bytes]:
        """All rows as they stand on disk after a flush."""
        self.flush()
        return self.env.content()


def rebuilt(original: Partition, *, flush_every: int = 0) -> Partition:
    """The partition made again from its log, flushing on the way."""
    twin = Partition(original.number, original.count)
    for position, record in enumerate(original.log, 1):
        twin.apply(record)
        if flush_every and position % flush_every == 0:
            twin.flush()
    return twin


def invoked(world: "World", partition: int = 0) -> list[tuple[InvocationId, int]]:
    """What a new leader of the partition would run, and under which sessions."""
    rows = world.partitions[partition].store.of_statuses(Status.INVOKED, Status.INVOKED, b"", 100)
    return [(split_status_key(key)[2], session) for key, session in rows]


@dataclass
class World:
    """``partition_count`` partitions on one clock."""

    partition_count: int = 1
    now_ms: int = FIRST_MS
    serial: int = 0
    partitions: list[Partition] = field(default_factory=list[Partition])

    def __post_init__(self) -> None:
        count = self.partition_count
        self.partitions = [Partition(number, count) for number in range(count)]

    # --- The log ------------------------------------------------------------------------------

    def of(self, invocation: InvocationId) -> Partition:
        return self.partitions[partition_of(partition_key_of(invocation), self.partition_count)]

    def propose(self, command: Command, at: Partition, origin: Origin | None = None) -> Outcome:
        return at.apply(Logged(self.now_ms, encode_command(command), origin))

    def shuffle(self) -> int:
        """Carry all outboxes until they are empty; how many messages arrived."""
        carried = 0
        moved = True
        while moved:
            moved = False
            for source in self.partitions:
                for key, message in source.store.outbox.scan(b"", 1000):
                    target, sequence = int.from_bytes(key[:4]), int.from_bytes(key[4:])
                    self.propose(
                        decode_command(message.payload),
                        self.partitions[target],
                        Origin(source.number, sequence),
                    )
                    self.propose(TrimOutbox(target, sequence), source)
                    carried += 1
                    moved = True
        return carried

    def advance(self, duration_ms: int) -> int:
        """Let time pass and fire what is due; how many timers fired."""
        self.now_ms += duration_ms
        fired = 0
        for partition in self.partitions:
            while True:
                tables = partition.store.timers, partition.store.expiries
                keys = [key for table in tables for key, _ in table.scan(b"", 100)]
                due = [key for key in keys if int.from_bytes(key[:8]) <= self.now_ms]
                if not due:
                    break
                self.propose(FireTimers(due), partition)
                fired += len(due)
        self.shuffle()
        return fired

    # --- What clients, services and operators do ------------------------------------------------

    def new_id(self, partition: int = 0) -> InvocationId:
        """A fresh id of a partition."""
        self.serial += 1
        width = (1 << 64) // self.partition_count
        return InvocationId((width * partition + 7).to_bytes(8) + self.serial.to_bytes(16))

    def invoke(
        self,
        target: Target = SERVICE,
        *,
        id: InvocationId | None = None,
        body: bytes = b"",
        execute_at_ms: int = 0,
        idempotency_key: str | None = None,
        retention: tuple[int, int] = (DAY_MS, DAY_MS),
    ) -> InvocationId:
        """A client's call; its id."""
        chosen = id if id is not None else self.new_id()
        self.submit(
            target,
            chosen,
            body=body,
            execute_at_ms=execute_at_ms,
            idempotency_key=idempotency_key,
            retention=retention,
        )
        return chosen

    def submit(
        self,
        target: Target,
        id: InvocationId,
        *,
        body: bytes = b"",
        execute_at_ms: int = 0,
        idempotency_key: str | None = None,
        retention: tuple[int, int] = (DAY_MS, DAY_MS),
        request: int = 0,
    ) -> Accepted | Existing:
        """A client's call; what the client is told."""
        source = Source(SourceKind.INGRESS, request=request)
        entry = input_entry([], body)
        command = Invoke(
            id, target, source, None, execute_at_ms, idempotency_key, *retention, entry
        )
        outcome = self.propose(command, self.of(id))
        assert isinstance(outcome, Accepted | Existing)
        return outcome

    def effects(
        self, id: InvocationId, *effects: Effect, session: int | None = None, pin: Pin = PIN
    ) -> Recorded | Stale | NoOutput:
        """The service's attempt did this; messages to other partitions arrive at once."""
        chosen = self.session(id) if session is None else session
        outcome = self.propose(Effects(id, chosen, pin, list(effects)), self.of(id))
        assert isinstance(outcome, Recorded | Stale | NoOutput)
        self.shuffle()
        return outcome

    def end(self, id: InvocationId, *effects: Effect) -> Recorded | Stale | NoOutput:
        return self.effects(id, *effects, End())

    def fail(self, id: InvocationId, code: int, text: str) -> Recorded | Stale | NoOutput:
        return self.effects(id, Fail(Failure(code, text)))

    def suspend(
        self, id: InvocationId, *waits: int | str, delivered: int = 0
    ) -> Recorded | Stale | NoOutput:
        """Wait for any of completion ids (numbers), signals ("#17") and names."""
        return self.suspend_on(id, any_of(*waits), delivered=delivered)

    def suspend_on(
        self, id: InvocationId, awaiting: Future, *, delivered: int = 0
    ) -> Recorded | Stale | NoOutput:
        return self.effects(id, Suspend(awaiting, delivered))

    def signal(self, id: InvocationId, index: int, value: bytes = b"") -> None:
        message = pb.NotificationMessage(signal_idx=index, value=pb.Value(content=value))
        self.propose(Signal(id, index, "", message.SerializeToString(), False), self.of(id))
        self.shuffle()

    def signal_by_name(self, id: InvocationId, name: str, value: bytes = b"") -> None:
        message = pb.NotificationMessage(signal_name=name, value=pb.Value(content=value))
        self.propose(Signal(id, None, name, message.SerializeToString(), False), self.of(id))
        self.shuffle()

    def operate(
        self,
        kind: type[Cancel | Kill | Purge | PurgeJournal | Pause | Resume],
        id: InvocationId,
    ) -> Verdict:
        """An operator's request."""
        outcome = self.propose(kind(id), self.of(id))
        assert isinstance(outcome, Verdict)
        self.shuffle()
        return outcome

    def pause(self, id: InvocationId) -> Verdict:
        """An operator's pause of an invocation whose attempt ends at once."""
        verdict = self.operate(Pause, id)
        if isinstance(self.row(id), Invoked):
            self.effects(id, Yield())
        return verdict

    # --- What there is to see ---------------------------------------------------------------------

    def row(self, id: InvocationId) -> Invocation | None:
        return self.of(id).store.invocations.get(id)

    def status(self, id: InvocationId) -> str:
        row = self.row(id)
        return "free" if row is None else type(row).__name__.lower()

    def started(self, id: InvocationId) -> Invoked | Suspended | Paused:
        row = self.row(id)
        assert isinstance(row, Invoked | Suspended | Paused), row
        return row

    def session(self, id: InvocationId) -> int:
        row = self.row(id)
        assert isinstance(row, Invoked), self.status(id)
        return row.session

    def result(self, id: InvocationId) -> Result | None:
        return self.of(id).store.results.get(id)

    def journal(self, id: InvocationId) -> list[str]:
        """The entries, e.g. ``Sleep(1)`` or ``SleepCompletion(1)``."""
        return [describe(entry.type, entry.payload) for _, entry in self.entries(id)]

    def entries(self, id: InvocationId) -> list[tuple[bytes, Entry]]:
        return self.of(id).store.journal.scan(id)

    def notification(self, id: InvocationId, index: int) -> pb.NotificationMessage:
        """The decoded notification at a journal index."""
        entry = self.of(id).store.journal.get(id, index_suffix(index))
        assert entry is not None
        return pb.NotificationMessage.FromString(entry.payload)

    def last(self, id: InvocationId) -> str:
        """The last notification's result in words."""
        _, entry = self.entries(id)[-1]
        return result_text(pb.NotificationMessage.FromString(entry.payload))

    def take_actions(self, partition: int = 0) -> list[Action]:
        """The actions since the last look, but for timers and mail."""
        found, self.partitions[partition].actions = self.partitions[partition].actions, []
        return [item for item in found if not isinstance(item, SendMessage | MessageApplied)]

    def runs(self, partition: int = 0) -> list[InvocationId]:
        """Which invocations were started since the last look."""
        return [a.id for a in self.take_actions(partition) if isinstance(a, StartAttempt)]

    def answers(self, partition: int = 0) -> dict[InvocationId, Result]:
        """What clients were answered since the last look."""
        actions = self.take_actions(partition)
        return {a.id: a.result for a in actions if isinstance(a, InvocationEnded)}

    def expires_at_ms(self, id: InvocationId) -> int:
        row = self.row(id)
        assert isinstance(row, Completed)
        return expires_at_ms(row)

    def check(self) -> None:
        """Tables are a function of the log: rebuilt in two ways they are the same bytes; and the
        tables of statuses and targets say of each invocation what its row says."""
        for partition in self.partitions:
            check_indexes(partition.store)
            tables = partition.tables()
            assert rebuilt(partition).tables() == tables
            assert rebuilt(partition, flush_every=3).tables() == tables


def check_indexes(store: PartitionStore) -> None:
    """One row for each invocation in each, and no other."""
    statuses: dict[bytes, int] = {}
    targets: dict[bytes, int] = {}
    for key, row in store.invocations.scan(b"", 100_000):
        created_at_ms, id = row.spec.created_at_ms, InvocationId(key)
        status = status_key(STATUS_OF[type(row)], created_at_ms, id)
        statuses[status] = row.session if isinstance(row, Invoked) else 0
        targets[target_key(row.spec.target, created_at_ms, id)] = 0
    assert dict(store.statuses.scan(b"", 100_000)) == statuses
    assert dict(store.targets.scan(b"", 100_000)) == targets


def any_of(*waits: int | str) -> Future:
    """The flat list of protocol versions 5 and 6."""
    return tree(Combinator.UNKNOWN, *waits)


def tree(combinator: int, *waits: "int | str | Future") -> Future:
    """A node over completion ids, "#signal" indices, names and nested nodes."""
    completions = tuple(item for item in waits if isinstance(item, int))
    texts = [item for item in waits if isinstance(item, str)]
    signals = tuple(int(item[1:]) for item in texts if item.startswith("#"))
    names = tuple(item for item in texts if not item.startswith("#"))
    nested = tuple(item for item in waits if isinstance(item, Future))
    return Future(int(combinator), completions, signals, names, nested)


def describe(type_code: int, payload: bytes) -> str:
    """An entry in short: its type, and which completion it declares or is."""
    kind = MessageType(type_code)
    name = "".join(word.capitalize() for word in kind.name.removesuffix("_COMMAND").split("_"))
    if kind >= MessageType.GET_LAZY_STATE_COMPLETION:
        message = pb.NotificationMessage.FromString(payload)
        match message.WhichOneof("id"):
            case "signal_idx":
                return f"Signal(#{message.signal_idx})"
            case "signal_name":
                return f"Signal({message.signal_name})"
            case _:
                return f"{name}({message.completion_id})"
    probe = pb.CallCommandMessage()
    if kind is MessageType.CALL_COMMAND:
        probe = pb.CallCommandMessage.FromString(payload)
    elif kind is not MessageType.CLEAR_ALL_STATE_COMMAND:
        run = pb.RunCommandMessage.FromString(payload)
        probe.result_completion_id = run.result_completion_id
    number = probe.result_completion_id
    return f"{name}({number})" if number else name


def result_text(message: pb.NotificationMessage) -> str:
    match message.WhichOneof("result"):
        case "void":
            return "void"
        case "value":
            return f"value {message.value.content.decode()}".rstrip()
        case "failure":
            return f"failure {message.failure.code} {message.failure.message}"
        case "invocation_id":
            return f"id {message.invocation_id}"
        case "state_keys":
            return f"keys {[key.decode() for key in message.state_keys.keys]}"
        case _:
            raise AssertionError(text_format.MessageToString(message))


def outgoing_count(partition: Partition) -> int:
    return len(partition.store.outbox.scan(outbox_key(0, 0), 10_000))
