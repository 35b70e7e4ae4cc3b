"""What is no path of this machine is refused by name, before a folder is made of it."""

from pathlib import Path

import pytest

from user_llm.errors import UserError
from user_llm.paths import local_path


@pytest.mark.parametrize(
    "address", ["gs://b/x", "s3://b", "hdfs://n/x", "https://h/x.zip", "file:///x", "GS://b", "gs:/b"]
)
def test_an_address_is_refused(address):
    with pytest.raises(UserError, match=r"^--workdir=\S+: \w+:// is an address"):
        local_path(address, "--workdir")
    with pytest.raises(UserError):
        local_path(Path(address), "--workdir")


@pytest.mark.parametrize(
    "path", ["", "runs/a", "/runs/a b", "a:b/c", "12:30", "./gs://b", "C:/x", "~/x", "организация/x"]
)
def test_a_path_is_left_as_it_is(path):
    assert local_path(path, "--workdir") == Path(path)
