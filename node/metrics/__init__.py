"""The node's own port, and the metrics on it."""
