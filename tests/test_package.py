"""What is shipped: the wheel, built from the source distribution, holds every module."""

import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "proto", "storage", "engine", "cluster", "node", "sdk")
_BUILD = """
import sys
from setuptools import build_meta
print(getattr(build_meta, sys.argv[1])(sys.argv[2]))
"""


def _build(hook: str, source: Path, target: Path) -> Path:
    target.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", _BUILD, hook, str(target)],
        cwd=source,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return target / done.stdout.splitlines()[-1]


def _checkout(target: Path) -> None:
    """A copy of what git would ship, links as links: building writes into its source."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
    ).stdout.split(b"\0")
    for raw in filter(None, listed):
        source, copy = ROOT / raw.decode(), target / raw.decode()
        if not source.is_symlink() and not source.exists():
            continue
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            copy.symlink_to(source.readlink())
        else:
            copy.write_bytes(source.read_bytes())


def _expected(checkout: Path) -> set[str]:
    rooms = [room for room in ROOMS if (checkout / room).is_dir()]
    names = {
        f"perdure/{path.relative_to(checkout).as_posix()}"
        for room in rooms
        for pattern in ("*.py", "*.pyi", "*.proto")
        for path in (checkout / room).rglob(pattern)
    }
    return names | {"perdure/__init__.py", "perdure/__main__.py", "perdure/py.typed"}


@pytest.mark.slow
def test_wheel_from_source_distribution_holds_every_module(tmp_path: Path) -> None:
    checkout = tmp_path / "checkout"
    _checkout(checkout)
    archive = _build("build_sdist", checkout, tmp_path / "sdist")
    with tarfile.open(archive) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    (source,) = (tmp_path / "unpacked").iterdir()
    wheel = _build("build_wheel", source, tmp_path / "wheel")
    with zipfile.ZipFile(wheel) as content:
        names = set(content.namelist())
        metadata = {Path(name).name: name for name in names if ".dist-info/" in name}
        top_level = content.read(metadata["top_level.txt"]).decode().split()
        entry_points = content.read(metadata["entry_points.txt"]).decode()
    assert {name for name in names if name.startswith("perdure/")} >= _expected(checkout)
    assert all(name.startswith("perdure") for name in names), sorted(names)
    assert top_level == ["perdure"]
    assert "perdure = perdure.node.cli.main:main" in entry_points
    assert {"LICENSE", "NOTICE"} <= set(metadata)
