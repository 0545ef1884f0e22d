"""Arrow's Python package, which comes without types: everything in it is ``Any`` here.

Imported lazily, by the modules that know it.
"""

import importlib
from typing import Any

arrow: Any = importlib.import_module("pyarrow")
dataset: Any = importlib.import_module("pyarrow.dataset")
