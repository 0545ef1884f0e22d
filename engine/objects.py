"""State of virtual objects and workflows, and a workflow's promises."""

import base64
import hashlib

from perdure.engine import notifications
from perdure.engine.commands import Complete, PatchState
from perdure.engine.turn import Turn
from perdure.storage.keys import sequence_suffix, state_suffix, text_suffix
from perdure.storage.partition_store import PartitionStore
from perdure.storage.tables.invocations import (
    CallerSink,
    Failure,
    Result,
    attacher_suffix,
    weight,
)
from perdure.storage.tables.objects import (
    Lock,
    Promise,
    StateEntry,
    WaitingMutation,
    listeners_group,
)


def state_entries(store: PartitionStore, group: bytes) -> list[StateEntry]:
    """All state of an object by ascending key."""
    entries = [entry for _, entry in store.state.scan(group)]
    # Rows of very long keys sort by their hash; the entries know their keys in full.
    entries.sort(key=lambda entry: entry.key)
    return entries


def get_state(store: PartitionStore, group: bytes, key: bytes) -> bytes | None:
    """A value; None when the key is absent (an empty value is a value)."""
    entry = store.state.get(group, state_suffix(key))
    return entry.value if entry is not None else None


def set_state(turn: Turn, group: bytes, key: bytes, value: bytes) -> None:
    """Write a value; visible to every reader from this record on."""
    turn.store.state.put(group, state_suffix(key), StateEntry(key, value), len(key) + len(value))


def clear_state(turn: Turn, group: bytes, key: bytes) -> None:
    """Remove a key."""
    turn.store.state.delete(group, state_suffix(key))


def patch_state(turn: Turn, command: PatchState) -> None:
    """An operator's replacement of all state: now, or in the object's turn when it is locked."""
    group = turn.object(command.service, command.key)
    mutation = WaitingMutation(command.version, command.entries)
    lock = turn.store.locks.get(group) if command.is_locked_by_handlers else None
    if lock is None:
        apply_mutation(turn, group, mutation)
        return
    size = sum(len(key) + len(value) for key, value in command.entries)
    turn.store.inbox.put(group, sequence_suffix(lock.tail), mutation, size)
    turn.store.locks.put(group, Lock(lock.holder, lock.acquired_at_ms, lock.head, lock.tail + 1))


def apply_mutation(turn: Turn, group: bytes, mutation: WaitingMutation) -> None:
    """Replace the state, unless it is no longer at the version the operator saw."""
    if mutation.version is not None:
        known = state_version([(e.key, e.value) for e in state_entries(turn.store, group)])
        if known != mutation.version:
            return
    turn.store.state.clear(group)
    for key, value in mutation.entries:
        set_state(turn, group, key, value)


def state_version(entries: list[tuple[bytes, bytes]]) -> str:
    """The version of a whole state, as operators' tools compute it (admin API, state edit)."""
    digest = hashlib.sha256()
    for index, (key, value) in enumerate(sorted(entries)):
        digest.update(index.to_bytes(8) + b"\x01" + key + b"\x02" + value + b"\x03")
    return base64.urlsafe_b64encode(digest.digest()).decode().rstrip("=")


def get_promise(turn: Turn, group: bytes, name: str, sink: CallerSink) -> Result | None:
    """The promise's result; None: ``sink`` will be told."""
    suffix = text_suffix(name)
    promise = turn.store.promises.get(group, suffix)
    if promise is None:
        turn.store.promises.put(group, suffix, Promise(name, None))
    elif promise.result is not None:
        return promise.result
    listener = attacher_suffix(sink.caller, sink.completion_id)
    turn.store.listeners.put(listeners_group(group, suffix), listener, sink)
    return None


def peek_promise(store: PartitionStore, group: bytes, name: str) -> Result | None:
    """The promise's result, if it has one."""
    promise = store.promises.get(group, text_suffix(name))
    return promise.result if promise is not None else None


def complete_promise(turn: Turn, group: bytes, name: str, result: Result) -> bool:
    """Set the promise's result and tell who waits; False when it has one already."""
    suffix = text_suffix(name)
    promise = turn.store.promises.get(group, suffix)
    if promise is not None and promise.result is not None:
        return False
    turn.store.promises.put(group, suffix, Promise(name, result), weight(result))
    if promise is not None:
        listeners = listeners_group(group, suffix)
        for _, sink in turn.store.listeners.scan(listeners):
            payload = notifications.result(sink.completion_id, result)
            turn.send(sink.caller, Complete(sink, payload, isinstance(result, Failure)))
        turn.store.listeners.clear(listeners)
    return True


def drop_promises(store: PartitionStore, group: bytes) -> None:
    """Forget a workflow's promises, and who waits for those that have no result."""
    for suffix, promise in store.promises.scan(group):
        if promise.result is None:
            store.listeners.clear(listeners_group(group, suffix))
    store.promises.clear(group)
