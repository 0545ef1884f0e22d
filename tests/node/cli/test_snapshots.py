"""``perdure snapshots``: works on a destination without a node, and says what is in the way."""

from pathlib import Path

import pytest
from tests.node.cli.terminal import Done, Terminal
from tests.node.test_restore import OWNER, add_member, make_set

from perdure.node.cli import exits
from perdure.node.config.model import SnapshotsConfig
from perdure.node.snapshots import open_store
from perdure.storage import snapshots
from perdure.storage.object_store import DirectoryStore
from perdure.storage.s3_store import S3Store

PARTITIONS = 3


@pytest.fixture
def bucket(tmp_path: Path) -> str:
    """A destination with a set in it."""
    store = DirectoryStore(tmp_path / "bucket")
    snapshots.claim_prefix(store, OWNER)
    members = [add_member(store, tmp_path / f"env{number}", number, 5) for number in range(3)]
    snapshots.put_set(store, make_set(members))
    return f"file://{tmp_path}/bucket"


def restore(terminal: Terminal, bucket: str, folder: Path, *more: str) -> Done:
    where = ("--destination", bucket, "--base-dir", str(folder), "--node-name", "n1")
    return terminal.type("snapshots", "restore", *where, *more)


def test_sets_are_listed_checked_and_restored(
    terminal: Terminal, bucket: str, tmp_path: Path
) -> None:
    listed = terminal.type("snapshots", "list", "--destination", bucket, "--json").json
    assert listed["cluster"] == "shop"
    assert [row["partition"] for row in listed["sets"][0]["partitions"]] == [0, 1, 2]
    name = listed["sets"][0]["name"]
    assert name in terminal.type("snapshots", "list", "--destination", bucket).out
    verified = terminal.type("snapshots", "verify", name, "--destination", bucket, "--json")
    assert (verified.code, verified.json["name"]) == (0, name)
    assert "is whole" in verified.err
    done = restore(terminal, bucket, tmp_path / "data")
    assert done.code == 0
    assert "another prefix" in done.err
    assert (tmp_path / "data" / "n1" / "MARKER").exists()
    again = restore(terminal, bucket, tmp_path / "data")
    assert again.code == exits.START
    assert "DIR0002" in again.err


def test_the_destination_may_come_from_the_configuration(
    terminal: Terminal, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PERDURE_SNAPSHOTS__DESTINATION", bucket)
    assert len(terminal.type("snapshots", "list", "--json").json["sets"]) == 1


def test_without_a_destination_there_is_nothing_to_do(terminal: Terminal) -> None:
    for verb in ("list", "verify", "restore"):
        done = terminal.type("snapshots", verb)
        assert done.code == exits.CONFIGURATION
        assert "--destination" in done.err


@pytest.mark.parametrize("destination", ["bucket", "http://x/y", "s3://", "file://relative/x"])
def test_a_destination_that_is_none_is_a_usage_error(terminal: Terminal, destination: str) -> None:
    done = terminal.type("snapshots", "list", "--destination", destination)
    assert done.code == exits.USAGE
    assert "s3://bucket/prefix" in done.err


def test_an_empty_destination_has_no_sets(terminal: Terminal, tmp_path: Path) -> None:
    destination = f"file://{tmp_path}/none"
    done = terminal.type("snapshots", "list", "--destination", destination)
    assert (done.code, done.out) == (0, "")
    assert "no set" in done.err
    verified = terminal.type("snapshots", "verify", "--destination", destination)
    assert verified.code == exits.FAILED
    assert "SNAP0003" in verified.err
    assert restore(terminal, destination, tmp_path / "data").code == exits.FAILED
    assert not (tmp_path / "data").exists()


def test_a_set_is_shown_partition_by_partition(terminal: Terminal, bucket: str) -> None:
    name = terminal.type("snapshots", "list", "--destination", bucket, "--json").json["sets"][0][
        "name"
    ]
    shown = terminal.type("snapshots", "show", "--destination", bucket, "--json").json
    assert shown["name"] == name
    assert [row["lsn"] for row in shown["partitions"]] == [5, 5, 5]
    out = terminal.type("snapshots", "show", name, "--destination", bucket).out
    assert name in out
    assert "PARTITION" in out
    done = terminal.type("snapshots", "show", "other", "--destination", bucket)
    assert done.code == exits.FAILED
    assert "SNAP0003" in done.err


def test_damage_is_found(terminal: Terminal, bucket: str, tmp_path: Path) -> None:
    chunk = next((tmp_path / "bucket" / "p" / "1").rglob("data.*"))
    chunk.write_bytes(b"rotten")
    done = terminal.type("snapshots", "verify", "--destination", bucket)
    assert done.code == exits.FAILED
    assert "SNAP0001" in done.err
    assert restore(terminal, bucket, tmp_path / "data").code == exits.FAILED
    assert not (tmp_path / "data" / "n1").exists()


def test_destinations_become_stores() -> None:
    assert open_store(SnapshotsConfig()) is None
    assert isinstance(open_store(SnapshotsConfig(destination="file:///a/b%20c")), DirectoryStore)
    assert isinstance(open_store(SnapshotsConfig(destination="s3://bucket/a/b")), S3Store)
