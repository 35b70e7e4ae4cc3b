"""Runs tables of the paper on this machine: `python -m launch.local --help`."""

from user_llm.launch.local import cli

if __name__ == "__main__":
    cli()
