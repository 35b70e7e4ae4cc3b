"""The README and the user guide say what is true: their commands are taken, their snippets run, their files are there.

What trains is not run but held against the schema: the same config, with the same keys, must be valid.
"""

import functools
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator

import pytest
from ml_collections.config_flags import config_path

import user_llm
from tests.faults.harness import REPOSITORY, build, command, train
from user_llm import command_line, keys
from user_llm.experiment.validation import problems

README = "README.md"
GUIDE = (
    README,
    *(
        f"docs/{name}.md"
        for name in (
            *("quickstart", "data", "models", "tasks", "audit", "reproduce"),
            *("clusters", "scale", "checkpoints", "python"),
        )
    ),
)
MOST_LINES = 200  # of the README, which sends on to the pages of docs/

OF_A_WORKDIR = {"user_llm/adapters"}  # which looks like a folder of the clone
# Of files that a user has and a clone has not.
ELSEWHERE = ("data.raw_path", "llm.checkpoint", "lora.checkpoint", "encoder.checkpoint")
MOVIES = "user_llm/builders/movielens/dummy_data/ml-latest-small/"

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_PATH = re.compile(r"(?<![\w/.])(?:benchmarks|configs|docs|launch|tests|tfds_builders|user_llm)/[\w./-]*\w")
_KEY = re.compile(
    r"(?<![\w/.])(?:config\.)?((?:data|prompt|encoder|llm|integration|lora|compute|training|evaluation)(?:\.\w+)+)"
)


