"""One application of one record: the tables, the time, and what is to be done afterwards.

Messages to other invocations leave through ``send``: to this partition they are applied within the
same record, after the command at hand; to another one they go through the outbox.
"""

from perdure.core.ids import InvocationId, PartitionId, partition_key_of, partition_of
from perdure.engine.actions import Action, SendMessage, SetTimer
from perdure.engine.commands import Attach, Complete, Invoke, Kill, Signal, encode_command
from perdure.storage.keys import is_hashed_group, object_group, outbox_key, timer_key
from perdure.storage.partition_store import PartitionStore, Rows
from perdure.storage.tables.objects import ObjectNames
from perdure.storage.tables.timers import Outgoing, TimerKind, outbox_counter

TIME_MS_MAX = 0xFFFF_FFFF_FFFF_FFFF
"""Never: what lies behind the last moment that a timer's key can name."""

Message = Invoke | Signal | Complete | Attach | Kill


class Turn:
    """``now_ms`` is the record's time. Lives for one record."""

    __slots__ = ("actions", "local", "lsn", "now_ms", "partition", "partition_count", "store")

    def __init__(
        self,
        store: PartitionStore,
        partition: PartitionId,
        partition_count: int,
        lsn: int,
        now_ms: int,
    ) -> None:
        self.store = store
        self.partition = partition
        self.partition_count = partition_count
        self.lsn = lsn
        self.now_ms = now_ms
        self.actions: list[Action] = []
        self.local: list[Message] = []

    def send(self, target: InvocationId, message: Message) -> None:
        """Deliver ``message`` to the partition of ``target``."""
        key = partition_key_of(target)
        partition = partition_of(key, self.partition_count)
        if partition == self.partition:
            self.local.append(message)
            return
        counter = outbox_counter(partition)
        sequence = (self.store.sequences.get(counter) or 0) + 1
        payload = encode_command(message)
        self.store.sequences.put(counter, sequence)
        self.store.outbox.put(outbox_key(partition, sequence), Outgoing(key, payload), len(payload))
        self.actions.append(SendMessage(partition, sequence))

    def set_timer(
        self, fire_at_ms: int, kind: TimerKind, target: InvocationId, lsn: int, number: int = 0
    ) -> None:
        """Store a timer for the invocation accepted at ``lsn``."""
        key = timer_key(min(fire_at_ms, TIME_MS_MAX), kind, target, number)
        timers_of(self.store, kind).put(key, lsn)
        self.actions.append(SetTimer(key))

    def object(self, service: str, key: str) -> bytes:
        """The group of an object's rows; remembers the names of one that loses them."""
        group = object_group(service, key)
        if is_hashed_group(group) and self.store.names.get(group) is None:
            self.store.names.put(group, ObjectNames(service, key), len(service) + len(key))
        return group


def timers_of(store: PartitionStore, kind: TimerKind) -> Rows[int]:
    """The table that timers of this kind are in."""
    return store.expiries if kind.is_expiry else store.timers
