"""The protocol of the log as pure machines: no clock, no dice, no I/O. Inputs in, effects out."""
