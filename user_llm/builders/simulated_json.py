"""Simulated Amazon and Google Local reviews, written as the gzipped JSON lines UCSD publishes.

The users are those of `simulated.py`: products are its movies, places its series under the names of chains. A few
rows in a hundred have what real files have: a missing or marked-up title, a product without metadata, a second review
of the same product, no text, several categories, a place that has closed, a translated text.
"""

import gzip
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from user_llm.builders.simulated import Events, Series, SimulatedConfig, simulate_catalogue, simulate_events
from user_llm.builders.simulated_reviews import translated, write_reviews
from user_llm.builders.simulated_titles import GENRES, PLACE_KINDS, chain_names, series_titles

SIMULATED = "Simulated"
"""What stands for a category of products, or a state, in the names of the files."""

_RARE = 0.01
_MORE_STARS = 0.7
"""How much better than movies people rate products and places."""
_DAY = 86_400
_LEVEL = 1  # of gzip: the files are read once


def write_amazon_json(config: SimulatedConfig, folder: Path) -> None:
    """Writes `Simulated_5.json.gz` and `meta_Simulated.json.gz` into `folder`, in the format of 2018."""
    rng = np.random.default_rng(config.seed)
    catalogue = simulate_catalogue(config, rng)
    titles = series_titles(catalogue.genres[:, 0], rng)
    asins = np.array([f"B{raw_id:09d}" for raw_id in catalogue.raw_ids])
    with _lines(folder / f"meta_{SIMULATED}.json.gz") as file:
        for row in _products(catalogue, titles, asins, rng):
            file.write(json.dumps(row).encode() + b"\n")
    genres = np.repeat(catalogue.genres[:, 0], catalogue.num_parts)
    with _lines(folder / f"{SIMULATED}_5.json.gz") as file:
        for start, events in simulate_events(config, catalogue, rng):
            file.write(_amazon_rows(start, events, genres, asins, rng))


def write_google_json(config: SimulatedConfig, folder: Path) -> None:
    """Writes `review-Simulated_10.json.gz` and `meta-Simulated.json.gz` into `folder`, in the format of 2021."""
    rng = np.random.default_rng(config.seed)
    catalogue = simulate_catalogue(config, rng)
    names = chain_names(catalogue.genres[:, 0], rng)
    ids = np.array([f"0x{raw_id:016x}:0x{raw_id * 2_654_435_761:016x}" for raw_id in catalogue.raw_ids.tolist()])
    with _lines(folder / f"meta-{SIMULATED}.json.gz") as file:
        for row in _places(catalogue, names, ids, rng):
            file.write(json.dumps(row).encode() + b"\n")
    genres = np.repeat(catalogue.genres[:, 0], catalogue.num_parts)
    with _lines(folder / f"review-{SIMULATED}_10.json.gz") as file:
        for start, events in simulate_events(config, catalogue, rng):
            file.write(_google_rows(start, events, genres, ids, rng))


def _lines(path: Path) -> gzip.GzipFile:
    """A file to write to; the same content gives the same bytes."""
    return gzip.GzipFile(path, "wb", compresslevel=_LEVEL, mtime=0)


def _items(catalogue: Series) -> Iterator[tuple[int, int, int]]:
    """(item, series, part) of the whole catalogue."""
    for series, (first, num_parts) in enumerate(zip(catalogue.first_item, catalogue.num_parts, strict=True)):
        for part in range(num_parts):
            yield int(first) + part, series, part


