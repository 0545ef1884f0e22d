"""Checks that stay on in production, also under ``python -O``.

A broken invariant is a bug, not an operating error: it derives from ``BaseException`` so that no
``except Exception`` eats it, and it travels through task groups and threads untouched.
"""


class InvariantViolation(BaseException):
    """Something that the design rules out has happened; the facts say with which values."""

    def __init__(self, message: str, facts: dict[str, object]) -> None:
        listed = " ".join(f"{name}={value!r}" for name, value in facts.items())
        super().__init__(f"{message} [{listed}]" if listed else message)
        self.facts = facts


def invariant(condition: bool, message: str, **facts: object) -> None:
    """Stop here unless ``condition`` holds.

    Raises:
        InvariantViolation: naming ``message`` and every fact.
    """
    if not condition:
        raise InvariantViolation(message, facts)
