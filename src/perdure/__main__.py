"""``python -m perdure`` is the ``perdure`` command."""

from perdure.node.cli.main import main

if __name__ == "__main__":
    main()
