"""Pieces and groups give the dataset that one machine gives, whatever the faults: by workers that are a plain loop.

`test_beam.py` has Beam hand out the same work.
"""

import csv
import gzip
import io
import json
import pickle
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from user_llm.builders import timelines
from user_llm.builders.amazon_reviews.rules import AmazonRules
from user_llm.builders.beam import on_beam
from user_llm.builders.custom import CustomConfig
from user_llm.builders.custom.rules import CustomRules
from user_llm.builders.google_local.rules import GoogleLocalRules
from user_llm.builders.malformed import MalformedSourceError, RowReport
from user_llm.builders.movielens.format import CSV, DAT
from user_llm.builders.movielens.rules import MovieLensRules
from user_llm.builders.on_duckdb import OnDuckDB
from user_llm.builders.pieces import Source, cut_source
from user_llm.builders.text_file import WHOLE

SIZES = on_beam.Sizes(piece_bytes=2_000, group_rows=40, sample_every=3)


class PlainJobs:
    """`on_beam.Jobs` in this process; what Beam sends, and what comes back, is pickled."""

    def each(self, does, do, elements):
        do, elements = pickle.loads(pickle.dumps((do, elements)))
        return [pickle.loads(pickle.dumps(do(element))) for element in elements]

    def grouped(self, does, deal, gather, elements):
        groups = defaultdict(list)
        for element in reversed(elements):  # Beam promises no order
            for key, value in pickle.loads(pickle.dumps(deal))(element):
                groups[key].append(value)
        gather = pickle.loads(pickle.dumps(gather))
        return {key: gather(key, groups[key]) for key in sorted(groups)}


@pytest.fixture(autouse=True)
def sizes(monkeypatch):
    monkeypatch.setattr(on_beam, "SIZES", SIZES)


def build(engine, rules, max_malformed: float = 1.0) -> tuple:
    """The timelines, the catalogue, the summary, the counts of rows, as JSON where the order counts."""
    report = RowReport()
    catalogue, measures = engine.load(rules, report, max_malformed)
    timelines_ = []
    for block in engine.blocks():
        for user, example in zip(block.user_ids, block.examples(), strict=True):
            timelines_.append((user, {name: column.tolist() for name, column in example["events"].items()}))
    counts = json.dumps([timelines.summarise_timelines(measures), report.as_dict()])
    return timelines_, json.dumps(catalogue), measures.reviews, counts, report.text()


def both(rules, tmp_path, max_malformed: float = 1.0) -> tuple:
    """What both engines build, which is the same."""
    for name in ("one", "many"):
        (tmp_path / name).mkdir()
    one = build(OnDuckDB(tmp_path / "one"), rules, max_malformed)
    engine = on_beam.OnBeam(tmp_path / "many", PlainJobs())
    many = build(engine, rules, max_malformed)
    assert many == one
    give, groups = engine.records()
    keys = [key for group in groups for key, _ in give(group)]
    assert keys == list(range(len(one[0])))
    return (*one, len(groups))


def spoil(lines: list[str], random: np.random.Generator) -> bytes:
    """The lines of a file, some twice, cut, blank, without UTF-8, or with other line ends."""
    spoiled = []
    for line in lines:
        content = line.encode()
        kind = random.integers(40)
        if kind == 0:
            content = content[: random.integers(len(content))]
        elif kind == 1:
            content = b""
        elif kind == 2:
            content += b"\xff"
        spoiled += [content] * (1 + (random.random() < 0.1))
    return b"".join(line + (b"\r\n" if random.random() < 0.1 else b"\n") for line in spoiled)


@pytest.mark.parametrize("form", [CSV, DAT])
def test_movielens(tmp_path, form):
    random = np.random.default_rng(1)
    rows = [
        form.delimiter.join(map(str, (user, random.integers(1, 12), random.choice(form.rating_names), when)))
        for user, when in zip(random.integers(1, 40, 400), random.integers(0, 50, 400), strict=True)
    ]
    path = tmp_path / form.ratings_file
    header = [form.delimiter.join(("userId", "movieId", "rating", "timestamp"))] * form.has_header
    path.write_bytes(b"".join(f"{line}\n".encode() for line in header) + spoil(rows, random)[:-1])
    movies = {"raw_ids": ["", *map(str, range(1, 11))], "titles": [], "category_names": [], "item_categories": []}
    events, *_, text, groups = both(MovieLensRules(path, form, movies), tmp_path)
    assert len(events) > 30
    assert groups > 5
    assert "movieId is not in" in text
    assert "so it may be cut" in text  # only the last line may be, not that of a piece


def _reviews(random: np.random.Generator, keys: tuple[str, ...], values) -> list[str]:
    return [json.dumps(dict(zip(keys, values(random), strict=True)), ensure_ascii=False) for _ in range(300)]


