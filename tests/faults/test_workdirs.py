"""A workdir is owned: foreign files are left alone, a damaged run is named, two starts never meet."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

import user_llm
from tests.faults.harness import REPOSITORY, results, train
from tfds_builders.locks import owned
from user_llm.errors import UserError


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# What is there before → words of the refusal. `W` is the workdir.
FOREIGN = {
    "notes of somebody": (lambda w: write(w / "vocabulary/mine.txt", "mine"), "files of somebody else (vocabulary)"),
    "a catalogue of somebody": (lambda w: write(w / "catalogue.json", "mine"), "files of somebody else"),
    "a Hugging Face folder": (
        lambda w: write(w / "config.json", '{"architectures": ["LlamaForCausalLM"]}'),
        "no config of a run",
    ),
    "a hidden file": (lambda w: write(w / ".bashrc", "mine"), "files of somebody else (.bashrc)"),
    "a file in its place": (lambda w: write(w, "mine"), "is a file"),
}


@pytest.mark.parametrize("fault", FOREIGN)
def test_a_folder_of_somebody_else_is_left_as_it_is(fault, mini, tmp_path):
    make, words = FOREIGN[fault]
    workdir = tmp_path / "w"
    make(workdir)
    before = everything(tmp_path)
    train(*mini, f"--workdir={workdir}", folder=tmp_path).check(1, words, str(workdir))
    assert {name: data for name, data in everything(tmp_path).items() if not name.endswith(".log")} == before


@pytest.mark.parametrize("address", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run"])
def test_an_address_is_no_folder(address, mini, tmp_path):
    train(*mini, f"--workdir={address}", folder=tmp_path).check(1, f"--workdir={address}", "is an address")
    assert not (REPOSITORY / address.partition("/")[0]).exists()


def test_a_failed_start_claims_nothing_and_its_debris_is_cleared(mini, tmp_path):
    workdir = tmp_path / "w"
    train(*mini, f"--workdir={workdir}", "--config.prompt.max_inputs=3", folder=tmp_path).check(1, "raise max_inputs")
    assert not (workdir / "encoder").exists()  # what a later stage cannot run is said before the first
    assert not (workdir / "config.json").exists()
    write(workdir / "vocabulary.123.partial", "half")
    (workdir / "llm/huggingface.7.partial").mkdir(parents=True)
    encoder = "--config.stages=('encoder',)"
    train(*mini, f"--workdir={workdir}", encoder, "--config.evaluation.max_users=5", folder=tmp_path).check(0)
    assert not list(workdir.rglob("*.partial"))
    assert not (workdir / ".preparing").exists()


def lost(name):
    return lambda run: (run / name).unlink()


def cut(name, length=300):
    return lambda run: (run / name).write_bytes((run / name).read_bytes()[:length])


def flip(name, place=-40):
    def change(run):
        data = bytearray((run / name).read_bytes())
        data[place] ^= 1
        (run / name).write_bytes(data)

    return change


def edit(name, old, new):
    def change(run):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new, 1))

    return change


def reverse_titles(run):
    facts = json.loads((run / "catalogue.json").read_text())
    facts["catalogue"]["titles"][1:] = facts["catalogue"]["titles"][:0:-1]
    (run / "catalogue.json").write_text(json.dumps(facts))


COPY = "put it back from a copy"
# Of a finished run → words of the refusal: of the command, and of `user_llm.load`.
DAMAGED = {
    "config lost": (lost("config.json"), "holds a run that has lost its config.json"),
    "config cut": (cut("config.json"), "config.json is damaged"),
    "config empty": (cut("config.json", 0), "config.json is damaged"),
    "config a list": (lambda run: write(run / "config.json", "[]"), "config.json is damaged"),
    "rope_theta edited": (edit("config.json", '"rope_theta": 1', '"rope_theta": 2'), "config.json has changed"),
    "width edited": (edit("config.json", '"width": 16', '"width": 64'), "config.json has changed"),
    "catalogue cut": (cut("catalogue.json"), COPY),
    "catalogue lost": (lost("catalogue.json"), COPY),
    "titles reversed": (reverse_titles, COPY),
    "vocabulary flipped": (flip("vocabulary/tokenizer.model"), COPY),
    "vocabulary lost": (lost("vocabulary/tokenizer.model"), COPY),
    "checksums lost": (lost("checksums.json"), COPY),
    "checksums cut": (cut("checksums.json"), "checksums.json is damaged"),
    "results cut": (cut("results.json"), "delete"),
    "results flipped": (flip("results.json"), "delete"),
    "predictions flipped": (flip("predictions.jsonl"), "delete"),
    "environment flipped": (flip("environment.json"), "delete"),
    "exported weights flipped": (flip("llm/huggingface/model.safetensors"), "delete"),
    "exported weights lost": (lost("llm/huggingface/model.safetensors"), "delete"),
}
ONLY_THE_COMMAND = ("results", "predictions", "environment", "exported")  # reads these; `load` does not


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_run_is_named_and_not_used(fault, mini, copied, tmp_path):
    damage, words = DAMAGED[fault]
    damage(copied)
    before = everything(copied)
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(1, words, str(copied))
    assert everything(copied) == before
    if not fault.startswith(ONLY_THE_COMMAND):
        with pytest.raises(UserError):
            user_llm.load(copied)


def test_a_lost_config_is_not_replaced_by_another_seed_s(mini, copied, tmp_path):
    (copied / "config.json").unlink()
    for name in ("results.json", "predictions.jsonl"):
        (copied / name).unlink()
    train(*mini, f"--workdir={copied}", "--config.seed=7", folder=tmp_path).check(1, "lost its config.json")


def test_what_is_deleted_is_made_again(mini, finished, copied, tmp_path):
    for name in ("results.json", "environment.json"):
        (copied / name).unlink()
    shutil.rmtree(copied / "llm/huggingface")
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(0)
    assert results(copied) == results(finished)
    for name in ("predictions.jsonl", "llm/huggingface/model.safetensors"):
        assert (copied / name).read_bytes() == (finished / name).read_bytes()


def step_file(run: Path, step: int) -> Path:
    """The largest file of a step of the encoder."""
    return max((run / "encoder/checkpoints" / str(step)).rglob("*"), key=lambda path: path.stat().st_size)


def test_an_intact_earlier_checkpoint_is_used_when_the_newest_is_damaged(mini, finished, copied, tmp_path):
    (copied / "results.json").unlink()
    steps = sorted(int(path.name) for path in (copied / "encoder/checkpoints").iterdir())
    assert steps == [12, 18]
    path = step_file(copied, 18)
    path.write_bytes(path.read_bytes()[:-9])
    done = train(*mini, f"--workdir={copied}", folder=tmp_path)
    done.check(0, str(path), "step 12 is intact", "encoder: restored step 12 of 18")
    assert results(copied) == results(finished)
    assert (copied / "encoder/damaged/18").is_dir()


def test_the_only_checkpoint_damaged_is_refused_by_name(mini, copied, tmp_path):
    (copied / "results.json").unlink()
    shutil.rmtree(copied / "encoder/checkpoints/12")
    path = step_file(copied, 18)
    path.unlink()
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(1, f"{path} is missing", f"delete {copied / 'encoder'}")


def test_a_step_beyond_the_last_is_refused(mini, copied, tmp_path):
    (copied / "results.json").unlink()
    shutil.copytree(copied / "encoder/checkpoints/18", copied / "encoder/checkpoints/50")
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(1, "50 is no step of this run, which ends at 18")


def test_a_second_start_ends_at_once_and_names_the_first(mini, tmp_path):
    workdir = tmp_path / "w"
    with owned(workdir):
        words = f"{workdir} is in use by process {os.getpid()} on {socket.gethostname()}"
        train(*mini, f"--workdir={workdir}", folder=tmp_path).check(75, words)


def test_what_was_borrowed_may_move_but_not_change(mini, finished, tmp_path):
    moved, workdir = tmp_path / "moved", tmp_path / "w"
    first = shutil.copytree(finished / "llm/huggingface", tmp_path / "first")
    flags = [*mini, f"--workdir={workdir}", "--config.stages=('user_llm',)", "--config.encoder.init=random"]
    train(*flags, f"--config.llm.checkpoint={first}", folder=tmp_path).check(0)
    before = results(workdir)
    (workdir / "results.json").unlink()
    first.rename(moved)
    with pytest.raises(UserError, match="no such"):
        user_llm.load(workdir)
    train(*flags, f"--config.llm.checkpoint={moved}", folder=tmp_path).check(0)
    assert results(workdir) == before
    user_llm.load(workdir)
    flip("model.safetensors", -1)(moved)
    words = "model.safetensors is another"
    with pytest.raises(UserError, match=words):
        user_llm.load(workdir)
    (workdir / "results.json").unlink()
    train(*flags, f"--config.llm.checkpoint={moved}", folder=tmp_path).check(1, words)


def test_an_ascii_terminal_gets_an_ascii_table(mini, finished, tmp_path):
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = train(*mini, f"--workdir={finished}", folder=tmp_path, env=plain)
    done.check(0, "+-", "User-LLM")
