"""Builds a dataset: `python -m tfds_builders.build movielens/latest_small --raw_path=ml-latest-small.zip`."""

from user_llm.builders.build import cli

if __name__ == "__main__":
    cli()
