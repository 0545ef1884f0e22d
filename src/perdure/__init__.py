"""perdure: a durable execution server, compatible with Restate SDKs.

This folder is the front door: the version, ``python -m perdure``, and one link per room.
"""

__version__ = "0.1.0"
