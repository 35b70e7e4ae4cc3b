"""Finds the two files of a MovieLens release in a zip or a folder, and fingerprints their content."""

import hashlib
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from tfds_builders.malformed import MalformedSourceError
from tfds_builders.movielens.format import FileFormat

_CHUNK = 1 << 20


def fingerprint(source: Path, form: FileFormat) -> str:
    """sha256 over the content of the movies and the ratings file, however they are packed or named.

    Raises:
      MalformedSourceError: see `stage`.
    """
    digests = []
    for name in form.files:
        with _open(source, name) as file, _readable(source, name):
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def stage(source: Path, form: FileFormat, folder: Path) -> dict[str, Path]:
    """Paths of the two files by name: those of a folder where they are, those of a zip unpacked into `folder`.

    Raises:
      MalformedSourceError: the source does not exist, is a truncated or damaged zip, or lacks a file.
    """
    if source.is_dir():
        return {name: _find_in_folder(source, name) for name in form.files}
    paths = {}
    for name in form.files:
        paths[name] = folder / name
        with _open(source, name) as file, _readable(source, name), paths[name].open("wb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
    return paths


@contextmanager
def _open(source: Path, name: str) -> Iterator[BinaryIO]:
    if source.is_dir():
        with _find_in_folder(source, name).open("rb") as file:
            yield file
        return
    if not source.exists():
        raise MalformedSourceError(f"{source} does not exist: give the zip as published, or the folder it unpacks to.")
    try:
        archive = zipfile.ZipFile(source)
    except zipfile.BadZipFile as error:
        raise MalformedSourceError(f"{source} is a truncated zip or none at all ({error}): fetch it again.") from error
    with archive:
        members = [member for member in archive.namelist() if member.rsplit("/", 1)[-1] == name]
        if len(members) != 1:
            raise MalformedSourceError(
                f"{source} holds {len(members)} files named {name}, expected one; it holds {archive.namelist()[:10]}."
            )
        with archive.open(members[0]) as file:
            yield file


@contextmanager
def _readable(source: Path, name: str) -> Iterator[None]:
    """Names the archive when its compressed data turn out to be damaged half-way."""
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MalformedSourceError(f"{source}: {name} is damaged ({error}): fetch the zip again.") from error


def _find_in_folder(folder: Path, name: str) -> Path:
    found = [path for path in (folder / name, *sorted(folder.glob(f"*/{name}"))) if path.is_file()]
    if len(found) != 1:
        raise MalformedSourceError(f"{folder} holds {len(found)} files named {name} (itself or one folder down), expected one.")
    return found[0]
