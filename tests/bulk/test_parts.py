"""Parts of a file in their order, however many there are."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from user_llm.bulk import parts as parts_lib
from user_llm.bulk.parts import Parts

SCHEMA = pa.schema({"user": pa.int64()})


def users(first: int, end: int):
    for user in range(first, end):
        yield pa.table({"user": [user]}, SCHEMA), 1


@pytest.mark.parametrize("first", [0, 999_997])
def test_parts_keep_the_order_of_the_users(tmp_path, monkeypatch, first):
    """Also where numbers of parts grow longer, which their names do not say."""
    monkeypatch.setattr(parts_lib, "PART", 2)
    out, asked = tmp_path / "out.parquet", {"k": 1}

    def stopped():
        yield from users(0, 5)
        raise KeyboardInterrupt

    parts = Parts(out, asked)
    parts._next = first
    with pytest.raises(KeyboardInterrupt):
        parts.write(SCHEMA, stopped(), 9)
    again = Parts(out, asked)
    assert again.done == 4  # the fifth was in no part yet
    again._next = first + 2
    again.write(SCHEMA, users(again.done, 9), 9)
    assert pq.read_table(out)["user"].to_pylist() == list(range(9))
    assert list(tmp_path.iterdir()) == [out]
