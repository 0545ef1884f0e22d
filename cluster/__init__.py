"""Decides the order: metadata registers, the replicated log and who may write to it."""
