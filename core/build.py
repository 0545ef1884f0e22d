"""Whether this is perdure as plain Python, or with its hot paths compiled (see setup.py)."""

from perdure.core import ids

IS_COMPILED = not (ids.__file__ or "").endswith((".py", ".pyc"))
