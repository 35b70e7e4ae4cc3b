"""Where the files of a release come from: the folder for manual downloads, or TFDS's download."""

import contextlib
import ssl
import urllib.error
import urllib.request
from pathlib import Path

import tensorflow_datasets as tfds

from user_llm.errors import Unreachable

_SECONDS_TO_ANSWER = 10


def manual_file(manager: tfds.download.DownloadManager, name: str) -> Path | None:
    """A file of a release, or the folder its zip unpacks to, where somebody has put it into the manual folder."""
    with contextlib.suppress(AssertionError):  # TFDS's answer to a manual folder that is missing or empty
        for path in (manager.manual_dir / name.removesuffix(".zip"), manager.manual_dir / name):
            if path.exists():
                return Path(path)
    return None


def download(manager: tfds.download.DownloadManager, url: str) -> Path:
    """The file at `url`, fetched once.

    Raises:
      Unreachable: it cannot be fetched.
    """
    try:
        if not _is_fetched(manager, url):
            _ask(url)
        return Path(manager.download(url))
    except (OSError, tfds.download.DownloadError) as error:
        reason = getattr(error, "reason", None) or error
        raise Unreachable(f"{url} cannot be fetched ({reason}). Fetch it elsewhere and give raw_path.") from error


def _is_fetched(manager: tfds.download.DownloadManager, url: str) -> bool:
    resource = tfds.download.Resource(url=url)
    return bool(manager._get_checksum_dl_result(resource) or manager._get_url_dl_result(resource))


def _ask(url: str) -> None:
    """Raises OSError where no server answers: TFDS would try for minutes, and without a time limit."""
    request = urllib.request.Request(url, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_SECONDS_TO_ANSWER).close()
    except urllib.error.HTTPError as answer:
        if answer.code >= 500:  # TFDS tries again; of all others it says at once what is wrong
            raise
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # it has answered, and TFDS brings certificates of its own
            raise
