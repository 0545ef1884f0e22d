"""What a command is told when the node doesn't do what it was asked."""


class Refused(Exception):
    """The node answered with an error. ``code``: None when it said none."""

    def __init__(self, request: str, status: int, code: str | None, message: str) -> None:
        super().__init__(message)
        self.request = request
        self.status = status
        self.code = code
        self.message = message
