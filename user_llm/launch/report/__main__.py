"""Writes the report of a sweep, at any time: `user-llm report --out=runs/laptop`.

Exit status: 0 written, 2 not.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from user_llm.errors import show
from user_llm.launch.report import write_report


def main(argv: Sequence[str] | None = None) -> int:
    """Writes the report that `argv` names and returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="user-llm report", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", required=True, type=Path, help="folder of a sweep that user-llm sweep ran")
    try:
        for path in write_report(parser.parse_args(argv).out):
            print(path)
    except Exception as error:
        return show(error, status=2)
    return 0


def cli() -> None:
    """Entry point."""
    sys.exit(main())


if __name__ == "__main__":
    cli()
