"""Looks at every write to a simulated bucket: what must hold there, whoever writes.

Nothing that ``latest.json`` or a set names may be missing, and a set is of one moment: what one
partition has received, another has sent, and what it has not yet received is still in the other's
outbox.
"""

import random

import msgspec
from tests.sim.disk import SimDisk
from tests.sim.node_world import PARTITIONS, Violation
from tests.sim.object_store import SimBucket, SimObjectStore
from tests.sim.ports import SimEnv, SimTables
from tests.sim.table_images import rows_of

from perdure.storage import snapshots
from perdure.storage.keys import split_outbox_key
from perdure.storage.partition_store import PartitionStore
from perdure.storage.snapshot_format import (
    SETS_PREFIX,
    Latest,
    SnapshotSet,
    decode,
    latest_key,
    parse_snapshot_key,
)
from perdure.storage.tables.timers import inbound_counter, outbox_counter


class BucketWatch:
    """Of one bucket. ``sets``: all that there ever were, by name."""

    def __init__(self, bucket: SimBucket) -> None:
        self.sets: set[str] = set()
        self._bucket = bucket
        self._store = SimObjectStore(bucket, random.Random(1))
        self._named: dict[str, set[str]] = {}
        self._broken: Exception | None = None
        bucket.on_change = self._check_bucket

    def raise_found(self) -> None:
        """The first thing that was found, if any."""
        if self._broken is not None:
            raise self._broken

    def kept(self) -> list[SnapshotSet]:
        """The sets that are there now, the newest first."""
        keys = sorted(key for key in self._bucket.objects if key.startswith(SETS_PREFIX))
        return [decode(self._bucket.objects[key][0], SnapshotSet, key) for key in reversed(keys)]

    def newest_lsn(self, partition: int) -> int:
        """What the newest snapshot of a partition that counts has; 0: there is none."""
        found = self._bucket.objects.get(latest_key(partition))
        return decode(found[0], Latest, "").newest_lsn if found is not None else 0

    def open(self, document: SnapshotSet, partition: int) -> PartitionStore:
        """A partition's tables as a set has them."""
        member = document.members[partition]
        manifest = snapshots.read_manifest(
            self._store, partition, member.snapshot, document.fingerprint
        )
        tables = SimTables(SimDisk(random.Random(1)))
        tables.committed = rows_of(b"".join(snapshots.get_image(self._store, manifest)))
        store = PartitionStore(SimEnv(tables), b"", partition)
        if store.applied_lsn != member.snapshot.lsn:
            raise Violation(f"{document.name}: partition {partition} is at another LSN")
        return store

    def _check_bucket(self, key: str) -> None:
        try:
            self._check_object(key)
        except Exception as error:  # the snapshotter would take it for trouble with the store
            self._broken = self._broken or error

    def _check_object(self, key: str) -> None:
        is_there = key in self._bucket.objects
        if key.endswith("/latest.json"):
            self._check_latest(key)
        elif key.startswith(SETS_PREFIX) and is_there:
            self._check_set(decode(self._bucket.objects[key][0], SnapshotSet, key))
        elif (found := parse_snapshot_key(key)) is not None and not is_there:
            for name, ids in self._named.items():
                if found[1] in ids:
                    raise Violation(f"{key} was deleted, and {name} names it")
        if key.startswith(SETS_PREFIX) and not is_there:
            self._named.pop(key, None)

    def _check_latest(self, key: str) -> None:
        partition = int(key.split("/")[1])
        fingerprint = msgspec.json.decode(self._bucket.objects[key][0])["fingerprint"]
        latest = snapshots.read_latest(self._store, partition, fingerprint)
        assert latest is not None
        for retained in latest.retained:
            manifest = snapshots.read_manifest(self._store, partition, retained, fingerprint)
            for _ in snapshots.get_image(self._store, manifest):
                pass
        self._named[key] = {item.id for item in latest.retained}

    def _check_set(self, document: SnapshotSet) -> None:
        self._named[f"{SETS_PREFIX}{document.name}.json"] = {
            member.snapshot.id for member in document.members
        }
        self.sets.add(document.name)
        stores = [self.open(document, partition) for partition in range(PARTITIONS)]
        for source, sender in enumerate(stores):
            rows = sender.outbox.scan(b"", 100_000)
            for target, receiver in enumerate(stores):
                sent = sender.sequences.get(outbox_counter(target)) or 0
                received = receiver.sequences.get(inbound_counter(source)) or 0
                waiting = {
                    sequence
                    for to, sequence in (split_outbox_key(key) for key, _ in rows)
                    if to == target
                }
                if received > sent or not set(range(received + 1, sent + 1)) <= waiting:
                    raise Violation(
                        f"{document.name}: {source} sent {sent} to {target}, which received "
                        f"{received}; on the way are {sorted(waiting)}"
                    )
