"""The wheel, as somebody installs it who has no clone: its names, its command, its configs."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import user_llm
from tests.end_to_end import tiny
from user_llm.__main__ import COMMANDS
from user_llm.shipped import config_names

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "user_llm", "configs")  # and no more, to build it


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built of a copy, so that nothing is left in the clone."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in NEEDED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    build = ["wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(source)]
    subprocess.run([sys.executable, "-m", "pip", *build], check=True)
    (path,) = out.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs the installed command (or python) in a folder of its own; the packages of this environment are visible."""
    site, folder = tmp_path_factory.mktemp("site"), tmp_path_factory.mktemp("elsewhere")
    install = ["install", "--quiet", "--no-deps", "--target", str(site), str(wheel)]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)

    def run(program, *arguments):
        command = [site / "bin" / program if program == "user-llm" else program, *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)

    run.site, run.folder = site, folder
    return run


def test_one_name_of_ours_comes_into_site_packages(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {"user_llm", f"user_llm-{user_llm.__version__}.dist-info"}
    tracked = subprocess.run(["git", "ls-files", "user_llm", "configs"], cwd=ROOT, capture_output=True, text=True)
    expected = {re.sub("^configs/", "user_llm/configs/", path) for path in tracked.stdout.split()}
    assert {name for name in expected if (ROOT / name.replace("user_llm/configs", "configs")).exists()} <= set(names)


def test_the_command_says_what_there_is(installed):
    version, told, wrong = (installed("user-llm", *words) for words in (["--version"], [], ["trian"]))
    assert version.stdout == f"user-llm {user_llm.__version__}\n"
    assert told.returncode == 0
    assert all(f"\n  {name} " in told.stdout for name in COMMANDS)
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "'trian' is no command of user-llm" in wrong.stderr


@pytest.mark.parametrize("name", ["build", "sweep", "report"])
def test_each_command_explains_itself(installed, name):
    told = installed("user-llm", name, "--help")
    assert (told.returncode, told.stderr) == (0, "")
    assert f"usage: user-llm {name} " in told.stdout


def test_shipped_configs_go_by_name(installed):
    code = (
        "import user_llm.command_line as c, user_llm.shipped as s; print(s.CONFIGS); "
        "print([c.load(n).name for n in s.config_names()]); print(c.load('simulated:favorite_category').task)"
    )
    done = installed(sys.executable, "-c", code)
    assert done.stderr == ""
    folder, names, task = done.stdout.splitlines()
    assert folder == str(installed.site / "user_llm" / "configs")
    assert len(eval(names)) == len(config_names()) > 5
    assert task == "favorite_category"


def test_it_trains_from_another_folder(installed, tiny_run):
    """Two steps of the encoder, on a dataset that is built."""
    small, (_, (_, data_dir, *_), _) = tiny.get_config(), tiny_run
    keys = {
        "stages": "('encoder',)",
        **{f"data.simulated.{key}": small.data.simulated[key] for key in ("num_users", "num_items", "mean_events")},
        **{f"encoder.{key}": small.encoder[key] for key in ("num_layers", "width", "num_heads", "hidden")},
        "data.history_length": small.data.history_length,
        "training.encoder.steps": 2,
        "training.encoder.batch_size": 8,
    }
    flags = [data_dir, *(f"--config.{key}={value}" for key, value in keys.items())]
    done = installed("user-llm", "train", "--config=simulated", "--workdir=run", *flags)
    assert done.returncode == 0, done.stderr
    assert "encoder" in done.stdout
    assert (installed.folder / "run" / "results.json").is_file()
