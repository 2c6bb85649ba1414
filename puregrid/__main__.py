"""``python -m puregrid``: the command line, where no script is installed."""

from puregrid.cli import main

main()
