"""House rules that neither a formatter nor a type checker can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("core", "proto", "storage", "engine", "cluster", "node", "sdk")

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60

# These modules decide; they never touch the outside world.
PURE = (
    "core/attempt_errors.py",
    "core/errors.py",
    "core/hashing.py",
    "core/ids.py",
    "core/invariant.py",
    "core/limits.py",
    "core/retry.py",
    "core/summary.py",
    "proto/",
    "storage/keys.py",
    "storage/memtable.py",
    "storage/tables/",
    "storage/wal_format.py",
    "engine/",
    "cluster/core/",
    "node/ingress/awakeables.py",
    "node/ingress/content.py",
    "node/ingress/delays.py",
    "node/ingress/paths.py",
    "node/ingress/submission.py",
    "node/ingress/tally.py",
    "node/ingress/targets.py",
    "node/invoker/attempt.py",
    "node/invoker/lambda_payload.py",
    "node/invoker/retries.py",
    "node/invoker/tally.py",
    "node/invoker/validation.py",
    "node/admin/answer_schemas.py",
    "node/admin/api_document.py",
    "node/admin/invocation_rows.py",
    "node/admin/openapi.py",
    "node/admin/operations.py",
    "node/admin/routes.py",
    "node/admin/shapes.py",
    "node/query/bounds.py",
    "node/query/columns.py",
    "node/query/entries.py",
    "node/query/invocation_columns.py",
    "node/query/json_operators.py",
    "node/query/sources.py",
    "node/query/texts.py",
    "node/registry/discovery.py",
    "node/metrics/health.py",
    "node/metrics/readings.py",
    "node/metrics/samples.py",
    "node/metrics/statistics.py",
    "node/metrics/table.py",
    "node/traces/attempts.py",
    "node/traces/spans.py",
    "node/traces/tracer.py",
    "node/registry/effective.py",
    "node/registry/evolve.py",
    "node/registry/manifest.py",
    "node/registry/model.py",
    "node/http/hyper_http1.py",
    "node/http/hyper_http2.py",
    "node/http/outgoing.py",
    "node/http/zttp_events.py",
    "node/http/zttp_http1.py",
    "node/http/zttp_http2.py",
)
OUTSIDE = frozenset(
    [
        "asyncio",
        "boto3",
        "grpc",
        "lmdb",
        "os",
        "random",
        "select",
        "selectors",
        "signal",
        "socket",
        "ssl",
        "subprocess",
        "threading",
        "time",
        "uuid",
        "datetime",
    ]
)
# The doors to time, dice and threads. Event loop timers are fine: a simulated loop keeps its own
# time.
PORTS = ("core/clock.py", "core/entropy.py", "core/offload.py")
CHANCE = frozenset(
    {
        ("time", "time"),
        ("time", "time_ns"),
        ("time", "monotonic"),
        ("time", "monotonic_ns"),
        ("time", "perf_counter"),
        ("time", "sleep"),
        ("datetime", "now"),
        ("datetime", "utcnow"),
        ("date", "today"),
        ("uuid", "uuid1"),
        ("uuid", "uuid4"),
        ("random", "random"),
        ("random", "Random"),
        ("random", "randrange"),
        ("random", "choice"),
        ("os", "urandom"),
        ("secrets", "token_bytes"),
        ("secrets", "token_hex"),
        ("asyncio", "to_thread"),
        ("threading", "Thread"),
    }
)


def _list_modules() -> list[str]:
    found = (path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")))
    return [path.relative_to(ROOT).as_posix() for path in found if "_pb2" not in path.name]


MODULES = _list_modules()
TESTS = [
    path.relative_to(ROOT).as_posix()
    for path in sorted((ROOT / "tests").rglob("*.py"))
    if "node_modules" not in path.parts
]


def _text(name: str) -> str:
    return (ROOT / name).read_text()


def _tree(name: str) -> ast.Module:
    return ast.parse(_text(name), filename=name)


def _names_exception(kind: ast.expr | None) -> bool:
    match kind:
        case ast.Name():
            return kind.id in ("Exception", "BaseException")
        case ast.Tuple():
            return any(_names_exception(item) for item in kind.elts)
        case _:
            return False


@pytest.mark.parametrize("name", [*MODULES, *TESTS])
def test_module_states_its_purpose_and_fits(name: str) -> None:
    if name.startswith("tests/") and name.endswith("__init__.py"):
        return
    lines = _text(name).count("\n")
    assert ast.get_docstring(_tree(name)), f"{name}: say in a sentence what this module is for"
    assert lines <= MODULE_LINES_MAX, f"{name}: {lines} lines"


@pytest.mark.parametrize("name", [*MODULES, *TESTS])
def test_functions_fit_a_screen(name: str) -> None:
    for item in ast.walk(_tree(name)):
        if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef) and item.end_lineno:
            length = item.end_lineno - item.lineno + 1
            assert length <= FUNCTION_LINES_MAX, f"{name}:{item.lineno} {item.name}: {length} lines"


def test_pure_modules_exist() -> None:
    for prefix in PURE:
        assert any(name.startswith(prefix) for name in MODULES), f"{prefix} is gone: adjust PURE"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(PURE)])
def test_deciding_modules_stay_pure(name: str) -> None:
    for item in ast.walk(_tree(name)):
        imported: list[str] = []
        if isinstance(item, ast.Import):
            imported = [alias.name for alias in item.names]
        elif isinstance(item, ast.ImportFrom):
            imported = [item.module or ""]
        for library in imported:
            assert library.split(".")[0] not in OUTSIDE, f"{name}: decides, yet imports {library}"
        assert not isinstance(item, ast.AsyncFunctionDef | ast.Await), f"{name}: decides, yet waits"


@pytest.mark.parametrize("name", [name for name in MODULES if name not in PORTS])
def test_clock_dice_and_threads_come_through_the_ports(name: str) -> None:
    for item in ast.walk(_tree(name)):
        if isinstance(item, ast.Attribute) and isinstance(item.value, ast.Name):
            used = (item.value.id, item.attr)
            assert used not in CHANCE, f"{name}:{item.lineno}: {'.'.join(used)} has a port in core"


@pytest.mark.parametrize("name", MODULES)
def test_only_bulkheads_catch_everything(name: str) -> None:
    lines = _text(name).splitlines()
    for item in ast.walk(_tree(name)):
        if not isinstance(item, ast.ExceptHandler):
            continue
        assert item.type is not None, f"{name}:{item.lineno}: bare except"
        if _names_exception(item.type):
            comment = lines[item.lineno - 1].partition("#")[2].strip()
            assert comment.startswith("bulkhead: "), f"{name}:{item.lineno}: not a bulkhead"


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith(("core/", "node/"))])
def test_todo_comments_name_an_issue(name: str) -> None:
    for number, line in enumerate(_text(name).splitlines(), 1):
        if "TODO" in line:
            assert "#" in line.split("TODO", 1)[1], f"{name}:{number}: which issue?"


def test_limits_are_related_by_running_assertions() -> None:
    checked = [item for item in _tree("core/limits.py").body if isinstance(item, ast.Assert)]
    assert len(checked) >= 5


@pytest.mark.parametrize("name", TESTS)
def test_tests_sleep_only_between_looks_at_a_condition(name: str) -> None:
    for function in ast.walk(_tree(name)):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        naps = [item for item in ast.walk(function) if ast.unparse(item) == "time.sleep"]
        has_deadline = "deadline" in ast.unparse(function)
        assert not naps or has_deadline, f"{name}: {function.name} sleeps without a deadline"
