"""Wrong configs and flags of `user_llm.main`: each is refused before anything is built or written."""

import shlex

import pytest

from tests.faults.harness import train

FILE = "--config=configs/simulated.py"
HERE = "--workdir=F/w --config.data.data_dir=F/data"
USERS = "--config.data.simulated.num_users=2000000000 --config.data.simulated.mean_events=2000000000"

# What stands in F/mine.py (for `--config=F/mine.py`), and what is said of it.
FILES = {
    "g3d_cfg_syntax": ("def get_config(:\n", "mine.py: line 1: SyntaxError: "),
    "g3d_cfg_nul": ("a = 1\n\0\n", "SyntaxError: ", "cannot contain null bytes"),
    "not UTF-8": (b"name = '\xff'\n", "SyntaxError: "),
    "g3d_cfg_importerr": ("\nimport nonexistentmod\n", "mine.py: line 2: ModuleNotFoundError: No module named 'non"),
    "an unknown name": ("config = base\n", "mine.py: line 1: NameError: name 'base' is not defined"),
    "g3d_cfg_raises": ("def get_config():\n    return 1 / 0\n", "mine.py: line 2: ZeroDivisionError: division"),
    "it ends the program": ("exit(3)\n", "mine.py: line 1: SystemExit: 3"),
    "it reads a file": ("\nopen('/no/such')\n", "mine.py: line 2: FileNotFoundError: "),
    "g3d_cfg_empty": ("", "it has no function get_config"),
    "g3d_cfg_noget": ("def config(): ...\n", "it has no function get_config"),
    "get_config is no function": ("get_config = 3\n", "it has no function get_config"),
    "g3d_cfg_none": ("def get_config(): ...\n", "get_config returns nothing, expected a ConfigDict"),
    "a dict": ("def get_config(): return {}\n", "get_config returns a dict, expected a ConfigDict"),
    "g3d_cfg_missingkeys": (
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'seed': 0})\n",
        "it lacks compute.dtype, compute.frozen_dtype, compute.mesh.data and ",
    ),
    "g3d_cfg_wrongtype": (
        "config.encoder.width = '64'\n",
        "mine.py: line 3: TypeError: Could not override field 'width'",
    ),
    "another type, unchecked by ConfigDict": (
        "with config.ignore_type(): config.encoder.width = '64'\n",
        "config.encoder.width='64': expected a whole number, as in --config.encoder.width=128",
    ),
    "a bool for a number": (
        "with config.ignore_type(): config.encoder.width = True\n",
        "config.encoder.width=True: expected a whole number",
    ),
    "a group becomes a value": (
        "with config.unlocked(), config.ignore_type(): config.encoder = 3\n",
        "config.encoder: it is a group of keys; set one of them, as in --config.encoder.",
    ),
    "a value becomes a group": (
        "with config.unlocked(), config.ignore_type(): config.seed = dict(a=1)\n",
        "config.seed.a: no such key",
    ),
    "g3d_cfg_extrakey": (
        "with config.unlocked(): config.encoder.witdh = 64\n",
        "config.encoder.witdh: no such key; did you mean config.encoder.width?",
    ),
    "an unknown key, locked": ("config.encoder.witdh = 64\n", "mine.py: line 3: AttributeError: ", "width"),
    "a stage of another name": (
        "with config.unlocked(): config.training.decoder = schema.training()\n",
        "config.training.decoder.steps: no such key",
    ),
}
_BODY = "from user_llm import schema\ndef get_config(config=schema.get_config()):\n    {}    return config\n"

