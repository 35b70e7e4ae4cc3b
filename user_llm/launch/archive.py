"""Of each finished run of a sweep, what a report reads of it: a small file, for git or for another machine."""

import json
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from user_llm.config import ConfigError
from user_llm.files import replacing
from user_llm.launch.kept import Place, kept

RESULTS, PREDICTIONS, ENVIRONMENT, METRICS = "results.json", "predictions.jsonl", "environment.json", "metrics.jsonl"
ARCHIVE = "archive"


def archive_of(out: Path, name: str) -> Path:
    """The file that holds what a report reads of a run, where it was archived."""
    return out / ARCHIVE / f"{name}.zip"


def place_of(out: Path, name: str) -> Place | None:
    """Where the files of a finished run are read: in its own folder, else in its archive; None where it has neither.

    Raises:
      ConfigError: its archive is damaged.
    """
    if (out / name / RESULTS).is_file():
        return out / name
    file = archive_of(out, name)
    if not file.is_file():
        return None
    try:
        return zipfile.Path(file)
    except zipfile.BadZipFile as error:
        raise ConfigError(f"{file} is damaged ({error}): {anew(file)}") from None


def anew(place: Place) -> str:
    """What a user does about a damaged run; an archive prints as its file with a slash behind."""
    return f"delete {str(place).rstrip('/')} and start the sweep again, which makes it anew"


def archive(out: Path, names: Iterable[str]) -> None:
    """Archives the finished runs among `names` whose folders are there, but for those that were before.

    Of the predictions it keeps what a report counts: `user_id` and ranks or ROUGE-Lsum, no answers. Equal runs make
    equal files.

    Raises:
      ConfigError: a file of a run is damaged.
    """
    for name in names:
        results, file = out / name / RESULTS, archive_of(out, name)
        if not results.is_file() or (file.is_file() and file.stat().st_mtime_ns >= results.stat().st_mtime_ns):
            continue
        with replacing(file) as partial, zipfile.ZipFile(partial, "w") as zipped:
            for path, text in _texts(out / name):
                entry = zipfile.ZipInfo(path)  # without a time of its own
                entry.compress_type = zipfile.ZIP_DEFLATED
                zipped.writestr(entry, text, compresslevel=9)


def _texts(workdir: Path) -> Iterator[tuple[str, str]]:
    metrics = sorted(str(path.relative_to(workdir)) for path in workdir.glob(f"*/{METRICS}"))
    for path in (RESULTS, ENVIRONMENT, *metrics, PREDICTIONS):
        text = kept(workdir / path, _counts if path == PREDICTIONS else str, anew(workdir))
        if text is not None:
            yield path, text


def _counts(predictions: str) -> str:
    return "".join(f"{json.dumps(_counted(json.loads(line)))}\n" for line in predictions.splitlines())


def _counted(prediction: dict) -> dict:
    """What of a user's prediction a report reads."""
    counted = {key: prediction[key] for key in ("user_id", "ranks") if key in prediction}
    if written := prediction.get("written"):
        counted["written"] = {row: {"rougeLsum": of["rougeLsum"]} for row, of in written.items()}
    return counted
