"""Writes a task's examples to disk as SeqIO's own cache script does, but without Beam, in one process.

    python -m user_llm.seqio_road.cache --task=user_llm_movielens_20m_next_item --output_dir=CACHE

`seqio.add_global_cache_dirs(["CACHE"])` then lets `seqio.get_dataset(…, use_cached=True)` read them. Where Beam is
installed, SeqIO's script caches these tasks too, on many machines if need be:

    seqio_cache_tasks --module_import=user_llm.seqio_road.registered --tasks=NAME --output_cache_dir=CACHE
"""

import argparse
import contextlib
import importlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import seqio
import tensorflow as tf
import tqdm

from user_llm.errors import UserError
from user_llm.files import replacing
from user_llm.seqio_road.tasks import find


def write_cache(name: str, output_dir: Path, *, num_shards: int = 64) -> Path:
    """Caches a registered task, and returns its folder below `output_dir`.

    A cache that is cut short leaves nothing under the folder's name.

    Raises:
        UserError: no such task, a task without a place for a cache, or a folder that is there already.
    """
    task = find(name)
    if not isinstance(task, seqio.Task) or not task.supports_caching:
        raise UserError(f"{name!r} has nothing to cache: name a task whose preprocessors have CacheDatasetPlaceholder.")
    folder = Path(output_dir) / seqio.get_task_dir_from_name(name)
    if folder.exists():
        raise UserError(f"{folder} exists already: delete it to cache {name} anew, or name another --output_dir.")
    with replacing(folder) as partial:
        partial.mkdir()
        for split in task.splits:
            _write_split(task, split, partial, num_shards)
        (partial / "COMPLETED").touch()
    return folder


def _write_split(task: seqio.Task, split: str, folder: Path, num_shards: int) -> None:
    dataset = task.preprocess_precache(task.source.get_dataset(split=split, shuffle=False))
    stats = {"examples": 0}
    features = {name: {"shape": _open(spec), "dtype": spec.dtype.name} for name, spec in dataset.element_spec.items()}
    info = {"num_shards": num_shards, "features": features, "seqio_version": seqio.__version__}
    prefix = seqio.get_cached_tfrecord_prefix(str(folder), split)
    progress = tqdm.tqdm(dataset.as_numpy_iterator(), f"{task.name} {split}", task.num_input_examples(split), unit="")
    with contextlib.ExitStack() as stack:
        writers = [
            stack.enter_context(tf.io.TFRecordWriter(f"{prefix}-{shard:05d}-of-{num_shards:05d}"))
            for shard in range(num_shards)
        ]
        for number, example in enumerate(progress):
            # Shards are read one after the other: each has a stretch of the examples in turn.
            writers[number % num_shards].write(seqio.dict_to_tfexample(example).SerializeToString())
            _count(stats, example, task.output_features)
    for path, told in ((seqio.get_cached_info_path, info), (seqio.get_cached_stats_path, stats)):
        Path(path(str(folder), split)).write_text(json.dumps(told))


def _open(spec: tf.TensorSpec) -> list[int | None]:
    """A shape as SeqIO's script writes it: whatever is no scalar may be of any length."""
    return [None, *spec.shape.as_list()[1:]] if spec.shape.rank else []


def _count(stats: dict[str, int], example: Mapping[str, Any], features: Mapping[str, seqio.Feature]) -> None:
    """Adds an example to the statistics that SeqIO's script writes: tokens that are neither padding nor EOS."""
    stats["examples"] += 1
    for name, feature in features.items():
        vocabulary = feature.vocabulary
        tokens = int(np.sum((example[name] != vocabulary.pad_id) & (example[name] != vocabulary.eos_id)))
        stats[f"{name}_tokens"] = stats.get(f"{name}_tokens", 0) + tokens
        stats[f"{name}_max_tokens"] = max(stats.get(f"{name}_max_tokens", 0), tokens)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m user_llm.seqio_road.cache", description=__doc__.splitlines()[0])
    parser.add_argument("--task", required=True, help="name in SeqIO's registry")
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of caches; the task's is made in it")
    parser.add_argument("--num_shards", type=int, default=64, help="files a split, as many as readers may want")
    parser.add_argument(
        "--module_import", default="user_llm.seqio_road.registered", help="module that registers the task"
    )
    options = parser.parse_args(arguments)
    importlib.import_module(options.module_import)
    try:
        print(f"Written: {write_cache(options.task, options.output_dir, num_shards=options.num_shards)}")
    except UserError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
