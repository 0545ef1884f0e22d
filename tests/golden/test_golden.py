"""Service-protocol dialogues as golden scripts (playbook.py is their language)."""

from pathlib import Path

import pytest
from tests.golden.playbook import check

SCRIPTS = sorted(Path(__file__).parent.glob("*.txt"))


@pytest.mark.parametrize("path", SCRIPTS, ids=[path.stem for path in SCRIPTS])
def test_dialogue(path: Path, rewrite: bool) -> None:
    check(path, rewrite)


def test_there_are_scripts() -> None:
    assert len(SCRIPTS) >= 5