@pytest.mark.parametrize("literal", [False, True])
def test_amazon(tmp_path, literal):
    random = np.random.default_rng(2)
    keys = ("reviewerID", "asin", "overall", "unixReviewTime", "summary")

    def values(random):
        item, stars = f"B{random.integers(20)}", int(random.integers(0, 7))
        text = str(random.choice(["", "good &amp; <b>cheap</b>", "schön"]))
        return (f"U{random.integers(30)}", item, stars, int(random.integers(100)), text)

    reviews, metadata = tmp_path / "reviews.json.gz", tmp_path / "meta.json.gz"
    reviews.write_bytes(gzip.compress(spoil(_reviews(random, keys, values), random)))
    products = [
        {
            "asin": f"B{n}",
            "title": f" Thing  {n}",
            "categories" if literal else "category": [["a", "b"]] if literal else ["a", "b"],
        }
        for n in random.permutation(40)[:30]
    ]
    write = repr if literal else json.dumps
    metadata.write_bytes(gzip.compress(spoil([write(product) for product in products], random)))
    source = Source("meta.json.gz", metadata, of_items=True)
    rules = AmazonRules(Source("reviews.json.gz", reviews), source, "summary", literal, level=1)
    events, *_, text, groups = both(rules, tmp_path)
    assert len(events) > 25
    assert groups > 4
    assert "a later review of a product" in text
    assert "a second row of the same product" in text


def test_google(tmp_path):
    random = np.random.default_rng(3)

    def values(random):
        stars = None if random.random() < 0.1 else int(random.integers(0, 7))
        text = None if random.random() < 0.5 else "nice"
        return (f"{random.integers(30):021}", f"0x{random.integers(20)}", int(random.integers(3_000)), stars, text)

    reviews, places = tmp_path / "reviews.json.gz", tmp_path / "meta.json.gz"
    lines = _reviews(random, ("user_id", "gmap_id", "time", "rating", "text"), values)
    reviews.write_bytes(gzip.compress(spoil(lines, random)))
    rows = [
        json.dumps({"gmap_id": f"0x{n}", "name": f"Place {n}", "category": ["Café", "Bar"][: n % 3], "state": None})
        for n in map(int, random.permutation(40)[:30])
    ]
    places.write_bytes(gzip.compress(spoil(rows, random)))
    rules = GoogleLocalRules(Source("meta.json.gz", places, of_items=True), Source("reviews.json.gz", reviews))
    events, *_, text, groups = both(rules, tmp_path)
    assert len(events) > 25
    assert groups > 4
    assert "user, place and time of an earlier row" in text
    assert "the place is in no metadata" in text


ROLES = ("user", "item", "timestamp", "title", "category", "rating", "review")


def _table(random: np.random.Generator, quoted: bool) -> list[list[str]]:
    """Rows of all roles, many of them malformed, in which other rows than an item's first differ from it."""
    return [
        [
            str(random.choice(["7", "10", "2", "33", "5", "18", "21", "4", ""])),
            str(random.choice(["b", "a", "12", "3", "c"])),
            str(random.choice(["5", "2001-02-03T04:05:06.789Z", "1e3", "17", "86400.0", "-1"])),
            str(random.choice(["", "Uno", "Dos", 'a "quoted",\ntitle' if quoted else "Tres"])),
            str(random.choice(["", "x|y", "z"])),
            str(random.choice(["", "1", "4.5", "many"])),
            str(random.choice(["", "fine"])),
        ]
        for _ in range(200)
    ]


def _write_csv(path: Path, rows: list[list[str]], random: np.random.Generator) -> None:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([ROLES, *rows])
    header, *lines = text.getvalue().split("\n")
    content = f"{header}\n".encode() + spoil(lines, random)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


@pytest.mark.parametrize("text_user", [False, True], ids=["numbers", "text"])
@pytest.mark.parametrize("kind", ["plain", "quoted", "mac", "json", "parquet"])
def test_custom(tmp_path, kind, text_user):
    random = np.random.default_rng(4)
    tables = [_table(random, quoted=kind == "quoted") for _ in range(2)]
    # The one row with this rating, and maybe the one whose user is no number: neither the first of its item.
    tables[1][150] = ["x1" if text_user else "7", "b", "5", "Uno", "z", "3", "fine"]
    ending = {"json": "json.gz", "parquet": "parquet"}.get(kind, "csv.gz")
    files = [tmp_path / f"part{number}.{ending}" for number in range(2)]
    for path, rows in zip(files, tables, strict=True):
        if kind == "json":
            lines = [json.dumps(dict(zip(ROLES, row, strict=True))) for row in rows]
            path.write_bytes(gzip.compress(spoil(lines, random)))
        elif kind == "parquet":
            table = pa.table(dict(zip(ROLES, zip(*rows, strict=True), strict=True)))
            pq.write_table(table, path, row_group_size=30)
        else:
            _write_csv(path, rows, random)
            if kind == "mac":  # a lone \r ends a line as well, for Python's csv module
                content = gzip.decompress(path.read_bytes()).replace(b",fine\n", b",fine\r")
                path.write_bytes(gzip.compress(content))
    items = tmp_path / "items.csv"
    items.write_text("item,title\n3,Third\na,First\n3,Again\nq,Nobody's\n\n")
    described = {"items": [items], "item_columns": {"item": "item", "title": "title"}} if kind == "json" else {}
    roles = [role for role in ROLES if not (described and role == "title")]
    config = CustomConfig("x", files=files, columns={role: role for role in roles}, **described)
    events, catalogue, *_, text, groups = both(CustomRules(config), tmp_path)
    assert len(events) > 7
    assert groups > 2
    assert [user for user, _ in events][:3] == (["10", "18", "2"] if text_user else ["2", "4", "5"])
    assert json.loads(catalogue)["rating_names"] == ["", "1.0", "3.0", "4.5"]
    if described:
        assert json.loads(catalogue)["raw_ids"][1:4] == ["3", "a", "q"]
        assert "the item is in no file of items" in text
    else:
        assert "another title than the item's first" in text


