"""Runs invocations: one attempt at a time per invocation, many invocations at once."""
