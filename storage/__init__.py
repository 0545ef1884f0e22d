"""Keeps the bytes: write-ahead log, partition store, data directory. Synchronous throughout."""
