"""What services really did: an append-only file that they write and tests read.

A journal says what was recorded; the ledger says what was executed. A step that ran twice shows up
twice here whatever the server believes.
"""

import os
from pathlib import Path

SEPARATOR = "\t"


class Ledger:
    """Lines of ``key`` and ``text``; each is one write of an append-only file, so none is torn."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._path.touch()

    def add(self, key: str, text: str = "") -> int:
        """Append a line; the number of lines of ``key`` afterwards."""
        line = f"{key}{SEPARATOR}{text}\n".encode()
        descriptor = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)
        return self.count(key)

    def entries(self, key: str) -> list[str]:
        """The texts of ``key`` in the order in which they were written."""
        found: list[str] = []
        for line in self._path.read_text().splitlines():
            name, _, text = line.partition(SEPARATOR)
            if name == key:
                found.append(text)
        return found

    def keys(self, prefix: str) -> list[str]:
        """The keys that begin so, once for each of their lines."""
        names = (line.partition(SEPARATOR)[0] for line in self._path.read_text().splitlines())
        return [name for name in names if name.startswith(prefix)]

    def count(self, key: str) -> int:
        return len(self.entries(key))
