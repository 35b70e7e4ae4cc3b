"""Ratings that are spelled as published, a block of lines at a time: many times faster than a careful reading."""

import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv

from user_llm.builders.movielens.format import ID_PATTERN, RATINGS_COLUMNS, FileFormat
from user_llm.builders.timelines import END_OF_TIME

PLAIN_ROWS = pa.schema(
    {"line": pa.int64(), "user_id": pa.int64(), "item": pa.int32(), "rating": pa.int32(), "timestamp": pa.int64()}
)

_CSV_DELIMITER = b","
_OTHER_COLUMN = r"[^,\r\n]*"
"""Only files with a header have others, and those are csv."""


class PlainRows:
    """Finds and parses the plain rows among lines. What it leaves may be good as well, in another spelling."""

    def __init__(self, form: FileFormat, positions: Sequence[int], num_fields: int, raw_ids: Sequence[str]):
        """Takes the layout of a ratings file.

        Args:
          form: its format.
          positions: where each of `RATINGS_COLUMNS` stands in a row, from 0.
          num_fields: how many fields a row has.
          raw_ids: movieIds of the catalogue; the index is the item id, entry 0 is padding.
        """
        patterns = dict.fromkeys(RATINGS_COLUMNS, ID_PATTERN)
        patterns["rating"] = "|".join(map(re.escape, form.rating_names))
        columns = dict(zip(positions, RATINGS_COLUMNS, strict=True))
        self._columns = [columns.get(position, f"column {position}") for position in range(num_fields)]
        fields = (f"(?:{patterns.get(column, _OTHER_COLUMN)})" for column in self._columns)
        self._pattern = f"^{form.delimiter.join(fields)}\r?\n$"
        self._delimiter = form.delimiter.encode()
        self._movies = pa.array([int(raw_id) for raw_id in raw_ids[1:]], pa.int64())
        self._ratings = pa.array(form.rating_names)

    def split(self, lines: pa.RecordBatch) -> tuple[pa.Table, pa.RecordBatch]:
        """The good rows that are plain, as `PLAIN_ROWS`, and the other lines.

        Args:
          lines: as `read_lines` gives them.
        """
        plain = pc.match_substring_regex(lines["text"], self._pattern)
        if not pc.any(plain).as_py():
            return PLAIN_ROWS.empty_table(), lines
        chosen = lines.filter(plain)
        rows = self._parse(chosen)
        good = pc.and_(pc.is_valid(rows["item"]), pc.less_equal(rows["timestamp"], END_OF_TIME))
        return rows.filter(good), pa.concat_batches([lines.filter(pc.invert(plain)), chosen.filter(pc.invert(good))])

    def _parse(self, lines: pa.RecordBatch) -> pa.Table:
        text = lines["text"].buffers()[2]
        if self._delimiter != _CSV_DELIMITER:
            text = pa.py_buffer(text.to_pybytes().replace(self._delimiter, _CSV_DELIMITER))
        types = dict.fromkeys(RATINGS_COLUMNS, pa.int64()) | {"rating": pa.string()}
        rows = pa_csv.read_csv(
            text,
            pa_csv.ReadOptions(use_threads=False, block_size=len(text) + 1, column_names=self._columns),
            pa_csv.ParseOptions(quote_char=False),
            pa_csv.ConvertOptions(include_columns=RATINGS_COLUMNS, column_types=types),
        ).combine_chunks()
        # Class ids and items count from 1.
        columns = {
            "line": lines["line"],
            "user_id": rows["userId"],
            "item": pc.add(pc.index_in(rows["movieId"], self._movies), 1),
            "rating": pc.add(pc.index_in(rows["rating"], self._ratings), 1),
            "timestamp": rows["timestamp"],
        }
        return pa.table(columns, PLAIN_ROWS)
