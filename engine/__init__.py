"""The durable-execution machine: commands in, table writes and actions out. Pure."""
