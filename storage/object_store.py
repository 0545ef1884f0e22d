"""The port of object stores: whole objects by key, conditional writes, listing by prefix.

Calls block; threads may share a store. The implementations are a bucket of S3 or a compatible
store (``storage/s3_store.py``) and a directory (here); one suite holds them and the simulated one
together (tests/storage/test_object_store.py). ``self_test`` tells whether a store keeps what
conditional writes promise: some that speak S3 ignore conditions without a word.
"""

import fcntl
import hashlib
import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from perdure.core.entropy import Entropy
from perdure.core.errors import ObjectStoreRefused, ObjectStoreUnavailable
from perdure.core.invariant import invariant
from perdure.storage.disk import OsFile, make_durable_folder, sync_path


class ConditionFailed(Exception):
    """The object is not as the write demanded; nothing was written."""


class Contended(Exception):
    """The store can't tell who is first of several writers; nothing was written: ask again."""


@dataclass(frozen=True, slots=True)
class Absent:
    """Write only if there is no object under the key."""


@dataclass(frozen=True, slots=True)
class Match:
    """Write only if the object still has this entity tag."""

    etag: str


Condition = Absent | Match
ABSENT = Absent()


@dataclass(frozen=True, slots=True)
class StoredObject:
    """An object's content, and the tag that names exactly this content."""

    content: bytes
    etag: str


@dataclass(frozen=True, slots=True)
class ListedObject:
    """An object in a listing. ``modified_ms``: by the store's own clock."""

    key: str
    size: int
    modified_ms: int


class ObjectStore(Protocol):
    """Keys are our own words with ``/`` between them, below the prefix the store was made with.

    Every call may raise ``ObjectStoreUnavailable``: of a write nobody knows then whether it was,
    or will be, carried out. ``ObjectStoreRefused``: it was not, and asking again changes nothing.
    """

    def get(self, key: str) -> StoredObject | None:
        """The object, or None; sees every write that has returned."""
        ...

    def put(self, key: str, content: bytes, condition: Condition | None = None) -> str:
        """Write an object whole, or leave it as it is; durable on return. Its new tag.

        What is larger than ``OBJECT_WHOLE_BYTES_MAX`` is written once: never with ``Match``.

        Raises:
            ConditionFailed, Contended: nothing was written.
        """
        ...

    def delete(self, key: str) -> None:
        """Remove an object; fine if there is none."""
        ...

    def list(self, prefix: str) -> Iterator[ListedObject]:
        """Objects whose keys begin with ``prefix``, by key; the latest writes may be missing."""
        ...


# --- A directory ----------------------------------------------------------------------------------

_LOCK = ".lock"
_TEMPORARY = ".writing"


class DirectoryStore:
    """A directory of this machine, or of a file system that locks across machines.

    Writers take turns (``flock``), in any number of processes; an object is replaced by renaming.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def get(self, key: str) -> StoredObject | None:
        try:
            content = self._path(key).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise self._failed(error) from error
        return StoredObject(content, _tag(content))

    def put(self, key: str, content: bytes, condition: Condition | None = None) -> str:
        path = self._path(key)
        with self._locked():
            if condition is not None:
                found = self.get(key)
                wanted = condition.etag if isinstance(condition, Match) else None
                if (found.etag if found is not None else None) != wanted:
                    raise ConditionFailed(key)
            temporary = self._root / _TEMPORARY
            file = OsFile(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            try:
                file.write([content], 0)
                file.sync_data()
            finally:
                file.close()
            make_durable_folder(path.parent)
            temporary.rename(path)
            sync_path(path.parent)
        return _tag(content)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._locked():
            path.unlink(missing_ok=True)
            for folder in path.parents:
                if folder == self._root or not folder.exists() or any(folder.iterdir()):
                    break
                folder.rmdir()

    def list(self, prefix: str) -> Iterator[ListedObject]:
        try:
            found = [
                (path.relative_to(self._root).as_posix(), path)
                for path in self._root.rglob("*")
                if not path.name.startswith(".") and path.is_file()
            ]
        except OSError as error:
            raise self._failed(error) from error
        for key, path in sorted(found):
            if key.startswith(prefix):
                try:
                    stat = path.stat()
                except FileNotFoundError:
                    continue  # removed since
                yield ListedObject(key, stat.st_size, stat.st_mtime_ns // 1_000_000)

    @contextmanager
    def _locked(self) -> Generator[None]:
        try:
            make_durable_folder(self._root.absolute())
            descriptor = os.open(self._root / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                yield
            finally:
                os.close(descriptor)
        except PermissionError as error:
            raise ObjectStoreRefused(
                f"{self._root} can't be written ({error.strerror}): give this user the right, or "
                "choose another destination"
            ) from error
        except OSError as error:
            raise self._failed(error) from error

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        invariant(
            all(part and not part.startswith(".") for part in parts), "a key of ours", key=key
        )
        return self._root.joinpath(*parts)

    def _failed(self, error: OSError) -> ObjectStoreUnavailable:
        return ObjectStoreUnavailable(f"the directory {self._root} can't be used: {error}")


def _tag(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# --- What a store promises ------------------------------------------------------------------------


def self_test(store: ObjectStore, entropy: Entropy) -> str | None:
    """Try what publishing snapshots relies on; what the store does not keep, or None.

    Raises:
        ObjectStoreUnavailable, ObjectStoreRefused: it could not be tried.
    """
    key = f"self-test/{entropy.bits(64):016x}"
    try:
        return _find_fault(store, key)
    finally:
        store.delete(key)


def _find_fault(store: ObjectStore, key: str) -> str | None:
    first = _put_insisting(store, key, b"first", ABSENT)
    if first is None:
        return "it refuses to create an object that doesn't exist"
    if _put_insisting(store, key, b"second", ABSENT) is not None:
        return "it overwrites objects although they must only be created (If-None-Match)"
    found = store.get(key)
    if found is None or (found.content, found.etag) != (b"first", first):
        return "it doesn't give back what was just written"
    second = _put_insisting(store, key, b"third", Match(first))
    if second is None:
        return "it refuses to overwrite an object that is unchanged (If-Match)"
    if _put_insisting(store, key, b"fourth", Match(first)) is not None:
        return "it overwrites objects that have changed meanwhile (If-Match)"
    found = store.get(key)
    if found is None or (found.content, found.etag) != (b"third", second):
        return "it doesn't give back what was just overwritten"
    return None


_CONTENTIONS_MAX = 5


def _put_insisting(
    store: ObjectStore, key: str, content: bytes, condition: Condition
) -> str | None:
    for _ in range(_CONTENTIONS_MAX):
        try:
            return store.put(key, content, condition)
        except ConditionFailed:
            return None
        except Contended:
            continue
    raise ObjectStoreUnavailable("the object store keeps reporting conflicts of writers")
