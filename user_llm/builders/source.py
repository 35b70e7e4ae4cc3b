"""Finds the raw files of a release in a zip or a folder, and fingerprints their content."""

import hashlib
import shutil
import zipfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from io import BufferedIOBase
from pathlib import Path
from typing import cast

from user_llm.builders.malformed import MalformedSourceError
from user_llm.builders.text_file import DAMAGE

_CHUNK = 1 << 20
_ZIP = b"PK"
_ENCRYPTED = 1  # a bit of a zip member's flags


def fingerprint(files: Mapping[str, Path]) -> str:
    """sha256 over the content of the files, each as it is published, in the order of `files`.

    Raises:
      MalformedSourceError: one is missing or no file.
    """
    digests = []
    for path in files.values():
        if not path.is_file():
            raise MalformedSourceError(f"{path} does not exist or is no file.")
        with path.open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return _combined(digests)


def packed_fingerprint(source: Path, names: Sequence[str], optional: Collection[str] = ()) -> str:
    """`fingerprint` of the files that `stage` would give, without unpacking them.

    Raises:
      MalformedSourceError: see `stage`.
    """
    digests = []
    for name in _present(source, names, optional):
        with _open(source, name) as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return _combined(digests)


def stage(source: Path, names: Sequence[str], folder: Path, optional: Collection[str] = ()) -> dict[str, Path]:
    """The raw files on disk by name: the source folder's own, or what a zip was unpacked to in `folder`.

    Args:
      source: a zip as published, or a folder that holds the files, itself or one folder down.
      names: of the files.
      folder: where a zip is unpacked to.
      optional: names that may be missing.

    Raises:
      MalformedSourceError: the source does not exist, is no zip that can be unpacked, or lacks a file.
    """
    names = _present(source, names, optional)
    if source.is_dir():
        return {name: _in_folder(source, name) for name in names}
    for name in names:
        with _open(source, name) as file, (folder / name).open("wb") as copy:
            shutil.copyfileobj(file, copy, _CHUNK)
    return {name: folder / name for name in names}


def _combined(digests: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _present(source: Path, names: Sequence[str], optional: Collection[str]) -> list[str]:
    """The names without those that are optional and not there."""
    if not source.exists():
        raise MalformedSourceError(
            f"{source} does not exist: give a zip or a folder that holds {', '.join(names)}, as published."
        )
    if not source.is_dir():
        _check_zip(source, names)
    return [name for name in names if name not in optional or _members(source, name)]


def _members(source: Path, name: str) -> list:
    """Paths in a folder, or member names in a zip, of the files called `name`."""
    if source.is_dir():
        return [path for path in (source / name, *sorted(source.glob(f"*/{name}"))) if path.is_file()]
    try:
        with zipfile.ZipFile(source) as archive:
            return [member for member in archive.namelist() if member.rsplit("/", 1)[-1] == name]
    except (zipfile.BadZipFile, *DAMAGE) as error:
        raise _damaged(source, error) from error


def _check_zip(source: Path, names: Sequence[str]) -> None:
    expected = f"expected a zip, or the folder that holds {', '.join(names)}."
    if not source.is_file():
        raise MalformedSourceError(f"{source} is neither a file nor a folder: {expected}")
    with source.open("rb") as file:
        if file.read(len(_ZIP)) != _ZIP:
            raise MalformedSourceError(f"{source} is no zip: {expected}")


@contextmanager
def _open(source: Path, name: str) -> Iterator[BufferedIOBase]:
    if source.is_dir():
        with _in_folder(source, name).open("rb") as file:
            yield file
        return
    members = _members(source, name)
    if len(members) != 1:
        raise MalformedSourceError(f"{source} holds {len(members)} files named {name}, expected one.")
    try:
        with zipfile.ZipFile(source) as archive:
            if archive.getinfo(members[0]).flag_bits & _ENCRYPTED:
                raise MalformedSourceError(f"{source} is encrypted: unpack it, and give the folder.")
            with archive.open(members[0]) as file:
                yield cast(zipfile.ZipExtFile, file)
    except NotImplementedError as error:
        raise MalformedSourceError(
            f"{source} is packed in a way that is not supported ({error}): unpack it, and give the folder."
        ) from error
    except (zipfile.BadZipFile, *DAMAGE) as error:
        raise _damaged(source, error) from error


def _in_folder(source: Path, name: str) -> Path:
    found = _members(source, name)
    if len(found) != 1:
        raise MalformedSourceError(
            f"{source} holds {len(found)} files named {name}, itself or one folder down; expected one."
        )
    return found[0]


def _damaged(source: Path, error: Exception) -> MalformedSourceError:
    return MalformedSourceError(f"{source} is a truncated or damaged zip ({error}): fetch it again.")
