"""Writes the report of a sweep, at any time: `python -m launch.report --out=runs/laptop`."""

import argparse
import sys
from pathlib import Path

from launch.report import write_report
from user_llm.errors import show


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m launch.report", description=__doc__)
    parser.add_argument("--out", required=True, type=Path, help="folder of a sweep that python -m launch.local ran")
    try:
        for path in write_report(parser.parse_args().out):
            print(path)
    except Exception as error:
        return show(error, status=2)
    return 0


if __name__ == "__main__":
    sys.exit(main())
