"""docs/configuration.md is what the table of settings says."""

from pathlib import Path

from perdure.node.config.document import text
from perdure.node.config.model import settings

PAGE = Path(__file__).resolve().parents[3] / "docs" / "configuration.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == text(), (
        "python -m perdure.node.config.document > docs/configuration.md"
    )


def test_the_page_has_every_setting() -> None:
    page = PAGE.read_text()
    for setting in settings():
        assert f"### `{setting.key}`\n\n{setting.meaning}\n" in page
        assert f"`{setting.variable}`" in page
