"""Looks for what is wrong with a node and its surroundings, whether it runs or not."""
