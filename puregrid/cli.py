"""Entry point of the command ``puregrid``; the commands are in :mod:`workflows.cli`."""

import sys

from defense.packages import MissingPackage, installed

__all__ = ["main"]


def main() -> None:
    """Run the command line; where a package is missing, print how to install it and end with status 2."""
    try:
        with installed():
            from workflows.cli import main as command

            command()
    except MissingPackage as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
