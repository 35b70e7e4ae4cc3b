"""Reads the movies file into the catalogue that every timeline refers to."""

import csv
import re
from dataclasses import dataclass, field
from pathlib import Path

from user_llm.builders.catalogue import catalogue_lists
from user_llm.builders.malformed import RowReport
from user_llm.builders.movielens.format import (
    MOVIES_COLUMNS,
    NO_GENRES,
    NO_LINE_END,
    FileFormat,
    column_positions,
    parse_id,
)
from user_llm.builders.sql import CONTROL_CHARACTERS
from user_llm.builders.text_file import open_text


@dataclass
class Movies:
    """The catalogue in file order; entry 0 of every list is padding, so that an item id is its index."""

    raw_ids: list[str] = field(default_factory=lambda: [""])
    titles: list[str] = field(default_factory=lambda: [""])
    genres: list[list[str]] = field(default_factory=lambda: [[]])

    def lists(self) -> dict:
        """See `catalogue_lists`."""
        return catalogue_lists(self.raw_ids[1:], self.titles[1:], self.genres[1:])


class _BadRowError(Exception):
    """One row is malformed: `reason` as in RowReport, and what was `found`."""

    def __init__(self, reason: str, found: str):
        super().__init__(reason, found)
        self.reason = reason
        self.found = found


def read_movies(path: Path, form: FileFormat, report: RowReport) -> Movies:
    """Reads every movie, rated or not; malformed rows go to `report` and are left out. Blank lines hold no row.

    Raises:
      MalformedSourceError: see `column_positions`.
    """
    positions, num_fields = column_positions(path, form, MOVIES_COLUMNS)
    movies = Movies()
    line_of: dict[int, int] = {}
    rows = 0
    with open_text(path) as file:
        for line, row in enumerate(file, start=1):
            raw = row.rstrip(b"\r\n")
            if not raw or (line == 1 and form.has_header):
                continue
            rows += 1
            try:
                movie_id, title, genres = _parse_row(raw, form, positions, num_fields)
                if movie_id in line_of:
                    raise _BadRowError("movieId repeated", f"{movie_id} stands on line {line_of[movie_id]}")
                if not row.endswith(b"\n"):
                    raise _BadRowError(NO_LINE_END, repr(title))
            except _BadRowError as problem:
                report.reject(path.name, problem.reason, [(line, problem.found)])
                continue
            line_of[movie_id] = line
            movies.raw_ids.append(str(movie_id))
            movies.titles.append(title)
            movies.genres.append(genres)
    report.rows[path.name] = rows
    return movies


def _parse_row(raw: bytes, form: FileFormat, positions: list[int], num_fields: int) -> tuple[int, str, list[str]]:
    text = _decode(raw, form.encoding)
    if form.delimiter == ",":
        # Line by line: a quote left open costs its own row, not the rest of the file.
        try:
            fields = next(csv.reader([text], strict=True))
        except csv.Error as error:
            raise _BadRowError("quotes do not pair up", repr(text)) from error
    else:
        fields = text.split(form.delimiter)
    if len(fields) != num_fields:
        raise _BadRowError(f"not {num_fields} fields", f"{len(fields)} in {text!r}")
    raw_id, title, genres = (fields[position].strip() for position in positions)
    movie_id = parse_id(raw_id)
    if movie_id is None:
        raise _BadRowError("movieId is not a whole number", repr(text))
    if not title:
        raise _BadRowError("title is empty", repr(text))
    if re.search(CONTROL_CHARACTERS, title + genres):
        raise _BadRowError("a control character in title or genres", repr(text))
    names = dict.fromkeys(name.strip() for name in genres.split("|") if name.strip())
    return movie_id, title, list(names) or [NO_GENRES]


def _decode(raw: bytes, encoding: str) -> str:
    try:
        text = raw.decode()
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            raise _BadRowError("not utf-8", f"byte 0x{raw[error.start]:02x} in {raw!r}") from error
        return raw.decode(encoding)
    if encoding != "utf-8" and not raw.isascii():
        # Latin-1 would turn these bytes into nonsense without an error.
        raise _BadRowError(f"utf-8 where {encoding} is expected", repr(text))
    return text
