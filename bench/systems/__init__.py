"""The systems that are measured, by name."""

from bench.systems.base import System
from bench.systems.dbos import Dbos, DbosSqlite
from bench.systems.restate_sdk import Perdure, PerdureCompiled, PerdureTs, Reference, ReferenceTs
from bench.systems.temporal import Temporal

_KINDS: tuple[type[System], ...] = (
    Perdure,
    PerdureCompiled,
    Reference,
    PerdureTs,
    ReferenceTs,
    Dbos,
    DbosSqlite,
    Temporal,
)
SYSTEMS = {kind.name: kind for kind in _KINDS}
