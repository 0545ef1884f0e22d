"""The words all rooms share: ids, errors, limits, and the ports of time and chance."""