def text_of(page: str) -> str:
    return (REPOSITORY / page).read_text(encoding="utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [body for named, body in _FENCE.findall(text_of(page)) if named == language]


def code_spans(page: str) -> str:
    """What stands between backticks outside of the blocks."""
    return "\n".join(re.findall(r"`([^`\n]+)`", _FENCE.sub("", text_of(page))))


def commands(*starts: str) -> Iterator[tuple[str, list[str]]]:
    """(page, words behind the start) of every command of the guide that starts so."""
    for page in GUIDE:
        for block in blocks(page, "bash"):
            for line in block.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if tuple(words[: len(starts)]) == starts:
                    yield page, words[len(starts) :]


def cases(*starts: str) -> list:
    """The different ones, as parameters of a test."""
    found = {shlex.join(words): pytest.param(words, id=shlex.join(words)) for _, words in commands(*starts)}
    assert found, f"the guide has no command {shlex.join(starts)}"
    return list(found.values())


def configured(words: list[str]) -> None:
    """Holds a config and its overrides against the schema, as a start of the command would."""
    command_line.check_overrides(["main", *words])
    config, overrides = None, []
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if name == "config":
            config = command_line.load(value)
        elif name.startswith("config."):
            overrides.append((name.removeprefix("config."), value))
    for key, value in overrides:
        config_path.set_value(key, config, keys.parsed(key, value))
    assert problems(config, awaited=ELSEWHERE) == []


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # as the guide asks for


def test_the_readme_is_short():
    assert len(text_of(README).splitlines()) < MOST_LINES


@pytest.mark.parametrize("page", GUIDE)
def test_files_and_links_of_a_page_are_there(page):
    folder = (REPOSITORY / page).parent
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", _FENCE.sub("", text_of(page)))
    own = [link for link in links if (page == README or not link.endswith(".md")) and "://" not in link]
    missing = [link for link in own if not (folder / link).exists()]
    named = _PATH.findall(_FENCE.sub("", text_of(page)))
    missing += [path for path in named if path not in OF_A_WORKDIR and not (REPOSITORY / path).exists()]
    assert not missing


@pytest.mark.parametrize("page", [page for page in GUIDE if page != "docs/python.md"])  # where `data` is a variable
def test_config_keys_of_a_page_are_in_the_schema(page):
    known = [f"{key}." for key in keys.DEFAULTS]
    asked = {key.rstrip(".") for key in _KEY.findall(code_spans(page)) if not key.endswith((".py", ".md"))}
    wrong = [key for key in asked if not any(full.startswith(f"{key}.") for full in known)]
    assert not wrong


def test_extras_and_targets_that_are_named_exist():
    guide = "\n".join(map(text_of, GUIDE))
    setup, makefile = text_of("setup.py"), text_of("Makefile")
    extras = re.search(r"extras_require=\{(.*?)\}", setup, re.DOTALL)[1]
    for extra in set(re.findall(r"-e '?\.\[(\w+)\]", guide)):
        assert f'"{extra}"' in extras
    for _, words in commands("make"):
        target = next(word for word in words if "=" not in word)
        assert f"\n{target}: " in makefile


@pytest.mark.parametrize("words", [*cases("python", "-m", "user_llm.main"), *cases("user-llm", "train")])
def test_experiments_are_taken(words):
    configured(words)


def test_efficiency_is_taken():
    for _, words in commands("python", "-m", "user_llm.efficiency"):
        configured(words)


def test_flags_of_main_exist(tmp_path):
    shown = train("--help", folder=tmp_path).text
    for _, words in commands("python", "-m", "user_llm.main"):
        for word in words:
            name = word.removeprefix("--").partition("=")[0]
            if not name.startswith("config"):
                assert re.search(rf"--(\[no\])?{name}\b", shown), word


def test_the_dry_run_of_the_readme_prints_every_stage(tmp_path):
    found = [words for page, words in commands("python", "-m", "user_llm.main") if page == README]
    (words,) = (words for words in found if "--dry_run" in words)
    train(*words, folder=tmp_path).check(0, "stage llm", "stage encoder", "stage user_llm", "MiB per device")


def test_the_readme_builds_a_dataset_of_ones_own(tmp_path):
    (words,) = (words for page, words in commands("user-llm", "build") if page == README)
    words = [word.replace("ml-latest-small/", MOVIES).replace("runs/data", str(tmp_path)) for word in words]
    build(*words, folder=tmp_path).check(0, "fingerprint: ", "users, ")
    assert (tmp_path / "custom" / "my_movies").is_dir()


def test_other_builds_are_understood(tmp_path):
    for _, words in commands("user-llm", "build"):
        if words[0] != "custom/my_movies":
            lacking = "interactions.csv" if words[0] == "custom/beauty" else "ml-latest-small.zip"
            build(*words, folder=tmp_path).check(1, lacking)  # which is not there: all else was taken


# A sweep that reads a pretrained model is planned in tests/launch: it wants a file that is not here.
@pytest.mark.parametrize("words", [case for case in cases("user-llm", "sweep") if ".gguf" not in str(case.values)])
def test_sweeps_can_be_planned(words, tmp_path):
    out = tmp_path / "out"
    words = [f"--out={out}" if word.startswith("--out=") else word for word in words if word != "--write_commands"]
    for name in ("ml-1m.zip", "FOLDER_WITH_THE_TWO_FILES"):
        (tmp_path / name).mkdir()
        words = [word.replace(f"={name}", f"={tmp_path / name}") for word in words]
    command("user_llm.launch.local", *words, "--write_commands", folder=tmp_path).check(0, "wave1.txt", "wave2.txt")
    assert (out / "wave1.txt").read_text()


def test_clusters_can_be_tried(tmp_path):
    venv = {"VENV": sys.prefix, "TMPDIR": str(tmp_path)}
    for block in blocks("docs/clusters.md", "bash"):
        tried = [line for line in block.splitlines() if line.startswith("export") or "--dry_run" in line]
        tried = [line for line in tried if "python" not in line]
        if tried:
            shell = ["bash", "-euo", "pipefail", "-c", "\n".join(tried)]
            done = subprocess.run(shell, cwd=REPOSITORY, env={**os.environ, **venv}, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            assert "user_llm.main" in done.stdout
    for name in ("tpu_vm.sh", "slurm.sh"):
        told = subprocess.run([f"launch/{name}", "--help"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
        table = text_of("docs/clusters.md")
        for variable in re.findall(r"^  ([A-Z_]{4,})  ", told.stdout, re.MULTILINE):
            assert f"`{variable}`" in table


@pytest.mark.parametrize("page", GUIDE)
def test_snippets_of_python_can_be_read(page):
    for body in blocks(page, "python"):
        compile(body, page, "exec")


def test_snippets_of_python_run(tiny_run, tmp_path, monkeypatch):
    """With a finished run, its language model and its dataset in place of those that are named."""
    workdir, data_dir = tiny_run[0], tiny_run[0].parent / "data"
    simulated = "simulated=dict(num_users=48, num_items=60, mean_events=26)"
    for name in ("load", "load_language_model"):  # each is read once for all snippets
        monkeypatch.setattr(user_llm, name, functools.cache(getattr(user_llm, name)), raising=False)
    titles = user_llm.load(str(workdir)).catalogue.titles
    dataset, built = '"movielens/latest_small"', f"data_dir={str(data_dir)!r}, {simulated}"
    places = {
        '"runs/ml_latest_small"': repr(str(workdir)),
        '"FOLDER"': repr(str(workdir / "llm" / "huggingface")),
        '"NEW_FOLDER"': repr(str(tmp_path / "saved")),
        'UserStore(model, "users")': f"UserStore(model, {str(tmp_path / 'users')!r})",
        '"LLM_FOLDER"': repr(str(tmp_path / "language_model")),
        '"Toy Story (1995)"': repr(titles[1]),
        '"Heat (1995)"': repr(titles[2]),
        'raw_path="ml-latest-small.zip", data_dir="runs/data"': built,
        f'{dataset}, data_dir="runs/data"': f"{dataset}, {built}",
        dataset: '"movielens/simulated"',
        'results = run(config, Path("runs/from_python"), Host())': "",  # which trains
        ", temperature=0.8, seed=1": "",  # another program to compile; test_api.py samples
    }
    ran = 0
    for page in (README, "docs/python.md", "docs/store.md"):
        for body in blocks(page, "python"):
            # Of other tasks and files, and of an export (`tests/exported`).
            if "model.answer" in body or "purchases.csv" in body or "from runtime" in body:
                continue
            for named, here in places.items():
                body = body.replace(named, here)
            exec(compile(body, page, "exec"), {})
            ran += 1
    assert ran == 10
