"""Options of the whole suite, and how hypothesis explores.

On a developer's machine every run tries other examples. The guard of main (CI in the environment)
tries the same ones each time: a red run there means the change, not the dice.
"""

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", derandomize=True, print_blob=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--rewrite", action="store_true", help="accept golden transcripts as they are")
