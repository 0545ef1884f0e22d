"""The ``perdure`` command: a file per verb, loaded when it is called."""
