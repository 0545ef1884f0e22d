"""Linearizable registers that decide configuration: the port and its backends."""
