"""What a setting is on the field that holds its value. Pure."""

from dataclasses import field
from typing import TypeVar

from perdure.node.config.kinds import Kind

T = TypeVar("T")


def setting(default: T, kind: Kind[T], meaning: str) -> T:
    """``dataclasses.field`` with the rest of the setting's row in the table."""
    return field(default=default, metadata={"kind": kind, "meaning": meaning})
