"""A simulated object store: answers get lost, writes land late, listings lag, bytes rot.

``SimBucket`` keeps the objects; it survives every life of those who use it. ``SimObjectStore`` is
one user's way to it, with that user's share of bad luck. Both are held to the suite of the real
stores (tests/storage/test_object_store.py) as long as luck holds.
"""

import hashlib
import random
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from perdure.core.errors import ObjectStoreUnavailable
from perdure.storage.object_store import (
    Absent,
    Condition,
    ConditionFailed,
    Contended,
    ListedObject,
    StoredObject,
)

_HISTORY = 8


@dataclass(frozen=True, kw_only=True)
class BucketFaults:
    """Chances per call. ``late``: the caller gives up, and the write is carried out afterwards."""

    lost_request: float = 0.0
    lost_response: float = 0.0
    late: float = 0.0
    contended: float = 0.0
    damaged: float = 0.0
    stale_listing: float = 0.0

    @staticmethod
    def draw(dice: random.Random) -> "BucketFaults":
        def chance() -> float:
            return dice.choice((0.0, 0.05, 0.3)) if dice.random() < 0.5 else 0.0

        return BucketFaults(
            lost_request=chance(),
            lost_response=chance(),
            late=chance(),
            contended=chance(),
            stale_listing=chance(),
        )


@dataclass
class SimBucket:
    """Objects by key, with the time of their last write. ``on_change`` sees every write."""

    ignores_conditions: bool = False
    now_ms: Callable[[], int] = lambda: 0
    on_change: Callable[[str], None] = lambda _key: None
    objects: dict[str, tuple[bytes, int]] = field(default_factory=dict[str, tuple[bytes, int]])
    waiting: list[Callable[[], None]] = field(default_factory=list[Callable[[], None]])
    history: deque[dict[str, tuple[bytes, int]]] = field(
        default_factory=lambda: deque[dict[str, tuple[bytes, int]]](maxlen=_HISTORY)
    )

    def put(self, key: str, content: bytes, condition: Condition | None) -> str:
        if condition is not None and not self.ignores_conditions:
            found = self.objects.get(key)
            wanted = None if isinstance(condition, Absent) else condition.etag
            if (tag(found[0]) if found is not None else None) != wanted:
                raise ConditionFailed(key)
        self._change(key, content)
        return tag(content)

    def delete(self, key: str) -> None:
        if key in self.objects:
            self._change(key, None)

    def _change(self, key: str, content: bytes | None) -> None:
        self.history.append(dict(self.objects))
        if content is None:
            del self.objects[key]
        else:
            self.objects[key] = (content, self.now_ms())
        self.on_change(key)

    def flip(self, key: str, offset: int) -> None:
        """Bits rot where they lie."""
        content, modified_ms = self.objects[key]
        rotten = bytearray(content)
        rotten[offset] ^= 1
        self.objects[key] = (bytes(rotten), modified_ms)


class SimObjectStore:
    """Implements ``storage.object_store.ObjectStore``."""

    def __init__(
        self, bucket: SimBucket, dice: random.Random, faults: BucketFaults | None = None
    ) -> None:
        self.bucket = bucket
        self.faults = faults or BucketFaults()
        self._dice = dice

    def get(self, key: str) -> StoredObject | None:
        self._begin(self.faults.lost_request)
        found = self.bucket.objects.get(key)
        if found is None:
            return None
        content = found[0]
        if content and self._strikes(self.faults.damaged):
            rotten = bytearray(content)
            rotten[self._dice.randrange(len(rotten))] ^= 1
            content = bytes(rotten)
        return StoredObject(content, tag(found[0]))

    def put(self, key: str, content: bytes, condition: Condition | None = None) -> str:
        self._begin(self.faults.lost_request)
        if condition is not None and self._strikes(self.faults.contended):
            raise Contended(key)
        if self._strikes(self.faults.late):
            self.bucket.waiting.append(lambda: _attempt(self.bucket, key, content, condition))
            raise ObjectStoreUnavailable("simulated: no answer yet")
        etag = self.bucket.put(key, content, condition)
        if self._strikes(self.faults.lost_response):
            raise ObjectStoreUnavailable("simulated: the answer was lost")
        return etag

    def delete(self, key: str) -> None:
        self._begin(self.faults.lost_request)
        self.bucket.delete(key)
        if self._strikes(self.faults.lost_response):
            raise ObjectStoreUnavailable("simulated: the answer was lost")

    def list(self, prefix: str) -> Iterator[ListedObject]:
        self._begin(self.faults.lost_request)
        seen = self.bucket.objects
        if self.bucket.history and self._strikes(self.faults.stale_listing):
            seen = self._dice.choice(list(self.bucket.history))
        for key, (content, modified_ms) in sorted(seen.items()):
            if key.startswith(prefix):
                yield ListedObject(key, len(content), modified_ms)

    def _begin(self, lost: float) -> None:
        waiting = self.bucket.waiting
        while waiting and self._dice.random() < 0.3:
            waiting.pop(self._dice.randrange(len(waiting)))()
        if self._strikes(lost):
            raise ObjectStoreUnavailable("simulated: the request was lost")

    def _strikes(self, chance: float) -> bool:
        return chance > 0 and self._dice.random() < chance


def tag(content: bytes) -> str:
    """What names a content."""
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def _attempt(bucket: SimBucket, key: str, content: bytes, condition: Condition | None) -> None:
    try:
        bucket.put(key, content, condition)
    except ConditionFailed:
        return
