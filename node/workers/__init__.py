"""Several workers on one machine: a node each, behind the same ports."""
