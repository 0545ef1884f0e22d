"""What the documents point at exists, and the index knows every page."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_FENCED = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def _pages() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return [name for name in listed.stdout.splitlines() if (ROOT / name).is_file()]


PAGES = _pages()


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, made as the usual viewers make them."""
    headings = re.findall(r"^#+ (.*)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _links(name: str) -> list[str]:
    return _LINK.findall(_FENCED.sub("", (ROOT / name).read_text()))


@pytest.mark.parametrize("name", PAGES)
def test_links_lead_somewhere(name: str) -> None:
    for link in _links(name):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        assert target.exists(), f"{name}: {link} leads nowhere"
        assert not anchor or anchor in _anchors(target), f"{name}: {link} has no such heading"


@pytest.mark.parametrize("name", PAGES)
def test_python_in_documents_parses(name: str) -> None:
    for language, body in _FENCED.findall((ROOT / name).read_text()):
        if language == "python":
            ast.parse(body, filename=name)


def test_index_lists_every_page() -> None:
    linked = {link.partition("#")[0] for link in _links("docs/README.md")}
    pages = {page.name for page in DOCS.glob("*.md")} - {"README.md"}
    assert not pages - linked, f"docs/README.md lacks {sorted(pages - linked)}"
