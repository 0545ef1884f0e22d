"""The admin API: what operators and their tools ask of a node."""
