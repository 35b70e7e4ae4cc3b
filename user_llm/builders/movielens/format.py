"""The published file layouts of MovieLens, and what a row of theirs must look like."""

import re
from dataclasses import dataclass
from pathlib import Path

from user_llm.builders.malformed import MalformedSourceError
from user_llm.builders.text_file import open_text

RATINGS_COLUMNS = ("userId", "movieId", "rating", "timestamp")
MOVIES_COLUMNS = ("movieId", "title", "genres")
NO_GENRES = "(no genres listed)"
"""What MovieLens itself writes for a movie without genres; an empty field is read as this."""

ID_PATTERN = "[0-9]{1,18}"
"""A whole number as MovieLens writes it: no sign, no spaces, no decimal point, and it fits 64 bits."""

INTEGER_PATTERN = f"-?{ID_PATTERN}"

NO_LINE_END = "the last row has no line end, so it may be cut"
"""Published files end with one. A timestamp that is cut is another time, in 1970."""


@dataclass(frozen=True)
class FileFormat:
    """How a release of MovieLens writes its two files.

    Attributes:
      ratings_file, movies_file: file names inside the release's folder.
      delimiter: between fields.
      encoding: of the movies file. Ratings are ASCII in every release.
      has_header: whether line 1 names the columns; otherwise they come in the documented order.
      rating_names: the ratings a user can give, ascending, as the release writes them; class ids count from 1.
    """

    ratings_file: str
    movies_file: str
    delimiter: str
    encoding: str
    has_header: bool
    rating_names: tuple[str, ...]

    @property
    def files(self) -> tuple[str, str]:
        return self.movies_file, self.ratings_file


CSV = FileFormat(
    ratings_file="ratings.csv",
    movies_file="movies.csv",
    delimiter=",",
    encoding="utf-8",
    has_header=True,
    rating_names=("0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5", "5.0"),
)
"""20M, 25M, latest-small, and what the simulator writes."""

DAT = FileFormat(
    ratings_file="ratings.dat",
    movies_file="movies.dat",
    delimiter="::",
    encoding="latin-1",
    has_header=False,
    rating_names=("1", "2", "3", "4", "5"),
)
"""1M."""


def parse_id(text: str) -> int | None:
    """The id that `text` spells, or None."""
    return int(text) if re.fullmatch(ID_PATTERN, text) else None


def column_positions(path: Path, form: FileFormat, required: tuple[str, ...]) -> tuple[list[int], int]:
    """Where the required columns stand in a file's rows, from 0, and how many fields each row must have.

    With a header, columns are found by name: their order is free, and further columns are read past.

    Raises:
      MalformedSourceError: see `open_text`; or the file is empty, or its header lacks or repeats a column.
    """
    with open_text(path) as file:
        first = file.readline()
    if not first:
        raise MalformedSourceError(f"{path.name} is empty: expected rows of {', '.join(required)}.")
    if not form.has_header:
        return list(range(len(required))), len(required)
    names = first.decode("latin-1").rstrip("\r\n").split(form.delimiter)
    for column in required:
        if names.count(column) != 1:
            problem = "repeats" if column in names else "lacks"
            raise MalformedSourceError(
                f"{path.name} line 1: the header {problem} column {column!r}; "
                f"expected {','.join(required)}, found {','.join(names)!r}."
            )
    return [names.index(column) for column in required], len(names)
