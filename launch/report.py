"""Writes the report of a sweep: `python -m launch.report --out=runs/laptop`."""

from user_llm.launch.report.__main__ import cli

if __name__ == "__main__":
    cli()
