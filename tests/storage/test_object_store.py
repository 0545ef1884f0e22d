"""The port of object stores: one suite over S3, a directory, and the simulated store."""

import multiprocessing
import random
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tests.sim.object_store import BucketFaults, SimBucket, SimObjectStore
from tests.sim.ports import SimEntropy
from tests.storage.bucket import CREDENTIALS, make_bucket, moto_server

from perdure.core.errors import ObjectStoreRefused, ObjectStoreUnavailable
from perdure.core.limits_snapshots import OBJECT_WHOLE_BYTES_MAX
from perdure.storage.object_store import (
    ABSENT,
    ConditionFailed,
    Contended,
    DirectoryStore,
    Match,
    ObjectStore,
    self_test,
)
from perdure.storage.s3_store import S3Options, S3Store


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with moto_server() as url:
        yield url


Maker = Callable[[], ObjectStore]


@pytest.fixture(params=["s3", "directory", "simulated"])
def maker(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Maker:
    """Makes handles on the same objects."""
    if request.param == "s3":
        for name, value in CREDENTIALS.items():
            monkeypatch.setenv(name, value)
        options = make_bucket(request.getfixturevalue("server"))
        return lambda: S3Store(options)
    if request.param == "directory":
        return lambda: DirectoryStore(tmp_path / "objects")
    bucket = SimBucket()
    return lambda: SimObjectStore(bucket, random.Random(1))


def test_what_was_put_is_read_back_by_everybody(maker: Maker) -> None:
    store, other = maker(), maker()
    assert store.get("a/b") is None
    etag = store.put("a/b", b"one")
    found = other.get("a/b")
    assert found is not None
    assert (found.content, found.etag) == (b"one", etag)
    assert other.put("a/b", b"two") != etag
    found = store.get("a/b")
    assert found is not None
    assert found.content == b"two"
    assert store.put("empty", b"")
    found = other.get("empty")
    assert found is not None
    assert found.content == b""


def test_only_the_first_creates(maker: Maker) -> None:
    store = maker()
    etag = store.put("k", b"first", ABSENT)
    with pytest.raises(ConditionFailed):
        maker().put("k", b"second", ABSENT)
    found = store.get("k")
    assert found is not None
    assert (found.content, found.etag) == (b"first", etag)
    store.delete("k")
    assert store.put("k", b"third", ABSENT)


@pytest.mark.slow
def test_a_changed_object_is_not_overwritten(maker: Maker) -> None:
    store = maker()
    with pytest.raises(ConditionFailed):
        store.put("k", b"x", Match('"0123456789abcdef0123456789abcdef"'))
    first = store.put("k", b"1")
    second = store.put("k", b"2", Match(first))
    with pytest.raises(ConditionFailed):
        store.put("k", b"3", Match(first))
    assert store.put("k", b"4", Match(second))
    found = store.get("k")
    assert found is not None
    assert found.content == b"4"


def test_deleting_is_idempotent(maker: Maker) -> None:
    store = maker()
    store.put("p/0/a", b"1")
    store.put("p/0/b", b"1")
    for _ in range(2):
        store.delete("p/0/a")
    store.delete("never/there")
    assert store.get("p/0/a") is None
    assert [item.key for item in store.list("")] == ["p/0/b"]
    store.delete("p/0/b")
    assert list(store.list("")) == []


def test_listing_is_by_prefix_and_ascending(maker: Maker) -> None:
    store = maker()
    assert list(store.list("")) == []
    for key in ("p/10/x", "p/1/x", "p/1/y", "q", "p/1x"):
        store.put(key, key.encode())
    assert [item.key for item in store.list("p/1")] == ["p/1/x", "p/1/y", "p/10/x", "p/1x"]
    assert [item.key for item in store.list("p/1/")] == ["p/1/x", "p/1/y"]
    assert [(item.key, item.size) for item in store.list("q")] == [("q", 1)]
    assert list(store.list("nothing")) == []


def test_listing_has_the_times_of_writes(maker: Maker) -> None:
    store = maker()
    store.put("a", b"1")
    store.put("b", b"1")
    times = [item.modified_ms for item in store.list("")]
    assert len(times) == 2
    assert all(abs(time - times[0]) < 60_000 for time in times)


@pytest.mark.slow
def test_large_objects_keep_every_byte_and_every_condition(maker: Maker) -> None:
    store = maker()
    large = random.Random(1).randbytes(OBJECT_WHOLE_BYTES_MAX + 4321)
    etag = store.put("large", large, ABSENT)
    found = store.get("large")
    assert found is not None
    assert found.content == large
    assert found.etag == etag
    with pytest.raises(ConditionFailed):
        store.put("large", large[1:], ABSENT)
    store.put("large", large[1:])
    found = store.get("large")
    assert found is not None
    assert found.content == large[1:]


@pytest.mark.slow
def test_one_of_many_writers_at_once_wins(maker: Maker) -> None:
    stores = [maker() for _ in range(6)]
    won: list[int] = []
    start = threading.Barrier(len(stores))

    def write(number: int, store: ObjectStore) -> None:
        start.wait()
        try:
            store.put("k", b"%d" % number, ABSENT)
            won.append(number)
        except (ConditionFailed, Contended):
            return

    threads = [
        threading.Thread(target=write, args=(number, store)) for number, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    found = stores[0].get("k")
    assert found is not None
    assert found.content == b"%d" % won[0]


@pytest.mark.slow
def test_stores_keep_their_promises(maker: Maker) -> None:
    store = maker()
    assert self_test(store, SimEntropy(random.Random(1))) is None
    assert list(store.list("")) == []


def test_a_store_that_ignores_conditions_is_found_out() -> None:
    bucket = SimBucket(ignores_conditions=True)
    fault = self_test(SimObjectStore(bucket, random.Random(1)), SimEntropy(random.Random(1)))
    assert fault is not None
    assert "If-None-Match" in fault
    assert bucket.objects == {}


def test_a_lost_answer_doesnt_make_a_store_bad() -> None:
    store = SimObjectStore(SimBucket(), random.Random(1), BucketFaults(lost_response=1.0))
    with pytest.raises(ObjectStoreUnavailable):
        self_test(store, SimEntropy(random.Random(1)))


def _add(root: Path, count: int) -> None:
    store = DirectoryStore(root)
    for _ in range(count):
        while True:
            found = store.get("counter")
            try:
                if found is None:
                    store.put("counter", b"1", ABSENT)
                else:
                    store.put("counter", b"%d" % (int(found.content) + 1), Match(found.etag))
                break
            except ConditionFailed:
                continue


@pytest.mark.slow
def test_processes_count_in_a_directory_without_losing_any(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_add, args=(tmp_path, 40)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    found = DirectoryStore(tmp_path).get("counter")
    assert found is not None
    assert found.content == b"120"


def test_a_directory_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ObjectStoreUnavailable, match="file"):
        DirectoryStore(tmp_path / "file").put("k", b"")


def test_a_writer_that_died_leaves_nothing_that_counts(tmp_path: Path) -> None:
    (tmp_path / ".writing").write_bytes(b"half of")
    store = DirectoryStore(tmp_path)
    assert list(store.list("")) == []
    store.put("k", b"whole", ABSENT)
    assert [item.key for item in store.list("")] == ["k"]


def test_a_bucket_that_isnt_there_is_refused(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = S3Store(S3Options(bucket="nowhere", endpoint_url=server, is_path_style=True))
    with pytest.raises(ObjectStoreRefused, match="nowhere"):
        store.put("k", b"")
    with pytest.raises(ObjectStoreRefused, match="nowhere"):
        store.get("k")


def test_missing_credentials_are_told(server: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    store = S3Store(S3Options(bucket="b", endpoint_url=server, is_path_style=True))
    with pytest.raises(ObjectStoreRefused, match="credentials"):
        store.get("k")


@pytest.mark.slow
def test_nobody_listening_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in CREDENTIALS.items():
        monkeypatch.setenv(name, value)
    store = S3Store(S3Options(bucket="b", endpoint_url="http://127.0.0.1:1", is_path_style=True))
    with pytest.raises(ObjectStoreUnavailable):
        store.put("k", b"", ABSENT)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "botocore.exceptions", None)
    with pytest.raises(ObjectStoreRefused, match=r"perdure\[s3\]"):
        S3Store(S3Options(bucket="b")).get("k")
