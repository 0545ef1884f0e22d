"""SQL over the tables of a node: read-only, beside the engine (DESIGN.md)."""