def test_a_quoted_file_is_one_piece_and_others_are_cut_at_line_ends(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(b"\xef\xbb\xbfuser,item\n" + b"1,2\r3,4\n" * 100)
    cut = cut_source(Source("rows.csv", path, "csv"), tmp_path, 90)
    content = path.read_bytes()
    assert len(cut.pieces) > 8
    assert cut.lines == 201
    assert [piece.begin for piece in cut.pieces[1:]] == [piece.end for piece in cut.pieces[:-1]]
    for piece in cut.pieces[1:]:
        assert content[piece.begin - 1 : piece.begin] == b"\n"
        assert piece.line == 1 + len(content[: piece.begin].decode("utf-8-sig").splitlines())
    path.write_bytes(content + b'5,"6"\n')
    assert cut_source(Source("rows.csv", path, "csv"), tmp_path, 90).pieces == [WHOLE]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "has no rows"), (b"[\n{},\n{}\n]\n", "is a JSON array"), (b"x\n" * 500, "holds no row that can be read")],
)
def test_a_file_that_cannot_be_used_is_refused_in_the_same_words(tmp_path, content, message):
    path = tmp_path / "e.json"
    path.write_bytes(content)
    config = CustomConfig("x", files=[path], columns={role: role for role in ROLES[:3]})
    errors = []
    for name, engine in (("one", OnDuckDB), ("many", lambda work: on_beam.OnBeam(work, PlainJobs()))):
        (tmp_path / name).mkdir()
        with pytest.raises(MalformedSourceError, match=message) as caught:
            build(engine(tmp_path / name), CustomRules(config))
        errors.append(str(caught.value))
    assert errors[0] == errors[1]


def test_reports_of_parts_add_up_to_that_of_the_file():
    rows = [(line, f"reason {line * line % 7}") for line in range(1, 60)]
    whole = RowReport()
    parts = [RowReport() for _ in range(4)]
    for line, reason in rows:
        whole.reject("f", reason, [(line, str(line))])
        parts[line // 15].reject("f", reason, [(line, str(line))])
    for report, count in ((whole, 6), *((part, count) for part, count in zip(parts, (0, 1, 2, 3), strict=True))):
        report.apply_rule("f", "first rule", count if report is whole else 0, dropped=True)
        report.apply_rule("f", "second rule", count, dropped=False)
    parts[3].apply_rule("f", "first rule", 6, dropped=True)
    whole.rows["f"] = 100
    together = RowReport()
    for part in reversed(parts):
        part.rows["f"] = 25
        together.add(part)
    assert json.dumps(together.as_dict()) == json.dumps(whole.as_dict())
    found = together.as_dict()["f"]
    assert list(found["rejected"]) == list(dict.fromkeys(reason for _, reason in rows))
    assert found["rejected"]["reason 1"]["first"] == [f"line {line}: {line}" for line in (1, 6, 8, 13, 15)]
    assert list(found["rules"]) == ["first rule", "second rule"]


def test_malformed_rows_stop_the_build_in_the_same_words(tmp_path):
    path = tmp_path / "e.csv"
    path.write_text("user,item,timestamp\n" + "a,b,5\n" * 300 + "a,,5\n" * 9 + "a,b\n")
    config = CustomConfig("x", files=[path], columns={role: role for role in ROLES[:3]})
    errors = []
    for name, engine in (("one", OnDuckDB), ("many", lambda work: on_beam.OnBeam(work, PlainJobs()))):
        (tmp_path / name).mkdir()
        with pytest.raises(MalformedSourceError, match="more malformed rows") as caught:
            build(engine(tmp_path / name), CustomRules(config), max_malformed=0.01)
        errors.append(str(caught.value))
    assert errors[0] == errors[1]
    assert "e.csv line 302" in errors[0]