def _products(
    catalogue: Series, titles: Sequence[str], asins: np.ndarray, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    fate = rng.permutation(len(asins)) / len(asins)
    for item, series, part in _items(catalogue):
        genres = dict.fromkeys(GENRES[genre] for genre in catalogue.genres[series])
        title = f"{titles[series]} {part + 1}" if part else titles[series]
        row = {"category": [SIMULATED, *genres], "title": title, "brand": "", "asin": asins[item], "price": ""}
        if fate[item] < _RARE / 2:
            continue  # a product without metadata
        if fate[item] < _RARE:
            row["title"] = ""
        elif fate[item] < 3 * _RARE:
            row["title"] = f"<span>{title}</span> &amp; More"
        yield row


def _places(
    catalogue: Series, names: Sequence[str], ids: np.ndarray, rng: np.random.Generator
) -> Iterator[dict[str, Any]]:
    fate = rng.permutation(len(ids)) / len(ids)
    for item, series, part in _items(catalogue):
        kinds = list(dict.fromkeys(PLACE_KINDS[kind] for kind in catalogue.genres[series]))
        branch = f" #{part + 1}" if part else ""
        row: dict[str, Any] = {"name": names[series] + branch, "address": None, "gmap_id": ids[item]}
        row |= {"description": None, "latitude": 40.7, "longitude": -74.0, "category": kinds, "avg_rating": 4.4}
        row |= {"num_of_reviews": 8, "price": None, "hours": None, "MISC": None, "state": "Open now"}
        row |= {"relative_results": None, "url": f"https://www.google.com/maps/place//data=!4m2!3m1!1s{ids[item]}"}
        if fate[item] < _RARE / 2:
            continue  # a place without metadata
        if fate[item] < _RARE:
            row["category"] = None
        elif fate[item] < 3 * _RARE:
            row["state"] = "Permanently closed"
        yield row


def _stars(events: Events) -> np.ndarray:
    return np.clip(np.rint(events.half_stars / 2 + _MORE_STARS), 1, 5).astype(np.int64)


def _days(events: Events) -> np.ndarray:
    """Days since 1970: Amazon's times have no hours. Of four events in a row two are of the same day."""
    order = np.lexsort((events.timestamp, events.user))
    first = np.searchsorted(events.user[order], np.arange(len(events.mildness)))
    position = np.empty(len(order), np.int64)
    position[order] = np.arange(len(order)) - first[events.user[order]]
    return events.timestamp[order][first][events.user] // _DAY + position * 3 // 4


def _amazon_rows(start: int, events: Events, genres: np.ndarray, asins: np.ndarray, rng: np.random.Generator) -> bytes:
    stars, days = _stars(events), _days(events)
    reviews = write_reviews(events, stars, genres, GENRES)
    fate = rng.random(len(stars))
    dates = pc.strftime(pa.array(days * _DAY).cast(pa.timestamp("s")), format="%m %d, %Y")
    head = _join('{"overall": ', _numbers(stars), '.0, "verified": true, "reviewTime": "', dates)
    users = _join('", "reviewerID": "A', _padded(start + 1 + events.user), '", "asin": "', _take(asins, events.item))
    text = _join('", "reviewerName": "Customer", "reviewText": "', reviews.text)
    summary = _join('", "summary": "', _where(fate < _RARE / 2, "", reviews.summary))
    rows = _join(head, users, text, summary, '", "unixReviewTime": ', _numbers(days * _DAY), "}\n")
    order = np.lexsort((asins[events.item], events.user))
    order = np.insert(order, np.flatnonzero(fate[order] > 1 - _RARE / 2), order[fate[order] > 1 - _RARE / 2])
    return _bytes(rows.take(pa.array(order)))


def _google_rows(start: int, events: Events, genres: np.ndarray, ids: np.ndarray, rng: np.random.Generator) -> bytes:
    stars = _stars(events)
    text = write_reviews(events, stars, genres, PLACE_KINDS).text
    fate = rng.random(len(stars))
    text = _where(fate > 1 - 2 * _RARE, translated(text, stars), text)
    text = _where(fate < 3 * _RARE, "null", _join('"', text, '"'))
    head = _join('{"user_id": "1', _padded(start + 1 + events.user), '", "name": "Somebody", "time": ')
    time = _join(_numbers(events.timestamp * 1000 + 7), ', "rating": ', _numbers(stars), ', "text": ', text)
    rows = _join(head, time, ', "pics": null, "resp": null, "gmap_id": "', _take(ids, events.item), '"}\n')
    order = np.lexsort((ids[events.item], events.user))
    order = np.insert(order, np.flatnonzero(fate[order] > 1 - _RARE / 2), order[fate[order] > 1 - _RARE / 2])
    return _bytes(rows.take(pa.array(order)))


def _join(*parts: pa.Array | str) -> pa.Array:
    return pc.binary_join_element_wise(*parts, "")


def _numbers(values: np.ndarray) -> pa.Array:
    return pa.array(values).cast(pa.string())


def _padded(values: np.ndarray) -> pa.Array:
    return pc.utf8_lpad(_numbers(values), width=13, padding="0")


def _take(values: np.ndarray, index: np.ndarray) -> pa.Array:
    return pa.array(values.tolist()).take(pa.array(index))


def _where(mask: np.ndarray, value: pa.Array | str, other: pa.Array) -> pa.Array:
    return pc.if_else(pa.array(mask), value, other)


def _bytes(rows: pa.Array) -> bytes:
    return "".join(rows.to_pylist()).encode()
