"""``python -m graphprune``: the command line for launchers, which start modules."""

from graphprune.cli import main

main()
