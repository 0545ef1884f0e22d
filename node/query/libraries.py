"""The query engine and Arrow, whose types are of no help: everything in them is ``Any`` here.

Imported lazily, by the modules that know them.
"""

import importlib
from typing import Any

arrow: Any = importlib.import_module("pyarrow")
dataset: Any = importlib.import_module("pyarrow.dataset")
datafusion: Any = importlib.import_module("datafusion")
expressions: Any = importlib.import_module("datafusion.expr")