# Arguments → what is said of them. All of `user_llm.main --config=configs/simulated.py`, where nothing else is named.
FLAGS = {
    "no config": ("--workdir=F/w", "name an experiment: --config=simulated"),
    "g3d_two_configs": (
        f"{FILE} --config=configs/ml20m.py",
        "--config=configs/ml20m.py is the second config",
    ),
    "two, one with a space": (f"{FILE} --config configs/efficiency.py", "is the second config"),
    "g3d_colon_ml20m": (
        "--config=configs/ml20m.py:x:y",
        "--config=configs/ml20m.py:x:y: 'x:y' is no task of ml20m: expected one of next_item, favorite_category",
    ),
    "a colon for nothing": ("--config=configs/efficiency.py:x", "takes nothing behind a colon; override keys instead"),
    "no such file": ("--config=configs/simulate.py", "no such config file; there is configs/amazon.py"),
    "a folder": ("--config=configs", "no such config file"),
    "a flag file that is not there": ("--flagfile=F/none", "F/none"),
    "an unknown key in a flag file": ("--flagfile=F/flags", "did you mean config.encoder.width?"),
    "g3d_alpha": (f"{FILE} --config.lora.alpha=inf", "config.lora.alpha=inf: expected at least 0.0 that 32 bits hold"),
    "g3d_clip": (f"{FILE} --config.training.encoder.clip_norm=inf", "clip_norm=inf: expected at least 0.0"),
    "g3d_wd": (f"{FILE} --config.training.encoder.weight_decay=inf", "weight_decay=inf: expected at least 0.0"),
    "g3d_rope": (f"{FILE} --config.llm.rope_theta=inf", "rope_theta=inf: expected at least 1.0"),
    "too large for a float": (f"{FILE} --config.lora.alpha=1e400", "config.lora.alpha=inf: expected"),
    "too large for 32 bits": (f"{FILE} --config.lora.alpha=1e39", "config.lora.alpha=1e+39: expected"),
    "not a number": (f"{FILE} --config.llm.rope_theta=nan", "config.llm.rope_theta=nan: expected at least 1.0"),
    "less than nothing": (f"{FILE} --config.training.encoder.learning_rate=-inf", "learning_rate=-inf: expected at"),
    "g3r_bigsteps": (f"{FILE} --config.training.encoder.steps=99999999999999999999", "at least 1 that 32 bits hold"),
    "a number of 5,000 digits": (f"{FILE} --config.seed={'9' * 5000}", "expected a whole number"),
    "devices without end": (f"{FILE} --config.compute.mesh.data={10**30}", "expected a number of devices"),
    "g3r_data_malformed": (f"{FILE} --config.data.max_malformed=1.0", "expected between 0.0 and 0.99"),
    "g3r_random_init_ckpt": (
        f"{FILE} --config.encoder.init=random --config.encoder.checkpoint=F/run",
        "config.encoder.checkpoint='F/run' is not read with config.encoder.init='random': leave one of the two out",
    ),
    "a checkpoint for no encoder": (
        f"{FILE} --config.integration.kind=none --config.data.text_history=5 --config.encoder.checkpoint=F/run",
        "is not read with config.integration.kind='none'",
    ),
    "g3r_none_nohist": (
        f"{FILE} --config.integration.kind=none",
        "config.integration.kind='none' reads a user from the prompt",
        "set --config.data.text_history",
    ),
    "free beams, but none": (
        f"{FILE} --config.evaluation.answers=exact --config.evaluation.constrained=false",
        "config.evaluation.constrained=False is for beams",
    ),
    "rates that overflow": (
        f"{FILE} --config.task=next_item,favorite_category --config.task_rates=({'9' * 400},1)",
        "expected a number above 0 for each of next_item, favorite_category",
    ),
    "a bucket": (f"{FILE} --config.data.data_dir=gs://b/x", "config.data.data_dir=gs://b/x: gs:// is an address"),
    "a bucket of raw files": (f"{FILE} --config.data.raw_path=s3://b/x.zip", "s3:// is an address", "mount the bucket"),
    "a cluster's file": (f"{FILE} --config.llm.checkpoint=hdfs://n/llama", "hdfs:// is an address"),
    "a path that is no name": (f"{FILE} --config.llm.vocabulary={'a' * 5000}", "File name too long"),
    "several at once": (
        f"{FILE} --config.encoder.width=0 --config.strategy=al",
        "2 values cannot be used",
        "config.encoder.width=0",
        "config.strategy='al'",
    ),
}

