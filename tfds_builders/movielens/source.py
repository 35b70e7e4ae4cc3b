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
    """sha256 over the content of the movies and the ratings file, however the two are packed.

    Raises:
      MalformedSourceError: see `stage`.
    """
    digests = []
    for name in form.files:
        with _open(source, name) as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def stage(source: Path, form: FileFormat, folder: Path) -> Path:
    """A folder that holds the two files: the source's own, or `folder` with what a zip was unpacked to.

    Raises:
      MalformedSourceError: the source does not exist, is a truncated or damaged zip, or lacks a file.
    """
    if source.is_dir():
        return _release_folder(source, form.ratings_file)
    for name in form.files:
        with _open(source, name) as file, (folder / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
    return folder


@contextmanager
def _open(source: Path, name: str) -> Iterator[BinaryIO]:
    if source.is_dir():
        with (_release_folder(source, name) / name).open("rb") as file:
            yield file
        return
    if not source.exists():
        raise MalformedSourceError(f"{source} does not exist: give the zip as published, or the folder it unpacks to.")
    try:
        with zipfile.ZipFile(source) as archive:
            members = [member for member in archive.namelist() if member.rsplit("/", 1)[-1] == name]
            if len(members) != 1:
                raise MalformedSourceError(f"{source} holds {len(members)} files named {name}, expected one.")
            with archive.open(members[0]) as file:
                yield file
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise MalformedSourceError(f"{source} is a truncated or damaged zip ({error}): fetch it again.") from error


def _release_folder(source: Path, name: str) -> Path:
    """The folder with the file `name`: the source itself, or the one folder in it that has the file."""
    found = [path for path in (source / name, *sorted(source.glob(f"*/{name}"))) if path.is_file()]
    if len(found) != 1:
        raise MalformedSourceError(
            f"{source} holds {len(found)} files named {name}, itself or one folder down; expected one."
        )
    return found[0].parent
