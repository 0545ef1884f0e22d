"""What an operator may set: one table of settings, read from file, environment and flags."""
