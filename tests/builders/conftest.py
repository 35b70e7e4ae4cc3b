"""A tiny MovieLens release to build from, and to spoil."""

from pathlib import Path

import pytest

MOVIES = ["movieId,title,genres"] + [f"{10 * i},Movie {i} (2000),Drama|Comedy" for i in range(1, 7)]
RATINGS = ["userId,movieId,rating,timestamp"] + [
    f"{user},{10 * (1 + (user + n) % 6)},{1 + n / 2:.1f},{1000 + 7 * n}" for user in (1, 2, 10) for n in range(4)
]


@pytest.fixture
def write_release(tmp_path):
    """Writes a csv release; lines of either file can be replaced, and bytes are written as they are."""

    def write(movies: list[str] | bytes = MOVIES, ratings: list[str] | bytes = RATINGS) -> Path:
        folder = tmp_path / "release"
        folder.mkdir(exist_ok=True)
        for name, content in (("movies.csv", movies), ("ratings.csv", ratings)):
            if isinstance(content, list):
                content = "".join(f"{line}\n" for line in content).encode()
            (folder / name).write_bytes(content)
        return folder

    return write


@pytest.fixture(autouse=True)
def network(monkeypatch):
    """None: a test says itself what TFDS's download gives."""
    monkeypatch.setattr("user_llm.builders.download._ask", lambda url: None)
