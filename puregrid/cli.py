"""Entry point of the command ``puregrid``; the commands are in :mod:`workflows.cli`."""

from __future__ import annotations

import sys

from puregrid.extras import MissingExtra, extras

__all__ = ["main"]


def main() -> None:
    """Run the command line; where an extra is missing, print how to install it and end with status 2."""
    try:
        with extras():
            from workflows.cli import main as command

            command()
    except MissingExtra as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
