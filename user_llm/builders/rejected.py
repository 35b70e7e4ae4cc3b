"""From a table of checked rows to the report of those that are malformed."""

import duckdb

from user_llm.builders.malformed import EXAMPLES_PER_REASON, RowReport


def report_rejected(connection: duckdb.DuckDBPyConnection, rows: str, file: str, report: RowReport) -> None:
    """Counts the malformed rows of a file by reason, in the order in which the reasons first occur.

    Args:
      connection: a database.
      rows: a table, or a query in brackets, with `line`, `reason` (null for a good row), `found` (what stands there).
      file: the file they are in.
      report: receives the counts, with the earliest rows of each reason.
    """
    reasons = connection.execute(
        f"""
        SELECT reason, count(*), min_by(line, line, {EXAMPLES_PER_REASON}), min_by(found, line, {EXAMPLES_PER_REASON})
        FROM {rows} WHERE reason IS NOT NULL GROUP BY reason ORDER BY min(line)
        """
    ).fetchall()
    for reason, count, lines, found in reasons:
        report.reject(file, reason, list(zip(lines, found, strict=True)), count)
