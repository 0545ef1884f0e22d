"""Every error code has one page, and every page one code."""

import ast
import re
from pathlib import Path

import pytest

from perdure.core import attempt_errors, loss_errors
from perdure.core.errors import PerdureError, catalogue

ROOT = Path(__file__).resolve().parent.parent
PAGES = ROOT / "docs" / "errors"
_MODULES = (attempt_errors.AttemptError, loss_errors.HistoryForsaken)
assert {kind.code for kind in _MODULES} <= catalogue().keys()  # the whole table is loaded
CODES = sorted(catalogue())
_CODE = re.compile(r"[A-Z]{2,5}[0-9]{4}")


def test_pages_and_codes_are_one_to_one() -> None:
    pages = {path.stem for path in PAGES.glob("*.md")} - {"README"}
    assert pages == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_code_is_well_formed(code: str) -> None:
    assert _CODE.fullmatch(code)
    kind = catalogue()[code]
    assert kind.title, f"{code} has no title"
    assert 400 <= kind.http_status <= 599


def test_no_two_classes_share_a_code() -> None:
    kinds: list[type[PerdureError]] = [PerdureError]
    for kind in kinds:
        kinds.extend(kind.__subclasses__())
    own = [kind.code for kind in kinds if "code" in vars(kind)]
    assert sorted(own) == sorted(set(own))
    for kind in kinds:
        assert "code" in vars(kind), f"{kind.__name__} has no code of its own"


def test_operating_errors_are_declared_in_one_table() -> None:
    known = {kind.__name__ for kind in catalogue().values()}
    for room in ("proto", "storage", "engine", "cluster", "node"):
        for path in (ROOT / room).rglob("*.py"):
            for item in ast.walk(ast.parse(path.read_text())):
                if isinstance(item, ast.ClassDef):
                    bases = {base.id for base in item.bases if isinstance(base, ast.Name)}
                    assert not bases & known, f"{path}: {item.name} belongs into core/errors.py"


@pytest.mark.parametrize("code", CODES)
def test_page_says_what_why_and_what_next(code: str) -> None:
    path = PAGES / f"{code}.md"
    text = path.read_text()
    title = text.splitlines()[0]
    assert title == f"# {code}: {catalogue()[code].title}"
    for heading in ("## What happened", "## Why", "## What to do"):
        assert heading in text, f"{path.name}: {heading} is missing"
    for mentioned in _CODE.findall(text):
        assert mentioned in CODES, f"{path.name} mentions {mentioned}, which doesn't exist"


def test_index_lists_every_code() -> None:
    index = (PAGES / "README.md").read_text()
    for code, kind in catalogue().items():
        assert f"| [{code}]({code}.md) | {kind.title} |" in index


def test_error_reads_code_first() -> None:
    error = catalogue()["REQ0002"]("no such thing")
    assert str(error) == "[REQ0002] no such thing"
    assert error.message == "no such thing"
