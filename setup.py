"""Refuse to build from a checkout that lost its room links; all else is in pyproject.toml."""

from pathlib import Path

from setuptools import setup

for room in ("cluster", "core", "engine", "node", "proto", "storage"):
    if not Path("src/perdure", room, "__init__.py").is_file():
        raise SystemExit(f"src/perdure/{room} is not a link to {room}/: run `make links`")

setup()
