"""The layout is a contract: rooms at the top, one package inside, dependencies downhill only."""

import ast
from importlib.metadata import distribution
from pathlib import Path

import pytest

import perdure

ROOT = Path(__file__).resolve().parent.parent
DOOR = ROOT / "src" / "perdure"

# What a room may import besides itself.
BELOW = {
    "core": set[str](),
    "proto": {"core"},
    "storage": {"core", "proto"},
    "engine": {"core", "proto", "storage"},
    "cluster": {"core", "proto", "storage"},
    "node": {"core", "proto", "storage", "engine", "cluster"},
    "sdk": {"core", "proto"},
}
ROOMS = tuple(room for room in BELOW if (ROOT / room).is_dir())

# Third-party libraries and the only modules that may know them.
FENCES = {
    "lmdb": ("storage/env.py",),
    "zttp": ("node/http/",),
    "h2": ("node/http/",),
    "h11": ("node/http/",),
    "hpack": ("node/http/",),
    "uvloop": ("node/",),
    "grpc": ("cluster/grpc_transport.py", "cluster/metadata/etcd.py"),
    "pysyncobj": ("cluster/metadata/raft.py",),
    "boto3": ("storage/s3_store.py",),
    "botocore": ("node/invoker/aws.py", "storage/s3_store.py"),
    "zstandard": ("node/invoker/lambda_payload.py",),
    "cryptography": ("node/invoker/identity.py", "node/doctor/certificates.py"),
    "jwt": ("node/invoker/identity.py",),
    "datafusion": ("node/query/",),
    "click": ("node/cli/",),
    "prometheus_client": ("node/metrics/exposition.py",),
    "opentelemetry": ("node/traces/otlp.py",),
    "rich": ("node/cli/",),
    "xxhash": ("core/", "storage/", "cluster/"),
}


def _modules(room: str) -> list[Path]:
    return sorted((ROOT / room).rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found: set[str] = set()
    for item in ast.walk(ast.parse(path.read_text())):
        if isinstance(item, ast.Import):
            found.update(alias.name for alias in item.names)
        elif isinstance(item, ast.ImportFrom):
            assert item.level == 0, f"{path}:{item.lineno}: relative import"
            assert item.module is not None
            found.add(item.module)
            if item.module == "perdure":
                found.update(f"perdure.{alias.name}" for alias in item.names)
    return found


def test_door_links_every_room() -> None:
    for room in ROOMS:
        link = DOOR / room
        assert link.is_symlink() or (link / "__init__.py").is_file(), f"make links: {room}"
        assert link.resolve() == ROOT / room, f"src/perdure/{room} must link to {room}/"
        assert (ROOT / room / "__init__.py").is_file()
    assert Path(perdure.__file__).resolve() == DOOR / "__init__.py"


def test_door_holds_nothing_else() -> None:
    own = {"__init__.py", "__main__.py", "py.typed", "__pycache__"}
    assert {item.name for item in DOOR.iterdir()} - own == set(ROOMS)


def test_every_folder_with_modules_is_a_package() -> None:
    for room in ROOMS:
        for path in _modules(room):
            assert (path.parent / "__init__.py").is_file(), f"{path.parent} has no __init__.py"


@pytest.mark.parametrize("room", ROOMS)
def test_dependencies_run_downhill(room: str) -> None:
    allowed = BELOW[room] | {room}
    for path in _modules(room):
        for name in _imports(path):
            head, _, rest = name.partition(".")
            assert head not in BELOW, f"{path}: import perdure.{head}, not {head}"
            if head == "perdure" and rest:
                target = rest.split(".")[0]
                assert target in allowed, f"{path}: {room} may not import {name}"


@pytest.mark.parametrize("library", FENCES)
def test_libraries_stay_behind_their_fence(library: str) -> None:
    for room in ROOMS:
        for path in _modules(room):
            name = path.relative_to(ROOT).as_posix()
            if any(imported.split(".")[0] == library for imported in _imports(path)):
                assert name.startswith(FENCES[library]), f"{name} imports {library}"


def test_distribution_owns_one_name() -> None:
    owned = distribution("perdure").read_text("top_level.txt")
    assert owned is not None
    assert owned.split() == ["perdure"]
