"""A finished run as a folder that answers without this package and what it needs:

    user-llm export --workdir=RUN --out=FOLDER [--num_beams=20] [--batches=1,8,64] [--platforms=cpu,cuda,tpu]

The folder has the weights, the trie and the catalogue as safetensors, the tokenizer, a program for each batch, and
runtime.py, which reads it all. Programs are made for all platforms here, whether they are here or not.
"""

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import save_file
from tqdm import tqdm

from user_llm.api import UserModel, load
from user_llm.arguments import whole
from user_llm.errors import UserError, show
from user_llm.exported import runtime
from user_llm.exported.programs import Programs, lowered, reads, weights_of
from user_llm.files import replacing

PLATFORMS = ("cpu", "cuda", "tpu")
TASK = "next_item"


def export_run(
    model: UserModel, folder: Path, *, num_beams: int, batches: Sequence[int], platforms: Sequence[str]
) -> None:
    """Writes the folder.

    Raises:
      UserError: the folder is there; the run answers no next items, or reads users from texts.
    """
    if TASK not in model.tasks or model.config.integration.kind == "none" or model.config.data.text_history:
        raise UserError("only runs are exported whose LLM reads users as embeddings alone, and answers next_item")
    if folder.exists():
        raise UserError(f"{folder} is there already: name a new folder")
    trie = model.study.answer_trie(TASK)
    prompt, _, _ = model.study.prompts(TASK).build(np.zeros((1, 1), np.int32))
    weights, columns = weights_of(model.contextualised), trie.columns()
    within = model.config.integration.within_catalogue
    programs = Programs(model.contextualised, trie, model.tokenizer.eos_id, within_catalogue=within)
    of_program = {name: sorted(path for path in weights if reads(name, path)) for name in ("encode", "recommend")}
    events = [name for name, is_read in _features(model).items() if is_read]
    facts = {
        "format": 1,
        "name": model.config.name,
        "history_length": model.config.data.history_length,
        "num_beams": min(num_beams, trie.num_titles),
        "batches": sorted(batches),
        "platforms": list(platforms),
        "reads": events,
        "asked": model.events.reads_times == "asked",
        "ratings": list(model.events.ratings),  # by class, from 1
        "prompt": prompt[0].tolist(),
        "weights": of_program,
        "fingerprints": dict(zip(("encoder", "catalogue"), model.fingerprints, strict=True)),
        "jax": jax.__version__,
    }
    with replacing(folder) as partial:
        (partial / "programs").mkdir(parents=True)
        save_file(weights, partial / "weights.safetensors")
        save_file(columns, partial / "trie.safetensors")
        save_file(_catalogue(model), partial / "catalogue.safetensors")
        model.tokenizer.save(partial / "tokenizer")
        for name, program in tqdm(list(_lowered(programs, facts, weights, columns)), desc="programs", disable=None):
            (partial / "programs" / f"{name}.bin").write_bytes(program())
        (partial / "export.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        shutil.copyfile(runtime.__file__, partial / "runtime.py")
        for path in partial.glob("*.safetensors"):  # which safetensors lets nobody but us read
            shutil.copymode(partial / "export.json", path)


def _features(model: UserModel) -> dict[str, bool]:
    return {"item": True, "rating": model.events.reads_ratings, "ago": bool(model.events.reads_times)}


def _lowered(
    programs: Programs, facts: Mapping[str, Any], weights: Mapping[str, np.ndarray], trie: Mapping[str, np.ndarray]
) -> Iterator[tuple[str, Any]]:
    """The name of each program, and what makes it."""
    own = {name: {path: weights[path] for path in paths} for name, paths in facts["weights"].items()}
    prompt, platforms, num_beams = np.array(facts["prompt"], np.int32), facts["platforms"], facts["num_beams"]

    def recommend(weights, trie, users, prompt, closed):
        return programs.recommend(weights, trie, users, prompt, closed["excluded"], num_beams=num_beams)

    for size in facts["batches"]:
        items = np.zeros((size, facts["history_length"]), np.int32)
        history = dict.fromkeys(facts["reads"], items)
        users = jax.eval_shape(programs.encode, own["encode"], history)
        yield f"encode_{size}", lambda history=history: lowered(programs.encode, platforms, own["encode"], history)
        yield (
            f"recommend_{size}",
            lambda users=users, closed=items: lowered(
                recommend, platforms, own["recommend"], trie, users, prompt, {"excluded": closed}
            ),
        )


def _catalogue(model: UserModel) -> dict[str, np.ndarray]:
    """Texts of the items as one run of UTF-8 with offsets each."""
    columns = {}
    for name in ("titles", "raw_ids"):
        texts = [text.encode() for text in getattr(model.catalogue, name)]
        columns[f"{name}/bytes"] = np.frombuffer(b"".join(texts) or b"\0", np.uint8)
        columns[f"{name}/offsets"] = np.cumsum([0, *map(len, texts)], dtype=np.int64)
    return columns


def _sizes(text: str) -> list[int]:
    try:
        sizes = sorted({int(size) for size in text.split(",")})
    except ValueError:
        sizes = [0]
    if sizes[0] < 1:
        raise argparse.ArgumentTypeError("expected numbers of users with commas between them, as 1,8,64")
    return sizes


def _platforms(text: str) -> list[str]:
    names = text.split(",")
    if not set(names) <= set(PLATFORMS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(PLATFORMS)}")
    return names


def main(arguments: list[str]) -> int:
    """Runs the command; returns its exit status."""
    parser = argparse.ArgumentParser(
        prog="user-llm export", description="Writes a finished run as a folder that answers without this package."
    )
    parser.add_argument("--workdir", type=Path, required=True, help="folder of a finished run")
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--num_beams", type=int, help="beams, and so the most answers a user (evaluation.num_beams)")
    parser.add_argument("--batches", type=_sizes, default=[1, 8, 64], help="users at once, a program each (1,8,64)")
    parser.add_argument(
        "--platforms", type=_platforms, default=list(PLATFORMS), help="what programs run on (cpu,cuda,tpu)"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    try:
        if options.num_beams is not None:
            whole("--num_beams", options.num_beams, 1)
        model = load(options.workdir)
        num_beams = options.num_beams or model.config.evaluation.num_beams
        export_run(model, options.out, num_beams=num_beams, batches=options.batches, platforms=options.platforms)
    except Exception as error:
        return show(error, doing=f"{options.out} was not written")
    size = sum(path.stat().st_size for path in options.out.rglob("*") if path.is_file())
    print(f"{options.out}: {size / 2**20:.1f} MiB; {options.out}/runtime.py says how to use it")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
