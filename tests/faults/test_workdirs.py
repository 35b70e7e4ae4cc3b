"""A workdir is owned: foreign files are left alone, a damaged run is named, two starts never meet."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest

import user_llm
from tests.faults.harness import REPOSITORY, results, train
from user_llm.checksums import checksum, write_signed
from user_llm.columns import Texts
from user_llm.errors import UserError
from user_llm.experiment.workdir import read_config
from user_llm.locks import owned


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


# What is there before → words of the refusal. `W` is the workdir.
FOREIGN = {
    "g3w_foreign, notes": (lambda w: write(w / "vocabulary/mine.txt", "mine"), "files of somebody else (vocabulary)"),
    "g3w_foreign, a catalogue": (lambda w: write(w / "catalogue/title_bytes.npy", "mine"), "files of somebody else"),
    "g3w_hfconfig": (
        lambda w: write(w / "config.json", '{"architectures": ["LlamaForCausalLM"]}'),
        "no config of a run",
    ),
    "a hidden file": (lambda w: write(w / ".bashrc", "mine"), "files of somebody else (.bashrc)"),
    "g3w_file": (lambda w: write(w, "mine"), "is a file"),
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
def test_g3w_gs_an_address_is_no_folder(address, mini, tmp_path):
    train(*mini, f"--workdir={address}", folder=tmp_path).check(1, f"--workdir={address}", "is an address")
    assert not (REPOSITORY / address.partition("/")[0]).exists()


def test_g3r_enc_dims_fixed_a_failed_start_claims_nothing_and_its_debris_is_cleared(mini, tmp_path):
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


def test_g6_load_foreign_a_folder_that_is_no_run_is_not_loaded(tmp_path):
    write(tmp_path / "config.json", '{"architectures": ["LlamaForCausalLM"]}')
    with pytest.raises(UserError, match="no config of a run"):
        user_llm.load(tmp_path)


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


def change_titles(change):
    def damage(run):
        folder = run / "catalogue"
        Texts.of(change(list(Texts.open(folder, "title")))).save(folder, "title")

    return damage


def set_key(key, value):
    """Edits config.json; None deletes."""

    def damage(run):
        config = json.loads((run / "config.json").read_text())
        *groups, last = key.split(".")
        group = config
        for name in groups:
            group = group[name]
        if value is None:
            del group[last]
        else:
            group[last] = value
        (run / "config.json").write_text(json.dumps(config, indent=2))

    return damage


def swap_tokenizer(run):
    shutil.copy(run / "llm/huggingface/config.json", run / "vocabulary/tokenizer.model")


EDITED = "config.json"
COPY = "put it back from a copy"
# Of a finished run → words of the refusal: of the command, and of `user_llm.load`.
DAMAGED = {
    "g4r_cfg_del": (lost("config.json"), "holds a run that has lost its config.json"),
    "g4r_cfg_trunc, g4_load_cfg_trunc": (cut("config.json"), "config.json is damaged"),
    "g3w_empty_cfg, g4_load_cfg_empty": (cut("config.json", 0), "config.json is damaged"),
    "g4_load_cfg_list": (lambda run: write(run / "config.json", "[]"), "config.json is damaged"),
    "g4_load_cfg_nokey": (set_key("encoder", None), EDITED),
    "g4_load_cfg_rope": (set_key("llm.rope_theta", 2.0), EDITED),
    "g4_load_cfg_width": (set_key("encoder.width", 64), EDITED),
    "g4_load_cfg_heads": (set_key("llm.num_heads", 4), EDITED),
    "g4_load_cfg_hist0": (set_key("data.history_length", 0), EDITED),
    "g4_load_cfg_hist40": (set_key("data.history_length", 40), EDITED),
    "g4_load_cfg_layers, g4_load_cfg_layers4": (set_key("llm.num_layers", 4), EDITED),
    "g4_load_cfg_neg": (set_key("encoder.width", -16), EDITED),
    "g4r_catalogue_garb": (lambda run: write(run / "catalogue/facts.json", "{]"), COPY),
    "g4_load_cat_trunc": (cut("catalogue/title_bytes.npy"), COPY),
    "g4_load_cat_missing": (lost("catalogue/title_offsets.npy"), COPY),
    "g4_load_cat_short": (change_titles(lambda titles: titles[:10]), COPY),
    "g4_load_cat_swapped": (change_titles(lambda titles: [titles[0], *titles[:0:-1]]), COPY),
    "vocabulary flipped": (flip("vocabulary/tokenizer.model"), COPY),
    "g4_load_tok_other, g4_load_tok_big": (swap_tokenizer, COPY),
    "g4_load_tok_missing": (lost("vocabulary/tokenizer.model"), COPY),
    "checksums lost": (lost("checksums.json"), COPY),
    "checksums cut": (cut("checksums.json"), "checksums.json is damaged"),
    "g4r_results_trunc": (cut("results.json"), "delete"),
    "g4r_results_empty": (cut("results.json", 0), "delete"),
    "g4r_results_wrong": (lambda run: write(run / "results.json", '{"a": 1}'), "delete"),
    "results flipped": (flip("results.json"), "delete"),
    "predictions flipped": (flip("predictions.jsonl"), "delete"),
    "environment flipped": (flip("environment.json"), "delete"),
    "exported weights flipped": (flip("llm/huggingface/model.safetensors"), "delete"),
    "exported weights lost": (lost("llm/huggingface/model.safetensors"), "delete"),
}
ONLY_THE_COMMAND = ("g4r_results", "results", "predictions", "environment", "exported")  # reads these; `load` does not


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


def test_a_run_of_before_a_key_was_there_has_its_default(mini, finished, copied, tmp_path):
    for key in ("integration.within_catalogue", "integration.rates"):
        set_key(key, None)(copied)
    signed = json.loads((copied / "checksums.json").read_text())
    signed.pop("digest")
    signed["files"]["config.json"] = checksum(copied / "config.json")
    write_signed(copied / "checksums.json", signed)
    assert read_config(copied) == read_config(finished)
    assert user_llm.load(copied).config == user_llm.load(finished).config
    before = (copied / "results.json").read_bytes()
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(0)
    assert (copied / "results.json").read_bytes() == before


def test_g4r_cfg_del_otherseed_a_lost_config_is_not_replaced_by_another_seed_s(mini, copied, tmp_path):
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


def test_g4r_ckpt_newest_trunc_an_intact_earlier_checkpoint_is_used(mini, finished, copied, tmp_path):
    (copied / "results.json").unlink()
    steps = sorted(int(path.name) for path in (copied / "encoder/checkpoints").iterdir())
    assert steps == [12, 18]
    path = step_file(copied, 18)
    path.write_bytes(path.read_bytes()[:-9])
    done = train(*mini, f"--workdir={copied}", folder=tmp_path)
    done.check(0, str(path), "step 12 is intact", "encoder: restored step 12 of 18")
    assert results(copied) == results(finished)
    assert (copied / "encoder/damaged/18").is_dir()


def test_g4r_ckpt_newest_paramsgone_the_only_checkpoint_damaged_is_refused_by_name(mini, copied, tmp_path):
    (copied / "results.json").unlink()
    shutil.rmtree(copied / "encoder/checkpoints/12")
    path = step_file(copied, 18)
    path.unlink()
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(1, f"{path} is missing", f"delete {copied / 'encoder'}")


def test_g4r_ckpt_future_a_step_beyond_the_last_is_refused(mini, copied, tmp_path):
    (copied / "results.json").unlink()
    shutil.copytree(copied / "encoder/checkpoints/18", copied / "encoder/checkpoints/50")
    train(*mini, f"--workdir={copied}", folder=tmp_path).check(1, "50 is no step of this run, which ends at 18")


def test_a_second_start_ends_at_once_and_names_the_first(mini, tmp_path):
    workdir = tmp_path / "w"
    with owned(workdir):
        words = f"{workdir} is in use by process {os.getpid()} on {socket.gethostname()}"
        train(*mini, f"--workdir={workdir}", folder=tmp_path).check(75, words)


def test_g4m_swapped_g4m_load_moved_what_was_borrowed_may_move_but_not_change(mini, finished, tmp_path):
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


def test_g5_ascii_stdout_an_ascii_terminal_gets_an_ascii_table(mini, finished, tmp_path):
    plain = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    done = train(*mini, f"--workdir={finished}", folder=tmp_path, env=plain)
    done.check(0, "+-", "User-LLM")


def best(run: Path) -> Path:
    """The step of the contextualised LLM that `load` reads."""
    steps = (run / "user_llm/checkpoints").iterdir()
    return max(steps, key=lambda step: (json.loads((step / "metrics/metrics").read_text())["keep_best"], step.name))


def a_file(step: Path, pattern: str) -> Path:
    return max(step.glob(pattern), key=lambda path: path.stat().st_size)


def half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def encoder_in_its_place(run: Path, step: Path) -> None:
    shutil.rmtree(step)
    shutil.copytree(run / "encoder/checkpoints/18", step)


# Of the best step → what its refusal names.
CHECKPOINTS = {
    "g4_load_ckpt_data_del": lambda run, step: a_file(step, "parameters/**/d/*").unlink(),
    "g4_load_ckpt_data_flip, g4r_ckpt_params_flip": lambda run, step: bit(a_file(step, "parameters/**/d/*")),
    "g4_load_ckpt_data_trunc, g4r_ckpt_trunc": lambda run, step: half(a_file(step, "parameters/**/d/*")),
    "g4_load_ckpt_enc_in_ull": encoder_in_its_place,
    "g4_load_ckpt_manifest_del": lambda run, step: a_file(step, "parameters/manifest.ocdbt").unlink(),
    "g4_load_ckpt_meta_garbage": lambda run, step: write(a_file(step, "parameters/_METADATA"), "garbage"),
    "g4_load_ckpt_metrics_garbage, g4r_ckpt_metricgarb": lambda run, step: write(step / "metrics/metrics", "garb"),
    "g4_load_ckpt_params_del": lambda run, step: shutil.rmtree(step / "parameters"),
    "g4r_ckpt_notegarb": lambda run, step: write(a_file(step, "note/*"), "garbage"),
    "g4r_ckpt_notegone": lambda run, step: shutil.rmtree(step / "note"),
    "checksums garbled": lambda run, step: write(run / f"user_llm/checksums/{step.name}.json", "{}"),
}


@pytest.mark.parametrize("fault", CHECKPOINTS)
def test_a_damaged_checkpoint_is_named_where_it_is_loaded(fault, copied):
    step = best(copied)
    CHECKPOINTS[fault](copied, step)
    with pytest.raises(UserError) as refused:
        user_llm.load(copied)
    assert str(step) in str(refused.value) or f"checksums/{step.name}.json" in str(refused.value)
