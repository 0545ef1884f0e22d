"""Talks to the world: partition processors, invoker, ingress, admin, and the command line."""
