"""Rows of the partition store, one file per family: what each table holds and under which key.

Rows are immutable: a change puts a new one. They are encoded as arrays without field names, so
fields are only ever appended, with a default.
"""
