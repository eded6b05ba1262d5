"""The command line: parse, call, print. Results go to standard output, progress and errors to standard error."""

from __future__ import annotations

import os
import sys

from ract.cli.app import app
from ract.errors import RactError
from ract.machine import calm_environment

# Each module adds its commands to the app when it is imported; none of them imports torch.
from ract.cli import plans, models, evaluate, compare, text, export, compress  # noqa: F401  isort: skip


def main() -> None:
    """Run one command. Exit code 0: success, 1: failure, 2: bad input, 130: stopped by the user."""
    os.environ.update(calm_environment())
    try:
        app()
    except RactError as error:
        print(f"ract: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        print("ract: stopped; the same command goes on where it stopped", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # the reader of our output left, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)