# Found once the program has begun: status 1.
LATER = {
    "g3d_dry_audit": (f"{FILE} --dry_run --audit", "--dry_run and --audit", "name one of them"),
    "g3d_gin2": (f"{FILE} --dry_run --gin=Host.tensorboard=x", "--gin=Host.tensorboard=x: "),
    "g3d_gin3": (f"{FILE} --dry_run --gin==", "--gin==: "),
    "no gin file": (f"{FILE} --dry_run --gin_file=F/none.gin", "--gin_file=F/none.gin: "),
    "g3r_gin_neg": (
        f"{FILE} --dry_run --gin=Host.reader_threads=-3",
        "Host.reader_threads=-3, of --gin or --gin_file: expected a whole number of at least 0",
    ),
    "g3r_gin_threads": (f"""{FILE} --dry_run '--gin=Host.reader_threads="x"'""", "Host.reader_threads='x', of --gin"),
    "g3r_bs_huge": (
        f"{FILE} {HERE} --config.training.encoder.batch_size=2000000000",
        "batch_size=2000000000, config.data.history_length=20, config.encoder.width=64: together they need",
    ),
    "g3r_bighuge": (
        f"{FILE} {HERE} --config.encoder.width=1000000",
        "config.encoder.num_layers=2, config.encoder.width=1000000: together they need",
    ),
    "users without end": (
        f"{FILE} {HERE} {USERS}",
        "config.data.simulated.num_users=2000000000, config.data.simulated.mean_events=2000000000: together they need",
    ),
    "layers without end": (
        f"{FILE} {HERE} --config.llm.num_layers=2000000000",
        "config.llm.num_layers=2000000000",
    ),
}

GOOD = {
    "a config": FILE,
    "overrides": f"{FILE} --config.encoder.width=128 --noconfig.data.validation --config.training.encoder.keep_best="
    " --config.training.user_llm.keep_best=",
    "a flag file": "--flagfile=F/good_flags",
    "a config of the package in a flag file": "--flagfile=F/named_flags",
    "a config of the package, with a space": "--config simulated:favorite_category",
    "TextPrompt": f"{FILE} --config.integration.kind=none --config.data.text_history=5",
    "a random encoder": f"{FILE} --config.encoder.init=random",
    "no clipping, no decay": f"{FILE} --config.training.llm.clip_norm=0 --config.training.llm.weight_decay=0",
    "gin": f"{FILE} --gin=Host.tensorboard=False --gin=Host.reader_threads=0 --gin_file=configs/gin/host.gin",
}


@pytest.fixture
def said(tmp_path):
    """Runs words of a command line with F for a scratch folder, and expects status and words, with F in them too."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    (tmp_path / "flags").write_text(f"{FILE}\n--config.encoder.widht=3\n")
    (tmp_path / "good_flags").write_text(f"{FILE}\n--config.encoder.width=32\n")
    (tmp_path / "named_flags").write_text("--config=simulated\n--config.encoder.width=32\n")

    def run(line, status, *words):
        arguments = [word.replace("F/", f"{tmp_path}/") for word in shlex.split(line)]
        train(*arguments, folder=tmp_path).check(status, *(word.replace("F/", f"{tmp_path}/") for word in words))

    return run


@pytest.mark.parametrize("fault", FILES)
def test_a_config_file_is_refused_with_its_line(fault, said, tmp_path):
    text, *words = FILES[fault]
    if isinstance(text, str) and text.startswith(("config.", "with config")):
        text = _BODY.format(text)
    (tmp_path / "mine.py").write_bytes(text if isinstance(text, bytes) else text.encode())
    said("--config=F/mine.py --workdir=F/w", 2, "error: --config=F/mine.py: ", *words)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("fault", FLAGS)
def test_flags_are_refused_in_words(fault, said):
    line, *words = FLAGS[fault]
    said(f"{line} --dry_run", 2, "error: ", *words)


@pytest.mark.parametrize("fault", LATER)
def test_what_is_found_later_is_refused_in_words(fault, said):
    line, *words = LATER[fault]
    said(line, 1, "error: ", *words)


@pytest.mark.parametrize("case", GOOD)
def test_what_is_right_is_taken(case, said):
    said(f"{GOOD[case]} --dry_run", 0, "stage encoder")
