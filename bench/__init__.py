"""Side-by-side measurements: ``python -m bench`` (bench/README.md)."""
