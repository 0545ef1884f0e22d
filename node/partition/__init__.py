"""A partition on this node: applies its log, and leads it."""
