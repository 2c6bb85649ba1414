"""``python -m workflows.cli``, where no script is installed."""

from workflows.cli import main

main()
